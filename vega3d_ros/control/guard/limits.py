"""The limits of every command: the URDF's and the robot YAML's, the stricter of each.  NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from policies.types import FloatArray, VegaError

TOLERANCE_RAD = 0.1
MAX_REJECTIONS = 20


class ArmModel(Protocol):
    """What the guard has to know of the arm; `control/kinematics.py` is one."""

    joint_names: tuple[str, ...]
    lower: FloatArray
    upper: FloatArray
    velocity_limits: FloatArray

    @property
    def n(self) -> int: ...

    def tip_pose(self, q: FloatArray) -> tuple[FloatArray, FloatArray]: ...


@dataclass(frozen=True)
class GuardLimits:
    """What a command may be.

    lower, upper (n,) rad, margins already taken off; velocity (n,) rad/s; acceleration (n,) rad/s^2;
    workspace_lower, workspace_upper (3,) m: box for the tool in the base frame, None for no box;
    min_interval_s: commands closer together than this are refused.  tolerance (n,) rad: further than this the arm may
    not be from the commanded path.  max_rejections: so many commands refused in a row are a fault.
    arm_lower, arm_upper (n,) rad and arm_velocity (n,) rad/s: what the arm itself can do, without margins and scales;
    None: the same as the command may.
    """

    lower: FloatArray
    upper: FloatArray
    velocity: FloatArray
    acceleration: FloatArray
    workspace_lower: FloatArray | None = None
    workspace_upper: FloatArray | None = None
    min_interval_s: float = 0.0
    tolerance: FloatArray | float = TOLERANCE_RAD
    max_rejections: int = MAX_REJECTIONS
    arm_lower: FloatArray | None = None
    arm_upper: FloatArray | None = None
    arm_velocity: FloatArray | None = None


def combine_limits(arm: ArmModel, config: Mapping[str, Any]) -> GuardLimits:
    """The URDF's limits and the robot YAML's, the stricter of each; VegaError if a limit is given by neither.

    config keys, all optional where the URDF has the limit: `lower`, `upper` (n,) rad; `velocity` (n,) rad/s;
    `acceleration` (n,) rad/s^2 (URDF knows none, so it is required); `position_margin` rad, `velocity_scale` and
    `acceleration_scale` in (0, 1]; `workspace_lower`, `workspace_upper` (3,) m; `min_interval_s` s;
    `tracking_tolerance` (n,) rad; `max_rejections`.  Numbers stand for all joints.
    """
    known = {
        "lower", "upper", "velocity", "acceleration", "position_margin", "velocity_scale", "acceleration_scale",
        "workspace_lower", "workspace_upper", "min_interval_s", "tracking_tolerance", "max_rejections",
    }  # fmt: skip
    unknown = sorted(set(config) - known)
    if unknown:
        raise VegaError(f"The safety limits have unknown entries {unknown}: use {sorted(known)}.")
    n = arm.n
    margin = _number(config, "position_margin", 0.0, low=0.0)
    arm_lower = np.maximum(arm.lower, _vector(config, "lower", n, -np.inf))
    arm_upper = np.minimum(arm.upper, _vector(config, "upper", n, np.inf))
    lower, upper = arm_lower + margin, arm_upper - margin
    arm_velocity = np.minimum(arm.velocity_limits, _vector(config, "velocity", n, np.inf))
    velocity = _number(config, "velocity_scale", 1.0, low=1e-6, high=1.0) * arm_velocity
    scale = _number(config, "acceleration_scale", 1.0, low=1e-6, high=1.0)
    acceleration = scale * _vector(config, "acceleration", n, np.inf)
    for name, values in (("lower", lower), ("upper", upper), ("velocity", velocity), ("acceleration", acceleration)):
        missing = [j for j, v in zip(arm.joint_names, values, strict=True) if not np.isfinite(v)]
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
    tolerance = _vector(config, "tracking_tolerance", n, TOLERANCE_RAD)
    if np.any(tolerance <= 0.0) or np.any(tolerance > 1.0):
        raise VegaError(f"Safety limit tracking_tolerance is {tolerance.tolist()}: give numbers from 0 to 1 rad.")
    return GuardLimits(
        lower,
        upper,
        velocity,
        acceleration,
        box[0],
        box[1],
        _number(config, "min_interval_s", 0.0, low=0.0),
        tolerance,
        round(_number(config, "max_rejections", MAX_REJECTIONS, low=1.0)),
        arm_lower,
        arm_upper,
        arm_velocity,
    )


def _vector(config: Mapping[str, Any], key: str, n: int, default: float) -> FloatArray:
    """config[key] as (n,); a single number (ROS parameters: a list of one) stands for all; default if absent."""
    if key not in config or config[key] is None:
        return np.full(n, default)
    try:
        values = np.array(config[key], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.shape not in ((), (1,), (n,)) or np.isnan(values).any():
        raise VegaError(f"Safety limit {key} is {config[key]}: give one number, or {n} of them.")
    return np.broadcast_to(values, (n,)).copy()


def _number(config: Mapping[str, Any], key: str, default: float, low: float, high: float = np.inf) -> float:
    value = float(_vector(config, key, 1, default)[0])
    if not low <= value <= high:
        raise VegaError(f"Safety setting {key} is {value}: give a number from {low} to {high}.")
    return value
