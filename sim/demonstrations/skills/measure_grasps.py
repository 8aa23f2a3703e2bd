"""Try the grasps of every object that a task of some suites moves once, alone on its table, and keep those that held.

    python -m sim.demonstrations.skills.measure_grasps --suites libero_object libero_spatial

Each is taken, lifted, and carried 15 cm aside, from where it is aimed and from 6 mm beside; what slipped or tilted
least comes first in grasps.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from policies.files.command_line import command, command_parser
from sim.demonstrations.skills import grasps
from sim.demonstrations.skills.grasps import Grasp
from sim.demonstrations.skills.motion import CLOSE, OPEN, errors, funnel, towards
from sim.demonstrations.skills.scene import Pose, Scene
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.suites import load_suite

TRIED = 20
KEPT = 12
MOST_SLIP, MOST_TILT = 0.035, 0.8  # a bowl held by its rim swings
SPOT = np.array([0.15, -0.05])
BESIDE = (0.0, 0.006, -0.006)  # along the pads, m: what holds only at one spot slips where the arm is a little off
LIFT = np.array([-0.05, 0.14, 0.12])


def attempt(environment: LiberoEnvironment, scene: Scene, name: str, grasp: Grasp) -> Grasp | None:
    """The grasp with the worst of what was measured, or None where it did not hold there and a little beside."""
    slip = tilt = 0.0
    for beside in BESIDE:
        at = Pose(grasp.hand.position + beside * grasp.hand.rotation[:, 0], grasp.hand.rotation)
        measured = _lifted(environment, scene, name, replace(grasp, hand=at))
        if measured is None:
            return None
        slip, tilt = max(slip, measured[0]), max(tilt, measured[1])
    return replace(grasp, slip=round(slip, 4), tilt=round(tilt, 3))


def _lifted(environment: LiberoEnvironment, scene: Scene, name: str, grasp: Grasp) -> tuple[float, float] | None:
    """Slip (m) and tilt (rad) of an object that is lifted so, or None where it is not."""
    environment.seed_random(0)
    environment.random_reset()
    _alone(scene, name)
    environment.settle()
    start = scene.pose(name)
    for _ in range(70):
        goal = grasp.in_world(scene, name)
        distance, angle = errors(scene, goal)
        if distance < 0.006 and angle < 0.06:
            break
        environment.step_eef(towards(scene, funnel(scene, goal, goal.position[2] + 0.12), OPEN))
    else:
        return None
    hold = Pose(scene.tcp, goal.rotation)
    for _ in range(8):
        environment.step_eef(towards(scene, hold, CLOSE))
    for _ in range(30):
        environment.step_eef(towards(scene, Pose(hold.position + LIFT, hold.rotation), CLOSE))
    end = scene.pose(name)
    moved = end.position - start.position
    tilt = float(np.arccos(np.clip((np.trace(end.rotation @ start.rotation.T) - 1) / 2, -1, 1)))
    slip = float(np.linalg.norm(moved - (scene.tcp - hold.position)))
    if moved[2] < 0.08 or slip > MOST_SLIP or tilt > MOST_TILT or not all(scene.touches(name)):
        return None
    return slip, tilt


def _alone(scene: Scene, name: str) -> None:
    """Everything else off the table, the object before the arm, or where it was if the table is taken there."""
    env = scene.env
    for i, other in enumerate(scene.movable):
        joint = str(env.objects_dict[other].joints[-1])
        pose = np.array(env.sim.data.get_joint_qpos(joint))
        pose[:2] = scene.tcp[:2] + SPOT if other == name else [3.0 + i, 3.0]
        env.sim.data.set_joint_qpos(joint, pose)
    env.sim.forward()


def measure(environment: LiberoEnvironment, name: str) -> list[Grasp]:
    environment.seed_random(0)
    environment.random_reset()
    scene = Scene(environment)
    _alone(scene, name)
    environment.settle()
    tried = grasps.diverse(grasps.candidates(scene, name), TRIED)
    held = [kept for kept in (attempt(environment, scene, name, grasp) for grasp in tried) if kept is not None]
    print(f"{scene.category(name)}: {len(held)} of {len(tried)} grasps held", flush=True)
    return sorted(held, key=lambda g: 10 * g.slip + g.tilt)[:KEPT]


def _row(grasp: Grasp) -> dict[str, Any]:
    return {
        "position": np.round(grasp.hand.position, 4).tolist(), "rotation": np.round(grasp.hand.rotation, 5).tolist(),
        "width": round(grasp.width, 4), "slip": grasp.slip, "tilt": grasp.tilt,
    }  # fmt: skip


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.demonstrations.skills.measure_grasps", __doc__)
    suites = ["libero_spatial", "libero_object", "libero_goal", "libero_10"]
    parser.add_argument("--suites", nargs="+", default=suites, help="whose things are tried")
    parser.add_argument("--again", nargs="*", default=[], metavar="ASSET", help="assets to try anew")
    args = parser.parse_args(argv)
    table = json.loads(grasps.TABLE.read_text()) if grasps.TABLE.is_file() else {}
    done = set(table) - set(args.again)
    for suite in args.suites:
        for task in range(load_suite(suite).n_tasks):
            environment = LiberoEnvironment(suite, task)
            for name in environment.env.objects_dict:
                asset = name.rsplit("_", 1)[0]
                moved = any(p[0] in ("on", "in") and p[1] == name for p in environment.env.parsed_problem["goal_state"])
                if moved and asset not in done:
                    done.add(asset)
                    table[asset] = [_row(grasp) for grasp in measure(environment, name)]
                    text = ",\n".join(
                        f' "{key}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]"
                        for key, rows in sorted(table.items())
                    )
                    grasps.TABLE.write_text("{\n" + text + "\n}\n")
            environment.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
