"""Train a full-size policy on demonstrations: `python -m policies.training.train_vega`.

    python -m policies.training.train_vega --policy vega-7b --data libero_spatial --output outputs/vega-7b

--policy is a folder of `python -m policies.compose` or a published OpenVLA-OFT; --data a LeRobot v3 dataset, LIBERO's
HDF5 demonstrations or an RLDS export.  The world simulator is frozen and its tokens are computed once, into --tokens;
fusion, projectors and action head learn whole, language model and vision towers by LoRA.  L1 on chunks, images as
OpenVLA-OFT trains on them.  Out comes --output/policy, which `load_policy` loads; `policy/openvla` in it is merged, in
the published layout.  Run again, it goes on from its last state, on another number of processes too.

Several GPUs: `accelerate launch -m policies.training.train_vega ...`; --plan says what a run costs, and ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from policies.files.command_line import (
    add_seed,
    add_threads,
    command,
    command_parser,
    given,
    positive,
    refuse_idle,
    results_folder,
)
from policies.types import VegaError


def plan(options: argparse.Namespace) -> int:
    """Print what the run would cost at full size."""
    import torch

    from policies.training.vega.plan import NOT_COUNTED, make_plan

    if options.shard and options.gpus < 2:
        raise VegaError("One GPU has nobody to share weights with: leave --shard out, or give more --gpus.")
    among = options.gpus if options.shard else 1
    made = make_plan(
        options.lora_rank, options.micro, options.checkpointing,
        dtype=getattr(torch, options.dtype), among=among,
    )  # fmt: skip
    print(f"learning, counted: {made.learning / 1e6:.0f} M parameters, computed in {options.dtype}")
    whose, spread = (", the policy's", f" spread over {among}") if options.shard else ("", "")
    print(f"weights, counted: {made.weights / 1e9:.1f} GB on each GPU{whose}{spread}")
    if options.shard:
        print(f"weights that each GPU has whole at a time, counted: {made.gathered / 1e9:.1f} GB")
    print(f"gradients and AdamW, counted: {made.gradients_and_optimizer / 1e9:.1f} GB on each GPU{spread}")
    print(f"activations of {options.micro} samples, counted: {made.activations / 1e9:.1f} GB")
    print(f"in all: {made.gigabytes:.1f} GB on each GPU")
    step = made.operations_per_sample * options.batch
    print(f"a step of {options.batch} samples, counted: {step / 1e12:.0f} TFLOP")
    speed = options.gpus * options.gpu_tflops * 1e12
    on = f"on {options.gpus} GPUs at an assumed {options.gpu_tflops:g} TFLOP/s each"
    print(f"{options.steps} steps {on}: {step * options.steps / speed / 3600:.1f} h")
    frames, tokens = 1000, made.operations_per_frame * 1000
    print(f"tokens of {frames} frames of a camera, counted: {tokens / 1e12:.0f} TFLOP, {tokens / speed:.1f} s {on}")
    print(f"they are computed once and take {frames * made.bytes_per_frame / 1e9:.1f} GB on disk, counted")
    print(f"not counted: {NOT_COUNTED}; nothing here is measured")
    return 0


def train(options: argparse.Namespace) -> int:
    """Train, or go on."""
    import torch

    from policies.checkpoints import checkpoint_sha256, find_checkpoint, is_openvla, split_name
    from policies.openvla.config import part_files, read_policy_config
    from policies.training.optimisation import check_decided, decided, decisive
    from policies.training.vega.batches import Batches
    from policies.training.vega.demonstrations import ALL, EVENLY, EVERY, LEARNED, Samples, fingerprint, held_out
    from policies.training.vega.engine import device_of, open_engine
    from policies.training.vega.learner import VegaLearner
    from policies.training.vega.opening import asked_data_set, data_set_of, open_policy
    from policies.training.vega.publishing import check_place
    from policies.training.vega.readers import read_demonstrations
    from policies.training.vega.run import POLICY_FOLDER, STATE_FILE, Course, Run
    from policies.training.vega.tokens import TokenCache

    folder = find_checkpoint(options.policy)
    if not is_openvla(folder):
        raise VegaError(f"The policy '{options.policy}' is a small one: use `python -m policies.training.train_nano`.")
    results_folder(options.output)
    torch.set_num_threads(options.threads)
    course = Course(
        options.steps, options.batch, options.micro, options.lr, options.decay_step, options.warm_up,
        options.validate_every, options.save_every, options.publish_every,
    )  # fmt: skip
    engine = open_engine(options.device, options.dtype, 1)
    course.accumulation(engine.num_processes)
    torch.manual_seed(options.seed)  # the same first adapters in every process
    config = read_policy_config(folder)
    asked = asked_data_set(folder, config, options.dataset, split_name(options.policy)[1])
    key, tokens = data_set_of(folder, config, asked), options.tokens or options.output / "tokens"
    check_place(options.output / POLICY_FOLDER, (folder, *part_files(folder), options.data, tokens))
    demonstrations = read_demonstrations(options.data, config.cameras)
    # The courses that --steps, --decay-step and --warm-up give the learning rate may change as a run goes on.
    decides = {"--dataset": asked, "--data": fingerprint(demonstrations, config.cameras)[:12]}
    decides |= decisive(options, "holdout", "seed", "batch", "lr", "dtype") | {"--no-augment": not options.augment}
    check_decided(options.output / STATE_FILE, decides)  # before tokens are computed
    before, which = decided(options.output / STATE_FILE), "--holdout (which episodes)"
    # One that goes on keeps aside what it has not learned from; older states do not say how that was chosen.
    rule = EVENLY if before is None else str(before.get(which, EVERY))
    learned, kept = held_out(demonstrations, options.holdout, rule)
    decides[which] = rule
    # And it goes on by the numbers that it began with: older states by those of all episodes.
    whose_steps = "--dataset (statistics of which episodes)"
    decides[whose_steps] = scaled = LEARNED if before is None else str(before.get(whose_steps, ALL))
    policy, whose = open_policy(
        folder, config, key, demonstrations, learned if scaled == LEARNED else demonstrations, device_of(engine),
        options.dtype,
    )  # fmt: skip
    if engine.is_main_process:
        print(f"pictures of {', '.join(config.cameras)}; by the statistics '{key}' {whose}", flush=True)
    chunk = policy.model.info.chunk_length
    parts = [Samples(part, chunk) for part in (learned, kept) if part]
    # Apart from --data, by which states from before 2026-12 know of first pictures alone.
    decides["--data (its pictures)"] = "".join(part.fingerprint(policy.config.cameras)[:12] for part in parts)
    check_decided(options.output / STATE_FILE, decides)
    caches: list[TokenCache | None] = [None] * len(parts)
    if policy.world is not None:
        caches = [TokenCache(policy.world, part, tokens) for part in parts]
        if engine.is_main_process:
            size = sum(cache.gigabytes() for cache in caches if cache is not None)
            print(f"tokens of {sum(len(part.every_step()) for part in parts)} frames: {size:.3g} GB in all", flush=True)
        for cache in caches:
            assert cache is not None
            cache.compute(engine.process_index, engine.num_processes)
        engine.wait_for_everyone()
    learner = VegaLearner(policy, options.lora_rank, options.checkpointing).train()
    numbers = sum(parameter.numel() for _, parameter in learner.learning())
    if engine.is_main_process:
        print(
            f"{len(parts[0])} samples, {numbers / 1e6:.3g} M parameters learn, {engine.num_processes} processes",
            flush=True,
        )
        if not kept:
            print("no episode is held out: learned_l1 is of samples that it learns from", flush=True)
    batches = Batches(policy, parts[0], caches[0], options.seed, options.augment)
    aside = Batches(policy, parts[-1], caches[-1], options.seed, False)
    validation = aside.fixed(options.validation, options.micro)
    base = checkpoint_sha256(str(folder))
    Run(
        engine, policy, learner, batches, validation, options.output, base, decides, bool(kept), options.shard
    ).go(course)
    engine.end_training()
    return 0


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m policies.training.train_vega", __doc__, paragraphs=4)
    parser.add_argument("--policy", help="folder of a composed policy, published OpenVLA-OFT, or hub id")
    parser.add_argument("--data", type=Path, help="demonstrations")
    parser.add_argument("--output", type=Path, default=Path("outputs/vega"), help="folder to write")
    parser.add_argument(
        "--dataset", help="key of the statistics; one that is new is computed (default: the policy's own)"
    )
    parser.add_argument("--tokens", type=Path, help="folder of cached tokens (default: tokens/ in the output)")
    parser.add_argument("--steps", type=int, default=50_000, help="of the optimiser, in all")
    parser.add_argument("--batch", type=int, default=64, help="samples a step, over all processes")
    parser.add_argument("--micro", type=int, default=8, help="samples at once in one process")
    parser.add_argument("--lr", type=positive("--lr"), default=5e-4, help="learning rate")
    parser.add_argument("--decay-step", type=int, default=100_000, help="from here on a tenth of it")
    parser.add_argument("--warm-up", type=int, default=0, help="steps of a linear warm-up")
    parser.add_argument("--lora-rank", type=int, default=32, help="0: language model and towers stay as they are")
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="neither random crops nor colours")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, a third more operations")
    parser.add_argument("--shard", action="store_true", help="spread weights over the processes too (FSDP2)")
    parser.add_argument("--holdout", type=float, default=0.05, help="share of the episodes kept for validation")
    parser.add_argument("--validation", type=int, default=256, help="samples to validate with")
    parser.add_argument("--validate-every", type=int, default=1000, help="steps")
    parser.add_argument("--save-every", type=int, default=1000, help="steps")
    parser.add_argument(
        "--publish-every", type=int, default=0, help="steps after which the policy is written too; 0: only at the end"
    )
    add_seed(parser, 7, "of adapters and batches")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: as accelerate says")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
                        help="products are computed in; with float32 all weights are, too")  # fmt: skip
    add_threads(parser)
    parser.add_argument("--plan", action="store_true", help="only: what the run would cost at full size")
    parser.add_argument("--gpus", type=int, default=8, help="plan: GPUs")
    parser.add_argument(
        "--gpu-tflops", type=positive("--gpu-tflops"), default=300.0,
        help="plan: what one is assumed to reach, TFLOP/s",
    )  # fmt: skip
    options = parser.parse_args(argv)
    counts = (options.steps, options.batch, options.micro, options.gpus, options.validation,
              options.validate_every, options.save_every)  # fmt: skip
    if min(counts) < 1 or min(options.lora_rank, options.publish_every) < 0 or not 0 <= options.holdout < 0.5:
        raise VegaError("Steps, batches and GPUs count from above 0, and holdout is below 0.5: change them.")
    if options.plan:
        return plan(options)
    why = "is of --plan alone: processes are started by accelerate or torchrun, see docs/training.md."
    refuse_idle(given(parser, argv, options), ("gpus", "gpu_tflops"), why)
    if options.policy is None or options.data is None:
        raise VegaError("A training needs a policy and demonstrations: give --policy and --data.")
    return train(options)


if __name__ == "__main__":
    sys.exit(main())
