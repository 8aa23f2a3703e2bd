"""One motion as a joint_trajectory_controller runs it: cubics through points, at rest on the last of them.

Times are seconds from the motion's start, which is a time in ns on whatever clock the caller keeps.  NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray

IntArray = NDArray[np.int64]
# Controllers want the times of a trajectory's points to differ; below this a joint that creeps would be stopped dead.
SHORTEST_BRAKING_S = 0.01
# Points closer together than this are one.
APART_NS = 1000


@dataclass(frozen=True)
class Motion:
    """times_s (m,), the first 0 and growing; positions (m, n) rad; velocities (m, n) rad/s, the last of them 0."""

    start_ns: int
    times_s: FloatArray
    positions: FloatArray
    velocities: FloatArray

    def at(self, time_ns: int) -> tuple[FloatArray, FloatArray]:
        """Positions (n,) rad and velocities (n,) rad/s; before the start the start, after the end the end at rest."""
        since = max(0.0, (time_ns - self.start_ns) * 1e-9)
        if since >= self.times_s[-1]:
            return self.positions[-1].copy(), np.zeros_like(self.positions[-1])
        index = int(self.times_s.searchsorted(since, side="right")) - 1
        seconds = float(self.times_s[index + 1] - self.times_s[index])
        cubic = Cubic(
            self.positions[index],
            self.velocities[index],
            self.positions[index + 1],
            self.velocities[index + 1],
            seconds,
        )
        return cubic.at(since - float(self.times_s[index]))

    def is_under_way(self, time_ns: int, late_ns: int) -> bool:
        """Whether it has begun, and whoever goes along it so late has not come to its end.

        One that begins later is of a clock that was set back since.
        """
        return self.start_ns <= time_ns < self.start_ns + round(1e9 * self.times_s[-1]) + late_ns

    def along(self, times_ns: IntArray) -> FloatArray:
        """Positions (k, n) rad at times (k,)."""
        since = np.clip((times_ns - self.start_ns) * 1e-9, 0.0, self.times_s[-1])
        index = np.minimum(self.times_s.searchsorted(since, side="right") - 1, len(self.times_s) - 2)
        cubic = Cubic(
            self.positions[index],
            self.velocities[index],
            self.positions[index + 1],
            self.velocities[index + 1],
            (self.times_s[index + 1] - self.times_s[index])[:, None],
        )
        places, _ = cubic.at((since - self.times_s[index])[:, None])
        places[since >= self.times_s[-1]] = self.positions[-1]  # to the last bit
        return places

    def between(self, begin_ns: int, end_ns: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What it is from one time to a later one: times_s from `begin_ns`, positions, velocities, as of a Motion; the
        ends and its own points between them."""
        knots = self.start_ns + np.rint(1e9 * self.times_s).astype(np.int64)
        inside = (knots > begin_ns + APART_NS) & (knots < end_ns - APART_NS)
        ends = [self.at(begin_ns), self.at(end_ns)]
        times_s = np.array([0, *(knots[inside] - begin_ns), end_ns - begin_ns]) * 1e-9
        positions = np.vstack([ends[0][0], self.positions[inside], ends[1][0]])
        velocities = np.vstack([ends[0][1], self.velocities[inside], ends[1][1]])
        return times_s, positions, velocities


def resting(place: FloatArray, start_ns: int = 0, seconds: float = 1.0) -> Motion:
    """At a place (n,) rad for so long, and then."""
    still = np.zeros_like(place)
    return Motion(start_ns, np.array([0.0, seconds]), np.array([place, place]), np.array([still, still]))


class Cubic:
    """q(t) = q0 + v0 t + b t^2 + c t^3 from (q0, v0) to (q1, v1) in `seconds`; arrays of any one shape."""

    def __init__(self, q0: FloatArray, v0: FloatArray, q1: FloatArray, v1: FloatArray, seconds: float) -> None:
        mean = (q1 - q0) / seconds
        self.q0, self.v0, self.q1, self.v1, self.seconds = q0, v0, q1, v1, seconds
        self.b = (3.0 * mean - 2.0 * v0 - v1) / seconds
        self.c = (v0 + v1 - 2.0 * mean) / seconds**2

    def at(self, seconds: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Positions and velocities."""
        return self._place(seconds), self.v0 + seconds * (2.0 * self.b + 3.0 * seconds * self.c)

    def along(self, times_s: FloatArray) -> FloatArray:
        """Positions (m, n) at times (m,)."""
        return self._place(times_s[:, None])

    def _place(self, s: FloatArray | float) -> FloatArray:
        return self.q0 + s * (self.v0 + s * (self.b + s * self.c))

    def largest_acceleration(self) -> FloatArray:
        """It changes linearly, so one of the ends has it."""
        return np.maximum(np.abs(2.0 * self.b), np.abs(2.0 * self.b + 6.0 * self.c * self.seconds))

    def largest_velocity(self) -> FloatArray:
        """At an end, or where the acceleration passes zero inside."""
        ends = np.maximum(np.abs(self.v0), np.abs(self.v1))
        with np.errstate(divide="ignore", invalid="ignore"):
            turn = -self.b / (3.0 * self.c)
            inside = (turn > 0.0) & (turn < self.seconds)
            peak = np.abs(self.v0 + self.b * turn)
        return np.where(inside, np.maximum(ends, peak), ends)

    def extent(self) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest position: at an end, or where the velocity passes zero inside."""
        low, high = np.minimum(self.q0, self.q1), np.maximum(self.q0, self.q1)
        with np.errstate(divide="ignore", invalid="ignore"):
            c3 = 3.0 * self.c
            root = np.sqrt(self.b**2 - c3 * self.v0)
            # The form that does not cancel; either may be no number, and then does not count.
            q = -(self.b + np.where(self.b >= 0.0, root, -root))
            times_s = np.array([q / c3, self.v0 / q])
            inside = (times_s > 0.0) & (times_s < self.seconds)
            for place in self._place(np.where(inside, times_s, 0.0)):
                low, high = np.minimum(low, place), np.maximum(high, place)
        return low, high


def braking(
    position: FloatArray, velocity: FloatArray, acceleration: FloatArray, shortest_s: float = SHORTEST_BRAKING_S
) -> tuple[FloatArray, float]:
    """Where the joints come to rest, (n,) rad, and after how long, s, from position (n,) rad and velocity (n,) rad/s.

    All joints brake evenly over the same time, which keeps the tool near its way: the shortest that none needs more
    than its acceleration (n,) rad/s^2 for, and at least `shortest_s`.
    """
    seconds = max(shortest_s, float((np.abs(velocity) / acceleration).max()))
    return position + 0.5 * seconds * velocity, seconds


def slow_s(distance: FloatArray, velocity: FloatArray, acceleration: FloatArray) -> float:
    """Seconds in which a cubic may go over the distances (n,) rad from rest to rest within limits (n,)."""
    return float(np.max(np.maximum(np.sqrt(6.0 * distance / acceleration), 1.5 * distance / velocity)))
