"""Demonstrations of the skills on random layouts of any suite, as a LeRobot v3 dataset.

    python -m sim.demonstrations.collect_skills --suite libero_goal --episodes 20 --output data/libero_goal

Each episode has a layout, a view (camera, light, colours of surfaces) and a wording of its own, and bursts of noise in
what is executed, never in what is recorded (DART, Laskey et al. 2017).  An episode that the suite's own success test
does not accept is thrown away.  Episodes that exist are not made again, so an interrupted run goes on.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from policies.files.command_line import command, command_parser, results_folder
from sim.demonstrations.arrangements import lay_out
from sim.demonstrations.collect_demos import TAPES, Bursts
from sim.demonstrations.labels import COLUMNS, labels
from sim.demonstrations.paraphrases import paraphrase
from sim.demonstrations.skills.expert import SkillExpert
from sim.demonstrations.try_skills import add_options, chosen_tasks
from sim.demonstrations.views import KINDS, Views
from sim.results.lerobot_dataset import EEF_ACTION_NAMES, EpisodeTape, check_target, tape_path, write_dataset
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.suites import list_tasks

AFTER_SUCCESS = 8
MOST_TRIES = 4


def collect_episode(
    environment: LiberoEnvironment, views: Views, rng: np.random.Generator, tape_at: Path, every: int = 1
) -> bool:
    """One demonstration, kept if the task's own success test accepts it.  Deterministic in `rng`."""
    lay_out(environment, rng)
    views.draw([kind for kind in KINDS if rng.random() < 0.7], rng)
    expert, noise = SkillExpert(environment), Bursts(rng)
    text = paraphrase(environment.instruction, rng)
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


def collect_task(suite: str, task: int, episodes: int, seed: int, every: int, tapes: Path) -> tuple[int, int, int]:
    """Make what is missing of one task; (task, episodes made, episodes tried)."""
    missing = [i for i in range(episodes) if not tape_path(tapes, task, i).is_file()]
    made = tried = 0
    if missing:
        environment = LiberoEnvironment(suite, task)
        views = Views(environment)
        for episode in missing:
            for attempt in range(MOST_TRIES):
                tried += 1
                rng = np.random.default_rng([seed, task, episode, attempt])
                if collect_episode(environment, views, rng, tape_path(tapes, task, episode), every):
                    made += 1
                    break
        environment.close()
    return task, made, tried


def _work(job: tuple[Any, ...]) -> tuple[int, int, int]:
    return collect_task(*job)


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.demonstrations.collect_skills", __doc__)
    add_options(parser, "libero_goal", 7, 2)
    parser.add_argument("--every", type=int, default=1, help="control steps in a row of the dataset, drawn once")
    parser.add_argument("--output", type=Path, required=True, help="folder of the dataset and of its parts")
    args = parser.parse_args(argv)
    tasks, names = chosen_tasks(args), list_tasks(args.suite)
    dataset = args.output / "dataset"
    check_target(dataset, resume=True)
    results_folder(args.output)
    tapes = args.output / TAPES / f"{args.suite}_seed{args.seed}"
    jobs = [(args.suite, task, args.episodes, args.seed, args.every, tapes) for task in tasks]
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for done, (task, made, tried) in enumerate(pool.imap_unordered(_work, jobs), 1):
            left = (time.monotonic() - start) / done * (len(jobs) - done) / 60
            print(
                f"{done}/{len(jobs)} task {task}: {made} of {tried} episodes kept, {left:.1f} min left: {names[task]}",
                flush=True,
            )
    recorded = [tape_path(tapes, task, i) for task in tasks for i in range(args.episodes)]
    print(f"{write_dataset(recorded, dataset)} of {len(recorded)} episodes in the LeRobot dataset {dataset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
