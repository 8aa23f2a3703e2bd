"""Slowing down before the arm comes near to something, to a singularity, or to the end of a joint.

As moveit_servo does, and only on the way there: the way back is free.  NumPy and Pinocchio, no ROS; not thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.types import FloatArray
from vega3d_ros.control.body.body import Body
from vega3d_ros.control.guard.limits import GuardLimits
from vega3d_ros.control.kinematics import Kinematics


@dataclass(frozen=True)
class ApproachLimits:
    """condition_slow, condition_stop: condition number of the Jacobian (m and rad) from which the arm slows down and at
    which it stops; 0: never.  joint_margin_rad: distance to a joint's limit from which it slows down; 0: never."""

    condition_slow: float = 0.0
    condition_stop: float = 0.0
    joint_margin_rad: float = 0.0


@dataclass(frozen=True)
class Slowed:
    """factor 1 to 0, and why: '' where nothing slows the arm, else `body`, `singularity` or `joint limit`."""

    factor: float
    why: str


class Approach:
    """How fast a step may be taken.  body: None watches no distances.  bounds: the limits of the arm."""

    def __init__(self, arm: Kinematics, limits: ApproachLimits, body: Body | None, bounds: GuardLimits) -> None:
        self.body, self.limits = body, limits
        self._arm, self._lower, self._upper, self._acceleration = arm, bounds.lower, bounds.upper, bounds.acceleration
        self.last = Slowed(1.0, "")
        self.condition = 0.0

    def slowed(self, q: FloatArray, goal: FloatArray) -> Slowed:
        """The factor for a step from q to goal, (n,) rad; the smallest of the three."""
        found = [Slowed(self._towards_singularity(q, goal), "singularity")]
        found.append(Slowed(self._towards_limit(q, goal), "joint limit"))
        if self.body is not None:
            found.append(Slowed(self.body.speed_factor(q, goal), "body"))
        slowest = min(found, key=lambda one: one.factor)
        self.last = slowest if slowest.factor < 1.0 else Slowed(1.0, "")
        return self.last

    def scaled(
        self, q: FloatArray, v: FloatArray, goal: FloatArray, goal_v: FloatArray, period_s: float
    ) -> tuple[FloatArray, FloatArray]:
        """The step that is taken instead: from q (n,) rad, v (n,) rad/s towards goal, goal_v at the end of the period.

        Untouched where nothing slows it.  Otherwise the speed at the end is the factor's share, or as near to it as the
        accelerations allow; of how the step departs from even acceleration its share is kept.
        """
        share = self.slowed(q, goal).factor
        if share >= 1.0:
            return goal, goal_v
        change = self._acceleration * period_s
        wanted = share * goal_v
        velocity = np.clip(wanted, v - change, v + change)
        evenly = q + 0.5 * period_s * (v + velocity)
        if not np.array_equal(velocity, wanted):
            return evenly, velocity
        return evenly + share * (goal - q - 0.5 * period_s * (v + goal_v)), velocity

    def _towards_singularity(self, q: FloatArray, goal: FloatArray) -> float:
        slow, stop = self.limits.condition_slow, self.limits.condition_stop
        if not stop:
            return 1.0
        self.condition = self._condition(goal)
        if self.condition <= slow or self.condition <= self._condition(q):
            return 1.0
        return float(np.clip((stop - self.condition) / (stop - slow), 0.0, 1.0))

    def _condition(self, q: FloatArray) -> float:
        values = np.linalg.svd(self._arm.jacobian(q), compute_uv=False)
        return float(values[0] / max(values[-1], 1e-12))

    def _towards_limit(self, q: FloatArray, goal: FloatArray) -> float:
        margin = self.limits.joint_margin_rad
        if not margin:
            return 1.0
        # Of the two ends of each joint the one that it goes towards counts.
        room = np.where(goal < q, goal - self._lower, np.where(goal > q, self._upper - goal, np.inf))
        return float(np.clip(room.min() / margin, 0.0, 1.0))
