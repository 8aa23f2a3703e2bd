"""Success of a policy on random layouts of a suite, for tuning.

    python -m sim.demonstrations.try_layouts --policy outputs/vega_nano --suite libero_goal --episodes 5

The official initial states are the test set and are left alone.  Layouts are drawn as for demonstrations, with another
seed; the wording is the suite's.  What a training's folder is asked for is added to its success.jsonl.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from policies.checkpoints import check_instructions, for_suite, load_policy, statistics_key
from policies.files.command_line import command, command_parser
from policies.files.processes import each_in_its_process
from policies.training.curves import LOG, SUCCESS, add_line, draw, read_log
from policies.types import DEFAULT_POLICY, Policy
from sim.demonstrations.arrangements import lay_out
from sim.demonstrations.disturbances import Driver
from sim.demonstrations.skills.expert import SkillExpert
from sim.demonstrations.try_skills import add_options, chosen_tasks
from sim.results.evaluation import wilson_95
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.suites import list_tasks


def attempt(environment: LiberoEnvironment, policy: Policy) -> tuple[bool, float]:
    """One episode from the present layout: solved?, and the least distance (m) of the TCP from what is taken first."""
    expert = SkillExpert(environment)
    driver, nearest, goal = Driver(environment, policy, environment.instruction), np.inf, expert.attention
    for _ in range(environment.max_steps):
        if driver.step():
            return True, nearest
        nearest = min(nearest, float(np.linalg.norm(expert.scene.tcp - goal)))
    return False, nearest


def try_task(
    policy: str, suite: str, task: int, episodes: int, seed: int, layouts: str = ""
) -> list[tuple[str, bool, float]]:
    """(kind of layout, solved?, least distance in m) of every episode.  layouts: as `lay_out` has it."""
    loaded, environment = load_policy(for_suite(policy, suite)), LiberoEnvironment(suite, task)
    found = []
    for episode in range(episodes):
        kind = lay_out(environment, np.random.default_rng([seed, task, episode]), layouts)
        found.append((kind, *attempt(environment, loaded)))
    environment.close()
    return found


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.demonstrations.try_layouts", __doc__)
    parser.add_argument("--policy", default=DEFAULT_POLICY, help="name, checkpoint folder, or module:Class")
    add_options(parser, "libero_object", 1001, 1)
    args = parser.parse_args(argv)
    tasks, names = chosen_tasks(args), list_tasks(args.suite)
    check_instructions(args.policy, [names[task] for task in tasks])
    statistics_key(for_suite(args.policy, args.suite))  # refuses a policy that has not learned this suite's numbers
    won: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    jobs = [(args.policy, args.suite, task, args.episodes, args.seed, args.layouts) for task in tasks]
    tries = each_in_its_process(try_task, jobs, args.processes, lambda: "Layouts are being tried")
    for (_, _, task, *_), found in tries:
        for kind, solved, nearest in found:
            for key in (kind, "all"):
                won[key] += solved
                tried[key] += 1
            outcome = "solved" if solved else f"not solved, came within {100 * nearest:.1f} cm of the first thing"
            print(f"task {task} {kind}: {outcome}", flush=True)
    for key in sorted(tried):
        low, high = wilson_95(won[key], tried[key])
        print(f"{key}: {won[key]} of {tried[key]} (95 % interval {100 * low:.0f} to {100 * high:.0f} %)")
    note(Path(args.policy), f"{args.suite} {args.layouts}".strip(), won["all"], tried["all"])
    return 0


def note(folder: Path, suite: str, solved: int, tried: int) -> None:
    """Add a line to the success of a training, if `folder` is one, and draw its curves again.

    suite: with the kind of layouts behind it, where only one was tried: that is another curve.
    """
    log = read_log(folder / LOG)
    if not log:
        return
    line = {"step": log[-1]["step"], "suite": suite, "solved": solved, "tried": tried}
    add_line(folder / SUCCESS, line)
    print(draw(folder))


if __name__ == "__main__":
    sys.exit(main())
