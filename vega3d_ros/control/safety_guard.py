"""The last stage before a command leaves: nothing passes that is outside a limit.

NumPy only, no ROS.  Not a rated safety function: it makes commands plausible for the arm, and knows nothing of
people, of collisions or of what the driver does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from policies.types import FloatArray, VegaError
from vega3d_ros.control.kinematics import Kinematics

RULES = ("finite", "shape", "position", "velocity", "acceleration", "workspace", "rate")
# Room for rounding between computing a bound and comparing with it; far below what an encoder resolves.
EPSILON = 1e-9
# Controllers want the times of a trajectory's points to differ.
SHORTEST_BRAKING_S = 0.01


@dataclass(frozen=True)
class GuardLimits:
    """What a command may be.

    lower, upper (n,) rad, margins already taken off; velocity (n,) rad/s; acceleration (n,) rad/s^2;
    workspace_lower, workspace_upper (3,) m: box for the tool in the base frame, None for no box;
    min_interval_s: commands closer together than this are refused.  stop_within_limits: refuse a command too, as
    breaking `position`, from which the arm could not brake before a joint limit.
    """

    lower: FloatArray
    upper: FloatArray
    velocity: FloatArray
    acceleration: FloatArray
    workspace_lower: FloatArray | None = None
    workspace_upper: FloatArray | None = None
    min_interval_s: float = 0.0
    stop_within_limits: bool = False


@dataclass(frozen=True)
class GuardDecision:
    """positions (n,) rad, velocities (n,) rad/s, gripper: what may be commanded.

    rejected: the intended command was refused and this one holds the measured position.  rules: those that were
    broken, in the order of RULES; empty if the command passed untouched.
    """

    positions: FloatArray
    velocities: FloatArray
    gripper: float
    rejected: bool
    rules: tuple[str, ...]


def combine_limits(kinematics: Kinematics, config: Mapping[str, Any]) -> GuardLimits:
    """The URDF's limits and the robot YAML's, the stricter of each; VegaError if a limit is given by neither.

    config keys, all optional where the URDF has the limit: `lower`, `upper` (n,) rad; `velocity` (n,) rad/s;
    `acceleration` (n,) rad/s^2 (URDF knows none, so it is required); `position_margin` rad, `velocity_scale` and
    `acceleration_scale` in (0, 1]; `workspace_lower`, `workspace_upper` (3,) m; `min_interval_s` s.
    Numbers stand for all joints.
    """
    known = {
        "lower", "upper", "velocity", "acceleration", "position_margin", "velocity_scale", "acceleration_scale",
        "workspace_lower", "workspace_upper", "min_interval_s",
    }  # fmt: skip
    unknown = sorted(set(config) - known)
    if unknown:
        raise VegaError(f"The safety limits have unknown entries {unknown}: use {sorted(known)}.")
    n = kinematics.n
    margin = _number(config, "position_margin", 0.0, low=0.0)
    lower = np.maximum(kinematics.lower, _vector(config, "lower", n, -np.inf)) + margin
    upper = np.minimum(kinematics.upper, _vector(config, "upper", n, np.inf)) - margin
    scale = _number(config, "velocity_scale", 1.0, low=1e-6, high=1.0)
    velocity = scale * np.minimum(kinematics.velocity_limits, _vector(config, "velocity", n, np.inf))
    scale = _number(config, "acceleration_scale", 1.0, low=1e-6, high=1.0)
    acceleration = scale * _vector(config, "acceleration", n, np.inf)
    for name, values in (("lower", lower), ("upper", upper), ("velocity", velocity), ("acceleration", acceleration)):
        missing = [j for j, v in zip(kinematics.joint_names, values, strict=True) if not np.isfinite(v)]
        if missing:
            raise VegaError(f"There is no {name} limit for {missing}: give one under safety in the robot YAML.")
    if np.any(lower >= upper) or np.any(velocity <= 0) or np.any(acceleration <= 0):
        raise VegaError(
            "The safety limits leave the arm no room: make lower smaller than upper (margin included) and velocity and "
            "acceleration positive."
        )
    box = [_vector(config, key, 3, np.nan) if key in config else None for key in ("workspace_lower", "workspace_upper")]
    if (box[0] is None) != (box[1] is None) or (box[0] is not None and np.any(box[0] >= box[1])):  # type: ignore[operator]
        raise VegaError("The workspace box is incomplete or empty: give workspace_lower below workspace_upper, m.")
    interval = _number(config, "min_interval_s", 0.0, low=0.0)
    return GuardLimits(lower, upper, velocity, acceleration, box[0], box[1], interval)


class SafetyGuard:
    """Checks every command against limits, the measured state and the last command.  Not thread-safe.

    limits: None raises VegaError, since an arm without limits must not be commanded.  period_s: time a command has to
    be carried out.  mode: `reject` refuses a command that breaks a rule; `clamp` moves it to the nearest that breaks
    none, and refuses it where there is none.  counts: interventions per rule since the start.

    Velocity: the commanded velocities, and the mean velocities from the measured position and from the last command.
    Acceleration: the mean acceleration from the measured velocity and from the last commanded one.
    """

    def __init__(
        self,
        kinematics: Kinematics,
        limits: GuardLimits | None,
        period_s: float,
        mode: Literal["reject", "clamp"] = "reject",
    ) -> None:
        if limits is None:
            raise VegaError("There are no safety limits: give acceleration (and what the URDF lacks) in its YAML.")
        if mode not in ("reject", "clamp"):
            raise VegaError(f"There is no guard mode '{mode}': choose reject or clamp.")
        if not period_s > 0:
            raise VegaError("The control period must be positive: set the policy's rate.")
        self.limits = limits
        self.mode = mode
        self.counts = dict.fromkeys(RULES, 0)
        self.checked = 0
        self._kinematics = kinematics
        self._period = period_s
        self._last: tuple[FloatArray, FloatArray] | None = None
        self._last_stamp_ns: int | None = None

    def with_limits(self, **changes: Any) -> SafetyGuard:
        """A fresh guard whose limits differ in the given fields of GuardLimits."""
        return SafetyGuard(self._kinematics, replace(self.limits, **changes), self._period, self.mode)  # type: ignore[arg-type]

    def reset(self) -> None:
        """Forget the last command: at activation, after a stop, at a new episode.  Counts stay."""
        self._last = None
        self._last_stamp_ns = None

    def check(
        self,
        positions: FloatArray,
        velocities: FloatArray,
        gripper: float,
        measured_positions: FloatArray,
        measured_velocities: FloatArray,
        stamp_ns: int,
        joint_names: tuple[str, ...] | None = None,
    ) -> GuardDecision:
        """Decide about one command: positions (n,) rad, velocities (n,) rad/s at the end of the period.

        measured_*: the arm now.  stamp_ns: time of the command, on the clock on which `min_interval_s` counts.
        joint_names: names that the command will carry, checked if given.  Never raises on bad numbers.
        """
        self.checked += 1
        arrays = [_array(x) for x in (positions, velocities, measured_positions, measured_velocities)]
        position, velocity, measured, rate = arrays
        n = self._kinematics.n
        # Shape comes first in the code since arrays of the wrong length cannot be compared; both refuse outright.
        if not all(np.isfinite(a).all() for a in arrays) or not np.isfinite(gripper):
            return self._refuse(("finite",), measured, rate)
        names_match = joint_names is None or tuple(joint_names) == self._kinematics.joint_names
        if any(a.shape != (n,) for a in arrays) or not names_match:
            return self._refuse(("shape",), measured, rate)
        interval_ok = self._interval_ok(stamp_ns)
        with np.errstate(over="ignore"):  # infinite is also too far
            broken = self._broken(position, velocity, measured, rate)
        if not interval_ok:
            broken = (*broken, "rate")
        if broken and (self.mode == "reject" or not interval_ok):
            return self._refuse(broken, measured, rate)
        if broken:
            clamped = self._clamp(position, velocity, measured, rate)
            if clamped is None:
                return self._refuse(broken, measured, rate)
            position, velocity = clamped
        self._count(broken)
        self._last = (position.copy(), velocity.copy())
        self._last_stamp_ns = stamp_ns
        return GuardDecision(position, velocity, float(gripper), False, broken)

    def _refuse(self, rules: tuple[str, ...], measured: FloatArray, rate: FloatArray) -> GuardDecision:
        self._count(rules)
        # What was refused was not commanded: the next command is compared with the arm alone.
        self._last = None
        usable = measured.shape == (self._kinematics.n,) and bool(np.isfinite(measured).all())
        hold = measured.copy() if usable else np.full(self._kinematics.n, np.nan)
        return GuardDecision(hold, np.zeros(self._kinematics.n), 0.0, True, rules)

    def _count(self, rules: tuple[str, ...]) -> None:
        for rule in rules:
            self.counts[rule] += 1

    def _interval_ok(self, stamp_ns: int) -> bool:
        if self._last_stamp_ns is None:
            return True
        return (stamp_ns - self._last_stamp_ns) * 1e-9 >= self.limits.min_interval_s - EPSILON

    def _references(self, measured: FloatArray, rate: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        return [(measured, rate)] if self._last is None else [(measured, rate), self._last]

    def _broken(
        self, position: FloatArray, velocity: FloatArray, measured: FloatArray, rate: FloatArray
    ) -> tuple[str, ...]:
        """Rules among position, velocity, acceleration, workspace that the command breaks."""
        limits, period = self.limits, self._period
        references = self._references(measured, rate)
        broken = []
        ends = [position]
        if limits.stop_within_limits:
            ends.append(braking(position, velocity, limits.acceleration)[0])
        if any(np.any(end < limits.lower - EPSILON) or np.any(end > limits.upper + EPSILON) for end in ends):
            broken.append("position")
        distance, change = limits.velocity * period + EPSILON, limits.acceleration * period + EPSILON
        too_far = any(np.any(np.abs(position - p) > distance) for p, _ in references)
        if too_far or np.any(np.abs(velocity) > limits.velocity + EPSILON):
            broken.append("velocity")
        if any(np.any(np.abs(velocity - v) > change) for _, v in references):
            broken.append("acceleration")
        if not self._inside_box(position):
            broken.append("workspace")
        return tuple(broken)

    def _inside_box(self, position: FloatArray) -> bool:
        low, high = self.limits.workspace_lower, self.limits.workspace_upper
        if low is None or high is None:
            return True
        tool, _ = self._kinematics.tip_pose(position)
        return bool(np.all(tool >= low - EPSILON) and np.all(tool <= high + EPSILON))

    def _clamp(
        self, position: FloatArray, velocity: FloatArray, measured: FloatArray, rate: FloatArray
    ) -> tuple[FloatArray, FloatArray] | None:
        """The nearest command within all limits, or None."""
        limits, period = self.limits, self._period
        low, high = limits.lower, limits.upper
        slow, fast = -limits.velocity, limits.velocity
        for reference_position, reference_velocity in self._references(measured, rate):
            low = np.maximum(low, reference_position - limits.velocity * period)
            high = np.minimum(high, reference_position + limits.velocity * period)
            slow = np.maximum(slow, reference_velocity - limits.acceleration * period)
            fast = np.minimum(fast, reference_velocity + limits.acceleration * period)
        if np.any(low > high) or np.any(slow > fast):
            return None
        position, velocity = np.clip(position, low, high), np.clip(velocity, slow, fast)
        if not self._inside_box(position):
            # Towards the measured position, which is where the arm is allowed to be, as far as needed.
            anchor = np.clip(measured, low, high)
            if not self._inside_box(anchor):
                return None
            inside, outside = 0.0, 1.0
            for _ in range(20):
                middle = (inside + outside) / 2
                if self._inside_box(anchor + middle * (position - anchor)):
                    inside = middle
                else:
                    outside = middle
            position = anchor + inside * (position - anchor)
            velocity = np.clip(inside * velocity, slow, fast)
        return None if self._broken(position, velocity, measured, rate) else (position, velocity)


def braking(position: FloatArray, velocity: FloatArray, acceleration: FloatArray) -> tuple[FloatArray, float]:
    """Where the joints come to rest, (n,) rad, and after how long, s, from position (n,) rad and velocity (n,) rad/s.

    All joints brake evenly over the same time, which is the shortest that none needs more than its acceleration (n,)
    rad/s^2 for, and at least `SHORTEST_BRAKING_S`.
    """
    seconds = max(SHORTEST_BRAKING_S, float(np.max(np.abs(velocity) / acceleration)))
    return position + 0.5 * seconds * velocity, seconds


def _array(values: Any) -> FloatArray:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def _vector(config: Mapping[str, Any], key: str, n: int, default: float) -> FloatArray:
    """config[key] as (n,); a single number (ROS parameters: a list of one) stands for all; default if absent."""
    if key not in config or config[key] is None:
        return np.full(n, default)
    values = _array(config[key])
    if values.shape not in ((), (1,), (n,)) or np.isnan(values).any():
        raise VegaError(f"Safety limit {key} is {config[key]}: give one number, or {n} of them.")
    return np.broadcast_to(values, (n,)).copy()


def _number(config: Mapping[str, Any], key: str, default: float, low: float, high: float = np.inf) -> float:
    value = float(_vector(config, key, 1, default)[0])
    if not low <= value <= high:
        raise VegaError(f"Safety setting {key} is {value}: give a number from {low} to {high}.")
    return value
