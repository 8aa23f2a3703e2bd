"""A distillation: the frozen policy, the encoder that learns what its world simulator says, what survives a kill."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.checkpoints import checkpoint_sha256, find_small
from policies.fusion.distilled import DistilledConfig, DistilledEncoder
from policies.fusion.sources import NoiseTokens, OfSimulator
from policies.fusion.world_view import WorldView
from policies.nano.policy import VegaPolicy, load_vega_policy
from policies.training.curves import LOG, add_line, cut_log, draw
from policies.training.dataset import Demonstrations
from policies.training.nano.world_tokens import BLOCK, VARIANTS, CachedWorldTokens
from policies.training.optimisation import (
    LEFT_OUT,
    average_in,
    check_finite,
    decisive,
    going_on,
    save_state,
    set_learning_rate,
    smoothed,
)
from policies.types import VegaError
from policies.world_simulator.canvas import draw as on_canvas
from policies.world_simulator.simulator import LatentWorldSimulator

SOURCE = "world_encoder"  # folder of the checkpoint
STATE_FILE = "training_state.pt"
RECORD_FILE = "distilled.json"  # what it was made of, and how near it comes
TOLD_EVERY = 50  # steps
BLOCKS = 2  # of BLOCK frames of a camera, in a step
STATISTICS = 64  # blocks whose mean and deviation are taken
LEVEL = 1e-4  # of deviation, where a channel never changes


class Distillation:
    """One training: the frozen policy, the encoder, and the state that survives a kill."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, folder = args, find_small(args.policy)
        self.policy, self.sha256 = load_vega_policy(folder), checkpoint_sha256(str(folder))
        self.world = _teacher(self.policy, args.policy)
        if args.output.resolve() == folder.resolve():
            raise VegaError(f"The policy in {folder} would be overwritten: give another --output.")
        # Pictures alone are learned from: where the base stands does not matter.
        self.demos = Demonstrations(
            args.data, self.policy.config.cameras, args.cache or args.output, base=(0.0, 0.0, 0.0)
        )  # fmt: skip
        decides = {"--data": self.demos.fingerprint, LEFT_OUT: self.demos.left_out}
        self.decides = decisive(args, "hold_out", "seed", "lr") | decides
        learned, held_out = self.demos.split(args.hold_out)
        self.tokens = CachedWorldTokens(
            self.world, self.demos, args.cache or args.output, 0, self.policy.spec.stride
        )  # fmt: skip
        self.blocks, self.held_out = self._whole(learned), self._whole(held_out)
        if not self.blocks:
            raise VegaError("There is nothing to learn from: give more --data, or hold out less.")
        source = self.world.source
        self.encoder = DistilledEncoder(DistilledConfig(source.dim, source.frames_needed, args.width))
        self._take_statistics()
        self.average = copy.deepcopy(self.encoder)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=args.lr, weight_decay=0.02)
        self.step, self.seconds, self.running = 0, 0.0, dict[str, float]()
        path, log = args.output / STATE_FILE, args.output / LOG
        if path.exists():
            names = ("encoder", "average", "optimizer", "seconds", "running", "policy_sha256")
            with going_on(path, *names, decides=self.decides) as state:
                self._go_on(state)
        cut_log(log, self.step)

    def _go_on(self, state: dict[str, Any]) -> None:
        if state["policy_sha256"] != self.sha256:
            raise VegaError(f"In {self.args.output} another policy is being distilled: give another --output.")
        if len(state["encoder"]["layers.2.bias"]) != self.args.width:
            raise VegaError(f"The encoder in {self.args.output} has another --width: give that, or another --output.")
        for name in ("encoder", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds, self.running = state["step"], state["seconds"], state["running"]

    def _whole(self, rows: NDArray[np.int64]) -> list[tuple[slice, Tensor]]:
        """Blocks that have some of these rows, and which of their rows those are."""
        wanted = np.zeros(len(self.demos), bool)
        wanted[rows] = True
        blocks = [block for dataset in range(len(self.demos.datasets)) for block in self.tokens.blocks(dataset)]
        found = [(block, torch.from_numpy(np.flatnonzero(wanted[block]))) for block in blocks]
        return [(block, inside) for block, inside in found if len(inside)]

    def _take_statistics(self) -> None:
        """Mean and deviation of every channel, over both cameras."""
        every = -(-len(self.blocks) // STATISTICS)
        seen = [
            self.tokens.native(camera, 0, block)[rows].flatten(0, -2)
            for camera in self.world.cameras
            for block, rows in self.blocks[::every]
        ]
        tokens = torch.cat(seen)
        self.encoder.mean.copy_(tokens.mean(dim=0))
        self.encoder.std.copy_(tokens.std(dim=0).clamp_min(LEVEL))

    def parts(
        self, encoder: DistilledEncoder, camera: str, variant: int, block: slice, rows: Tensor
    ) -> dict[str, Tensor]:
        """How far the encoder is from a block's tokens: squared error (1: no better than their mean) and 1 - cosine."""
        wanted = self.tokens.native(camera, variant, block)[rows]
        wanted = (wanted - encoder.mean) / encoder.std
        frames = self.tokens.pictures(camera, variant, block)[rows]
        pictures = on_canvas(frames, self.world.cameras[camera].canvas, "registered", torch.float32)
        found = encoder.normalised(pictures).permute(0, 2, 3, 1)
        return {"error": F.mse_loss(found, wanted), "turned": (1 - F.cosine_similarity(found, wanted, dim=-1)).mean()}

    def optimise(self) -> None:
        args = self.args
        # Of the step alone, so that a training that goes on sees what it would have seen.
        rng = np.random.default_rng([args.seed, self.step])
        set_learning_rate(self.optimizer, self.step, args.steps, args.lr, warm_up=100, floor=0.02)
        cameras = [camera for camera in self.world.cameras for _ in range(BLOCKS)]
        variants, blocks = rng.integers(VARIANTS, size=len(cameras)), rng.integers(len(self.blocks), size=len(cameras))
        drawn = [
            self.parts(self.encoder, camera, int(variant), *self.blocks[block])
            for camera, variant, block in zip(cameras, variants, blocks, strict=True)
        ]
        parts = {name: torch.stack([part[name] for part in drawn]).mean() for name in drawn[0]}
        self.optimizer.zero_grad(set_to_none=True)
        loss = parts["error"] + parts["turned"]
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in self.encoder.parameters() if parameter.grad is not None]
        check_finite(self.step + 1, float(loss.detach()), float(nn.utils.get_total_norm(gradients)))
        self.optimizer.step()
        self.step += 1
        average_in(self.average, self.encoder, self.step, longest=0.995)
        self.running = smoothed(self.running, {name: value.detach() for name, value in parts.items()})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The parts over held-out frames as they are; empty without any."""
        every = -(-len(self.held_out) // STATISTICS) or 1
        found = [
            self.parts(self.average, camera, 0, block, rows)
            for camera in self.world.cameras
            for block, rows in self.held_out[::every]
        ]
        return {name: float(np.mean([float(part[name]) for part in found])) for name in found[0]} if found else {}

    def run(self) -> None:
        args, size = self.args, sum(p.numel() for p in self.encoder.parameters())
        told = f"{size / 1e6:.2f} M parameters, {len(self.blocks)} blocks of {BLOCK} frames"
        print(f"{told}, from step {self.step} of {args.steps}", flush=True)
        if self.demos.left_out:
            print(self.demos.told(), flush=True)
        if self.step >= args.steps:
            print("Nothing is left to do: give more --steps, or another --output.", flush=True)
        start = time.monotonic() - self.seconds
        while self.step < args.steps:
            self.optimise()
            self.seconds = time.monotonic() - start
            if self.step % TOLD_EVERY == 0:
                left = self.seconds / self.step * (args.steps - self.step) / 60
                text = " ".join(f"{key} {value:.4f}" for key, value in self.running.items())
                print(f"{self.step}/{args.steps} {text} | {left:.1f} min left", flush=True)
            if self.step % args.save_every == 0 or self.step == args.steps:
                self.save()

    def save(self) -> None:
        """The log and its picture, the policy, and last the state from which a training goes on."""
        output, held_out = self.args.output, self.evaluate()
        line = {"step": self.step, "seconds": round(self.seconds, 1), "train": self.running, "held_out": held_out}
        add_line(output / LOG, line)
        draw(output)
        distilled(self.policy, self.average).save_pretrained(output)
        record = {"policy": self.policy.config.name, "policy_sha256": self.sha256, "step": self.step, **held_out}
        (output / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
        if held_out:
            text = f"unexplained {100 * held_out['error']:.1f} %, cosine {1 - held_out['turned']:.3f}"
            print(f"held out: {text}", flush=True)
        parts = {name: getattr(self, name).state_dict() for name in ("encoder", "average", "optimizer")}
        further = {"step": self.step, "seconds": self.seconds, "running": self.running, "policy_sha256": self.sha256}
        save_state(output / STATE_FILE, {**parts, **further}, self.decides)


def _teacher(policy: VegaPolicy, name: str) -> WorldView:
    """Raises VegaError where a policy has no tokens that an encoder could learn."""
    if policy.world is None or isinstance(policy.world.source, (NoiseTokens, DistilledEncoder)):
        raise VegaError(f"The policy '{name}' has no world simulator to be distilled: give one that has.")
    source = policy.world.source
    source = source.simulator if isinstance(source, OfSimulator) else source
    if isinstance(source, LatentWorldSimulator) and source.config.framing != "registered":
        raise VegaError(
            f"The world simulator of policy '{name}' crops its pictures (framing: {source.config.framing}), which an "
            "encoder in its place does not: give a policy with framing registered."
        )
    return policy.world


def distilled(policy: VegaPolicy, encoder: DistilledEncoder) -> VegaPolicy:
    """The same policy with the encoder in the place of its world simulator."""
    world = policy.config.world_simulator
    assert world is not None
    placed = dataclasses.replace(world, encoder="distilled", source=SOURCE, stream="joint")
    config = dataclasses.replace(policy.config, name=f"{policy.config.name}-distilled", world_simulator=placed)
    source = copy.deepcopy(encoder).requires_grad_(False).eval()
    source.folder = None
    other = VegaPolicy(config, source)
    other.load_state_dict(policy.state_dict())
    return other.eval()
