"""From the stamp of two camera images to the command that answers them: policy_node, and a relay that decides nothing.

Each is a process in a domain of its own with the same driver in front of it: two 256x256 rgb8 cameras and joint states
at 20 Hz, in lockstep, with a policy that answers at once.  They take turns, some seconds each, so that what else the
machine does falls on all of them alike.  Counted is the time until the command is back at the driver.

    python -m benchmarks.arm.relay      the relay: both images of a stamp in, a trajectory out
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arm.stand_in import CAMERAS, COMMANDS, DEADLINE_S, HOME
from policies.types import VegaError
from vega3d_ros.inference.process import ChildProcess

ROOT = Path(__file__).resolve().parents[2]
JOINTS = [f"panda_joint{i}" for i in range(1, 8)]
FINGERS = ["panda_finger_joint1", "panda_finger_joint2"]
PERIOD_S, TURN_S, SIZE = 0.05, 2.0, 256
WARM_UP, DRAIN_S = 20, 0.3
POLICY = "benchmarks.ros_transport:StillPolicy"


@dataclass
class Latencies:
    """p50_ms, p99_ms: of `node`, `relay` and, where it was asked for, `base`."""

    p50_ms: dict[str, float] = field(default_factory=dict)
    p99_ms: dict[str, float] = field(default_factory=dict)


class Lane:
    """One process under test, and the driver in front of it.  found: latencies in ms."""

    def __init__(self, name: str, command: list[str], folder: Path, more: Mapping[str, str]) -> None:
        from geometry_msgs.msg import PoseStamped
        from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import String
        from trajectory_msgs.msg import JointTrajectory

        from sim.robot.ros_client import RosClient, unused_domain
        from vega3d_ros.ros import conversions

        domain = unused_domain()
        environment = {**os.environ, **more, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
        self.name, self.found = name, list[float]()
        self._child = ChildProcess(name, command, environment=environment, folder=folder, on_line=None)
        self._client = RosClient("driver", domain, self._watch)
        node = self._client.node
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._cameras = {n: node.create_publisher(Image, f"{n}/image_raw", qos_profile_sensor_data) for n in CAMERAS}
        self._states = node.create_publisher(JointState, "joint_states", qos_profile_sensor_data)
        node.create_publisher(PoseStamped, "base_pose", latched).publish(
            conversions.pose_message(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), 0)
        )
        node.create_publisher(String, "instruction", latched).publish(String(data="pick up the milk"))
        node.create_subscription(JointTrajectory, COMMANDS, self._on_command, 10)
        image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        self._messages = {n: conversions.image_message(image, 0, n) for n in CAMERAS}

    def start(self) -> None:
        """Until it is connected, and active where it has a lifecycle."""
        from lifecycle_msgs.msg import Transition

        if self.name != "relay":
            for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
                if not self._client.change_state("policy_node", transition, DEADLINE_S):
                    raise VegaError(f"{self.name} cannot be activated: {' '.join(self._child.tail(3))}")
        if not self._client.until(lambda: all(p.get_subscription_count() for p in self._cameras.values()), DEADLINE_S):
            raise VegaError(f"{self.name} does not listen: {' '.join(self._child.tail(3))}")
        if self.name != "relay":
            self._client.trigger("policy_node/start", DEADLINE_S)
        if not self._client.until(lambda: len(self.found) >= WARM_UP or self._send(), DEADLINE_S):
            raise VegaError(f"{self.name} does not answer: {' '.join(self._child.tail(3))}")
        self.found.clear()

    def run(self, seconds: float) -> None:
        timer = self._client.node.create_timer(PERIOD_S, self._send)
        self._client.until(lambda: False, seconds)
        self._client.node.destroy_timer(timer)
        self._client.until(lambda: False, DRAIN_S)  # what comes between two turns would have waited for the next

    def close(self) -> None:
        self._client.close()
        self._child.stop(8.0)

    def _watch(self) -> None:
        if self._child.returncode is not None:
            raise VegaError(f"{self.name} ended: {' '.join(self._child.tail(3))}")

    def _send(self) -> bool:
        from vega3d_ros.control.control_loop import JointSample
        from vega3d_ros.ros import conversions

        stamp = time.time_ns()
        for name, publisher in self._cameras.items():
            self._messages[name].header.stamp = conversions.time_message(stamp)
            publisher.publish(self._messages[name])
        sample = JointSample(stamp, np.array(HOME[:7]), np.zeros(7), np.array([0.04, 0.04]))
        self._states.publish(conversions.joint_state_message(sample, JOINTS, FINGERS))
        return False

    def _on_command(self, message: Any) -> None:
        stamp = message.header.stamp
        self.found.append((time.time_ns() - stamp.sec * 1_000_000_000 - stamp.nanosec) / 1e6)


def _node(folder: Path, python: str, module: str) -> list[str]:
    robot = folder / "config" / "robots" / "libero.yaml"
    command = [python, "-m", module, "--ros-args", "--params-file", str(robot)]
    return [*command, "-p", f"policy:={json.dumps(POLICY)}", "-p", "clock_mode:=lockstep"]


def measure(seconds: float, base: Path | None) -> Latencies:
    """For so long each.  base: another checkout, with a .venv of its own.  Raises VegaError."""
    lanes = [
        Lane("node", _node(ROOT, sys.executable, "vega3d_ros.node.policy_node"), ROOT, {}),
        Lane("relay", [sys.executable, "-m", "benchmarks.arm.relay"], ROOT, {}),
    ]
    try:
        if base is not None:
            lanes.append(_base_lane(base.resolve()))
        for lane in lanes:
            lane.start()
        for _ in range(max(1, round(seconds / TURN_S))):
            for lane in lanes:
                lane.run(TURN_S)
    finally:
        for lane in lanes:
            lane.close()
    few = [lane.name for lane in lanes if len(lane.found) < 10]
    if few:
        raise VegaError(f"There are hardly any commands of {', '.join(few)}: use a less busy machine.")
    return Latencies(
        {lane.name: float(np.percentile(lane.found, 50.0)) for lane in lanes},
        {lane.name: float(np.percentile(lane.found, 99.0)) for lane in lanes},
    )


def _base_lane(base: Path) -> Lane:
    module = "vega3d_ros.node.policy_node" if (base / "vega3d_ros" / "node").is_dir() else "vega3d_ros.policy_node"
    prefix = base / ".venv"
    more = {"AMENT_PREFIX_PATH": str(prefix), "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}"}
    # What the loader of our own ROS wheels left behind would keep theirs from loading.
    more |= {"_ROS_WHEELS_BOOTSTRAP_COMPLETE": "", "PYTHONPATH": "", "LD_LIBRARY_PATH": ""}
    return Lane("base", _node(base, str(prefix / "bin" / "python"), module), base, more)


def main() -> None:
    """The relay itself."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    from vega3d_ros.ros.dds import apply_defaults

    apply_defaults()
    rclpy.init()
    node = rclpy.create_node("relay")
    publisher = node.create_publisher(JointTrajectory, COMMANDS, 1)
    newest: dict[str, Any] = {}

    def take(name: str, message: Any) -> None:
        newest[name] = message.header.stamp
        if len(newest) == len(CAMERAS) and len({(s.sec, s.nanosec) for s in newest.values()}) == 1:
            point = JointTrajectoryPoint(positions=HOME[:7])
            answer = JointTrajectory(joint_names=JOINTS, points=[point])
            answer.header.stamp = message.header.stamp
            publisher.publish(answer)

    for camera in CAMERAS:
        node.create_subscription(Image, f"{camera}/image_raw", partial(take, camera), qos_profile_sensor_data)
    rclpy.spin(node)


if __name__ == "__main__":
    main()
