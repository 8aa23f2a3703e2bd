"""Train a small VegaPolicy on demonstrations: `python -m policies.training.train_nano`.

L1 on chunks of actions; beside it, where the grasp point is: per camera as a map over its tokens, and in the base
frame from the trunk.  The average of the weights (EMA) is what is saved.  Resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.checkpoints import is_openvla
from policies.files.command_line import command, command_parser, results_folder
from policies.fusion.gated_fusion import fusion_names
from policies.nano.config import VegaConfig, WorldViewConfig
from policies.nano.layers import SemanticEncoder
from policies.nano.policy import VegaPolicy, load_vega_policy
from policies.nano.vocabulary import Vocabulary
from policies.training.dataset import CAMERAS, CANVAS, Batch, Demonstrations
from policies.training.optimisation import save_state, set_learning_rate
from policies.training.wordings import vocabulary
from policies.training.world_tokens import CachedWorldTokens
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator

GROUNDING_WEIGHT, POINT_WEIGHT, TARGET_WEIGHT = 0.03, 0.2, 0.5


class Learner(nn.Module):
    """The policy and the heads that exist in training only."""

    def __init__(self, policy: VegaPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.target = nn.Linear(policy.config.trunk_width, 3)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        actions, hidden, grounding = self.policy(batch.images, batch.ids, batch.proprio, batch.f_gen)
        action = F.l1_loss(actions.float(), batch.actions)
        target = F.l1_loss(self.target(hidden.float()), batch.target)
        maps, points = torch.zeros(()), torch.zeros(())
        for camera, seen in grounding.items():
            labels, valid = token_targets(batch.points[camera], CAMERAS[camera].output_size)
            nll = -(labels * seen["map"].log_softmax(dim=-1)).sum(dim=-1)
            maps = maps + (nll * valid).sum() / valid.sum().clamp(min=1)
            size = torch.tensor(CAMERAS[camera].output_size) / SemanticEncoder.stride
            cell = (batch.points[camera].nan_to_num() + 0.5) / SemanticEncoder.stride - 0.5
            goal = cell / (size - 1) * 2 - 1
            points = points + ((seen["point"] - goal).abs().sum(-1) * valid).sum() / valid.sum().clamp(min=1)
            points = points + 0.1 * F.binary_cross_entropy_with_logits(seen["presence"].float(), valid)
        total = action + GROUNDING_WEIGHT * maps + POINT_WEIGHT * points + TARGET_WEIGHT * target
        parts = {"action": action, "map": maps, "point": points, "target_m": target}
        return total, {key: float(value.detach()) for key, value in parts.items()}


def token_targets(points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B, 2) pixels -> ((B, rows * cols) bilinear weights over the four nearest tokens, (B,) 1 where inside)."""
    rows, cols = size[0] // SemanticEncoder.stride, size[1] // SemanticEncoder.stride
    inside = torch.isfinite(points).all(1) & (points >= 0).all(1) & (points < torch.tensor(size)).all(1)
    cell = ((points.nan_to_num() + 0.5) / SemanticEncoder.stride - 0.5).clamp(min=0)
    y, x = cell[:, 0].clamp(max=rows - 1), cell[:, 1].clamp(max=cols - 1)
    y0, x0 = y.floor().long().clamp(max=rows - 2), x.floor().long().clamp(max=cols - 2)
    fy, fx = y - y0, x - x0
    labels = torch.zeros(len(points), rows * cols)
    for dy, dx, weight in ((0, 0, (1 - fy) * (1 - fx)), (0, 1, (1 - fy) * fx), (1, 0, fy * (1 - fx)), (1, 1, fy * fx)):
        labels.scatter_add_(1, ((y0 + dy) * cols + x0 + dx)[:, None], weight[:, None])
    return labels, inside.float()


def build_policy(
    demos: Demonstrations, name: str, simulator: LatentWorldSimulator | None, fusion: str, init: Path | None
) -> VegaPolicy:
    """A new policy; with `init` all weights that it shares with that checkpoint are taken from there."""
    words, things = vocabulary()
    mean, std = demos.proprio.mean(axis=0), demos.proprio.std(axis=0)
    config = VegaConfig(
        name=name,
        cameras=CAMERAS,
        words=words,
        things=things,
        proprio_mean=tuple(round(float(v), 6) for v in mean),
        proprio_std=tuple(round(float(max(v, 0.01)), 6) for v in std),
        world_simulator=WorldViewConfig("world_simulator", CANVAS, fusion) if simulator else None,
    )
    if init is None:
        return VegaPolicy(config, simulator)
    if is_openvla(init):
        raise VegaError(f"The policy in {init} has the full size: start from one that this command trained.")
    known = load_vega_policy(init)
    config = dataclasses.replace(known.config, name=name, world_simulator=config.world_simulator)
    policy = VegaPolicy(config, simulator)
    shared = {key: value for key, value in known.state_dict().items() if not key.startswith("world.")}
    policy.load_state_dict(shared | {k: v for k, v in policy.state_dict().items() if k.startswith("world.")})
    return policy


def evaluate(learner: Learner, demos: Demonstrations, words: Vocabulary, limit: int = 1024) -> dict[str, float]:
    """Mean of every part of the loss over frames of `demos`, without augmentation."""
    rng = np.random.default_rng(0)
    index = rng.permutation(len(demos))[:limit]
    learner.eval()
    with torch.inference_mode():
        results = [
            learner.loss(demos.batch(part, words, rng, augment=False))[1]
            for part in np.array_split(index, max(len(index) // 128, 1))
        ]
    learner.train()
    return {key: float(np.mean([r[key] for r in results])) for key in results[0]}


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    results_folder(args.output)
    paths = sorted(args.demos.glob("*[0-9].npz"))
    held_out = [p for p in paths if p.stem.endswith(f"block{args.holdout_block}")]
    demos = Demonstrations([p for p in paths if p not in held_out])
    validation = Demonstrations(held_out) if held_out else demos
    simulator = None
    if args.world_simulator:
        simulator = LatentWorldSimulator.from_pretrained(args.world_simulator, dtype=torch.float32)
    policy = build_policy(demos, args.name, simulator, args.fusion, args.init)
    if policy.world is not None:
        for part in (demos,) if validation is demos else (demos, validation):
            part.world_tokens = CachedWorldTokens(policy.world, part, args.output, args.seed)
    learner = Learner(policy)
    ema = copy.deepcopy(learner)
    words = policy.vocabulary
    optimizer = torch.optim.AdamW(learner.parameters(), lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98))
    state_path = args.output / "training_state.pt"
    first, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        learner.load_state_dict(state["learner"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    parameters = sum(p.numel() for p in policy.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(demos)} frames, {len(validation)} held out, from step {first}",
        flush=True,
    )
    start = time.monotonic() - spent
    running: dict[str, float] = {}
    for step in range(first, args.steps):
        rng = np.random.default_rng([args.seed, step])
        set_learning_rate(optimizer, step, args.steps, args.lr, warm_up=300, floor=0.02)
        batch = demos.batch(rng.integers(len(demos), size=args.batch), words, rng, augment=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, parts = learner.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            for average, new in zip(ema.parameters(), learner.parameters(), strict=True):
                average.lerp_(new, 1 - decay)
        running = {key: 0.98 * running.get(key, value) + 0.02 * value for key, value in parts.items()}
        done = step + 1
        if done % 50 == 0:
            seconds = time.monotonic() - start
            left = seconds / done * (args.steps - done)
            text = " ".join(f"{key} {value:.4f}" for key, value in running.items())
            print(
                f"{done}/{args.steps} {text} | {done * args.batch / seconds:.0f} samples/s, {left / 60:.1f} min left",
                flush=True,
            )
        if done % args.save_every == 0 or done == args.steps:
            held = evaluate(ema, validation, words)
            line = {"step": done, "seconds": round(time.monotonic() - start, 1), "train": running, "held_out": held}
            with (args.output / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print("held out:", " ".join(f"{key} {value:.4f}" for key, value in held.items()), flush=True)
            ema.policy.save_pretrained(args.output)
            save_state(
                state_path,
                {
                    "learner": learner.state_dict(),
                    "ema": ema.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                    "seconds": time.monotonic() - start,
                },
            )
    print(json.dumps(dataclasses.asdict(policy.config))[:200])


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m policies.training.train_nano", __doc__, paragraphs=2)
    parser.add_argument("--demos", type=Path, default=Path("data/demos"), help="folder of demonstrations")
    parser.add_argument("--output", type=Path, default=Path("outputs/vega_nano"), help="checkpoint folder")
    parser.add_argument("--name", default="vega-nano", help="of the policy")
    parser.add_argument("--init", type=Path, help="checkpoint folder to start from")
    parser.add_argument("--world-simulator", type=Path, help="folder of a world simulator, to be fused in")
    parser.add_argument("--fusion", default="token_gate", choices=fusion_names(), help="how tokens meet")
    parser.add_argument("--steps", type=int, default=5000, help="optimisation steps in all")
    parser.add_argument("--batch", type=int, default=128, help="chunks per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=7, help="of weights and batches")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument(
        "--holdout-block", type=int, default=-1, help="block of the demonstrations that is not trained on; -1: none"
    )
    train(parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
