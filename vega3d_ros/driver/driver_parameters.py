"""Parameters of franka_driver: rows of the robot's file that concern a driver, and those of `franka.`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node

from policies.types import FloatArray, VegaError
from vega3d_ros.parameters.table import FRANKA, ROWS
from vega3d_ros.parameters.values import clean_value
from vega3d_ros.ros import node_parameters

JOINTS = 7
_SHARED = (
    "joint_names", "controller", "gripper.command_joint", "gripper.open", "gripper.closed", "gripper.controller",
    "safety.lower", "safety.upper", "safety.velocity",
)  # fmt: skip


@dataclass(frozen=True)
class DriverParameters:
    """docs/interfaces.md says what each is.  lower, upper (7,) rad, velocity (7,) rad/s: infinite where not given."""

    joint_names: tuple[str, ...]
    controller: str
    gripper_command_joint: str
    gripper_open: float
    gripper_closed: float
    gripper_controller: str
    lower: FloatArray
    upper: FloatArray
    velocity: FloatArray
    address: str
    realtime: str
    fraction: float
    rate_hz: float
    collision_torque: float
    collision_force: float
    hand: bool

    @property
    def finger_names(self) -> tuple[str, ...]:
        return (self.gripper_command_joint,) if self.gripper_command_joint else ()


def declare(node: Node) -> None:
    """Declare them; the other parameters of a robot's file are policy_node's."""
    for row in (*(row for row in ROWS if row.name in _SHARED), *FRANKA):
        node_parameters.declare_row(node, row, row.name)


def read(node: Node) -> DriverParameters:
    """The parameters.  Raises VegaError."""
    node_parameters.refuse_unknown(node)
    get = node_parameters.getter(node)
    joints = tuple(get("joint_names") or ())
    if len(joints) != JOINTS:
        raise VegaError(
            f"Parameter joint_names has {len(joints)} names: pass the file of a Franka, which has {JOINTS}."
        )
    if not get("franka.address"):
        raise VegaError("Parameter franka.address is empty: give the robot's host name or IP address.")
    try:
        for row in FRANKA:
            clean_value(row, row.name, get(row.name))
    except VegaError as error:
        raise VegaError(f"Parameter {error}.") from error
    parameters = DriverParameters(
        joint_names=joints,
        controller=get("controller").strip("/"),
        gripper_command_joint=get("gripper.command_joint"),
        gripper_open=get("gripper.open"),
        gripper_closed=get("gripper.closed"),
        gripper_controller=get("gripper.controller").strip("/"),
        lower=_limit(get, "safety.lower", -np.inf),
        upper=_limit(get, "safety.upper", np.inf),
        velocity=_limit(get, "safety.velocity", np.inf),
        address=get("franka.address"),
        realtime=get("franka.realtime"),
        fraction=get("franka.fraction"),
        rate_hz=get("franka.rate_hz"),
        collision_torque=get("franka.collision_torque"),
        collision_force=get("franka.collision_force"),
        hand=get("franka.hand"),
    )
    if parameters.hand and not parameters.gripper_command_joint:
        raise VegaError("gripper.command_joint is empty: name the hand's joint, or set franka.hand to false.")
    return parameters


def _limit(get: Any, name: str, default: float) -> FloatArray:
    values = np.array([default] if get(name) is None else get(name), dtype=np.float64)
    if values.shape not in ((1,), (JOINTS,)):
        raise VegaError(f"Parameter {name} has {values.size} numbers: give one, or {JOINTS}.")
    return np.broadcast_to(values, (JOINTS,)).copy()
