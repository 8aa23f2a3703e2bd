"""What the simulated arm's driver reads from a command on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from trajectory_msgs.msg import JointTrajectory

from policies.types import FloatArray, VegaError
from vega3d_ros.ros.conversions import stamp_ns


@dataclass(frozen=True)
class JointTarget:
    """Where the joints shall be at the end of a control period.

    stamp_ns: of the joint state that this answers.  positions (n,) rad, velocities (n,) rad/s.
    gripper: 1 closes, -1 opens, 0 keeps.
    """

    stamp_ns: int
    positions: FloatArray
    velocities: FloatArray
    gripper: float


def joint_target(
    message: JointTrajectory, joint_names: Sequence[str], gripper_joint: str, gripper_middle: float
) -> JointTarget:
    """Read a command; VegaError unless it is one point that places every arm joint, all numbers finite.

    gripper_joint may be absent (the gripper keeps its command); at or above gripper_middle (m) it opens.
    Velocities may be absent: the arm comes to rest at the positions.
    """
    names = list(message.joint_names)
    wanted, known = set(joint_names), {*joint_names, gripper_joint}
    if len(set(names)) != len(names) or not wanted <= set(names) <= known:
        raise VegaError(
            f"The command names the joints {names[:12]}: name each of {list(joint_names)} once, "
            f"and {gripper_joint} for the gripper."
        )
    if len(message.points) != 1:
        raise VegaError(f"The command has {len(message.points)} points: send one, for the next control period.")
    point = message.points[0]
    positions = np.array(point.positions, dtype=np.float64)
    velocities = np.array(point.velocities, dtype=np.float64) if len(point.velocities) else np.zeros(len(names))
    if positions.shape != (len(names),) or velocities.shape != (len(names),):
        raise VegaError(
            f"The command has {len(names)} joints, {positions.size} positions and {velocities.size} velocities: "
            "send one of each per joint."
        )
    if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
        raise VegaError("The command holds NaN or infinity: send finite positions and velocities.")
    order = [names.index(name) for name in joint_names]
    gripper = 0.0
    if gripper_joint in names:
        gripper = -1.0 if positions[names.index(gripper_joint)] >= gripper_middle else 1.0
    return JointTarget(stamp_ns(message.header.stamp), positions[order], velocities[order], gripper)
