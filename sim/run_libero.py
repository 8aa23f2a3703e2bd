"""Evaluate a policy on a LIBERO or LIBERO-PRO suite.

    python sim/run_libero.py --suite libero_object --policy vega-nano --tasks 0-9 --trials 10 --output outputs/run

Official initial states, waits and step limits of OpenVLA-OFT's protocol; cameras are rendered when the policy looks.
`--workers N` shares the episodes among N processes, `--resume` goes on after an interruption; neither changes a number.
"""

from __future__ import annotations

import argparse
import sys

from policies.checkpoints import check_instructions, shipped_policies
from policies.files.command_line import command, command_parser
from policies.types import VegaError
from sim.evaluation.evaluate import add_options, check_options, evaluate
from sim.evaluation.settings import EpisodeSettings
from sim.results.evaluation import PROTOCOL, parse_tasks
from sim.worlds.libero_env import SUITES, list_tasks, load_suite


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
    add_options(parser)
    parser.add_argument("--list", action="store_true", help="list suites, their tasks, and policies, then stop")
    args = parser.parse_args(argv)
    if args.command is None:
        args.command = "joint" if args.transport == "ros" else "eef"
    return args


def run(args: argparse.Namespace) -> int:
    count = load_suite(args.suite).n_tasks
    tasks = parse_tasks(args.tasks or f"0-{count - 1}", count)
    check_options(args)
    if args.transport == "ros" and args.command == "eef":
        raise VegaError("The ROS interface carries joint commands: use --command joint with --transport ros.")
    if args.transport == "ros" and (args.workers > 1 or args.ray or args.video or args.record):
        raise VegaError(
            "Over ROS episodes run one after the other and leave no pictures: leave --workers, --ray, --video and "
            "--record out."
        )
    instructions = list_tasks(args.suite)
    check_instructions(args.policy, [instructions[task] for task in tasks])
    settings = EpisodeSettings(
        args.suite, args.policy, args.transport, args.command, args.device, args.threads, video=args.video,
        world_simulator=args.world_simulator
    )
    return evaluate(args, settings, args.protocol, tasks)


def list_everything() -> None:
    print("policies:", ", ".join(shipped_policies()))
    for suite in SUITES:
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
