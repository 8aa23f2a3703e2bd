"""The path that a position controller runs for each message, by its own interpolation from its own state.

As joint_trajectory_controller of ros2_controllers does (6.9.0, `Trajectory::sample`): a trajectory starts at its stamp,
or on arrival where that is 0; from the state that the controller is commanding (`interpolate_from_desired_state`) it
goes to the first point, then from point to point, along cubics where velocities are given and straight where they are
not, and holds its end.  One that arrives after the time of its first point is joined at once where it is by then,
whatever the controller commanded before: that jump is outside every limit.  One that ends in the past is refused.  A
message is judged by the whole of its path, also where a later one cuts it off.  A joint without limits, as the
gripper's, may go anywhere at once.

Imports NumPy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# (seconds from the start, positions (n,), velocities (n,) or None)
Point = tuple[float, Array, "Array | None"]
VELOCITY_FACTOR, ACCELERATION_FACTOR = 1.1, 1.25
ROOM_RAD = 1e-6
# What reading two clocks one after the other costs at speed, where a path is joined; less than encoders resolve.
JOIN_RAD, JOIN_RAD_S = 2e-5, 1e-3
PERIOD_S, PAUSE_S = 0.01, 0.1  # of a stream
CYCLE_S = 2e-3  # of the controller, which passes over what is shorter in one step


@dataclass(frozen=True)
class Limits:
    """lower, upper (n,) rad; velocity (n,) rad/s; acceleration (n,) rad/s^2."""

    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array

    def apart(self, a: Array, b: Array) -> float:
        """The greatest distance of a joint that has limits."""
        return float(np.max(np.abs(a - b), initial=0.0, where=np.isfinite(self.velocity)))


@dataclass
class Verdict:
    """How much of each limit a path uses: 1 is all of it.  position: rad beyond a limit.  Of the worst joint."""

    position: float = 0.0
    velocity: float = 0.0
    acceleration: float = 0.0

    @property
    def outside(self) -> bool:
        return not (
            self.position <= ROOM_RAD and self.velocity <= VELOCITY_FACTOR and self.acceleration <= ACCELERATION_FACTOR
        )

    def add(self, other: Verdict) -> None:
        """The worse of each kind; NaN, which is outside, before any number."""
        self.position = float(np.maximum(self.position, other.position))
        self.velocity = float(np.maximum(self.velocity, other.velocity))
        self.acceleration = float(np.maximum(self.acceleration, other.acceleration))


def judge_cubic(p0: Array, v0: Array, p1: Array, v1: Array, seconds: float, limits: Limits) -> Verdict:
    """The cubic from (p0, v0) to (p1, v1): by its derivative's roots, without sampling."""
    # In s = t / seconds: p = p0 + k1 s + k2 s^2 + k3 s^3.
    k1 = v0 * seconds
    k2 = 3.0 * (p1 - p0) - 2.0 * k1 - v1 * seconds
    k3 = -2.0 * (p1 - p0) + k1 + v1 * seconds
    speed = np.maximum(np.abs(v0), np.abs(v1))
    lowest, highest = np.minimum(p0, p1), np.maximum(p0, p1)
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = -k2 / (3.0 * k3)
        peak = np.abs(k1 + turn * (2.0 * k2 + 3.0 * turn * k3)) / seconds
        speed = np.where((turn > 0.0) & (turn < 1.0), np.maximum(speed, peak), speed)
        root = np.sqrt(k2**2 - 3.0 * k3 * k1)
        tops = [(-k2 - root) / (3.0 * k3), (-k2 + root) / (3.0 * k3), -k1 / (2.0 * k2)]
    tops[2] = np.where(k3 == 0.0, tops[2], np.nan)
    for top in tops:
        s = np.where((top > 0.0) & (top < 1.0), top, 0.0)
        place = p0 + s * (k1 + s * (k2 + s * k3))
        lowest, highest = np.minimum(lowest, place), np.maximum(highest, place)
    bend = np.maximum(np.abs(2.0 * k2), np.abs(2.0 * k2 + 6.0 * k3)) / seconds**2
    return Verdict(
        float(np.max(np.maximum(limits.lower - lowest, highest - limits.upper))),
        float(np.max(speed / limits.velocity)),
        float(np.max(bend / limits.acceleration)),
    )


def judge_line(p0: Array, v0: Array, p1: Array, seconds: float, limits: Limits) -> Verdict:
    """The straight line from p0 to p1, entered with v0: the change of velocity counts as spread over it."""
    rate = (p1 - p0) / seconds
    beyond = np.maximum(limits.lower - np.minimum(p0, p1), np.maximum(p0, p1) - limits.upper)
    bend = np.abs(rate - v0) / seconds
    return Verdict(
        float(np.max(beyond)),
        float(np.max(np.abs(rate) / limits.velocity)),
        float(np.max(bend / limits.acceleration)),
    )


def judge_instant(p0: Array, v0: Array, p1: Array, v1: Array, seconds: float, limits: Limits) -> Verdict:
    """Less than a cycle: what its ends ask; the rounding of stamps to ns would bend the cubic between them."""
    beyond = np.maximum(limits.lower - np.minimum(p0, p1), np.maximum(p0, p1) - limits.upper)
    far = limits.apart(p1, p0 + 0.5 * seconds * (v0 + v1)) > JOIN_RAD
    bend = np.maximum(0.0, np.abs(v1 - v0) - JOIN_RAD_S) / seconds
    return Verdict(
        float(np.max(beyond)),
        float(np.max(np.maximum(np.abs(v0), np.abs(v1)) / limits.velocity)),
        float("inf") if far else float(np.max(bend / limits.acceleration)),
    )


@dataclass
class Controller:
    """One controller's commanded state.  Times in seconds on one clock; positions (n,) rad where it holds at first."""

    limits: Limits
    positions: Array
    start_s: float = 0.0
    points: list[Point] = field(default_factory=list)

    def state(self, now_s: float) -> tuple[Array, Array]:
        """Positions and velocities that it commands."""
        if not self.points:
            return self.positions, np.zeros_like(self.positions)
        since = max(0.0, now_s - self.start_s)
        for (t0, p0, v0), (t1, p1, v1) in zip(self.points, self.points[1:], strict=False):
            if since >= t1:
                continue
            length, s = t1 - t0, (since - t0) / (t1 - t0)
            if v1 is None:
                return p0 + s * (p1 - p0), (p1 - p0) / length
            k1 = (np.zeros_like(p0) if v0 is None else v0) * length
            k2 = 3.0 * (p1 - p0) - 2.0 * k1 - v1 * length
            k3 = -2.0 * (p1 - p0) + k1 + v1 * length
            return p0 + s * (k1 + s * (k2 + s * k3)), (k1 + s * (2.0 * k2 + 3.0 * s * k3)) / length
        return self.points[-1][1], np.zeros_like(self.positions)

    def take(self, now_s: float, points: Sequence[Point], begun_s: float = 0.0) -> Verdict:
        """A trajectory arrives that began `begun_s` ago by its stamp: its path from here, and what it asks."""
        start, rate = self.state(now_s)
        if points[-1][0] < begun_s:
            return Verdict()  # refused: it goes on as it was
        self.start_s, self.points = now_s - begun_s, list(points)
        verdict = Verdict()
        if points[0][0] > begun_s:
            self.points.insert(0, (begun_s, start, rate))
        else:
            joined, speed = self.state(now_s)
            if self.limits.apart(joined, start) > JOIN_RAD or self.limits.apart(speed, rate) > JOIN_RAD_S:
                verdict.add(Verdict(0.0, np.inf, np.inf))
            # Only what is still to come is run.
            passed = max(index for index, point in enumerate(points) if point[0] <= begun_s)
            self.points = [(begun_s, joined, speed), *points[passed + 1 :]]
        for (t0, p0, v0), (t1, p1, v1) in zip(self.points, self.points[1:], strict=False):
            before = np.zeros_like(p0) if v0 is None else v0
            if not (np.isfinite(p1).all() and (v1 is None or np.isfinite(v1).all()) and t1 > t0):
                return Verdict(np.inf, np.inf, np.inf)
            if v1 is None:
                verdict.add(judge_line(p0, before, p1, t1 - t0, self.limits))
            elif t1 - t0 < CYCLE_S:
                verdict.add(judge_instant(p0, before, p1, v1, t1 - t0, self.limits))
            else:
                verdict.add(judge_cubic(p0, before, p1, v1, t1 - t0, self.limits))
        last = self.points[-1][2]
        if last is not None and np.any(last != 0.0):
            # It is held at once there, whatever its speed: a real one refuses such a message.
            verdict.add(Verdict(0.0, 0.0, np.inf))
        return verdict


@dataclass
class Stream:
    """Positions that a forward_command_controller takes as they come; judged by their differences.

    The first of all is taken as it is, since nobody who sends it can know where such a controller holds the arm.
    """

    limits: Limits
    sent_s: float = 0.0
    positions: Array | None = None
    velocity: Array | None = None

    def take(self, sent_s: float, positions: Array) -> Verdict:
        """Positions that were sent at that time."""
        before, seconds = self.positions, sent_s - self.sent_s
        self.positions, self.sent_s = positions, sent_s
        beyond = float(np.max(np.maximum(self.limits.lower - positions, positions - self.limits.upper)))
        if before is None:
            self.velocity = np.zeros_like(positions)
            return Verdict(beyond)
        assert self.velocity is not None
        if seconds > PAUSE_S:  # in which it rested
            self.velocity, seconds = np.zeros_like(positions), PERIOD_S
        seconds = max(seconds, PERIOD_S)
        rate = (positions - before) / seconds
        bend, self.velocity = np.abs(rate - self.velocity) / seconds, rate
        speed = float(np.max(np.abs(rate) / self.limits.velocity))
        return Verdict(beyond, speed, float(np.max(bend / self.limits.acceleration)))


def points_of(message: Any, names: Sequence[str]) -> list[Point] | None:
    """The points of a trajectory_msgs/JointTrajectory for the joints `names`; None where it lacks one."""
    known = list(message.joint_names)
    if not message.points or any(name not in known for name in names):
        return None
    order = [known.index(name) for name in names]
    points: list[Point] = []
    for point in message.points:
        seconds = point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec
        velocities = np.array(point.velocities, dtype=np.float64)[order] if len(point.velocities) else None
        points.append((seconds, np.array(point.positions, dtype=np.float64)[order], velocities))
    return points
