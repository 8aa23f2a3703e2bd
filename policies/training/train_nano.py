"""Train a small VegaPolicy on LeRobot v3 datasets: `python -m policies.training.train_nano --data DATASET ...`.

The average of the weights (EMA) is what is saved.  Goes on from its last checkpoint after any end, a kill included,
with the losses that an undisturbed run has.  `accelerate launch -m policies.training.train_nano ...` uses several GPUs.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from numpy.typing import NDArray
from torch import nn

from policies.checkpoints import find_small
from policies.files.command_line import (
    add_seed,
    add_threads,
    command,
    command_parser,
    finite,
    given,
    positive,
    refuse_idle,
)
from policies.files.paths import refuse_twice
from policies.fusion.gated_fusion import fusion_names
from policies.fusion.sources import open_source, same_source
from policies.nano.config import VegaConfig
from policies.nano.layers import TEXT_ENCODERS
from policies.nano.policy import load_vega_policy
from policies.nano.vocabulary import Vocabulary
from policies.training.curves import LOG, add_line, cut_log, draw
from policies.training.dataset import CAMERAS, Demonstrations
from policies.training.nano.building import KINDS, build_policy, check_sentences, chosen_source, learn_language
from policies.training.nano.hiding import hidden
from policies.training.nano.learner import PROGRESS_LOSSES, Learner
from policies.training.nano.world_tokens import CachedWorldTokens
from policies.training.optimisation import (
    LEFT_OUT,
    average_in,
    begin,
    begun_with,
    check_finite,
    decisive,
    going_on,
    save_state,
    set_learning_rate,
    smoothed,
)
from policies.types import VegaError

STATE_FILE = "training_state.pt"
TOLD_EVERY = 50  # steps
# Options that change nothing about a policy that exists.
OF_NEW = ("warm_start", "sentences", "text_encoder", "encoder_blocks", "remember", "normalise")
# Cross-attention has positions of one grid, of 16 x 16 unless told, and a small policy's cameras share one fusion:
# theirs are 20 x 20 and 12 x 12.
FUSIONS = [name for name in fusion_names() if name != "cross_attention"]


def evaluate(
    learner: Learner, demos: Demonstrations, rows: NDArray[np.int64], words: Vocabulary, device: torch.device,
    limit: int = 1024,
) -> dict[str, float]:  # fmt: skip
    """Mean of every part of the loss over some of `rows`, without augmentation."""
    rng = np.random.default_rng(0)
    index = rng.permutation(rows)[:limit]
    learner.eval()
    with torch.inference_mode():
        results = [
            learner(demos.batch(part, words, rng, augment=False).to(device))[1]
            for part in np.array_split(index, max(len(index) // 128, 1))
        ]
    learner.train()
    return {key: float(np.mean([float(r[key]) for r in results])) for key in results[0]}


class Training:
    """One training: its parts, and the state that survives a kill.

    label: before all that is said.  ahead: trainings like this one that come after it, whose time is told too.
    """

    label = ""
    ahead = 0.0

    def __init__(self, args: argparse.Namespace, blank: bool = False) -> None:
        """blank: generative tokens are not computed, to measure what a step costs."""
        self.args = args
        cpu = not torch.cuda.is_available()
        parts = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(mixed_precision="bf16", cpu=cpu, kwargs_handlers=[parts])
        # Before pictures are read, which takes long.
        known, warm = (
            None if name is None else load_vega_policy(find_small(name)) for name in (args.init, args.warm_start)
        )
        cameras = CAMERAS if known is None else known.config.cameras
        with self.accelerator.main_process_first():
            self.demos = Demonstrations(args.data, cameras, args.cache or args.output, base=args.base)
        self.rows, self.held_out = self.demos.split(args.hold_out)
        if not len(self.rows):
            raise VegaError("There is nothing to learn from: give more --data, or hold out less.")
        before = VegaConfig.load(args.output) if (args.output / STATE_FILE).exists() else None
        policy = build_policy(args, self.demos, known, chosen_source(args), self.rows, before, warm)
        names = ["hold_out", "seed", "batch", "lr", "drop_semantic", "mask_patches", "language_teacher"]
        names += ["progress_loss"] if policy.config.remembers else []
        names += ["base"] if self.demos.told_base else []
        self.decides = decisive(args, *names) | {"--data": self.demos.fingerprint, LEFT_OUT: self.demos.left_out}
        self.decides["number of processes"] = self.accelerator.num_processes  # each draws a batch of its own
        self.decides |= begun_with(known, warm)
        check_sentences(policy, self.demos)
        if args.language_teacher:
            learn_language(policy, self.demos, known is None)
        if policy.world is not None:
            # What several trainings share does not depend on the seed of one.
            seed = args.seed if args.cache is None else 0
            self.decides["--cache (seed of its tokens)"] = seed
            self.demos.world_tokens = CachedWorldTokens(
                policy.world, self.demos, args.cache or args.output, seed, policy.spec.stride, blank
            )  # fmt: skip
        self.words = policy.vocabulary
        self.learner = Learner(policy, args.progress_loss).to(self.accelerator.device)
        self.average = copy.deepcopy(self.learner)
        trained = [p for p in self.learner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98))
        self.step, self.seconds, self.running = 0, 0.0, dict[str, float]()
        self._read_back(optimizer)
        self.prepared, self.optimizer = self.accelerator.prepare(self.learner, optimizer)

    def _read_back(self, optimizer: torch.optim.Optimizer) -> None:
        path, log = self.args.output / STATE_FILE, self.args.output / LOG
        if path.exists():
            names = ("learner", "ema", "optimizer", "seconds", "running")
            with going_on(path, *names, decides=self.decides, device=self.accelerator.device) as state:
                self._check_same()
                self.learner.load_state_dict(state["learner"])
                self.average.load_state_dict(state["ema"])
                optimizer.load_state_dict(state["optimizer"])
                self.step, self.seconds, self.running = state["step"], state["seconds"], state["running"]
        if self.accelerator.is_main_process:
            cut_log(log, self.step)

    def _check_same(self) -> None:
        """Raise VegaError where the policy in the folder is composed in another way, its name aside."""
        before, now = VegaConfig.load(self.args.output), self.learner.policy.config
        for field in fields(now):
            if field.name != "name" and getattr(before, field.name) != getattr(now, field.name):
                raise VegaError(
                    f"The policy in {self.args.output} has another {field.name}: go on with the options and --data "
                    "that it began with, or give another --output, and what is there as --init."
                )
        world = self.learner.policy.world
        # Of the same shape, another world simulator would go unnoticed: its tokens would only mean something else.
        if before.world_simulator is not None and world is not None:
            kept = open_source(before.world_simulator.encoder, self.args.output / before.world_simulator.source)
            if not same_source(kept, world.source):
                raise VegaError(
                    f"The policy in {self.args.output} learned with another world simulator: go on with that, or give "
                    "another --output."
                )

    def run(self) -> None:
        args, demos = self.args, self.demos
        parameters = sum(p.numel() for p in self.learner.policy.parameters())
        self.say(
            f"{parameters / 1e6:.2f} M parameters, {len(self.rows)} rows, {len(self.held_out)} held out, "
            f"{len(demos.wordings.of)} sentences, from step {self.step} of {args.steps}"
        )
        if demos.left_out:
            self.say(demos.told())
        start, before = time.monotonic() - self.seconds, self.step
        while self.step < min(args.steps, args.until or args.steps):
            self.running = self.optimise()
            self.seconds = time.monotonic() - start
            if self.step % TOLD_EVERY == 0:
                left = self.seconds / self.step * (args.steps - self.step)
                text = " ".join(f"{key} {value:.4f}" for key, value in self.running.items())
                pace = self.step * args.batch * self.accelerator.num_processes / self.seconds
                whole = left + self.ahead * self.seconds / self.step * args.steps
                others = f", {whole / 3600:.1f} h of all" if self.ahead else ""
                self.say(f"{self.step}/{args.steps} {text} | {pace:.0f} rows/s, {left / 60:.1f} min left{others}")
            if (self.step % args.save_every == 0 or self.step == args.steps) and self.accelerator.is_main_process:
                self.save()
        if before >= args.steps:
            self.say("Nothing is left to do: give more --steps, or another --output.")

    def optimise(self) -> dict[str, float]:
        """One step; the parts of the loss, averaged over the last fifty or so."""
        args, learner = self.args, self.learner
        # Of the step alone, so that a training that goes on sees what it would have seen.
        rng = np.random.default_rng([args.seed, self.step, self.accelerator.process_index])
        set_learning_rate(self.optimizer, self.step, args.steps, args.lr, warm_up=300, floor=0.02)
        rows = self.rows[rng.integers(len(self.rows), size=args.batch)]
        batch = self.demos.batch(rows, self.words, rng, augment=True)
        # Drawn apart from the rest, which is the same in every arm of an experiment.
        own = np.random.default_rng([args.seed, self.step, self.accelerator.process_index, 1])
        batch.images = hidden(batch.images, own, args.drop_semantic, args.mask_patches)
        batch = batch.to(self.accelerator.device)
        with self.accelerator.autocast():
            loss, parts = self.prepared(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        check_finite(self.step + 1, float(loss.detach()), float(norm))
        self.optimizer.step()
        self.step += 1
        average_in(self.average, learner, self.step, longest=0.999)
        return smoothed(self.running, parts)

    def save(self) -> None:
        """The policy, the log and its picture, and last the state from which a training goes on."""
        args = self.args
        line: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1), "train": self.running}
        if len(self.held_out):
            rows, device = self.held_out, self.accelerator.device
            line["held_out"] = evaluate(self.average, self.demos, rows, self.words, device)
            self.say("held out: " + " ".join(f"{key} {value:.4f}" for key, value in line["held_out"].items()))
        add_line(args.output / LOG, line)
        self.average.policy.save_pretrained(args.output)
        draw(args.output)
        save_state(
            args.output / STATE_FILE,
            {
                "learner": self.learner.state_dict(),
                "ema": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "running": self.running,
            },
            self.decides,
        )

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(self.label + text, flush=True)


def check(args: argparse.Namespace) -> None:
    """Raise VegaError for numbers that make no sense, and for options that would change nothing."""
    refuse_twice(args.data)
    if args.init is not None:
        why = "is about a new policy, and --init names one that exists: leave one of them out."
        refuse_idle(args.given, OF_NEW, why)
    elif not args.remember:
        why = "is about what a policy remembers, and --no-remember makes one that does not: leave it out."
        refuse_idle(args.given, ("progress_loss",), why)
    if args.world_simulator is None and args.tokens != "imagenet":
        why = "is about tokens that are fused in anew: give --world-simulator, or leave it out."
        refuse_idle(args.given, ("fusion",), why)
    if min(args.steps, args.batch, args.save_every) < 1 or args.hold_out < 0:
        raise VegaError("--steps, --batch and --save-every count something: give numbers from 1 on.")
    if (args.until is not None and args.until < 1) or args.encoder_blocks < 0:
        raise VegaError("--until counts steps from 1 on, and --encoder-blocks from 0: give such numbers.")
    if args.hold_out == 1:
        raise VegaError("With --hold-out 1 every episode is held out: give 2 or more, or 0 to learn from all.")
    if not (0 <= args.drop_semantic < 1 and 0 <= args.mask_patches < 1):
        raise VegaError("--drop-semantic and --mask-patches are probabilities: give numbers from 0 to below 1.")


def open_training(args: argparse.Namespace, blank: bool = False) -> Training:
    """Checked and ready to `run`.  blank: see `Training`."""
    check(args)
    begin(args.seed, args.threads, args.output)
    return Training(args, blank)


def add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", type=finite("--base"), nargs=3, metavar=("X", "Y", "Z"),
        help="where the arm's base stands in the world, m, unturned, in datasets that do not say it",
    )  # fmt: skip


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("python -m policies.training.train_nano", __doc__, paragraphs=2)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of LeRobot v3 datasets")
    add_base(parser)
    parser.add_argument("--output", type=Path, default=Path("outputs/vega_nano"), help="checkpoint folder")
    parser.add_argument("--name", default="vega-nano", help="of the policy")
    parser.add_argument("--init", help="shipped name or checkpoint to start from, with its world simulator if any")
    parser.add_argument("--warm-start", help="shipped name or checkpoint whose weights a new policy takes that fit")
    parser.add_argument(
        "--sentences", type=Path, help="text file of what a new policy will be told later, besides those in --data"
    )
    parser.add_argument("--text-encoder", default="sequence", choices=sorted(TEXT_ENCODERS), help="of a new policy")
    parser.add_argument("--encoder-blocks", type=int, default=1, help="of each camera's encoder of a new policy")
    parser.add_argument(
        "--remember", action=argparse.BooleanOptionalAction, default=True,
        help="tell a new policy how far it believed to be when it decided last (default: --remember)",
    )  # fmt: skip
    parser.add_argument(
        "--progress-loss", default="bce", choices=sorted(PROGRESS_LOSSES),
        help="on that; with l1, as policies before 2026-12 learned, it never believes that anything is done",
    )  # fmt: skip
    parser.add_argument("--language-teacher", action="store_true", help="learn what sentences mean from MiniLM")
    parser.add_argument("--world-simulator", type=Path, help="folder of a world simulator, to be fused in anew")
    parser.add_argument(
        "--tokens", default="wan", choices=KINDS,
        help="what is fused in: the world simulator's tokens, what stands in their place (policies/fusion/sources.py), "
        "or nothing, with the trunk of a new policy widened to as many parameters",
    )  # fmt: skip
    parser.add_argument("--fusion", default="token_gate", choices=FUSIONS, help="how tokens meet")
    parser.add_argument("--steps", type=int, default=5000, help="optimisation steps in all")
    parser.add_argument("--until", type=int, metavar="STEP", help="stop there, as if killed (default: at the end)")
    parser.add_argument("--batch", type=int, default=128, help="rows per step")
    parser.add_argument("--lr", type=positive("--lr"), default=1e-3, help="peak learning rate")
    add_seed(parser, 7, "of weights and batches")
    add_threads(parser, default=2)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument(
        "--drop-semantic", type=float, default=0.0, metavar="P",
        help="hide a row's pictures from the semantic encoder with this probability, blurred or whole",
    )  # fmt: skip
    parser.add_argument(
        "--mask-patches", type=float, default=0.0, metavar="P", help="hide each patch from it with this probability"
    )
    parser.add_argument(
        "--normalise", default="learned", choices=("learned", "all"),
        help="a new policy's proprioception, by mean and deviation of the rows that are learned; all is as policies "
        "before 2026-12, by episodes that are held out or failed too",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, help="folder for pictures and tokens (default: --output)")
    parser.add_argument("--hold-out", type=int, default=0, metavar="N", help="learn nothing from every N-th episode")
    args = parser.parse_args(argv)
    args.given = given(parser, argv, args)
    return args


@command
def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    training = open_training(args)
    training.run()
    if training.step >= args.steps:
        training.say(f"The policy is in {args.output}: try it with python3 sim/run_libero.py --policy {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
