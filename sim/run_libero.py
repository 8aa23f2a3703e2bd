"""Evaluate a policy on a suite of LIBERO, LIBERO-PRO or LIBERO-plus.

    python sim/run_libero.py --suite libero_object --policy vega-nano --tasks 0-9 --trials 10 --output outputs/run

Official initial states, waits and step limits of OpenVLA-OFT's protocol; cameras are rendered when the policy looks.
`--workers N` shares the episodes among N processes, `--resume` goes on after an interruption; neither changes a number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from policies.checkpoints import check_instructions, shipped_policies
from policies.files.command_line import command, command_parser
from policies.types import VegaError
from sim.evaluation.evaluate import add_options, check_options, evaluate
from sim.evaluation.settings import EpisodeSettings
from sim.results.evaluation import PROTOCOL, parse_tasks
from sim.worlds.environment import VIEW_KINDS
from sim.worlds.plus.libero_plus import DIMENSIONS, PlusBenchmark
from sim.worlds.suites import PLUS, Benchmark, initial_states, list_tasks, load_suite, suites, task_instruction

TRIALS = 10
MANY = 100


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("vega3d-run-libero", __doc__, paragraphs=3)
    parser.add_argument("--suite", default="libero_object", help="name of a suite (--list shows them)")
    parser.add_argument(
        "--transport", choices=("direct", "ros"), default="direct", help="one process, or two over DDS in lockstep"
    )
    parser.add_argument(
        "--command", choices=("eef", "joint"), default=None, help="default: eef for direct, joint for ros"
    )
    parser.add_argument(
        "--protocol", choices=(PROTOCOL,), default=PROTOCOL, help="waits, step limits, seeds and what counts as success"
    )
    parser.add_argument(
        "--dimension", help=f"of LIBERO-plus, one or several of {','.join(DIMENSIONS)} (default: all that can be built)"
    )
    parser.add_argument(
        "--perturb", default="", metavar="KINDS",
        help=f"of {','.join(VIEW_KINDS)}: drawn for each episode from its seed, camera up to 10 cm and 10 degrees; "
        "light and texture darken by more than they brighten, as a picture has no more than white",
    )  # fmt: skip
    add_options(parser, trials=None, of_each=f"initial states per task (default: {TRIALS}; of LIBERO-plus its one)")
    parser.add_argument("--list", action="store_true", help="list suites, their tasks, and policies, then stop")
    args = parser.parse_args(argv)
    if args.command is None:
        args.command = "joint" if args.transport == "ros" else "eef"
    return args


def choose_tasks(args: argparse.Namespace, benchmark: Benchmark) -> list[int]:
    """What --tasks and --dimension ask for.  Raises VegaError."""
    count = benchmark.n_tasks
    if isinstance(benchmark, PlusBenchmark):
        named = ",".join(DIMENSIONS) if args.dimension is None else args.dimension
        dimensions = [name.strip() for name in named.split(",")]
        unknown = [name for name in dimensions if name not in DIMENSIONS]
        if unknown:
            raise VegaError(
                f"The dimension '{unknown[0]}' cannot be built from LIBERO's own assets: choose from "
                f"{', '.join(DIMENSIONS)}."
            )
        of_dimensions = benchmark.tasks_of(dimensions)
        if args.tasks is None:
            return of_dimensions
        tasks = parse_tasks(args.tasks, count)
        for task in tasks:
            benchmark.variant(task)
        return [task for task in tasks if task in set(of_dimensions)] if args.dimension else tasks
    if args.dimension is not None:
        raise VegaError("Only the suites of LIBERO-plus have dimensions: give --suite libero_plus_object, or another.")
    return parse_tasks(f"0-{count - 1}" if args.tasks is None else args.tasks, count)


def perturbed_kinds(args: argparse.Namespace) -> tuple[str, ...]:
    """What --perturb asks for.  Raises VegaError."""
    kinds = tuple(dict.fromkeys(kind.strip() for kind in args.perturb.split(",") if kind.strip()))
    unknown = [kind for kind in kinds if kind not in VIEW_KINDS]
    if unknown:
        raise VegaError(f"Nothing about a view is called '{unknown[0]}': --perturb takes {', '.join(VIEW_KINDS)}.")
    if kinds and args.transport == "ros":
        raise VegaError("Over ROS the views are the suite's own: leave --perturb out, or use --transport direct.")
    return kinds


def check_trials(args: argparse.Namespace, benchmark: Benchmark, tasks: Sequence[int]) -> None:
    """Raise VegaError if a task has fewer initial states than are asked for."""
    for task in tasks[:MANY]:  # the variants of LIBERO-plus all have their plain task's
        found = len(initial_states(args.suite, benchmark, task))
        if args.trials > found:
            raise VegaError(
                f"Task {task} of {args.suite} has {found} initial states: give --trials {found} or less, or other "
                "--tasks."
            )


def extra_fields(benchmark: Benchmark, tasks: Sequence[int]) -> dict[str, Any]:
    """What the summary says besides of a suite whose tasks are of several kinds."""
    if not isinstance(benchmark, PlusBenchmark):
        return {}
    found: dict[str, list[int]] = {}
    for task in tasks:
        found.setdefault(benchmark.variant(task).dimension, []).append(task)
    return {"dimensions": found}


def run(args: argparse.Namespace) -> int:
    benchmark = load_suite(args.suite)
    if args.trials is None:
        args.trials = 1 if isinstance(benchmark, PlusBenchmark) else TRIALS
    tasks = choose_tasks(args, benchmark)
    if not tasks:
        raise VegaError("None of the --tasks is of that --dimension: choose others.")
    check_options(args)
    kinds = perturbed_kinds(args)
    check_trials(args, benchmark, tasks)
    if args.transport == "ros" and args.command == "eef":
        raise VegaError("The ROS interface carries joint commands: use --command joint with --transport ros.")
    if args.transport == "ros" and (args.workers > 1 or args.ray or args.video or args.record):
        raise VegaError(
            "Over ROS episodes run one after the other and leave no pictures: leave --workers, --ray, --video and "
            "--record out."
        )
    check_instructions(args.policy, [task_instruction(args.suite, benchmark, task) for task in tasks])
    settings = EpisodeSettings(
        args.suite, args.policy, args.transport, args.command, args.device, args.threads, video=args.video,
        world_simulator=args.world_simulator, perturb=kinds,
    )
    return evaluate(args, settings, args.protocol, tasks, extra_fields(benchmark, tasks))


def list_everything() -> None:
    print("policies:", ", ".join(shipped_policies()))
    for suite in suites():
        if suite.startswith(PLUS):
            benchmark = load_suite(suite)
            assert isinstance(benchmark, PlusBenchmark)
            counts = ", ".join(f"{name} {len(benchmark.tasks_of([name]))}" for name in DIMENSIONS)
            print(f"{suite}\n  {benchmark.n_tasks} tasks, of which can be built: {counts}")
            continue
        print(suite)
        for index, instruction in enumerate(list_tasks(suite)):
            print(f"  {index} {instruction}")


@command
def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if args.list:
        list_everything()
        return 0
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
