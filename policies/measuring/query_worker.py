"""One build's queries for `policies.measuring.speed`: reads jobs from stdin as JSON lines, answers each with a line.

    PYTHONPATH=FOLDER python policies/measuring/query_worker.py FOLDER

It stands alone, and knows the names that modules had in older builds: nothing but FOLDER's code may answer.  A job
builds the networks of the given sizes with random weights, all alike in every build, or asks them.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(sys.argv[1]).resolve()
DEVICE = torch.device("cpu")


def load(*names: str) -> Any:
    """The first of these modules that FOLDER has, and no other's."""
    name = next(name for name in names if (FOLDER / (name.replace(".", "/") + ".py")).is_file())
    module = importlib.import_module(name)
    assert FOLDER in Path(str(module.__file__)).resolve().parents, f"{name} is not from {FOLDER}"
    return module


class Worker:
    """Keeps the networks between jobs."""

    def build(self, sizes: dict[str, Any], dtype: str, options: dict[str, Any]) -> dict[str, Any]:
        """options: what this build's policy can do for speed, `compiled` and `weights`."""
        models = load("policies.measuring.benchmark_models", "policies.benchmark_models")
        own = replace(models.FULL, **{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})
        kind = getattr(torch, dtype)
        vae, transformer = models.wan_on_meta(own, own.tap + 1)
        for model in (vae, transformer):
            models.fill_randomly(model, DEVICE, kind)
        self.simulator = models.random_simulator(own, vae, transformer, DEVICE)
        self.policy = models.random_openvla(own, DEVICE, kind, "sdpa")
        if options.get("weights") == "int8":
            load("policies.openvla.acceleration").quantise(self.policy, self.simulator)
        if options.get("compiled"):
            load("policies.openvla.acceleration").prepare_kernels(self.policy, self.simulator)
        self.query: Any = None
        return {}

    def begin(self, mode: str, options: dict[str, Any]) -> dict[str, Any]:
        """Queries of one episode, per frame or on windows."""
        simulator = copy.copy(self.simulator)
        simulator.config = replace(simulator.config, mode=mode)
        self.window = simulator.frames_needed
        # Coarse pictures that change bit by bit, as cameras' do.
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randint(0, 256, (2, 3, 8, 16, 16), generator=generator).float()
        video = torch.nn.functional.interpolate(coarse, (64, 128, 128), mode="trilinear")
        self.video = video.byte().permute(0, 2, 3, 4, 1).contiguous()
        kind = load("policies.measuring.latencies", "policies.benchmark").Query
        self.query = kind(self.policy, simulator, self.video[:, : self.window], **options)
        self.at = 0
        return {}

    def ask(self, moved: int) -> dict[str, Any]:
        """One query, its frames moved on by so many: CPU seconds and what was decided."""
        self.at = (self.at + moved) % (self.video.shape[1] - self.window)
        shown = self.video[:, self.at : self.at + self.window]
        self.query.frames = {name: shown[i : i + 1] for i, name in enumerate(self.query.frames)}
        with torch.inference_mode():
            begun = time.process_time()
            seen, age = self.query.world.look(self.query.frames)
            tokens = torch.cat(list(seen.values()))
            actions = self.query.fused(lambda: tokens)
            seconds = time.process_time() - begun
        return {
            "cpu_s": seconds, "age": age, "actions": actions.float().flatten().tolist(),
            "tokens": tokens.float().flatten()[::16].tolist(),
        }  # fmt: skip


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    worker = Worker()
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            job = json.loads(line)
            answers.write(json.dumps(getattr(worker, job.pop("do"))(**job)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
