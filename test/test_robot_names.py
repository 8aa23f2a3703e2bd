"""Names of topics, controllers and actions in a robot's file: those that ROS takes, and one sentence for the others."""

from __future__ import annotations

import pytest
import rclpy
from rclpy.context import Context
from rclpy.exceptions import NameValidationException
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.validate_full_topic_name import validate_full_topic_name
from rclpy.validate_topic_name import validate_topic_name

from policies.types import VegaError
from vega3d_ros.parameters.table import SCENE_CAMERA_ROWS, row_of
from vega3d_ros.parameters.values import clean_value
from vega3d_ros.ros import node_parameters

TEXTS = [
    "image", "/camera_1/image", "~/image", "a/b/c", "_x1", "", "/", "a-b", "a b", "kamera_ü", "1cam/image", "cam/1",
    "a//b", "a/", "//a", "a/~/b", "a\n", "a" * 129, "a.b", "{", "a/b/",
]  # fmt: skip
OF_CAMERAS = ["topic", *(row.name for row in SCENE_CAMERA_ROWS)]
TOPICS = ["base_pose_topic", "enable.topic", *(f"cameras.a.{name}" for name in OF_CAMERAS)]


@pytest.mark.parametrize("name", [*TOPICS, "controller", "gripper.controller", "gripper.action"])
def test_a_name_that_ros_does_not_take_is_refused(name):
    row = row_of(name)
    for text in TEXTS:
        if name in TOPICS:
            good, what = not rclpy_refuses(text), "topic"
        else:
            good, what = not rclpy_refuses(f"~/dry_run/{text.strip('/')}/joint_trajectory"), "controller or action"
        if (text == "" and row.default == "") or (good and len(text) <= 128):
            assert clean_value(row, name, text) == text
        else:
            with pytest.raises(VegaError, match=rf"(?s)'{name}' is .*, which is no name of a {what} in ROS: give"):
                clean_value(row, name, text)


def rclpy_refuses(topic: str) -> bool:
    try:
        validate_topic_name(topic)
        validate_full_topic_name(expand_topic_name(topic, "policy_node", "/"))
    except (NameValidationException, RuntimeError, ValueError):
        return True
    return False


def test_a_cameras_topic_that_ros_does_not_take_is_refused_by_the_node_too():
    context = Context()
    rclpy.init(context=context)
    options = ["--ros-args", "-p", "cameras.wrist.topic:=/camera-1"]
    node = Node("policy_node", context=context, cli_args=options, use_global_arguments=False)
    try:
        for camera in ("wrist", "a-b"):
            with pytest.raises(VegaError, match=rf"^Parameter 'cameras.{camera}.topic' is .* no name of a topic"):
                node_parameters.read_camera(node, camera)
    finally:
        node.destroy_node()
        context.try_shutdown()
