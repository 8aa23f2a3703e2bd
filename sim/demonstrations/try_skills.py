"""Success of the skills on random layouts, without drawing anything.

    python -m sim.demonstrations.try_skills --suite libero_goal --episodes 20 --layouts suite

One row per task: how many layouts were solved, the median of the steps of those, and what is asked.  The suite's own
success test decides.  Other layouts than the suite's own random resets may leave a task that cannot be solved, such as
a drawer with something before it.

The official initial states are the test set: demonstrations never begin there.  `--layouts official` asks what can be
solved from them at all, and names things that the goal needs and that stand more than a metre away from the arm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from policies.files.command_line import add_seed, command, command_parser
from policies.files.processes import each_in_its_process
from policies.types import VegaError
from sim.demonstrations.arrangements import KINDS, lay_out
from sim.demonstrations.skills.expert import SkillExpert
from sim.demonstrations.skills.scene import Scene
from sim.results.evaluation import add_tasks, parse_tasks
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.suites import list_tasks, load_task

LEAST = 0.95
OFFICIAL = "official"  # in the place of a kind of layouts
FAR = 1.0  # from the arm's base, as seen from above, m


def attempt(environment: LiberoEnvironment, seed: int, episode: int, layouts: str) -> tuple[bool, int, str]:
    """One episode on a new layout, of that kind unless it is "": solved?, steps, kind of layout."""
    if layouts == OFFICIAL:
        environment.reset(episode)
        kind = ", ".join([OFFICIAL, *far_things(environment)])
    else:
        kind = lay_out(environment, np.random.default_rng([seed, environment.task, episode]), layouts)
    expert = SkillExpert(environment)
    for step in range(environment.max_steps):
        if environment.step_eef(expert.action()):
            return True, step + 1, kind
    return False, environment.max_steps, kind


def far_things(environment: LiberoEnvironment) -> list[str]:
    """What the goal needs and no arm reaches, with its distance."""
    scene, base = Scene(environment), environment.base_position[:2]
    needed = [name for name in environment.env.obj_of_interest if name in scene.movable]
    away = {name: float(np.linalg.norm(scene.pose(name).position[:2] - base)) for name in needed}
    return [f"{name} {metres:.1f} m away" for name, metres in away.items() if metres > FAR]


def try_task(
    suite: str, task: int, episodes: int, seed: int, layouts: str
) -> tuple[int, list[int], list[tuple[int, str]], str]:
    """(task, steps of the solved episodes, (episode, kind of layout) of the others, why there is no expert)."""
    environment = LiberoEnvironment(suite, task)
    steps, failed = [], []
    try:
        for episode in range(episodes):
            solved, count, kind = attempt(environment, seed, episode, layouts)
            if solved:
                steps.append(count)
            else:
                failed.append((episode, kind))
    except VegaError as error:
        return task, [], [], str(error)
    finally:
        environment.close()
    return task, steps, failed, ""


def add_options(
    parser: argparse.ArgumentParser, suite: str, seed: int, processes: int, others: Sequence[str] = ()
) -> None:
    """Which episodes, with these defaults.  others: what may stand in the place of a kind of layouts."""
    parser.add_argument("--suite", default=suite, help="name of a suite")
    add_tasks(parser, "such as 0-9, 0,3 or 0 3 (default: all)")
    parser.add_argument("--episodes", type=int, default=20, help="per task")
    add_seed(parser, seed, "of the layouts")
    parser.add_argument("--processes", type=int, default=processes, help="tasks at once")
    parser.add_argument(
        "--layouts", default="", choices=["", *KINDS, *others],
        help="of this kind alone (suite: the suite's own random resets; default: drawn)",
    )  # fmt: skip


def chosen_tasks(args: argparse.Namespace) -> list[int]:
    """The tasks that the options ask for.  Raises VegaError before anything is built."""
    if min(args.episodes, args.processes) < 1:
        raise VegaError("--episodes and --processes count something: give numbers from 1 on.")
    count = len(list_tasks(args.suite))
    tasks = list(range(count)) if args.tasks is None else parse_tasks(args.tasks, count)
    for task in tasks:
        load_task(args.suite, task)
    return tasks


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.demonstrations.try_skills", __doc__, paragraphs=4)
    add_options(parser, "libero_object", 2001, 1, [OFFICIAL])
    args = parser.parse_args(argv)
    tasks, names = chosen_tasks(args), list_tasks(args.suite)
    jobs = [(args.suite, task, args.episodes, args.seed, args.layouts) for task in tasks]
    missed = 0
    tries = each_in_its_process(try_task, jobs, args.processes, lambda: "Tasks are being tried")
    for _, (task, steps, failed, reason) in tries:
        rate = len(steps) / args.episodes
        missed += rate < LEAST
        verdict = "ok" if rate >= LEAST else "FAIL"
        median = f"{int(np.median(steps))}" if steps else "-"
        print(
            f"{args.suite} {task} solved {len(steps)}/{args.episodes} >= {LEAST:.2f} {verdict}, "
            f"median steps {median}: "
            f"{names[task]}{f' ({reason})' if reason else ''}"
            + (f" [not solved: {', '.join(f'{e} {k}' for e, k in failed)}]" if failed else ""),
            flush=True,
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
