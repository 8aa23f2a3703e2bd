"""A joint command as trajectory messages, which the topic and the action of a controller share."""

from __future__ import annotations

import array

from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vega3d_ros.control.control_loop import JointCommand
from vega3d_ros.ros import conversions
from vega3d_ros.ros.node_parameters import NodeParameters


def trajectories(command: JointCommand, gripper: float | None, parameters: NodeParameters) -> list[JointTrajectory]:
    """The messages of one command: the arm's and, where the gripper has a controller of its own, the gripper's.

    gripper: where its joint shall be; None: nothing is said of it.  None where it was refused and the controller has
    its path, to rest, already.
    """
    if parameters.committed and command.rejected:
        return []
    apart = bool(parameters.gripper_controller)
    joint = "" if gripper is None else parameters.gripper_command_joint
    messages = conversions.command_messages(command, parameters.joint_names, joint, gripper or 0.0, apart)
    made = [message for message in messages if message is not None]
    if command.lead or command.rejected:
        del made[1:]
    if parameters.committed:
        for message in made:
            _commit(message, command, parameters)
    return made


def _commit(message: JointTrajectory, command: JointCommand, parameters: NodeParameters) -> None:
    """Puts the whole motion into the message, every point up to rest; where its stamp is 0 it starts on arrival."""
    message.header.stamp = conversions.time_message(command.begin_ns)
    motion = command.motion
    assert motion is not None, "only a guarded loop commands a real arm"
    (given,) = message.points
    message.points = []
    for time_s, positions, velocities in zip(
        motion.times_s[1:], motion.positions[1:], motion.velocities[1:], strict=True
    ):
        place = dict(zip(parameters.joint_names, positions, strict=True))
        speed = dict(zip(parameters.joint_names, velocities, strict=True))
        point = JointTrajectoryPoint()
        # What is no arm joint is the gripper's, which rests where it is sent.
        point.positions = array.array(
            "d", [place.get(name, q) for name, q in zip(message.joint_names, given.positions, strict=True)]
        )
        point.velocities = array.array("d", [speed.get(name, 0.0) for name in message.joint_names])
        point.time_from_start = conversions.duration_message(float(time_s))
        message.points.append(point)
