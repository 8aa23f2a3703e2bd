"""Where tf is heard.  Its message is in tf2_msgs, which every ROS 2 has and the wheels lack."""

from __future__ import annotations

import importlib
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from policies.types import VegaError

# As tf2_ros listens.
MOVING = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
FIXED = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def tf_topics() -> tuple[tuple[Any, str, QoSProfile, bool], ...]:
    """(message, topic, QoS, whether its frames are fixed).  Raises VegaError where tf2_msgs is not installed."""
    try:
        kind = importlib.import_module("tf2_msgs.msg").TFMessage
    except ImportError as error:
        raise VegaError(
            "Parameter scene.tf is true and the package tf2_msgs is missing: install ros-<distro>-tf2-msgs, or tell "
            "where the cameras stand by their pose_topic."
        ) from error
    return (kind, "/tf", MOVING, False), (kind, "/tf_static", FIXED, True)
