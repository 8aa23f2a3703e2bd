"""What policy_node listens to, from its configuration to its cleanup.  Everything runs in the executor's thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, JointState
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import String

from vega3d_ros.ros.node_parameters import CameraParameters, NodeParameters
from vega3d_ros.ros.qos_events import subscription_events

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Listener(Protocol):
    """Who is called with what comes."""

    def _on_image(self, camera: str, message: ImageMessage | CompressedImage) -> None: ...

    def _on_joint_state(self, message: JointState, info: Mapping[str, Any] | None = None) -> None: ...

    def _on_instruction(self, message: String) -> None: ...

    def _on_base_pose(self, message: PoseStamped) -> None: ...


def subscribe(
    node: Node,
    listener: Listener,
    parameters: NodeParameters,
    cameras: Mapping[str, CameraParameters],
    qos_problems: dict[str, str],
) -> list[Any]:
    """The subscriptions; in `qos_problems` appears which publisher cannot be heard."""
    made: list[Any] = []

    def listen(kind: Any, topic: str, callback: Callable[..., None], qos: QoSProfile) -> None:
        events = subscription_events(node, topic, qos_problems)
        made.append(node.create_subscription(kind, topic, callback, qos, event_callbacks=events))

    for name, camera in cameras.items():
        kind = CompressedImage if camera.compressed else ImageMessage
        listen(kind, camera.topic, partial(listener._on_image, name), qos_profile_sensor_data)
    listen(JointState, "joint_states", listener._on_joint_state, qos_profile_sensor_data)
    listen(String, "instruction", listener._on_instruction, LATCHED)
    if parameters.base_pose_topic:
        listen(PoseStamped, parameters.base_pose_topic, listener._on_base_pose, LATCHED)
    return made
