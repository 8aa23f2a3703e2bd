"""A joint command as trajectory messages, which the topic and the action of a controller share."""

from __future__ import annotations

import array

from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vega3d_ros.control.control_loop import JointCommand
from vega3d_ros.control.safety_guard import GuardLimits, braking
from vega3d_ros.ros import conversions
from vega3d_ros.ros.node_parameters import NodeParameters


def trajectories(
    command: JointCommand, gripper: float, parameters: NodeParameters, limits: GuardLimits
) -> list[JointTrajectory]:
    """The messages of one command: the arm's and, where the gripper has a controller of its own, the gripper's."""
    apart = bool(parameters.gripper_controller)
    messages = conversions.command_messages(
        command, parameters.joint_names, parameters.gripper_command_joint, gripper, apart
    )
    made = [message for message in messages if message is not None]
    if parameters.committed:
        for message in made:
            _commit(message, command, parameters, limits)
    return made


def _commit(message: JointTrajectory, command: JointCommand, parameters: NodeParameters, limits: GuardLimits) -> None:
    """Adds the point at which everything rests."""
    message.header.stamp = conversions.time_message(0)
    rest, seconds = braking(command.positions, command.velocities, limits.acceleration)
    (last,) = message.points
    by_name = dict(zip(parameters.joint_names, rest, strict=True))
    point = JointTrajectoryPoint()
    # What is no arm joint is the gripper's, which rests where it is sent.
    positions = [
        by_name.get(name, position) for name, position in zip(message.joint_names, last.positions, strict=True)
    ]
    point.positions = array.array("d", positions)
    point.velocities = array.array("d", [0.0] * len(message.joint_names))
    point.time_from_start = conversions.duration_message(command.period_s + seconds)
    message.points = [last, point]
