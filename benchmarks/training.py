"""Training of a full-size policy, tried at tiny size: `python -m benchmarks.training`.

A checkpoint in the published layouts with tiny networks learns demonstrations that are made for it, in LIBERO's HDF5
format: the arm goes towards a disc that the cameras show.  Each run is a process of `policies.training.train_vega`; one
is killed with kill -9, one is two processes that share gradients.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.rows import Rows
from policies.files.command_line import command, command_parser
from policies.types import VegaError

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "test" / "golden"
TASK = "pick_up_the_milk_and_place_it_in_the_basket"
STEPS, SHORT = 200, 6
TOLERANCE = 1e-5
DEADLINE_S = 2400.0  # for one run, on a machine that does much else
CANVAS, TAP = (64, 64), 4


def make_demonstrations(folder: Path, episodes: int = 6, steps: int = 14, side: int = 48) -> Path:
    """A LIBERO file: a disc somewhere in both pictures, and actions towards it that close the gripper in the end."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    with h5py.File(folder / f"{TASK}_demo.hdf5", "w") as file:
        for episode in range(episodes):
            group = file.create_group(f"data/demo_{episode}")
            goal = numbers.uniform(-0.8, 0.8, 2)
            at = (goal + 1) / 2 * (side - 1)
            disc = ((y - at[0]) ** 2 + (x - at[1]) ** 2 < 36)[..., None]
            picture = np.where(disc, (220, 40, 30), (90, 90, 110)).astype(np.uint8)
            actions = np.zeros((steps, 7))
            actions[:, :2] = 0.9 * goal + numbers.normal(0, 0.02, (steps, 2))
            actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1, 1)
            states = np.cumsum(actions[:, :6], axis=0) * 0.02
            fingers = np.where(actions[:, 6:] < 0, (0.04, -0.04), (0.01, -0.01))
            group["actions"] = actions
            group["obs/ee_states"], group["obs/gripper_states"] = states, fingers
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                group[f"obs/{camera}"] = np.repeat(picture[None], steps, axis=0)
    return folder


def make_policy(folder: Path, golden: Path = GOLDEN, *more: str) -> Path:
    """The tiny golden checkpoints, composed as a user would.  more: arguments of `compose`."""
    import torch

    from policies.compose import main as compose
    from policies.parity.golden import read_arrays
    from policies.world_simulator.prompt import PROMPT_FILE, save_prompt

    wan = folder / "wan"
    for part in ("transformer", "vae"):
        shutil.copytree(golden / "wan_tiny" / part, wan / part)
    prompt = read_arrays(golden / "wan_tiny" / "cases.npz")["case0_prompt_embedding"]
    save_prompt(torch.from_numpy(prompt), wan / PROMPT_FILE)
    composed = folder / "policy"
    status = compose(["--openvla", str(golden / "openvla_oft_tiny"), "--world-simulator", str(wan), "--output",
                      str(composed), "--dtype", "float32", *more])  # fmt: skip
    if status:
        raise VegaError(f"The golden checkpoints in '{golden}' cannot be composed: get the checkout again.")
    config = json.loads((composed / "config.json").read_text())
    config["world_simulator"] |= {"tap": TAP, "canvas": list(CANVAS)}
    (composed / "config.json").write_text(json.dumps(config))
    return composed


def arguments_of(policy: Path, data: Path, output: Path, tokens: Path, steps: int) -> list[str]:
    """Of the trainer, at tiny size on a CPU."""
    return [
        "--policy", str(policy), "--data", str(data), "--output", str(output), "--tokens", str(tokens),
        "--dataset", "libero_tiny", "--steps", str(steps), "--batch", "4", "--micro", "2", "--lr", "2e-3",
        "--lora-rank", "4", "--holdout", "0.17", "--validation", "8", "--validate-every", "100", "--save-every", "2",
        "--device", "cpu", "--dtype", "float32",
    ]  # fmt: skip


def logged(output: Path) -> list[dict[str, float]]:
    """What a run has logged so far."""
    path = output / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class Training:
    """A run as a process, or as several."""

    def __init__(
        self, policy: Path, data: Path, output: Path, tokens: Path, steps: int, processes: int = 1, *more: str
    ) -> None:
        """more: arguments."""
        begin = [sys.executable, "-m"]
        if processes > 1:
            begin += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        self.output = output
        own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
        self._errors = output.with_suffix(".txt").open("w")
        self._process = subprocess.Popen(
            [*begin, "policies.training.train_vega", *arguments_of(policy, data, output, tokens, steps), *more],
            env=os.environ | own, stdout=self._errors, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait(self) -> list[dict[str, float]]:
        """The log's lines.  Raises VegaError where the run fails, or takes too long."""
        try:
            status = self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            self.kill()
        if status != 0:
            raise VegaError(f"A training failed ({status}): {self.output.with_suffix('.txt').read_text()[-600:]}")
        return logged(self.output)

    def kill_after(self, step: int) -> None:
        """kill -9, once this step is logged."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(line["step"] >= step for line in logged(self.output)):
            if time.monotonic() > deadline or self._process.poll() is not None:
                told = self.output.with_suffix(".txt").read_text()[-600:]
                raise VegaError(f"A training does not come to step {step}: {told}")
            time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._errors.close()


def losses(lines: Sequence[dict[str, float]]) -> dict[int, float]:
    """Step -> L1; of a step that was done again the second."""
    return {int(line["step"]): line["l1"] for line in lines if "l1" in line}


def farthest(one: dict[int, float], other: dict[int, float]) -> float:
    """Largest difference of the losses, NaN where one is none; infinite where the steps are others."""
    return float(np.max([abs(one[step] - other[step]) for step in one])) if one.keys() == other.keys() else math.inf


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m benchmarks.training", __doc__, paragraphs=2)
    parser.add_argument("--rows", nargs="+", choices=("learns", "same"), default=["same", "learns"], help="which")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of golden vectors")
    options: argparse.Namespace = parser.parse_args(arguments)
    rows = Rows()
    with tempfile.TemporaryDirectory(prefix="vega3d-") as name:
        room = Path(name)
        data, policy = make_demonstrations(room / "data"), make_policy(room, options.golden)
        if "same" in options.rows:
            alone = losses(Training(policy, data, room / "one", room / "tokens", SHORT).wait())
            two = losses(Training(policy, data, room / "two", room / "tokens", SHORT, processes=2).wait())
            rows.at_most("one_and_two_processes_losses_differ_by", farthest(alone, two), TOLERANCE)
            two = losses(Training(policy, data, room / "spread", room / "tokens", SHORT, 2, "--shard").wait())
            rows.at_most("two_processes_that_share_weights_losses_differ_by", farthest(alone, two), TOLERANCE)
            killed = Training(policy, data, room / "killed", room / "tokens", SHORT)
            killed.kill_after(3)
            again = losses(Training(policy, data, room / "killed", room / "tokens", SHORT).wait())
            rows.at_most("killed_and_resumed_losses_differ_by", farthest(alone, again), TOLERANCE)
        if "learns" in options.rows:
            log = Training(policy, data, room / "long", room / "tokens", STEPS).wait()
            held = [line["validation_l1"] for line in log if "validation_l1" in line]
            rows.at_most(f"validation_l1_after_{STEPS}_steps_over_start", held[-1] / held[0], 0.5)
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
