"""What a robot's file says about its arm, against the arm's own model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from policies.types import FloatArray, VegaError
from vega3d_ros.control.guard.limits import GuardLimits, combine_limits
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.control.resources import read_urdf
from vega3d_ros.parameters.table import ROWS, SAFETY
from vega3d_ros.parameters.values import check_home

# A URDF and a driver round differently; m or rad.
GRIPPER_ROOM = 0.005


def check_arm(
    kinematics: Kinematics,
    limits: GuardLimits,
    urdf_xml: str,
    tip_frame: str,
    home: FloatArray,
    gripper_joint: str,
    gripper_positions: Sequence[float],
) -> None:
    """Raises VegaError where tip_frame does not move with every joint, home (n,) rad lies outside the limits, or the
    gripper's joint, where the URDF has it, cannot reach its positions, m or rad."""
    still = np.linalg.norm(kinematics.jacobian(home), axis=0) < 1e-9
    if still.any():
        joints = [joint for joint, is_still in zip(kinematics.joint_names, still, strict=True) if is_still]
        raise VegaError(
            f"Parameter tip_frame is '{tip_frame}', which does not move with {', '.join(joints)}: name the frame of "
            "the tool, at the end of the arm."
        )
    try:
        check_home(home.tolist(), kinematics.joint_names, limits.lower.tolist(), limits.upper.tolist())
    except VegaError as error:
        raise VegaError(f"Parameter {error}.") from error
    span = _span(urdf_xml, gripper_joint)
    for name, position in zip(("gripper.open", "gripper.closed"), gripper_positions, strict=True):
        if not span[0] - GRIPPER_ROOM <= position <= span[1] + GRIPPER_ROOM:
            raise VegaError(
                f"Parameter {name} is {position:g}, but {gripper_joint} reaches from {span[0]:g} to {span[1]:g} (m, or "
                "rad if it turns): correct it."
            )


def check_described(values: Mapping[str, Any]) -> None:
    """`check_arm` for a robot's file (parameters by full name) that names its URDF; nothing to check where it does not.

    Raises VegaError.
    """
    path, joints, home = values.get("robot_description"), values.get("joint_names"), values.get("home")
    if not path or not joints or not home:
        return
    urdf_xml = read_urdf(path)
    given = {row.name: values.get(row.name, row.default) for row in ROWS}
    kinematics = Kinematics(urdf_xml, joints, given["tip_frame"])
    safety = {
        row.name.partition(".")[2]: given[row.name]
        for row in SAFETY
        if row.kind == "numbers" and given[row.name] is not None
    }
    check_arm(
        kinematics,
        combine_limits(kinematics, safety),
        urdf_xml,
        given["tip_frame"],
        np.array(home),
        given["gripper.command_joint"],
        (given["gripper.open"], given["gripper.closed"]),
    )


def _span(urdf_xml: str, joint: str) -> tuple[float, float]:
    """Lower and upper limit of a joint, m or rad; infinite if the URDF does not say."""
    for element in ET.fromstring(urdf_xml).iter("joint"):
        limit = element.find("limit")
        if element.get("name") == joint and element.get("type") in ("revolute", "prismatic") and limit is not None:
            return float(limit.get("lower", "0")), float(limit.get("upper", "0"))
    return -math.inf, math.inf
