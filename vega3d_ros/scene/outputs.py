"""What scene_node publishes, from activation to deactivation: answers as JSON, objects as pose and marker."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy._rclpy_pybind11 import RCLError
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from visualization_msgs.msg import Marker

from policies.types import SceneAnswer, SceneObject, SceneReply
from vega3d_ros.ros import conversions
from vega3d_ros.ros.qos_events import publisher_events

ANSWERS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SHOWN_CHARS = 200
LAST_WORDS_S = 0.5
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])  # boxes are parallel to the axes of the world frame
COLOUR = (0.1, 0.9, 0.2, 0.4)


@dataclass(frozen=True)
class Asked:
    """A question, or an expression that means an object; arrived_s: time.monotonic()."""

    text: str
    expression: bool
    arrived_s: float


def answer_text(
    asked: Asked, reply: SceneReply | None, error: str, stamp_ns: int, latency_ms: float, frame_id: str
) -> str:
    """The JSON on `~/answer`; docs/interfaces.md says what each key is."""
    value = None if reply is None else reply.value
    fields: dict[str, Any] = {
        "question": asked.text[:SHOWN_CHARS],
        "answer": value.text if isinstance(value, SceneAnswer) else "",
        "confidence": None if value is None else round(value.confidence, 4),
        "error": error,
        "stamp_ns": stamp_ns,
        "frames": [] if reply is None else [{"camera": name, "stamp_ns": stamp} for name, stamp in reply.frames],
        "latency_ms": round(latency_ms, 3),
        "timings_ms": {} if reply is None else {name: round(ms, 3) for name, ms in reply.timings_ms.items()},
    }
    if asked.expression:
        fields["object"] = None
    if isinstance(value, SceneObject):
        box = {"centre": value.centre.tolist(), "size": value.size.tolist()}
        fields["object"] = {"frame_id": frame_id, **box}
    return json.dumps(fields)


def marker_of(found: SceneObject, pose: PoseStamped) -> Marker:
    """A translucent box."""
    marker = Marker(header=pose.header, ns="object", id=0, type=Marker.CUBE, action=Marker.ADD, pose=pose.pose)
    marker.scale.x, marker.scale.y, marker.scale.z = (float(length) for length in found.size)
    marker.color.r, marker.color.g, marker.color.b, marker.color.a = COLOUR
    return marker


class Outputs:
    """The publishers of an active node; frame_id: in which objects are placed."""

    def __init__(self, node: Node, frame_id: str, qos_problems: dict[str, str]) -> None:
        self._node, self._frame_id = node, frame_id

        def publisher(kind: Any, topic: str) -> Any:
            events = publisher_events(node, topic, qos_problems)
            return node.create_publisher(kind, topic, ANSWERS, event_callbacks=events)

        self._answers = publisher(String, "~/answer")
        self._objects = publisher(PoseStamped, "~/object")
        self._markers = publisher(Marker, "~/marker")

    def publish(self, asked: Asked, reply: SceneReply | None, error: str, stamp_ns: int, latency_ms: float) -> None:
        """Answer; and place the object that was asked for, or take the last one's marker away."""
        text = answer_text(asked, reply, error, stamp_ns, latency_ms, self._frame_id)
        self._answers.publish(String(data=text))
        if not asked.expression or reply is None:
            return
        if isinstance(reply.value, SceneObject):
            seen_ns = reply.frames[-1][1]
            upright = conversions.pose_message(reply.value.centre, UPRIGHT, seen_ns, self._frame_id)
            self._objects.publish(upright)
            self._markers.publish(marker_of(reply.value, upright))
        else:
            self._markers.publish(Marker(ns="object", action=Marker.DELETE))

    def destroy(self) -> None:
        """What was said last is to be heard, too."""
        with contextlib.suppress(RCLError):  # a middleware that cannot wait, or a context that is gone
            self._answers.wait_for_all_acked(Duration(seconds=LAST_WORDS_S))
        for publisher in (self._answers, self._objects, self._markers):
            self._node.destroy_publisher(publisher)
