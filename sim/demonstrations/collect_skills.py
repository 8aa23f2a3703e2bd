"""Demonstrations of the skills on random layouts of any suite, as a LeRobot v3 dataset.

    python -m sim.demonstrations.collect_skills --suite libero_goal --episodes 20 --output data/libero_goal

Each episode has a layout, a view (camera, light, colours of surfaces) and a wording of its own, and bursts of noise in
what is executed, never in what is recorded (DART, Laskey et al. 2017).  An episode that the suite's own success test
does not accept is thrown away.  Episodes that exist are not made again, so an interrupted run goes on.

With `--policy CHECKPOINT` that policy acts first, for a random part of each episode, and the skills take over and show
the way back from what it made of it: a round of DAgger (Ross et al. 2011) in which the teacher drives what it labels
(HG-DAgger, Kelly et al. 2019).  Train on the new dataset beside the old ones.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from policies.checkpoints import (
    check_exists,
    check_instructions,
    checkpoint_sha256,
    for_suite,
    load_policy,
    statistics_key,
)
from policies.files.command_line import command, command_parser, results_folder
from policies.files.made_once import made_with
from policies.files.processes import each_in_its_process
from policies.training.wordings import paraphrase
from policies.types import Policy
from sim.demonstrations.arrangements import lay_out
from sim.demonstrations.disturbances import Bursts, Driver
from sim.demonstrations.dyes import Dyes
from sim.demonstrations.labels import COLUMNS, labels
from sim.demonstrations.quick_drawing import draw_quickly
from sim.demonstrations.skills.expert import SkillExpert
from sim.demonstrations.try_skills import add_options, chosen_tasks
from sim.demonstrations.views import Views
from sim.results.lerobot_dataset import EEF_ACTION_NAMES, EpisodeTape, check_target, tape_path, write_dataset
from sim.worlds.environment import VIEW_KINDS, VIEWS
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.suites import list_tasks

AFTER_SUCCESS = 8
MOST_TRIES = 4
TAPES, SETTINGS = "tapes", "settings.json"
DRAWN = "drawn"  # the kinds of layouts, if none is named
OTHER_COLOURS = 0.8  # of the demonstrations
DRIVEN = 0.85  # of an episode's steps, the most that a policy drives before the skills take over


def collect_episode(
    environment: LiberoEnvironment, views: Views, dyes: Dyes, rng: np.random.Generator, tape_at: Path, every: int = 1,
    policy: Policy | None = None, layouts: str = "",
) -> bool:  # fmt: skip
    """One demonstration, kept if the task's own success test accepts it.  Deterministic in `rng`.

    policy: acts first, for a while; what is recorded is how the skills go on from there.  layouts: see `lay_out`.
    """
    lay_out(environment, rng, layouts)
    views.draw([kind for kind in VIEW_KINDS if rng.random() < 0.7], rng)
    if rng.random() < OTHER_COLOURS:
        dyes.draw(rng)
    else:
        dyes.wash()
    text = paraphrase(environment.instruction, rng)
    driven = int(rng.integers(round(DRIVEN * environment.max_steps)))
    if policy is not None and drive(environment, policy, text, driven):
        return False
    expert, noise = SkillExpert(environment), Bursts(rng)
    tape = EpisodeTape(environment, EEF_ACTION_NAMES, text, every=every, columns=COLUMNS)
    left = AFTER_SUCCESS
    for _ in range(environment.max_steps):
        action = expert.action()
        tape.step(action, {}, labels(environment, expert) if tape.begins_row else {})
        if environment.step_eef(noise(action)) or left < AFTER_SUCCESS:
            left -= 1
        if left == 0:
            tape.keep(tape_at, success=True)
            return True
    return False


def drive(environment: LiberoEnvironment, policy: Policy, text: str, steps: int) -> bool:
    """Let a policy act; True where it has solved the task, so that there is nothing to show."""
    driver = Driver(environment, policy, text)
    return any(driver.step() for _ in range(steps))


def collect_task(
    suite: str, task: int, episodes: int, seed: int, every: int, tapes: Path, name: str | None = None,
    as_scored: bool = False, layouts: str = "",
) -> tuple[int, int, int]:  # fmt: skip
    """Make what is missing of one task; (task, episodes made, episodes tried)."""
    missing = [i for i in range(episodes) if not tape_path(tapes, task, i).is_file()]
    made = tried = 0
    if missing:
        # First: what it imports may end a process that EGL has drawn in (triton and Mesa each bring an LLVM).
        policy = None if name is None else load_policy(for_suite(name, suite))
        environment = LiberoEnvironment(suite, task)
        if not as_scored:
            draw_quickly(environment)
            environment.step_quickly()
        views, dyes = Views(environment), Dyes(environment)
        for episode in missing:
            for attempt in range(MOST_TRIES):
                tried += 1
                rng = np.random.default_rng([seed, task, episode, attempt])
                tape_at = tape_path(tapes, task, episode)
                if collect_episode(environment, views, dyes, rng, tape_at, every, policy, layouts):
                    made += 1
                    break
        environment.close()
    return task, made, tried


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.demonstrations.collect_skills", __doc__)
    add_options(parser, "libero_goal", 7, 2)
    parser.add_argument("--every", type=int, default=1, help="control steps in a row of the dataset, drawn once")
    parser.add_argument("--policy", help="checkpoint that acts first in every episode (a round of DAgger)")
    parser.add_argument("--as-scored", action="store_true", help="draw and step as a scored run does, slower")
    parser.add_argument("--output", type=Path, required=True, help="folder of the dataset and of its parts")
    args = parser.parse_args(argv)
    tasks, names = chosen_tasks(args), list_tasks(args.suite)
    if args.policy is not None:
        check_exists(args.policy)
        check_instructions(args.policy, [names[task] for task in tasks])
        statistics_key(for_suite(args.policy, args.suite))  # refuses one that has not learned this suite's numbers
    dataset = args.output / "dataset"
    results_folder(args.output)
    tapes = args.output / TAPES / f"{args.suite}_seed{args.seed}"
    recorded = [tape_path(tapes, task, i) for task in tasks for i in range(args.episodes)]
    check_target(dataset, recorded)
    results_folder(tapes)
    by = None if args.policy is None else checkpoint_sha256(args.policy)
    settings = {
        "every": args.every, "as_scored": args.as_scored, "policy_sha256": by, "views": VIEWS,
        "layouts": args.layouts or DRAWN, "dyed": OTHER_COLOURS, "driven": DRIVEN,
    }  # fmt: skip
    made_with(tapes / SETTINGS, settings, older={"views": 1, "layouts": DRAWN, "dyed": 0.0, "driven": 0.6})
    rest = (args.episodes, args.seed, args.every, tapes, args.policy, args.as_scored, args.layouts)
    jobs = [(args.suite, task, *rest) for task in tasks]
    start = time.monotonic()

    def news() -> str:
        return f"{sum(path.is_file() for path in recorded)} of {len(recorded)} episodes are there"

    for done, (_, (task, made, tried)) in enumerate(each_in_its_process(collect_task, jobs, args.processes, news), 1):
        left = (time.monotonic() - start) / done * (len(jobs) - done) / 60
        what = f"{made} of {tried} episodes kept" if tried else "all episodes were there"
        print(f"{done}/{len(jobs)} task {task}: {what}, {left:.1f} min left: {names[task]}", flush=True)
    print(f"{write_dataset(recorded, dataset)} of {len(recorded)} episodes in the LeRobot dataset {dataset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
