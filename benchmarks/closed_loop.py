"""The closed loop in numbers: `python -m benchmarks.closed_loop` (about 25 minutes on two cores).

Runs `sim/run_libero.py` on libero_object, 10 tasks x 10 official initial states, with eef deltas and with joint
commands, and 10 episodes over ROS, and compares them; with the world simulator and without (a checkpoint of the same
training); the shipped checkpoint with something else in the place of its world simulator's tokens, on the same initial
states; then the time of one `Policy.act` on one core.  Runs whose summary is complete and of the same checkpoint are
reused; `--fresh` makes all of them again.

`--all` judges the policy on all suites instead (`simulation/suites.py`; many hours on two cores, what is done is kept),
and with `--base FOLDER` what steps, decisions, episodes and demonstrations cost against another build.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Rows
from benchmarks.simulation.__main__ import check_build
from benchmarks.simulation.__main__ import main as compare_builds
from benchmarks.simulation.suites import Refused, all_suites, outcomes, solved
from policies.checkpoints import check_instructions, checkpoint_sha256, load_policy
from policies.files.command_line import command, command_parser
from policies.types import DEFAULT_POLICY, WORLD_CONTROLS, Observation, RobotState, VegaError
from sim import run_libero
from sim.results.evaluation import ResultWriter, parse_tasks, wilson_95
from sim.results.paired import compare_pair
from sim.results.result_files import SUMMARY_FILE
from sim.worlds.environment import VIEWS, views_of
from sim.worlds.suites import initial_states, list_tasks, load_suite

ACT_MS = 60.0
ALL_TASKS = "0-9"
REPORTED = ["libero_object_swap", "libero_object_lan"]


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m benchmarks.closed_loop", __doc__, paragraphs=3)
    parser.add_argument("--policy", default=DEFAULT_POLICY, help="name or checkpoint folder")
    parser.add_argument("--without", default="vega-nano-plain", help="one without a world simulator; '': none")
    parser.add_argument("--trials", type=int, default=10, help="initial states per task")
    parser.add_argument("--workers", type=int, default=2, help="processes; the results do not depend on it")
    parser.add_argument("--output", type=Path, default=Path("outputs/closed_loop"), help="folder of the runs")
    parser.add_argument("--suites", nargs="*", default=REPORTED, help="reported beside")
    parser.add_argument("--controls", nargs="*", default=["libero_object"], help="suites of the controls")
    parser.add_argument("--control-trials", type=int, default=1, help="initial states per task of the controls")
    parser.add_argument("--control-tasks", default=ALL_TASKS, help="of each suite of the controls")
    parser.add_argument("--only-controls", action="store_true", help="no other rows")
    parser.add_argument("--all", action="store_true", help="all suites instead, and the rows of their costs")
    parser.add_argument("--all-trials", type=int, default=20, help="--all: initial states per task of the four suites")
    parser.add_argument("--base", type=Path, help="--all: a checkout of the build to compare costs with")
    parser.add_argument("--record", type=Path, help="also write the rates to this file, as results.json of a policy")
    parser.add_argument("--fresh", action="store_true", help="do not reuse summaries in --output")
    args = parser.parse_args(argv)
    rows = Rows()
    if args.all:
        return everything(rows, args)
    if not args.only_controls:
        closed_loop(rows, args)
    for suite in args.controls:  # after the others, whose episodes they are paired with
        controls(rows, args, suite)
    return rows.status


def everything(rows: Rows, args: argparse.Namespace) -> int:
    """All suites, then costs; the exit status."""

    if args.base:
        check_build(args.base)  # before hours of other rows

    def run(suite: str, trials: int, *words: str) -> dict[str, Any]:
        tasks = list_tasks(suite)  # what is wrong with the suite is no refusal of the policy's
        try:
            check_instructions(args.policy, tasks)
        except VegaError as error:
            raise Refused(str(error)) from error
        return summary(args, suite, "direct", "eef", trials, tasks=with_states(suite), further=words)

    runs = all_suites(rows, run, args.all_trials, args.trials, args.policy)
    record(args, runs)
    costs = compare_builds(["--base", str(args.base), "--policy", args.policy]) if args.base else 0
    return rows.status or costs


def with_states(suite: str) -> str:
    """The tasks of a suite that have initial states: the farthest shift has none of one."""
    benchmark, found = load_suite(suite), []
    for task in range(benchmark.n_tasks):
        with contextlib.suppress(VegaError):
            initial_states(suite, benchmark, task)
            found.append(task)
    return ALL_TASKS if len(found) == benchmark.n_tasks else ",".join(map(str, found))


def record(args: argparse.Namespace, runs: dict[str, dict[str, Any]]) -> None:
    if args.record:
        args.record.write_text(json.dumps({name: measured(run) for name, run in runs.items()}, indent=1) + "\n")


def closed_loop(rows: Rows, args: argparse.Namespace) -> None:
    """What is solved, with which commands, over which transport."""
    rows.at_most("policy_act_median_ms", act_median_ms(args.policy), ACT_MS)
    eef = summary(args, "libero_object", "direct", "eef", args.trials)
    joint = summary(args, "libero_object", "direct", "joint", args.trials)
    rows.at_least("success_eef_percent", solved(eef), 95.0)
    rows.information("success_joint_percent", solved(joint))
    rows.at_most("eef_minus_joint_points", solved(eef) - solved(joint), 5.0)
    if args.without:
        plain = summary(args, "libero_object", "direct", "eef", args.trials, args.without)
        rows.information("success_without_world_simulator_percent", solved(plain))
        gained = solved(eef) - solved(plain)
        rows.at_least("with_minus_without_world_simulator_points", gained, -2.0)
    ros = summary(args, "libero_object", "ros", "joint", 1)
    rows.at_least("ros_identical_to_direct_of_10", identical(ros, joint), 10)
    rows.at_most("episodes_with_errors", sum(run["errors"] for run in (eef, joint, ros)), 0)
    runs = {"libero_object": eef, "libero_object, joint commands": joint, "libero_object, joint commands over ROS": ros}
    for suite in args.suites:
        runs[suite] = summary(args, suite, "direct", "eef", args.trials)
        rows.information(f"success_{suite}_percent", solved(runs[suite]))
    record(args, runs)


def controls(rows: Rows, args: argparse.Namespace, suite: str) -> None:
    """What the world simulator is worth to the policy: points lost when something stands in for its tokens.

    No loss is asked for; that each control changed what was commanded, on as many states, is.
    """
    asked = (args, suite, "direct", "eef", args.control_trials)
    world = getattr(load_policy(args.policy), "world", None)
    possible, what = ((), "none") if world is None else (world.source.stand_ins, world.source.what)
    with_tokens = summary(*asked, tasks=args.control_tasks)
    on = {(e["task"], e["trial"]): e for e in with_tokens["episodes"]}
    for control in WORLD_CONTROLS[1:]:
        if control not in possible:
            print(f"# left out: {control}, which makes no sense where the generative tokens are {what}", flush=True)
            continue
        run = summary(*asked, control=control, tasks=args.control_tasks)
        tried = [e for e in run["episodes"] if not e["error"]]
        pair = compare_pair(tried, [e for e in with_tokens["episodes"] if not e["error"]])
        low, high = pair.interval_95
        name = f"{suite}_world_simulator_{control}"
        rows.at_least(f"{name}_states_paired", pair.count, len(run["episodes"]))
        if not tried:
            continue
        rows.information(f"{name}_success_percent", solved(run))
        other = sum(e["actions_sha256"] != on[e["task"], e["trial"]]["actions_sha256"] for e in tried)
        rows.at_least(f"{name}_episodes_with_other_commands", other, 1)
        rows.information(f"{name}_points_lost", pair.difference)
        rows.information(f"{name}_points_lost_at_least", low)
        rows.information(f"{name}_points_lost_at_most", high)
        rows.information(f"{name}_mcnemar_p", pair.p_value)
        rows.information(f"{name}_p_over_tasks", pair.p_over_tasks)


def measured(run: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a summary beside a checkpoint; episodes that were refused or broke are not solved."""
    found, errors = outcomes(run), sum(bool(episode["error"]) for episode in run["episodes"])
    won, count = sum(found), len(found)
    figures = {
        "episodes": count, "success_rate": won / count, "wilson_95": list(wilson_95(won, count)),
        **({"errors": errors} if errors else {}),
    }  # fmt: skip
    if "refused" in run:
        return {"command": f"sim/run_libero.py --suite {run['suite']}", "refused": run["refused"], **figures}
    command = f"sim/run_libero.py --suite {run['suite']} --transport {run['transport']} --command {run['command']}"
    return {"command": command, **figures, **{key: run[key] for key in ("checkpoint_sha256", "protocol", "versions")}}


def summary(
    args: argparse.Namespace,
    suite: str,
    transport: str,
    command: str,
    trials: int,
    policy: str = "",
    control: str = "on",
    tasks: str = ALL_TASKS,
    further: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary of a run, made now unless a complete one of this checkpoint is there.  further: words for it.

    Episodes that ended with an error are tried again.
    """
    policy = policy or args.policy
    folder = run_folder(args.output, policy, suite, transport, command, control, further)
    found = None if args.fresh else kept(folder, policy)
    if found is not None and covers(found, tasks, trials) and not any(e["error"] for e in found["episodes"]):
        return found
    words = ["--suite", suite, "--policy", policy, "--trials", str(trials), "--transport", transport]
    words += ["--world-simulator", control] if control != "on" else []
    words += ["--tasks", tasks] if tasks != ALL_TASKS else []
    words += further
    if found is None:
        if (folder / SUMMARY_FILE).is_file():
            print(f"# what is in {folder} is of another checkpoint, of other views, or to be made again: removed")
        ResultWriter.remove(folder)
    words += ["--resume"] if found is not None else []
    if transport == "direct":
        words += ["--workers", str(args.workers)]
    print(f"# sim/run_libero.py {' '.join(words)} --command {command}", flush=True)
    if run_libero.main([*words, "--command", command, "--output", str(folder)]) not in (0, 1):
        raise VegaError(f"The run in {folder} did not end: see above, or make all runs again with --fresh.")
    return dict(json.loads((folder / SUMMARY_FILE).read_text()))


def run_folder(
    output: Path, policy: str, suite: str, transport: str = "direct", command: str = "eef", control: str = "on",
    further: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Where a run lies."""
    stand_in = "" if control == "on" else f"_{control}"
    stand_in += "".join("_" + word.lstrip("-").replace(",", "_") for word in further)
    return output / f"{Path(policy).name}_{suite}_{transport}_{command}{stand_in}"


def kept(folder: Path, policy: str) -> dict[str, Any] | None:
    """The summary of a run of this very checkpoint, on views drawn as now, as far as it came; None without one."""
    path = folder / SUMMARY_FILE
    found = dict(json.loads(path.read_text())) if path.is_file() else {}
    seen_as_now = views_of(found) in (None, VIEWS)
    return found if seen_as_now and found.get("checkpoint_sha256") == checkpoint_sha256(policy) else None


def covers(found: dict[str, Any], tasks: str, trials: int) -> bool:
    """Whether a run has these tasks and trials."""
    tried = {(e["task"], e["trial"]) for e in found["episodes"]}
    return {(task, trial) for task in parse_tasks(tasks, 10) for trial in range(trials)} <= tried


def identical(ros: dict[str, Any], direct: dict[str, Any]) -> int:
    """Episodes over ROS whose commands, states and outcome equal those of the same trials in one process."""
    keys = ("success", "steps", "error", "actions_sha256", "states_sha256")
    table = {(e["task"], e["trial"]): [e[key] for key in keys] for e in direct["episodes"]}
    whole = [e for e in ros["episodes"] if not e["error"]]
    return sum(table.get((e["task"], e["trial"])) == [e[key] for key in keys] for e in whole)


def act_median_ms(name: str, repetitions: int = 100) -> float:
    """Median wall time of one `Policy.act` on one core, after ten to warm up."""
    return act_medians_ms(name, repetitions)[0]


def act_medians_ms(name: str, repetitions: int = 100) -> tuple[float, float]:
    """The same, and of what the world simulator or whatever stands in its place takes of it, 0 where nothing does."""
    policy = load_policy(name, threads=1)
    rng = np.random.default_rng(0)
    shape = (policy.spec.window, 256, 256, 3)
    images = {camera: rng.integers(0, 255, shape, dtype=np.uint8) for camera in policy.spec.cameras}
    down = np.array([1.0, 0.0, 0.0, 0.0])
    state = RobotState(0, (), np.zeros(7), np.zeros(7), np.full(2, 0.04), np.array([0.45, 0.0, 0.26]), down)
    observation = Observation(images, state, "pick up the milk and place it in the basket", 0)
    times = []
    for _ in range(repetitions + 10):
        start = time.perf_counter()
        chunk = policy.act(observation)
        times.append((1e3 * (time.perf_counter() - start), chunk.timings_ms.get("world_simulator", 0.0)))
    whole, part = np.median(times[10:], axis=0)
    return float(whole), float(part)


if __name__ == "__main__":
    sys.exit(main())
