"""Evaluate a policy on robosuite's own tasks, with the options and the results of `run_libero.py`.

    python sim/run_robosuite.py --policy vega-nano --tasks Lift,Door --trials 20 --output outputs/lift

Trial k is robosuite's reset after seed k; see sim/worlds/robosuite_env.py.
"""

from __future__ import annotations

import sys

from policies.checkpoints import check_instructions
from policies.files.command_line import command, command_parser
from policies.types import VegaError
from sim.evaluation.evaluate import add_options, check_options, evaluate
from sim.evaluation.settings import EpisodeSettings
from sim.results.evaluation import parse_tasks
from sim.worlds.installation import check_versions
from sim.worlds.robosuite_env import PROTOCOL, SUITE, TASKS


def parse_names(text: str | None) -> list[int]:
    """'Lift,Door', '0-2' or nothing (all) -> indices; VegaError lists what exists."""
    names = list(TASKS)
    if text is None:
        return list(range(len(names)))
    parts = [part.strip() for part in text.split(",")]
    if all(part in names for part in parts):
        return [names.index(part) for part in dict.fromkeys(parts)]
    if any(part[:1].isalpha() for part in parts):
        raise VegaError(f"The tasks '{text}' do not all exist: choose from {', '.join(names)}.")
    return parse_tasks(text, len(names))


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.run_robosuite", __doc__, paragraphs=3)
    add_options(parser)
    parser.add_argument("--command", choices=("eef", "joint"), default="eef", help="what is commanded")
    parser.add_argument("--list", action="store_true", help="list the tasks, then stop")
    args = parser.parse_args(argv)
    args.suite = SUITE
    if args.list:
        for index, (name, instruction) in enumerate(TASKS.items()):
            print(f"{index} {name}: {instruction}")
        return 0
    check_versions()
    tasks = parse_names(args.tasks)
    check_options(args)
    check_instructions(args.policy, [list(TASKS.values())[task] for task in tasks])
    settings = EpisodeSettings(
        SUITE, args.policy, command=args.command, device=args.device, threads=args.threads, video=args.video,
        world_simulator=args.world_simulator
    )
    return evaluate(args, settings, PROTOCOL, tasks)


if __name__ == "__main__":
    sys.exit(main())
