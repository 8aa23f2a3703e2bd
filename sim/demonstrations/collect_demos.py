"""Demonstrations of the scripted expert on random layouts.

    python -m sim.demonstrations.collect_demos --output data/demos

One .npz per task and block of episodes; a block that exists is not made again, so an interrupted run goes on.
Bursts of noise disturb what is executed, never what is recorded (DART, Laskey et al. 2017): the labels are the
expert's corrections.  Arrays, for N rendered frames and S control steps of all the episodes in a block:

agentview (N, 168, 232, 3) uint8: rows 48:216, columns 24:256 of the upright 256 x 256 image
wrist (N, 96, 96, 3) uint8: the upright image, area-averaged
frame_step (N,): index of the frame's step; pixels (N, 2, 2): (row, column) of the grasp point in the 256 x 256
    agentview and wrist images, NaN where outside
actions (S, 7): eef_delta; eef_position (S, 3), eef_quaternion (S, 4) base frame; gripper (S, 2) m
target_position (S, 3): grasp point in the base frame, m; episode_end (S,): one past the episode's last step
target (E,) object names; first_step (E,); kind (E,)
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from policies.files.command_line import command, command_parser, results_folder
from policies.training.stored_views import AGENTVIEW_CROP, WRIST_SIZE
from policies.training.wordings import libero_sentence
from policies.types import FloatArray, VegaError
from sim.demonstrations.layouts import place_randomly, things
from sim.demonstrations.scripted_expert import ScriptedExpert
from sim.results.lerobot_dataset import EEF_ACTION_NAMES, EpisodeTape, check_target, tape_path, write_dataset
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.suites import load_suite

MAX_STEPS = 170
AFTER_SUCCESS = 8
TAPES = "tapes"
AGENTVIEW = np.s_[AGENTVIEW_CROP[0] : AGENTVIEW_CROP[2], AGENTVIEW_CROP[1] : AGENTVIEW_CROP[3]]


def collect_episode(
    environment: LiberoEnvironment, rng: np.random.Generator, every: int, tape_at: Path | None = None
) -> dict[str, Any] | None:
    """One demonstration, or None where the expert did not solve it.

    tape_at: where everything of it is kept besides, its labels as actions (sim/results/lerobot_dataset.py).
    """
    names = things(environment)
    kind = place_randomly(environment, rng)
    if kind is None:
        return None
    env = environment.env
    target = env.obj_of_interest[0] if rng.random() < 0.4 else str(rng.choice(names))
    expert = ScriptedExpert(environment, target)
    name = target.rsplit("_", 1)[0]
    tape = EpisodeTape(environment, EEF_ACTION_NAMES, libero_sentence(name)) if tape_at is not None else None
    _wander(environment, expert, rng)
    noise = Bursts(rng)
    frames: dict[str, list[Any]] = {"agentview": [], "wrist": [], "frame_step": [], "pixels": []}
    steps: dict[str, list[Any]] = {
        key: [] for key in ("actions", "eef_position", "eef_quaternion", "gripper", "target_position")
    }
    phase, left = int(rng.integers(every)), AFTER_SUCCESS
    for step in range(MAX_STEPS):
        drawn = {camera: environment.render(camera) for camera in environment.cameras} if step % every == phase else {}
        if drawn:
            frames["agentview"].append(drawn["agentview"][AGENTVIEW])
            frames["wrist"].append(cv2.resize(drawn["wrist"], (WRIST_SIZE, WRIST_SIZE), interpolation=cv2.INTER_AREA))
            frames["frame_step"].append(step)
            frames["pixels"].append([project(env, c, expert.grasp_point) for c in ("agentview", "robot0_eye_in_hand")])
        state = environment.state()
        action = expert.action()
        steps["actions"].append(action)
        steps["eef_position"].append(state.eef_position)
        steps["eef_quaternion"].append(state.eef_quaternion)
        steps["gripper"].append(state.gripper_positions)
        steps["target_position"].append(expert.grasp_point - environment.base_position)
        if tape is not None:
            tape.step(action, drawn)
        environment.step_eef(noise(action))
        if expert.solved:
            left -= 1
        if left == 0:
            if tape is not None and tape_at is not None:
                tape.keep(tape_at, success=True)
            return {"target": name, "kind": kind, **frames, **steps}
    return None


def project(env: Any, camera: str, point: FloatArray, size: int = 256) -> FloatArray:
    """(row, column) of a world point in a camera's upright image, NaN where outside."""
    sim = env.sim
    camera_id = sim.model.camera_name2id(camera)
    local = sim.data.cam_xmat[camera_id].reshape(3, 3).T @ (point - sim.data.cam_xpos[camera_id])
    focal = size / 2 / np.tan(np.deg2rad(sim.model.cam_fovy[camera_id]) / 2)
    if local[2] > -1e-3:
        return np.full(2, np.nan)
    pixel = size / 2 + focal * np.array([-local[1], local[0]]) / -local[2]
    return pixel if np.all((pixel >= 0) & (pixel < size)) else np.full(2, np.nan)


class Bursts:
    """Adds bursts of disturbance to actions; half of the episodes are disturbed much, the others little."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.rate = float(rng.choice([0.01, 0.06]))
        self.left = 0
        self.push = np.zeros(7)

    def __call__(self, action: FloatArray) -> FloatArray:
        if self.left == 0 and self.rng.random() < self.rate:
            self.left = int(self.rng.integers(2, 7))
            self.push = np.concatenate([self.rng.uniform(-0.9, 0.9, 3), self.rng.uniform(-0.15, 0.15, 3), [0.0]])
        noisy = action.copy()
        noisy[:6] += self.rng.normal(0.0, 0.03, 6) * np.array([1, 1, 1, 0.3, 0.3, 0.3])
        if self.left:
            self.left -= 1
            noisy += self.push
        return np.clip(noisy, -1.0, 1.0)


def _wander(environment: LiberoEnvironment, expert: ScriptedExpert, rng: np.random.Generator) -> None:
    """Start half of the episodes away from home."""
    if rng.random() < 0.5:
        return
    direction = np.concatenate([rng.uniform(-1, 1, 3), rng.uniform(-0.1, 0.1, 3), [-1.0]])
    for _ in range(int(rng.integers(3, 14))):
        if expert.tcp[2] < 0.20:
            direction[2] = abs(direction[2])
        environment.step_eef(direction)


def collect_block(
    suite: str, task: int, block: int, episodes: int, seed: int, every: int, tapes: Path | None, path: Path
) -> tuple[int, int]:
    """Write one block; (episodes kept, episodes tried).  Deterministic in (seed, task, block)."""
    rng = np.random.default_rng([seed, task, block])
    environment = LiberoEnvironment(suite, task)
    kept: list[dict[str, Any]] = []
    tried = 0
    while len(kept) < episodes and tried < 4 * episodes:
        tried += 1
        tape_at = None if tapes is None else tape_path(tapes, task, block * episodes + len(kept))
        episode = collect_episode(environment, rng, every, tape_at)
        if episode is not None:
            kept.append(episode)
    environment.close()
    if len(kept) < episodes:
        raise VegaError(f"The expert solved {len(kept)} of {tried} episodes of task {task}: mend its grasp first.")
    first = np.cumsum([0] + [len(e["actions"]) for e in kept])
    arrays = {
        key: np.concatenate([np.asarray(e[key]) for e in kept])
        for key in (
            "agentview",
            "wrist",
            "pixels",
            "actions",
            "eef_position",
            "eef_quaternion",
            "gripper",
            "target_position",
        )
    }
    spans = list(zip(kept, first[:-1], first[1:], strict=True))
    arrays["frame_step"] = np.concatenate([np.asarray(e["frame_step"]) + start for e, start, _ in spans])
    arrays["episode_end"] = np.concatenate([np.full(len(e["actions"]), end) for e, _, end in spans])
    arrays["first_step"] = first[:-1]
    arrays["target"] = np.array([e["target"] for e in kept])
    arrays["kind"] = np.array([e["kind"] for e in kept])
    arrays = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(path)
    return len(kept), tried


def _work(job: tuple[Any, ...]) -> tuple[Path, int, int]:
    kept, tried = collect_block(*job)
    return job[-1], kept, tried


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.demonstrations.collect_demos", __doc__, paragraphs=2)
    parser.add_argument(
        "--suite", default="libero_object", help="suite whose scenes are used (pick-and-place into a basket)"
    )
    parser.add_argument("--blocks", type=int, default=4, help="blocks per task")
    parser.add_argument("--episodes", type=int, default=25, help="episodes per block")
    parser.add_argument("--every", type=int, default=4, help="render every n-th step")
    parser.add_argument("--seed", type=int, default=7, help="of layouts and noise")
    parser.add_argument("--processes", type=int, default=2, help="that collect at once")
    parser.add_argument("--output", type=Path, default=Path("data/demos"), help="folder of the blocks")
    parser.add_argument(
        "--record", type=Path, metavar="DATASET", help="write every step as a LeRobot v3 dataset besides (slower)"
    )
    args = parser.parse_args(argv)
    if min(args.blocks, args.episodes, args.every, args.processes) < 1:
        raise VegaError("--blocks, --episodes, --every and --processes count something: give numbers from 1 on.")
    tasks = load_suite(args.suite).n_tasks
    tapes = None
    if args.record is not None:
        check_target(args.record, resume=args.output.is_dir())
        tapes = args.output / TAPES / f"{args.suite}_seed{args.seed}"
    results_folder(args.output)
    jobs = []
    recorded = []
    for block in range(args.blocks):
        for task in range(tasks):
            path = args.output / f"{args.suite}_task{task}_seed{args.seed}_block{block}.npz"
            if tapes is not None:
                own = [tape_path(tapes, task, block * args.episodes + i) for i in range(args.episodes)]
                if path.exists() and not all(tape.is_file() for tape in own):
                    raise VegaError(f"The block {path} was not recorded: remove it, or give another --output.")
                recorded += own
            if not path.exists():
                jobs.append((args.suite, task, block, args.episodes, args.seed, args.every, tapes, path))
    print(
        f"{len(jobs)} blocks of {args.episodes} episodes to collect, {args.blocks * tasks - len(jobs)} exist",
        flush=True,
    )
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.processes, maxtasksperchild=1) as pool:
        for done, (path, kept, tried) in enumerate(pool.imap_unordered(_work, jobs), 1):
            left = (time.monotonic() - start) / done * (len(jobs) - done)
            print(f"{done}/{len(jobs)} {path.name}: {kept} of {tried} solved, {left / 60:.1f} min left", flush=True)
    if args.record is not None:
        print(f"{write_dataset(recorded, args.record)} episodes in the LeRobot dataset {args.record}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
