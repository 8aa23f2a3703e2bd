"""What the simulated robot publishes: cameras and their calibration, joints, clock, and where everything is mounted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, JointState
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Bool, String

from policies.types import FloatArray, RobotState
from sim.worlds.camera_model import CameraModel
from sim.worlds.environment import Environment
from sim.worlds.libero_env import CAMERAS, FINGER_NAMES, JOINT_NAMES
from vega3d_ros.control.control_loop import JointSample
from vega3d_ros.control.resources import resolve
from vega3d_ros.ros.conversions import image_message, joint_state_message, pose_message, time_message

URDF = "package://vega3d_ros/config/robots/libero_panda.urdf"
BASE_LINK, WORLD = "panda_link0", "world"
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
Outgoing = list[tuple[Any, Any]]  # (publisher, message)


class RobotTopics:
    """The publishers of sim_node.  Stamps are nanoseconds of simulated time."""

    def __init__(self, node: Node) -> None:
        sensor = qos_profile_sensor_data
        self._images = {name: node.create_publisher(ImageMessage, f"{name}/image_raw", sensor) for name in CAMERAS}
        self._infos = {name: node.create_publisher(CameraInfo, f"{name}/camera_info", sensor) for name in CAMERAS}
        self._joint_states = node.create_publisher(JointState, "joint_states", sensor)
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._instruction = node.create_publisher(String, "instruction", LATCHED)
        self._base_pose = node.create_publisher(PoseStamped, "base_pose", LATCHED)
        self._success = node.create_publisher(Bool, "~/success", LATCHED)
        self._episode_over = node.create_publisher(Bool, "~/episode_over", LATCHED)
        self._models: dict[str, CameraModel] = {}
        kind = _tf_message()
        self._mountings = None if kind is None else node.create_publisher(kind, "/tf_static", LATCHED)
        self._mountings_kind = kind
        description = node.create_publisher(String, "robot_description", LATCHED)
        description.publish(String(data=resolve(URDF).read_text()))

    def begin(self, environment: Environment, stamp: int) -> None:
        """An episode is ready: the latched topics tell it."""
        self._models = {name: environment.camera_model(name) for name in CAMERAS}
        self.tick(stamp)
        self._instruction.publish(String(data=environment.instruction))
        self._base_pose.publish(pose_message(environment.base_position, environment.base_quaternion, stamp))
        if self._mountings is not None and self._mountings_kind is not None:
            self._mountings.publish(
                self._mountings_kind(
                    transforms=mountings(environment.base_position, environment.base_quaternion, self._models, stamp)
                )
            )
        self.over(False, over=False)

    def over(self, success: bool, over: bool = True) -> None:
        """How the episode stands."""
        self._success.publish(Bool(data=success))
        self._episode_over.publish(Bool(data=over))

    def tick(self, stamp: int) -> None:
        self._clock.publish(Clock(clock=time_message(stamp)))

    def pictures(self, environment: Environment, stamp: int) -> Outgoing:
        """Every camera's picture of the world as it stands, its calibration before it."""
        messages: Outgoing = []
        for name, publisher in self._images.items():
            frame = optical_frame(name)
            messages.append((self._infos[name], camera_info(self._models[name], frame, stamp)))
            messages.append((publisher, image_message(environment.render(name), stamp, frame)))
        return messages

    def joints(self, state: RobotState, stamp: int) -> Outgoing:
        sample = JointSample(stamp, state.joint_positions, state.joint_velocities, state.gripper_positions)
        return [(self._joint_states, joint_state_message(sample, JOINT_NAMES, FINGER_NAMES))]


def optical_frame(camera: str) -> str:
    """Name of the frame in which a camera's pictures are."""
    return f"{camera}_optical_frame"


def camera_info(model: CameraModel, frame: str, stamp: int) -> CameraInfo:
    """The calibration of an ideal pinhole."""
    message = CameraInfo(width=model.width, height=model.height, distortion_model="plumb_bob", d=[0.0] * 5)
    message.header.stamp, message.header.frame_id = time_message(stamp), frame
    message.k = model.matrix.reshape(-1).tolist()
    message.r = np.eye(3).reshape(-1).tolist()
    message.p = np.column_stack([model.matrix, np.zeros(3)]).reshape(-1).tolist()
    return message


def mountings(
    base_position: FloatArray, base_quaternion: FloatArray, models: Mapping[str, CameraModel], stamp: int
) -> list[TransformStamped]:
    """Where the arm's base stands in the world, and where each camera's optical frame is fixed."""
    found = [_transform(WORLD, BASE_LINK, base_position, base_quaternion, stamp)]
    for name, model in models.items():
        found.append(_transform(model.parent, optical_frame(name), model.position, model.quaternion, stamp))
    return found


def _transform(parent: str, child: str, position: FloatArray, quaternion: FloatArray, stamp: int) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.stamp, message.header.frame_id = time_message(stamp), parent
    to, turn = message.transform.translation, message.transform.rotation
    to.x, to.y, to.z = (float(value) for value in position)
    turn.x, turn.y, turn.z, turn.w = (float(value) for value in quaternion)
    return message


def _tf_message() -> Any | None:
    """tf2_msgs/TFMessage, where that package is installed (the wheels lack it)."""
    try:
        return importlib.import_module("tf2_msgs.msg").TFMessage
    except ImportError:
        return None
