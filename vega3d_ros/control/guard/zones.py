"""Where the arm may be, beside its joint limits, and what slows it down before it is refused.  NumPy only."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from policies.types import FloatArray
from vega3d_ros.control.guard.limits import ArmModel
from vega3d_ros.control.guard.motion import Cubic

# Times at which the tool's place is looked at, and the room for its bow between two of them: a t^2 / 8 at 100 m/s^2.
LOOK_S, LOOK_ROOM_M, MOST_LOOKS = 0.0125, 0.002, 16
ROUNDING = 1e-9


class Zone(Protocol):
    """A region that the arm must not leave.  rule: the name under which it is counted.

    allows: whether all of the configurations (m, n) rad, taken closely along a path, are in it.
    """

    rule: str

    def allows(self, configurations: FloatArray) -> bool: ...


class Pace(Protocol):
    """Slows steps down before they lead into trouble.

    scaled: the step that is taken instead of that from q, v to goal, goal_v (n,) within period_s.
    """

    def scaled(
        self, q: FloatArray, v: FloatArray, goal: FloatArray, goal_v: FloatArray, period_s: float
    ) -> tuple[FloatArray, FloatArray]: ...


class Workspace:
    """The tool stays in a box: lower, upper (3,) m in the base frame."""

    rule = "workspace"

    def __init__(self, arm: ArmModel, lower: FloatArray, upper: FloatArray) -> None:
        self._arm, self._lower, self._upper = arm, lower + LOOK_ROOM_M, upper - LOOK_ROOM_M

    def allows(self, configurations: FloatArray) -> bool:
        for q in configurations:
            tool, _ = self._arm.tip_pose(q)
            if np.any(tool < self._lower) or np.any(tool > self._upper):
                return False
        return True


def look_along(*cubics: Cubic, braking: Cubic) -> FloatArray:
    """(m, n) rad: where they lead, and an even braking to rest at last, looked at as closely as a zone needs."""
    # A long braking after equal ways: after equal times it would be looked at least where the arm is fastest.
    slower = braking.seconds * (1.0 - np.sqrt(1.0 - _looks(braking.seconds) / braking.seconds))
    ways = [cubic.along(_looks(cubic.seconds)) for cubic in cubics]
    return np.concatenate([*ways, braking.along(slower)])


def _looks(seconds: float) -> FloatArray:
    """Times within `seconds`, its end among them, close enough to find a zone left between two of them."""
    count = min(MOST_LOOKS, max(1, int(np.ceil(seconds / LOOK_S - ROUNDING))))
    return np.linspace(seconds / count, seconds, count)
