"""Success on random layouts and targets, for tuning.

    python -m sim.demonstrations.try_layouts --policy outputs/vega_nano

The official initial states are the test set and are left alone.  Layouts are drawn as for demonstrations, with another
seed; the wording is LIBERO's.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np

from policies.checkpoints import load_policy
from policies.files.command_line import command, command_parser
from policies.training.wordings import libero_sentence
from policies.types import Observation, Policy
from sim.demonstrations.layouts import place_randomly, things
from sim.demonstrations.scripted_expert import ScriptedExpert
from sim.results.evaluation import wilson_95
from sim.worlds.frames import FrameWindow
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.suites import load_suite
from vega3d_ros.control.chunk_scheduler import LockstepQueue

MAX_STEPS = 280


def attempt(environment: LiberoEnvironment, policy: Policy, target: str) -> tuple[bool, float]:
    """One episode from the present layout: solved?, and the least horizontal distance (m) of TCP and grasp point."""
    judge = ScriptedExpert(environment, target)
    text = libero_sentence(target.rsplit("_", 1)[0])
    policy.reset()
    queue, frames = LockstepQueue(policy.spec), FrameWindow(policy.spec)
    nearest = np.inf
    for step in range(MAX_STEPS):
        if frames.needed(step):
            frames.add(step, {camera: environment.render(camera) for camera in policy.spec.cameras})
        if queue.empty:
            state = environment.state()
            queue.submit(policy.act(Observation(frames.images(step), state, text, state.stamp_ns)))
        environment.step_eef(queue.pop().action)
        nearest = min(nearest, float(np.linalg.norm(judge.tcp[:2] - judge.grasp_point[:2])))
        if judge.solved:
            return True, nearest
    return False, nearest


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.demonstrations.try_layouts", __doc__, paragraphs=3)
    parser.add_argument("--policy", default="vega-nano", help="name, checkpoint folder, or module:Class")
    parser.add_argument("--suite", default="libero_object", help="suite whose scenes are used")
    parser.add_argument("--episodes", type=int, default=3, help="per scene")
    parser.add_argument("--seed", type=int, default=1001, help="of layouts and targets")
    args = parser.parse_args(argv)
    policy = load_policy(args.policy)
    won: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for task in range(load_suite(args.suite).n_tasks):
        rng = np.random.default_rng([args.seed, task])
        environment = LiberoEnvironment(args.suite, task)
        done = 0
        while done < args.episodes:
            kind = place_randomly(environment, rng)
            if kind is None:
                continue
            done += 1
            target = str(rng.choice(things(environment)))
            solved, nearest = attempt(environment, policy, target)
            for key in (kind, "all"):
                won[key] += solved
                tried[key] += 1
            outcome = "solved" if solved else f"not solved, came within {100 * nearest:.1f} cm"
            print(f"scene {task} {kind}: {target} {outcome}", flush=True)
        environment.close()
    for key in sorted(tried):
        low, high = wilson_95(won[key], tried[key])
        print(f"{key}: {won[key]} of {tried[key]} (95 % interval {100 * low:.0f} to {100 * high:.0f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
