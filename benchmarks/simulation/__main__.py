"""The simulator and the policy against another build of them: `python -m benchmarks.simulation --base FOLDER`.

FOLDER is a checkout of the build to compare with, for example `git worktree add FOLDER 0c038b5`.  Both builds do the
same jobs, in turns, each in a process of its own; times are CPU time of the process, a demonstration's with that of its
videos' encoders, and rows are medians of ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Rows
from policies.files.command_line import command, command_parser
from policies.types import DEFAULT_POLICY, VegaError

# Of every suite; drawers, knobs and much contact among them.
TASKS = (
    ("libero_object", 0), ("libero_object", 7), ("libero_spatial", 1), ("libero_spatial", 4), ("libero_goal", 0),
    ("libero_goal", 7), ("libero_10", 4), ("libero_10", 9), ("libero_90", 30), ("libero_90", 70),
)  # fmt: skip
STEPS, PICTURES_EVERY = 100, 10
DEADLINE_S = 300.0  # for one job of a build
LOOKS = 5  # scenes at which a policy decides
DEMONSTRATIONS_FASTER = 5.0
ACT_FASTER, ACT_FASTER_AT_LEAST, ACTIONS_APART = 3.0, 1.2, 1e-4
HERE = Path(__file__).resolve().parents[2]
Job = dict[str, Any]


class Build:
    """A process that runs the code of one folder."""

    def __init__(self, folder: Path) -> None:
        own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "benchmarks" / "simulation" / "worker.py"), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | own,
        )  # fmt: skip

    def __call__(self, job: Job) -> Job:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        watchdog = threading.Timer(DEADLINE_S, self._process.kill)
        watchdog.start()
        answer = self._process.stdout.readline()
        watchdog.cancel()
        if not answer:
            raise VegaError(f"The build in {self.folder} could not do this: {job['do']}; is it one of vega3d_ros?")
        return dict(json.loads(answer))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m benchmarks.simulation", __doc__, paragraphs=2)
    parser.add_argument("--base", type=Path, required=True, help="folder of the build to compare with")
    parser.add_argument("--policy", default=DEFAULT_POLICY, help="name, also where the base ships another, or a folder")
    kinds = ("steps", "act", "episodes", "demonstrations")
    parser.add_argument("--rows", nargs="+", choices=kinds, help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="how often each episode and demonstration is repeated")
    args = parser.parse_args(argv)
    check_build(args.base)
    ours, base = Build(HERE), Build(args.base.resolve())
    rows = Rows()
    try:
        if args.rows is None or "steps" in args.rows:
            compare_steps(rows, ours, base)
        if args.rows is None or "act" in args.rows:
            compare_act(rows, ours, base, args.policy, args.rounds)
        if args.rows is None or "episodes" in args.rows:
            compare_episodes(rows, ours, base, args.policy, args.rounds)
        if args.rows is None or "demonstrations" in args.rows:
            compare_demonstrations(rows, ours, base, args.rounds)
    finally:
        ours.close()
        base.close()
    return rows.status


def check_build(folder: Path) -> None:
    """Raise VegaError where there is none to compare with."""
    if not (folder / "sim").is_dir():
        raise VegaError(f"There is no build in {folder}: give a checkout's folder with --base.")


def side_by_side(ours: Build, base: Build, jobs: list[Job], others: list[Job] | None = None) -> list[tuple[Job, Job]]:
    """(our answer, the other's) for each job, who begins changing every time.  others: its own, where they differ."""
    pairs = []
    for i, (job, other) in enumerate(zip(jobs, others or jobs, strict=True)):
        each = ((ours, job), (base, other)) if i % 2 else ((base, other), (ours, job))
        answers = {build: build(its) for build, its in each}
        pairs.append((answers[ours], answers[base]))
    return pairs


def times_faster(pairs: list[tuple[Job, Job]], key: str = "cpu_s") -> float:
    """Median over the pairs of how much less time ours took."""
    return float(np.median([other[key] / own[key] for own, other in pairs]))


def compare_steps(rows: Rows, ours: Build, base: Build) -> None:
    """Control steps and pictures of the same actions."""
    pairs = []
    for suite, task in TASKS:
        job: Job = {"do": "steps", "suite": suite, "task": task, "actions": actions(task), "pictures": PICTURES_EVERY}
        side_by_side(ours, base, [{**job, "actions": job["actions"][:2]}])
        pairs += side_by_side(ours, base, [job])
        own, other = pairs[-1]
        rows.information(f"{suite}_{task}_step_times_faster", other["cpu_s"] / own["cpu_s"])
    equal = sum(x == y for own, other in pairs for x, y in zip(own["states"], other["states"], strict=True))
    seen = sum(x == y for own, other in pairs for x, y in zip(own["pictures"], other["pictures"], strict=True))
    rows.at_least(f"states_equal_of_{len(TASKS) * STEPS}", equal, len(TASKS) * STEPS)
    rows.at_least("control_step_times_faster", times_faster(pairs), 2.0)
    number = sum(len(own["pictures"]) for own, _ in pairs)
    rows.at_least(f"pictures_equal_of_{number}", seen, number)
    rows.information("both_pictures_times_faster", times_faster(pairs, "drawing_cpu_s"))


def actions(seed: int, steps: int = STEPS) -> list[list[float]]:
    """Downwards and about, each push ten steps long, the gripper opening and closing."""
    rng = np.random.default_rng(seed)
    made = []
    for step in range(steps):
        if step % 10 == 0:
            push, gripper = rng.uniform(-1, 1, 6) * [1, 1, 1, 0.3, 0.3, 0.3] - [0, 0, 0.4, 0, 0, 0], rng.choice([-1, 1])
        made.append([*np.clip(push + rng.normal(0, 0.1, 6), -1, 1), float(gripper)])
    return made


def compare_act(rows: Rows, ours: Build, base: Build, policy: str, rounds: int) -> None:
    """One decision on one core, the world simulator in use: each build's own checkpoint, then the base's in both.

    Then ours compiled, which the base cannot be.
    """
    job = {"do": "act", "policy": policy, "looks": LOOKS, "repeats": 10}
    theirs = job | {"policy": of_the_base(base, policy)}
    kinds = (
        ("", ACT_FASTER, job),
        ("_compiled", ACT_FASTER, job | {"compiled": True}),
        ("_of_the_same_checkpoint", ACT_FASTER_AT_LEAST, theirs),
    )
    for name, least, own_job in kinds:
        pairs = side_by_side(ours, base, [own_job] * (rounds + 1), [theirs] * (rounds + 1))[1:]
        own, other = ([answers[build]["times_s"] for answers in pairs] for build in (0, 1))
        rows.information(f"act_cpu_ms{name}", 1e3 * float(np.median(own)))
        rows.information(f"act_cpu_ms_of_the_other_build{name}", 1e3 * float(np.median(other)))
        rows.at_least(f"act_times_faster{name}", float(np.median(other) / np.median(own)), least)
    apart = np.abs(np.array(pairs[0][0]["actions"]) - np.array(pairs[0][1]["actions"]))
    rows.at_most("act_largest_difference_of_an_action", float(apart.max()), ACTIONS_APART)


def of_the_base(base: Build, policy: str) -> str:
    """A checkpoint that both builds can read: that folder, the base's own of that name, or else its default."""
    if Path(policy).is_dir():
        return policy
    shipped = base.folder / "policies"
    own = shipped / policy.replace("-", "_")
    return str(own if own.is_dir() else shipped / "vega_nano")


def compare_episodes(rows: Rows, ours: Build, base: Build, policy: str, rounds: int) -> None:
    """Episodes of run_libero.py with the base's checkpoint; who solves which has to be the same.

    Hashes are no longer: decisions differ in the last bits since they are made faster.
    """
    job = {"do": "episode", "suite": "libero_object", "task": 0, "policy": of_the_base(base, policy)}
    pairs = side_by_side(ours, base, [{**job, "trial": trial} for trial in range(rounds)])
    alike = sum(own["success"] == other["success"] and not own["error"] for own, other in pairs)
    rows.at_least(f"episodes_solved_alike_of_{rounds}", alike, rounds)
    rows.at_least("episode_times_faster", times_faster(pairs), 1.5)


def compare_demonstrations(rows: Rows, ours: Build, base: Build, rounds: int) -> None:
    """Demonstrations of each build's own expert, every fourth step drawn; time per demonstration that succeeded."""
    job = {"do": "demonstration", "suite": "libero_object", "task": 0}
    pairs = side_by_side(ours, base, [{**job, "seed": seed} for seed in range(rounds)])
    kept = [sum(answer["kept"] for answer in answers) for answers in zip(*pairs, strict=True)]
    spent = [sum(answer["cpu_s"] for answer in answers) for answers in zip(*pairs, strict=True)]
    rows.at_least(f"demonstrations_kept_of_{rounds}", kept[0], 1)
    if all(kept):
        rows.information("demonstration_cpu_s", spent[0] / kept[0])
        rows.information("demonstration_cpu_s_of_the_other_build", spent[1] / kept[1])
        rows.at_least("demonstrations_times_faster", spent[1] / kept[1] / (spent[0] / kept[0]), DEMONSTRATIONS_FASTER)
    for suite in ("libero_object", "libero_spatial", "libero_goal", "libero_10"):
        drawn = ours({"do": "quick_drawing", "suite": suite, "task": 0, "repeats": PICTURES_EVERY})
        rows.information(f"quick_drawing_{suite}_pictures_times_faster", drawn["all_s"] / drawn["quick_s"])
        rows.information(f"quick_drawing_{suite}_pixel_difference_of_255", drawn["apart"])


if __name__ == "__main__":
    sys.exit(main())
