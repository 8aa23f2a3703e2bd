"""A Panda is led down, tool first, link first, and at random: how low does its body get over a floor to be respected?

The guard watches capsules round the maker's collision meshes.  Who judges is MuJoCo, with robosuite's own meshes: each
message is run as a controller runs it, and the lowest vertex of any link that moves is looked for along its path.
"""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from benchmarks.arm.cost import HOME, JOINTS, PERIOD_NS, PERIOD_S, panda_urdf
from benchmarks.wire_judge.controller import Controller, Limits
from policies.types import FloatArray
from vega3d_ros.control.body.approach import Approach, ApproachLimits
from vega3d_ros.control.body.body import Body, Surroundings
from vega3d_ros.control.guard.decision import GuardDecision
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.safety_guard import SafetyGuard
from vega3d_ros.control.kinematics import Kinematics

FLOOR_M = 0.1
COMMANDS, LOOKS = 100, 6
# The fixed link stands on the floor.
FIXED = ("world", "base", "link0")


class Meshes:
    """robosuite's Panda in MuJoCo."""

    def __init__(self) -> None:
        import robosuite

        xml = Path(robosuite.__file__).parent / "models" / "assets" / "robots" / "panda" / "robot.xml"
        self._model = mujoco.MjModel.from_xml_path(str(xml))
        self._data = mujoco.MjData(self._model)
        model = self._model
        self._geoms = [g for g in range(model.ngeom) if model.body(model.geom_bodyid[g]).name not in FIXED]

    def lowest_m(self, q: FloatArray) -> float:
        """Height of the lowest vertex of a moving link, above the base, for q (7,) rad."""
        model, data = self._model, self._data
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        lowest = np.inf
        for geom in self._geoms:
            mesh = model.geom_dataid[geom]
            first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
            heights = model.mesh_vert[first : first + count] @ data.geom_xmat[geom].reshape(3, 3)[2]
            lowest = float(np.minimum(lowest, heights.min() + data.geom_xpos[geom][2]))
        return lowest


def below_floor(repetitions: int) -> tuple[int, int, float]:
    """Of so many ways down: messages, those whose path gets below the floor or out of the limits, lowest height, m."""
    urdf, meshes = panda_urdf(), Meshes()
    arm = Kinematics(urdf, JOINTS, "panda_link8")
    body = Body(urdf, JOINTS, HOME, Surroundings(floor=FLOOR_M))
    limits = combine_limits(arm, {"acceleration": 10.0})
    rng, messages, outside, lowest = np.random.default_rng(0), 0, 0, np.inf
    for number in range(repetitions):
        guard = SafetyGuard(arm, limits, PERIOD_S, "reject", True, [body])
        if number % 2:
            guard.pace = Approach(arm, ApproachLimits(17.0, 30.0, 0.1), body, limits)
        controller = Controller(Limits(limits.lower, limits.upper, limits.velocity, limits.acceleration), HOME.copy())

        def run(decision: GuardDecision, controller: Controller = controller) -> bool:
            motion = decision.motion
            points = list(zip(motion.times_s[1:], motion.positions[1:], motion.velocities[1:], strict=True))
            verdict = controller.take(motion.start_ns * 1e-9, points)
            end_s = controller.points[-1][0]
            heights = [
                meshes.lowest_m(controller.state(controller.start_s + t)[0]) for t in np.linspace(0, end_s, LOOKS)
            ]
            nonlocal lowest
            lowest = float(np.min([lowest, *heights]))
            return verdict.outside or not np.min(heights) >= FLOOR_M

        lead, _ = guard.take_over(HOME, np.zeros(7), 0)
        assert lead is not None
        outside, messages = outside + run(lead), messages + 1
        time_ns = round(lead.motion.times_s[-1] * 1e9)
        # The tool down with the wrist kept high, the wrist down with the tool kept high, or anything.
        wanted = [np.array([0, 1.4, 0, -0.3, 0, 1.2, 0]), np.array([0, 1.5, 0, 0.1, 0, 0.9, 0])][number % 3 % 2]
        pull = rng.normal(0.0, 0.6, 7) if number % 3 == 2 else wanted + rng.normal(0.0, 0.15, 7)
        for _ in range(COMMANDS):
            here = controller.state(time_ns * 1e-9)[0]
            q, v = guard.start(here, np.zeros(7), time_ns)
            end = np.clip(np.clip(pull, -0.6, 0.6), v - 0.3, v + 0.3)
            decision = guard.check(q + 0.5 * PERIOD_S * (v + end), end, 0.0, time_ns)
            if not decision.rejected:
                outside, messages = outside + run(decision), messages + 1
            time_ns += PERIOD_NS
    return messages, outside, lowest
