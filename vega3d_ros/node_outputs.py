"""What policy_node publishes, from activation to deactivation and at no other time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image as ImageMessage
from trajectory_msgs.msg import JointTrajectory

from policies.types import ActionChunk, VegaError
from vega3d_ros import conversions
from vega3d_ros.control_loop import JointCommand, JointSample
from vega3d_ros.diagnostics import Status, diagnostic_array
from vega3d_ros.node_parameters import NodeParameters
from vega3d_ros.qos_events import publisher_events

DISCOVERY_S = 0.5
_LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
_DIAGNOSTICS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


class Outputs:
    """The publishers of an active node.

    They exist only while it is active, so that a second node which is merely configured does not
    look like one that commands.  Raises VegaError if somebody else publishes commands already.
    """

    def __init__(self, node: Node, parameters: NodeParameters, qos_problems: dict[str, str]) -> None:
        self.topic = f"{parameters.controller}/joint_trajectory"
        self.gripper = conversions.GripperMemory(parameters.gripper_open, parameters.gripper_closed)
        self._node = node
        self._parameters = parameters
        self._apart = bool(parameters.gripper_controller)
        self._topics = [self.topic]
        if self._apart:
            self._topics.append(f"{parameters.gripper_controller}/joint_trajectory")
        self._gates: dict[str, Any] = {}
        self._commands: list[Any] = []
        # Others become visible one by one after this process joined the domain; a rival that takes longer than this
        # is found by the node's repeated check.
        deadline = time.monotonic() + DISCOVERY_S
        while time.monotonic() < deadline:
            rivals = self.rivals()
            if rivals:
                raise VegaError(rivals)
            time.sleep(0.05)
        self._commands = [
            node.create_publisher(
                JointTrajectory, topic, _LATEST, event_callbacks=publisher_events(node, topic, qos_problems)
            )
            for topic in self._topics
        ]
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", _DIAGNOSTICS)

    def heard(self) -> bool:
        """Whether every command topic has a listener; a command nobody hears would be lost."""
        return all(publisher.get_subscription_count() > 0 for publisher in self._commands)

    def rivals(self) -> str:
        """A sentence if somebody else publishes on a command topic, else ''."""
        own = 1 if self._commands else 0
        for topic in map(self._node.resolve_topic_name, self._topics):
            if self._node.count_publishers(topic) > own:
                names = {
                    f"{info.node_namespace.rstrip('/')}/{info.node_name}"
                    for info in self._node.get_publishers_info_by_topic(topic)
                }
                others = sorted(names - {self._node.get_fully_qualified_name()}) or ["another node of the same name"]
                return (
                    f"{topic} is already commanded by {', '.join(others)} in ROS domain "
                    f"{self._node.context.get_domain_id()}: stop it, or choose another ROS_DOMAIN_ID."
                )
        return ""

    def publish(self, command: JointCommand, sample: JointSample) -> None:
        """Send one command; `sample` gives the measured finger openings."""
        parameters = self._parameters
        joint = parameters.gripper_command_joint
        position = 0.0
        if joint:
            measured = float(sample.gripper_positions[parameters.gripper_joints.index(joint)])
            position = self.gripper.position(command.gripper, measured)
        messages = conversions.command_messages(command, parameters.joint_names, joint, position, self._apart)
        for publisher, message in zip(self._commands, messages, strict=False):
            if message is not None:
                publisher.publish(message)

    def publish_gates(self, chunk: ActionChunk | None) -> None:
        """`~/gate/<camera>` for each gate map of the chunk that somebody looks at."""
        if chunk is None:
            return
        for camera, gate in chunk.gates.items():
            if camera not in self._gates:
                self._gates[camera] = self._node.create_publisher(ImageMessage, f"~/gate/{camera}", _LATEST)
            if self._gates[camera].get_subscription_count() > 0:
                self._gates[camera].publish(conversions.gate_message(gate, chunk.stamp_ns, camera))

    def publish_diagnostics(self, statuses: Iterable[Status], now_ns: int) -> None:
        self._diagnostics.publish(
            diagnostic_array(statuses, self._node.get_name(), self._parameters.hardware_id, now_ns)
        )

    def destroy(self) -> None:
        for publisher in (*self._commands, self._diagnostics, *self._gates.values()):
            self._node.destroy_publisher(publisher)
