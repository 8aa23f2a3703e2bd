"""How much ROS costs: `python -m benchmarks.ros_transport`.

Prints rows `name value threshold ok|FAIL` and exits with 1 if one fails; rows without a threshold are
information.

- From an image's stamp to the command on the wire, without the policy's own time: a real policy_node
  process in lockstep, two 256x256 rgb8 cameras at 20 Hz.  (In real time a command also waits for the
  control timer, by up to one period, which is no cost of ROS.)
- From the birth of a process to its knowing a publisher of another: what policy_node gives a second commander.
- Frames received of two 640x480 rgb8 cameras at 30 Hz with sensor-data QoS, between two processes, with
  the DDS profile of this package and, beside it, with the default one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Rows
from policies.files.command_line import command_parser
from policies.types import ActionChunk, ActionSpace, Observation, PolicySpec, VegaError
from vega3d_ros.control.resources import share_folder
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.ros.dds import DISCOVERY_S

DEADLINE_S = 120.0
LATENCY_MS = 5.0
RECEIVED_PERCENT = 99.9
BIRTHS = 20
CAMERAS = ("agentview", "wrist")
# What Fast DDS does when nobody configures it, said in a file, so that `apply_defaults` keeps out.
PLAIN_PROFILE = """<?xml version="1.0" encoding="UTF-8"?>
<dds xmlns="http://www.eprosima.com"><profiles>
  <participant profile_name="plain" is_default_profile="true"/>
</profiles></dds>
"""


class StillPolicy:
    """Asked at every step and commands no motion: what remains is the way there and back."""

    spec = PolicySpec("still", CAMERAS, ActionSpace("eef_delta"), chunk_length=8, open_loop_horizon=1)

    def act(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.zeros((8, 7)), observation.stamp_ns, observation.instruction)

    def reset(self) -> None:
        """Nothing is remembered."""


@contextmanager
def domain_environment(own_profile: bool) -> Iterator[dict[str, str]]:
    """For child processes in a domain of their own, with the DDS profile of this package or the default one."""
    from sim.robot.ros_client import unused_domain

    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_domain())}
        for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
            environment.pop(name, None)
        if not own_profile:
            plain = Path(folder) / "plain.xml"
            plain.write_text(PLAIN_PROFILE)
            environment["FASTDDS_DEFAULT_PROFILES_FILE"] = environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(plain)
        yield environment


def role_process(role: str, environment: dict[str, str], *options: str) -> ChildProcess:
    command = [sys.executable, "-m", "benchmarks.ros_transport", "--role", role, *options]
    return ChildProcess(role, command, environment=environment, on_line=None)


def images_between_processes(rate_hz: float, seconds: float, own_profile: bool = True) -> dict[str, Any]:
    """Send two cameras of 640x480 from one process to another.

    Returns sent, received (frames of both) and latency_ms_p99 (stamp to callback).  Raises VegaError if a
    process fails.
    """
    pace = ("--rate", str(rate_hz), "--seconds", str(seconds))
    with (
        domain_environment(own_profile) as environment,
        role_process("receiver", environment) as receiver,
        role_process("sender", environment, *pace) as sender,
    ):
        result = json.loads(receiver.wait_for_line("received", DEADLINE_S + seconds))
        result["sent"] = json.loads(sender.wait_for_line("sent", DEADLINE_S))["sent"]
    return result


def _send(rate_hz: float, seconds: float) -> None:
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import Bool

    from sim.robot.ros_client import RosClient
    from vega3d_ros.ros.conversions import image_message

    client = RosClient("sender", int(os.environ["ROS_DOMAIN_ID"]))
    cameras = [client.node.create_publisher(Image, f"{name}/image_raw", qos_profile_sensor_data) for name in CAMERAS]
    done = client.node.create_publisher(Bool, "done", 1)
    if not client.until(lambda: all(c.get_subscription_count() for c in (*cameras, done)), DEADLINE_S):
        raise VegaError("The receiver did not appear: end other ROS nodes and try again.")
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    sent = [0]

    def tick() -> None:
        for camera in cameras:
            camera.publish(image_message(image, time.time_ns()))
            sent[0] += 1

    timer = client.node.create_timer(1.0 / rate_hz, tick)
    client.until(lambda: sent[0] >= 2 * rate_hz * seconds, DEADLINE_S + seconds)
    client.node.destroy_timer(timer)
    done.publish(Bool(data=True))
    client.until(lambda: done.get_subscription_count() == 0, DEADLINE_S)
    print(json.dumps({"sent": sent[0]}), flush=True)
    client.close()


def _receive() -> None:
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import Bool

    from sim.robot.ros_client import RosClient
    from vega3d_ros.ros.conversions import stamp_ns

    client = RosClient("receiver", int(os.environ["ROS_DOMAIN_ID"]))
    latencies: list[float] = []
    over: list[Bool] = []

    def take(message: Image) -> None:
        latencies.append((time.time_ns() - stamp_ns(message.header.stamp)) / 1e6)

    for name in CAMERAS:
        client.node.create_subscription(Image, f"{name}/image_raw", take, qos_profile_sensor_data)
    client.node.create_subscription(Bool, "done", over.append, 1)
    client.until(lambda: bool(over), 2 * DEADLINE_S)
    # What was sent before `done` may still be in the queues, until half a second passes without a frame.
    seen = [-1]
    while seen[0] != len(latencies):
        seen[0] = len(latencies)
        client.until(lambda: len(latencies) > seen[0], 0.5)
    p99 = float(np.percentile(latencies, 99)) if latencies else float("nan")
    print(json.dumps({"received": len(latencies), "latency_ms_p99": p99}), flush=True)
    client.close()


def discovery_s(own_profile: bool = True) -> list[float]:
    """s until a new process knows a publisher that has long been there, for `BIRTHS` processes.  Raises VegaError."""
    with domain_environment(own_profile) as environment, role_process("resident", environment) as resident:
        resident.wait_for_line("there", DEADLINE_S)
        times = []
        for _ in range(BIRTHS):
            with role_process("newcomer", environment) as newcomer:
                times.append(json.loads(newcomer.wait_for_line("known_s", DEADLINE_S))["known_s"])
                newcomer.wait(DEADLINE_S)
    return times


def _reside() -> None:
    from std_msgs.msg import Bool

    from sim.robot.ros_client import RosClient

    client = RosClient("resident", int(os.environ["ROS_DOMAIN_ID"]))
    client.node.create_publisher(Bool, "known", 1)
    print("there", flush=True)
    client.until(lambda: False, 2 * BIRTHS * DEADLINE_S)


def _arrive() -> None:
    from sim.robot.ros_client import RosClient

    client = RosClient("newcomer", int(os.environ["ROS_DOMAIN_ID"]))
    born_s = time.monotonic()
    client.until(lambda: client.node.count_publishers("known") > 0, DEADLINE_S)
    print(json.dumps({"known_s": time.monotonic() - born_s}), flush=True)
    client.close()


def image_to_command(policy: str, seconds: float) -> dict[str, float]:
    """Drive a policy_node with two 256x256 cameras and joint states at 20 Hz.

    Returns, in ms: node_p99, stamp of the newest image to the command published, without the policy's
    time, as the node reports it; outside_p99, stamp to the command's arrival here, policy included;
    commands, their number.  Raises VegaError.
    """
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PoseStamped
    from lifecycle_msgs.msg import Transition
    from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import String
    from trajectory_msgs.msg import JointTrajectory

    from sim.robot.ros_client import RosClient, unused_domain
    from vega3d_ros.control.control_loop import JointSample
    from vega3d_ros.ros import conversions

    robot = share_folder() / "config" / "robots" / "libero.yaml"
    joints = [f"panda_joint{i}" for i in range(1, 8)]
    fingers = ["panda_finger_joint1", "panda_finger_joint2"]
    home = np.array([0.0, -0.161, 0.0, -2.4446, 0.0, 2.2268, 0.7854])
    domain = unused_domain()
    command = [sys.executable, "-m", "vega3d_ros.node.policy_node", "--ros-args", "--params-file", str(robot)]
    command += ["-p", f"policy:={json.dumps(policy)}", "-p", "clock_mode:=lockstep"]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    with ChildProcess("policy_node", command, environment=environment, on_line=None) as child:

        def watch() -> None:
            if child.returncode is not None:
                raise VegaError(f"policy_node ended: {' '.join(child.tail(3))}")

        client = RosClient("driver", domain, watch)
        node = client.node
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        cameras = {n: node.create_publisher(Image, f"{n}/image_raw", qos_profile_sensor_data) for n in CAMERAS}
        states = node.create_publisher(JointState, "joint_states", qos_profile_sensor_data)
        node.create_publisher(PoseStamped, "base_pose", latched).publish(
            conversions.pose_message(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), 0)
        )
        node.create_publisher(String, "instruction", latched).publish(String(data="pick up the milk"))
        outside: list[float] = []
        reports: list[DiagnosticArray] = []

        def take(message: JointTrajectory) -> None:
            outside.append((time.time_ns() - conversions.stamp_ns(message.header.stamp)) / 1e6)

        node.create_subscription(JointTrajectory, "panda_arm_controller/joint_trajectory", take, 10)
        node.create_subscription(DiagnosticArray, "/diagnostics", reports.append, 10)
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            if not client.change_state("policy_node", transition, DEADLINE_S):
                raise VegaError(f"policy_node could not be activated: {' '.join(child.tail(3))}")
        client.until(lambda: all(p.get_subscription_count() for p in (*cameras.values(), states)), DEADLINE_S)
        client.trigger("policy_node/start", DEADLINE_S)
        image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)

        # Filled before: what a camera's driver does before it stamps an image is not measured.
        messages = {name: conversions.image_message(image, 0, name) for name in cameras}

        def tick() -> None:
            stamp = time.time_ns()
            for name, publisher in cameras.items():
                messages[name].header.stamp = conversions.time_message(stamp)
                publisher.publish(messages[name])
            sample = JointSample(stamp, home, np.zeros(7), np.array([0.04, 0.04]))
            states.publish(conversions.joint_state_message(sample, joints, fingers))

        timer = node.create_timer(0.05, tick)
        client.until(lambda: len(outside) >= 20 * seconds, DEADLINE_S + 5 * seconds)
        node.destroy_timer(timer)
        reports.clear()
        client.until(lambda: bool(reports), DEADLINE_S)
        latency = next(s for s in reports[-1].status if s.name.endswith(": latency"))
        client.close()
    values = {pair.key: pair.value for pair in latency.values}
    return {
        "node_p99": float(values["image_to_command_without_policy_ms_p99"]),
        "node_p50": float(values["image_to_command_without_policy_ms_p50"]),
        "outside_p99": float(np.percentile(outside, 99)),
        "commands": float(len(outside)),
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = command_parser("python -m benchmarks.ros_transport", __doc__, paragraphs=3)
    roles = {"receiver": _receive, "resident": _reside, "newcomer": _arrive}
    parser.add_argument("--role", choices=["sender", *roles], help=argparse.SUPPRESS)
    parser.add_argument("--policy", default="benchmarks.ros_transport:StillPolicy", help="policy of the first row")
    parser.add_argument("--rate", type=float, default=30.0, help="frames of each camera, Hz")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement, s")
    options = parser.parse_args(argv)
    if options.role == "sender":
        _send(options.rate, options.seconds)
        return 0
    if options.role:
        roles[options.role]()
        return 0
    rows = Rows()
    try:
        rows.information(f"load_average_on_{os.cpu_count()}_cores", os.getloadavg()[0])
        latency = image_to_command(options.policy, options.seconds)
        rows.information("commands_measured", latency["commands"])
        rows.at_most("image_to_command_without_policy_ms_p99", latency["node_p99"], LATENCY_MS)
        rows.information("image_to_command_without_policy_ms_p50", latency["node_p50"])
        rows.information("image_to_command_received_with_policy_ms_p99", latency["outside_p99"])
        rows.at_most(f"publisher_known_s_max_of_{BIRTHS}_own_profile", max(discovery_s()), DISCOVERY_S)
        rows.information(f"publisher_known_s_max_of_{BIRTHS}_default_profile", max(discovery_s(own_profile=False)))
        own = images_between_processes(options.rate, options.seconds)
        percent = 100.0 * own["received"] / own["sent"]
        rows.at_least("frames_640x480_received_percent_own_profile", percent, RECEIVED_PERCENT)
        rows.information("frames_640x480_latency_ms_p99_own_profile", own["latency_ms_p99"])
        plain = images_between_processes(options.rate, options.seconds, own_profile=False)
        rows.information("frames_640x480_received_percent_default_profile", 100.0 * plain["received"] / plain["sent"])
    except VegaError as error:
        print(error, file=sys.stderr)
        return 1
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
