"""Cameras and questions made of messages, for tests of scene_node in a process of its own over real DDS."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import Log
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from ros_harness import DEADLINE_S, LATCHED, RESEND_S, TRANSITIONS, node_environment
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from visualization_msgs.msg import Marker

from sim.robot.ros_client import RosClient, unused_domain
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.ros import conversions

HEARD = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
HEIGHT, WIDTH = 48, 64
FOCAL = 60.0
MATRIX = np.array([[FOCAL, 0.0, WIDTH / 2], [0.0, FOCAL, HEIGHT / 2], [0.0, 0.0, 1.0]])
# The camera looks down from 1.5 m above the origin, x of the picture along x of the world.
POSE = np.array([0.2, -0.1, 1.5]), np.array([1.0, 0.0, 0.0, 0.0])


def picture(red: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) uint8 grey with a red square of `red` px beside the middle."""
    image = np.full((height, width, 3), 120, np.uint8)
    image[10 : 10 + red, 40 : 40 + red] = (220, 10, 10)
    return image


class Camera:
    """One camera, its depth, calibration and pose, and somebody who asks; everything that comes back is kept."""

    def __init__(self, domain: int, watch: Callable[[], None]) -> None:
        self.client = RosClient("somebody", domain, watch)
        node = self.node = self.client.node
        self.picture = node.create_publisher(Image, "eye/image_raw", qos_profile_sensor_data)
        self.depth = node.create_publisher(Image, "eye/depth", qos_profile_sensor_data)
        self.info = node.create_publisher(CameraInfo, "eye/camera_info", qos_profile_sensor_data)
        self.pose = node.create_publisher(PoseStamped, "eye/pose", LATCHED)
        self.question = node.create_publisher(String, "scene_node/question", 100)
        self.expression = node.create_publisher(String, "scene_node/expression", 10)
        self.sent: dict[int, np.ndarray] = {}
        self.answers: list[dict[str, Any]] = []
        self.objects: list[PoseStamped] = []
        self.markers: list[Marker] = []
        self.diagnostics: list[DiagnosticArray] = []
        self.log: list[Log] = []
        node.create_subscription(String, "scene_node/answer", lambda m: self.answers.append(json.loads(m.data)), HEARD)
        node.create_subscription(PoseStamped, "scene_node/object", self.objects.append, HEARD)
        node.create_subscription(Marker, "scene_node/marker", self.markers.append, HEARD)
        node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 100)
        node.create_subscription(Log, "/rosout", self.log.append, HEARD)

    def until(self, condition: Callable[[], bool], again: Callable[[], None] | None = None) -> bool:
        """Wait for the condition; `again` is called every RESEND_S, since sensor data may be lost on a busy machine."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if self.client.until(condition, RESEND_S):
                return True
            if again is not None:
                again()
        return False

    def change(self, transition: str) -> bool:
        # Loading transformers alone takes minutes beside other heavy work.
        return self.client.change_state("scene_node", TRANSITIONS[transition], 5 * DEADLINE_S)

    def bring_up(self) -> None:
        assert self.change("configure"), self.log_text()
        assert self.change("activate"), self.log_text()
        publishers = (self.picture, self.question, self.expression)
        assert self.until(lambda: all(publisher.get_subscription_count() > 0 for publisher in publishers))

    def send(self, image: np.ndarray, stamp_ns: int | None = None) -> int:
        """A picture, and its calibration."""
        stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
        info = CameraInfo(height=image.shape[0], width=image.shape[1], k=MATRIX.reshape(-1).tolist())
        info.header.stamp = conversions.time_message(stamp_ns)
        self.info.publish(info)
        self.picture.publish(conversions.image_message(image, stamp_ns, "eye_optical_frame"))
        self.sent[stamp_ns] = image
        return stamp_ns

    def send_depth(self, depth_m: np.ndarray, stamp_ns: int) -> None:
        """As 16UC1, mm."""
        message = Image(height=depth_m.shape[0], width=depth_m.shape[1], encoding="16UC1", step=2 * depth_m.shape[1])
        message.header.stamp = conversions.time_message(stamp_ns)
        message.data = np.rint(depth_m * 1000.0).astype("<u2").tobytes()
        self.depth.publish(message)

    def show(self, image: np.ndarray, depth_m: np.ndarray | None = None) -> None:
        """Send a picture (with its depth) until it was seen; on a busy machine it may be seen twice."""
        stamps: set[str] = set()

        def send() -> None:
            stamp = self.send(image)
            stamps.add(str(stamp))
            if depth_m is not None:
                self.send_depth(depth_m, stamp)

        send()
        assert self.until(lambda: self.values().get("newest_frame_ns") in stamps, again=send), self.sentence()

    def ask(self, text: str, expression: bool = False) -> dict[str, Any]:
        """The answer to a question, or to an expression."""
        before = len(self.answers)
        (self.expression if expression else self.question).publish(String(data=text))
        assert self.until(lambda: len(self.answers) > before), self.sentence()
        assert len(self.answers) == before + 1
        return self.answers[-1]

    def used(self, answer: dict[str, Any]) -> list[np.ndarray]:
        """The pictures that an answer rests on, as they were sent."""
        return [self.sent[frame["stamp_ns"]] for frame in answer["frames"]]

    def ask_when_heard(self, text: str) -> dict[str, Any]:
        """The same after an activation, from when on somebody listens."""
        assert self.until(lambda: self.question.get_subscription_count() > 0)
        return self.ask(text)

    def log_text(self) -> str:
        return " | ".join(message.msg for message in self.log if message.name == "scene_node")

    def status(self, name: str = "scene") -> Any:
        """The newest status of that name, None before the first."""
        found = [s for array in self.diagnostics for s in array.status if s.name == f"scene_node: {name}"]
        return found[-1] if found else None

    def values(self, name: str = "scene") -> dict[str, str]:
        status = self.status(name)
        return {} if status is None else {pair.key: pair.value for pair in status.values}

    def sentence(self) -> str:
        return f"{getattr(self.status(), 'message', 'no diagnostics yet')} | {self.log_text()}"

    def shows(self, level: int, words: str, again: Callable[[], None] | None = None) -> bool:
        """Wait for a report of that level with the words in its sentence; a fresh one, not one from before."""
        self.diagnostics.clear()

        def shown() -> bool:
            status = self.status()
            return status is not None and status.level == bytes([level]) and words in status.message

        return self.until(shown, again)


@contextmanager
def scene_node(model: str, depth: bool = False, **parameters: Any) -> Iterator[tuple[Camera, ChildProcess]]:
    """A camera and a scene_node process in a domain of their own; `__` in a parameter's name stands for a dot."""
    domain = unused_domain()
    given = {"scene.model": model, "scene.frames": 1, "scene.every_s": 0.0, "max_age_s": 10.0}
    given["cameras.eye.topic"] = "eye/image_raw"
    if depth:
        given |= {f"cameras.eye.{name}_topic": f"eye/{name}" for name in ("depth", "camera_info", "pose")}
    given |= {key.replace("__", "."): value for key, value in parameters.items()}
    command = [sys.executable, "-m", "vega3d_ros.scene.scene_node", "--ros-args"]
    for key, value in given.items():
        command += ["-p", f"{key}:={json.dumps(value)}"]
    environment = {**node_environment(domain), "TRANSFORMERS_VERBOSITY": "error"}
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    with ChildProcess("scene_node", command, environment=environment, on_line=None) as child:

        def watch() -> None:
            if child.returncode is not None:
                raise AssertionError(f"scene_node ended with {child.returncode}: {child.tail()}")

        camera = Camera(domain, watch)
        try:
            yield camera, child
        finally:
            camera.client.close()


