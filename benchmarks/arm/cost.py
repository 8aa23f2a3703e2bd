"""What the guard costs with everything that it looks at, against the control law: on one arm, in turns, in one run.

The arm is the Panda with its maker's collision meshes, which robosuite brings.  Of each command the law's own time is
taken, and that of the guard with braking path, body, and slowing down; CPU time of this thread, since what the machine
does between two lines is not theirs.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from policies.checkpoints import load_policy
from policies.types import FloatArray
from vega3d_ros.control.body.approach import Approach, ApproachLimits
from vega3d_ros.control.body.body import Body, Surroundings
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.safety_guard import SafetyGuard
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.control.resources import resolve

JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
HOME = np.array([0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398])
PERIOD_S, PERIOD_NS = 0.05, 50_000_000
WARM_UP = 100


@dataclass
class Cost:
    """us of each command.  pairs: that the body watches.  refused: commands."""

    law: list[float] = field(default_factory=list)
    guard: list[float] = field(default_factory=list)
    pairs: int = 0
    refused: int = 0

    def share(self, percentile: float) -> float:
        """The guard's time over the law's."""
        return float(np.percentile(self.guard, percentile) / np.percentile(self.law, percentile))


def measure(commands: int) -> Cost:
    """Of so many commands that sway the arm about home, near a box and above a floor."""
    urdf = panda_urdf()
    arm = Kinematics(urdf, JOINTS, "panda_link8")
    box = (np.array([0.7, -0.3, 0.0]), np.array([0.9, 0.3, 0.5]))
    body = Body(urdf, JOINTS, HOME, Surroundings(floor=-0.02, boxes=(box,)))
    limits = combine_limits(arm, {"acceleration": 10.0})
    guard = SafetyGuard(arm, limits, PERIOD_S, "reject", True, [body])
    guard.pace = Approach(arm, ApproachLimits(17.0, 30.0, 0.1), body, limits)
    described = Kinematics(_libero(), JOINTS, "panda_tcp")
    law = ImpedanceLaw(described, load_policy("vega-nano").spec.action_space, HOME)
    lead, _ = guard.take_over(HOME, np.zeros(7), 0)
    assert lead is not None
    motion, time_ns = lead.motion, round(lead.motion.times_s[-1] * 1e9) + 1
    rng, cost = np.random.default_rng(0), Cost(pairs=body.pairs)
    for number in range(commands + WARM_UP):
        q, v = motion.at(time_ns)
        action = np.append(rng.uniform(-0.3, 0.3, 6), 0.0)
        end = np.clip(_sway(number), v - 0.3, v + 0.3)
        began = time.thread_time_ns()
        law.step(q, v, action)
        between = time.thread_time_ns()
        here, rate = guard.start(q, v, time_ns)
        decision = guard.check(here + 0.5 * PERIOD_S * (rate + end), end, 0.0, time_ns)
        ended = time.thread_time_ns()
        motion, time_ns = decision.motion, time_ns + PERIOD_NS
        if number >= WARM_UP:
            cost.law.append((between - began) / 1e3)
            cost.guard.append((ended - between) / 1e3)
            cost.refused += decision.rejected
    return cost


def _sway(number: int) -> FloatArray:
    return 0.3 * np.sin(number / 20 + np.arange(7))


def panda_urdf() -> str:
    import robosuite

    folder = Path(robosuite.__file__).parent / "models" / "assets" / "bullet_data"
    os.environ["ROS_PACKAGE_PATH"] = str(folder)
    return (folder / "panda_description" / "urdf" / "panda_arm.urdf").read_text(encoding="utf-8")


def _libero() -> str:
    return resolve("package://vega3d_ros/config/robots/libero_panda.urdf").read_text(encoding="utf-8")
