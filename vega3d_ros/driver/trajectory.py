"""What a joint_trajectory_controller makes of a trajectory: what it refuses, in its words, and where the joints are.

Source: ros2_controllers 6.9, joint_trajectory_controller (`validate_trajectory_msg`, `Trajectory::sample`), with its
default parameters: a trajectory replaces the one under way at once, and begins at the state that `accept` is given.
NumPy only but for the message.  Times are seconds on the controller's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from policies.types import FloatArray, VegaError
from vega3d_ros.driver.polynomial import Polynomial
from vega3d_ros.ros.conversions import stamp_ns

RESTING = float(np.finfo(np.float32).eps)  # rad/s, as the controller has it


@dataclass(frozen=True)
class Knot:
    """A state on the way: time_s; positions (n,), velocities and accelerations (n,) where they are given."""

    time_s: float
    positions: FloatArray
    velocities: FloatArray | None = None
    accelerations: FloatArray | None = None


class TrajectoryController:
    """Follows one trajectory at a time.

    joints: those it must be given; optional: those it may be given beside them (fingers).  allow_partial: a trajectory
    may leave joints out, which then stay.  allow_motion_at_end: the last point may have a velocity, which then ends.
    """

    def __init__(
        self,
        joints: Sequence[str],
        optional: Sequence[str] = (),
        allow_partial: bool = False,
        allow_motion_at_end: bool = False,
    ) -> None:
        self._required, self._known = frozenset(joints), [*joints, *optional]
        self._partial, self._motion_at_end = allow_partial, allow_motion_at_end
        self._knots: list[Knot] = []
        self._named = np.zeros(len(self._known), dtype=bool)

    def hold(self, positions: FloatArray) -> None:
        """Rest at `positions` (n,), of all joints, the optional ones last, until a trajectory comes."""
        self._knots = [Knot(0.0, np.array(positions, dtype=np.float64))]

    def accept(self, message: JointTrajectory, now_s: float, positions: FloatArray, velocities: FloatArray) -> None:
        """Take over a trajectory; positions, velocities (n,): where it begins, the measured state or, with
        `interpolate_from_desired_state`, that of `at`.  Raises VegaError with its words."""
        names = list(message.joint_names)
        start_s = stamp_ns(message.header.stamp) / 1e9
        self._check(message, names, start_s, now_s)
        where = [self._known.index(name) for name in names]
        self._named[:] = False
        self._named[where] = True

        def spread(values: Sequence[float], base: FloatArray) -> FloatArray | None:
            if not len(values):
                return None
            result = np.array(base)
            result[where] = values
            return result

        origin_s, still = start_s or now_s, np.zeros(len(self._known))
        self._knots = [Knot(now_s, np.array(positions, dtype=np.float64), np.array(velocities, dtype=np.float64))]
        for point in message.points:
            time_s = origin_s + seconds_of(point)
            knot = Knot(
                time_s,
                spread(point.positions, positions),  # type: ignore[arg-type]  # never empty, see `_check`
                spread(point.velocities, still),
                spread(point.accelerations, still),
            )
            if time_s > now_s or point is message.points[-1]:
                self._knots.append(knot)

    @property
    def end_s(self) -> float:
        """When the trajectory ends."""
        return self._knots[-1].time_s

    def at(self, now_s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Positions (n,), velocities (n,) and which joints the trajectory names (n,); at last the end, at rest."""
        last = self._knots[-1]
        if last.velocities is not None and abs(now_s - last.time_s) < 1e-9:
            return last.positions, last.velocities, self._named
        positions, velocities = self.along(np.array([now_s]))
        return positions[0], velocities[0], self._named

    def along(self, times_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Positions and velocities (m, n) at the times (m,), which grow; at rest from the end on."""
        positions = np.tile(self._knots[-1].positions, (len(times_s), 1))
        velocities = np.zeros_like(positions)
        begin = 0
        for first, second in zip(self._knots, self._knots[1:], strict=False):
            end = int(np.searchsorted(times_s, second.time_s))
            if end > begin:
                here = slice(begin, end)
                since_s = np.maximum(0.0, times_s[here] - first.time_s)
                positions[here], velocities[here] = _between(first, second).at(since_s)
                begin = end
        return positions, velocities

    def extremes(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Of each segment of an accepted trajectory, from where it begins on: how long it lasts (k,) s; lowest and
        highest position and largest speed (k, n)."""
        seconds = np.diff([knot.time_s for knot in self._knots])
        pairs = zip(self._knots, self._knots[1:], strict=False)
        pieces = [_between(first, second).extremes() for first, second in pairs]
        lowest, highest, fastest = (np.array(values) for values in zip(*pieces, strict=True))
        return seconds, lowest, highest, fastest

    def _check(self, message: JointTrajectory, names: list[str], start_s: float, now_s: float) -> None:
        if not self._partial and not self._required <= set(names):
            raise VegaError("Joints on incoming trajectory don't match the controller joints.")
        if not names:
            raise VegaError("Empty joint names on incoming trajectory.")
        if len(set(names)) != len(names):
            raise VegaError("Joints on incoming trajectory are named twice.")
        if not message.points:
            raise VegaError("Empty trajectory received.")
        end_s = start_s + seconds_of(message.points[-1])
        if start_s and end_s < now_s:
            raise VegaError(
                f"Received trajectory with non-zero start time ({start_s:f}) that ends in the past ({end_s:f})."
            )
        for name in names:
            if name not in self._known:
                raise VegaError(f"Incoming joint {name!r} doesn't match the controller's joints.")
        if not self._motion_at_end:
            for name, velocity in zip(names, message.points[-1].velocities, strict=False):
                if abs(velocity) > RESTING:
                    raise VegaError(f"Velocity of last trajectory point of joint {name} is not zero: {velocity:.15f}.")
        before_s = 0.0
        for index, point in enumerate(message.points):
            if index and seconds_of(point) <= before_s:
                raise VegaError(
                    f"Time between points {index - 1} and {index} is not strictly increasing, it is {before_s:f} and "
                    f"{seconds_of(point):f} respectively."
                )
            before_s = seconds_of(point)
            _check_point(point, index, len(names))


def _check_point(point: JointTrajectoryPoint, index: int, joints: int) -> None:
    for field, optional in (("positions", False), ("velocities", True), ("accelerations", True)):
        values = getattr(point, field)
        if len(values) != joints and not (optional and not len(values)):
            raise VegaError(
                f"Mismatch between joint_names size ({joints}) and {field} ({len(values)}) at point #{index}."
            )
        if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
            raise VegaError(f"The {field} of point #{index} hold NaN or infinity: send finite numbers.")
    if len(point.effort):
        raise VegaError("Trajectories with effort fields are currently not supported.")


def seconds_of(point: JointTrajectoryPoint) -> float:
    """From the start of its trajectory."""
    return float(point.time_from_start.sec) + 1e-9 * float(point.time_from_start.nanosec)


def _between(first: Knot, second: Knot) -> Polynomial:
    """Of least degree that has all that both ends give."""
    ends = [(first.positions, second.positions)]
    for before, after in ((first.velocities, second.velocities), (first.accelerations, second.accelerations)):
        if before is None or after is None:
            break
        ends.append((before, after))
    return Polynomial(second.time_s - first.time_s, ends)
