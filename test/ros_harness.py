"""A robot made of messages, for tests of policy_node in a process of its own over real DDS.

Everything waits for events with a deadline; nothing sleeps for luck.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import Log
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from benchmarks.wire_judge.controller import Controller, Limits, points_of
from sim.robot.ros_client import RosClient, unused_domain
from vega3d_ros.control.control_loop import JointSample
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.ros import conversions

ROOT = Path(__file__).resolve().parent.parent
JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
FINGERS = ("panda_finger_joint1", "panda_finger_joint2")
CAMERAS = ("agentview", "wrist")
HOME = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, 0.7853981633974483])
COMMANDS = "panda_arm_controller/joint_trajectory"
PERIOD_NS = 50_000_000
INSTRUCTION = "pick up the milk and place it in the basket"
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# A real arm's settings, with patience for a busy machine.
REAL = {
    "clock_mode": "realtime",
    "committed": True,
    "after_problem": "deactivate",
    "max_age_s": 8.0,
    "max_gap_periods": 160,
}
DEADLINE_S = 120.0  # generous: starting Python alone may take a minute beside other heavy work
RESEND_S = 1.5
END_S = 10.0  # what a node gets for its end; only those whose callback hangs need it
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "shutdown": Transition.TRANSITION_ACTIVE_SHUTDOWN,
    "shutdown when inactive": Transition.TRANSITION_INACTIVE_SHUTDOWN,
}


def image_of(seed: int, size: int = 256) -> np.ndarray:
    """(size, size, 3) uint8 noise that depends on the seed alone."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def sample_at(step: int) -> JointSample:
    """An arm that sways a little around home, exactly representable for both sides."""
    sway = 0.01 * np.sin(0.1 * step + np.arange(7))
    return JointSample(step * PERIOD_NS, HOME + sway, 0.02 * np.cos(0.1 * step + np.arange(7)), np.array([0.04, 0.04]))


class FakeRobot:
    """Publishes cameras, joint states, instruction and base pose; hears commands, diagnostics, log and gates."""

    def __init__(self, domain: int, watch: Callable[[], None] = lambda: None) -> None:
        self.client = RosClient("fake_robot", domain, watch)
        node = self.node = self.client.node
        self.commands: list[JointTrajectory] = []
        self.diagnostics: list[DiagnosticArray] = []
        self.log: list[Log] = []
        self.cameras = {
            name: node.create_publisher(Image, f"{name}/image_raw", qos_profile_sensor_data) for name in CAMERAS
        }
        self.joint_states = node.create_publisher(JointState, "joint_states", qos_profile_sensor_data)
        self.instruction = node.create_publisher(String, "instruction", LATCHED)
        self.base_pose = node.create_publisher(PoseStamped, "base_pose", LATCHED)
        free = np.full(len(JOINTS), np.inf)
        self.stamped = False  # whether a command begins at its stamp: it leaves ahead; else it answers a joint state
        self.arm = Controller(Limits(-free, free, free, free), HOME.copy())
        node.create_subscription(JointTrajectory, COMMANDS, self.hear, 100)
        node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 100)
        # Latched, or what a node says before it is known here would be lost.
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(Log, "/rosout", self.log.append, latched)
        self.base_pose.publish(conversions.pose_message(np.array([-0.6, 0.0, 0.9]), np.array([0.0, 0.0, 0.0, 1.0]), 0))

    # Sending

    def send_image(self, camera: str, image: np.ndarray, stamp_ns: int) -> None:
        self.cameras[camera].publish(conversions.image_message(image, stamp_ns, camera))

    def send_images(self, step: int) -> None:
        for index, camera in enumerate(CAMERAS):
            self.send_image(camera, image_of(2 * step + index), step * PERIOD_NS)

    def send_joints(self, sample: JointSample) -> None:
        self.joint_states.publish(conversions.joint_state_message(sample, JOINTS, FINGERS))

    def sample_now(self) -> JointSample:
        """The arm now, which follows every command as its controller would."""
        positions, velocities = self.arm.state(time.monotonic())
        return JointSample(now_ns(), positions.copy(), velocities.copy(), np.array([0.04, 0.04]))

    def hear(self, message: JointTrajectory) -> None:
        self.commands.append(message)
        self.obey(message)

    def obey(self, message: JointTrajectory) -> None:
        points = points_of(message, JOINTS)
        since_s = (now_ns() - conversions.stamp_ns(message.header.stamp)) * 1e-9 if self.stamped else 0.0
        if points is not None:
            self.arm.take(time.monotonic(), points, max(since_s, 0.0))

    def put(self, positions: Sequence[float]) -> None:
        """The arm is there at once, as a controller that does not interpolate has it."""
        self.arm.points, self.arm.positions = [], np.array(positions)

    def send_instruction(self, text: str = INSTRUCTION) -> None:
        self.instruction.publish(String(data=text))

    # Waiting

    def until(
        self, condition: Callable[[], bool], timeout_s: float = DEADLINE_S, again: Callable[[], None] | None = None
    ) -> bool:
        """Wait for the condition; `again` is called every RESEND_S, since sensor data may be lost on a busy machine."""
        deadline = time.monotonic() + timeout_s
        while again is not None and time.monotonic() < deadline - RESEND_S:
            if self.client.until(condition, RESEND_S):
                return True
            again()
        return self.client.until(condition, max(0.0, deadline - time.monotonic()))

    def answered(self) -> set[int]:
        """Stamps of the joint states that have been answered; a repeated answer is no new one."""
        return {conversions.stamp_ns(command.header.stamp) for command in self.commands}

    def quiet_for(self, seconds: float) -> bool:
        """True if no new command comes for so long: the time in which one would have come is waited out."""
        before = self.answered()
        self.until(lambda: self.answered() != before, seconds)
        return self.answered() == before

    def connected(self) -> bool:
        """Whether the node under test hears everything we send."""
        publishers = [*self.cameras.values(), self.joint_states, self.instruction]
        return all(publisher.get_subscription_count() > 0 for publisher in publishers)

    def change(self, transition: str, node: str = "policy_node") -> bool:
        return self.client.change_state(node, TRANSITIONS[transition], DEADLINE_S)

    def state(self, node: str = "policy_node") -> str:
        return str(self.client.state(node, DEADLINE_S).label)

    def bring_up(self) -> None:
        """Configure, activate, and wait until it is connected; the node is not started yet."""
        assert self.change("configure"), self.log_text()
        assert self.change("activate"), self.log_text()
        assert self.until(self.connected)

    def ask(self, step: int, joints_first: bool = False, with_images: bool = True) -> JointTrajectory:
        """One step in lockstep: images and joints; returns the command that answers this stamp."""
        before = len(self.commands)

        def send() -> None:
            if joints_first:
                self.send_joints(sample_at(step))
            if with_images:
                self.send_images(step)
            if not joints_first:
                self.send_joints(sample_at(step))

        def answers() -> list[JointTrajectory]:
            return [c for c in self.commands[before:] if conversions.stamp_ns(c.header.stamp) == step * PERIOD_NS]

        send()
        assert self.until(lambda: bool(answers()), again=send), f"no command for step {step}: {self.sentence()}"
        return answers()[0]

    # Reading

    def log_text(self) -> str:
        return " | ".join(message.msg for message in self.log if message.name == "policy_node")

    def status(self, name: str = "command", node: str = "policy_node") -> Any:
        """The newest status of that name, None before the first."""
        for array in reversed(self.diagnostics):
            for status in array.status:
                if status.name == f"{node}: {name}":
                    return status
        return None

    def sentence(self) -> str:
        status = self.status()
        return status.message if status is not None else "no diagnostics yet"

    def values(self, name: str = "command") -> dict[str, str]:
        status = self.status(name)
        return {pair.key: pair.value for pair in status.values} if status is not None else {}

    def shows(self, level: int, *words: str, again: Callable[[], None] | None = None) -> bool:
        """Wait for a command status of that level whose sentence has the words; a fresh one, not one from before."""
        self.diagnostics.clear()

        def shown() -> bool:
            status = self.status()
            return status is not None and status.level == bytes([level]) and all(w in status.message for w in words)

        return self.until(shown, again=again)

    def close(self) -> None:
        self.client.close()


class Arm:
    """Sends cameras and joints at 20 Hz; `speed` rad/s is what its first joint claims to do."""

    def __init__(self, robot: FakeRobot) -> None:
        self.robot = robot
        self.silent: set[str] = set()
        self.speed = 0.0

    def tick(self) -> None:
        for camera in CAMERAS:
            if camera not in self.silent:
                self.robot.send_image(camera, image_of(0), now_ns())
        sample = self.robot.sample_now()
        sample.velocities[0] += self.speed
        self.robot.send_joints(sample)

    def moves(self) -> bool:
        before = len(self.robot.commands)
        return self.robot.until(lambda: len(self.robot.commands) > before + 3)

    def rests(self) -> bool:
        """No command for as long as several would have come in."""
        self.robot.until(lambda: False, 0.1)  # what was on its way
        before = len(self.robot.commands)
        self.robot.until(lambda: len(self.robot.commands) > before, 0.5)
        return len(self.robot.commands) == before


def start(robot: FakeRobot) -> None:
    robot.client.trigger("policy_node/start")


@contextmanager
def moving(robot: FakeRobot) -> Iterator[Arm]:
    """Brought up, told what to do, started and seen to command; its arm sends at 20 Hz until the end."""
    arm = Arm(robot)
    robot.bring_up()
    robot.send_instruction()
    with Pace(robot, 0.05, arm.tick):
        start(robot)
        assert arm.moves(), robot.sentence()
        yield arm


def node_command(policy: str, parameters: Mapping[str, Any], name: str = "policy_node") -> list[str]:
    """The command line of a policy_node for the LIBERO Panda."""
    command = [sys.executable, "-m", "vega3d_ros.node.policy_node", "--ros-args", "-r", f"__node:={name}"]
    command += ["--params-file", str(ROOT / "config" / "robots" / "libero.yaml")]
    for key, value in {"policy": f"tiny_policy:{policy}", **parameters}.items():
        command += ["-p", f"{key}:={json.dumps(value)}"]
    return command


def node_environment(domain: int) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "test"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
        "VEGA3D_END_S": str(END_S),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def start_node(
    domain: int, policy: str = "TinyPolicy", parameters: Mapping[str, Any] | None = None, name: str = "policy_node"
) -> ChildProcess:
    return ChildProcess(
        name, node_command(policy, parameters or {}, name), environment=node_environment(domain), on_line=None
    )


@contextmanager
def policy_node(tiny: str = "TinyPolicy", **parameters: Any) -> Iterator[tuple[FakeRobot, ChildProcess]]:
    """A fake robot and a policy_node process in a domain of their own; `__` in a parameter's name stands for a dot."""
    domain = unused_domain()
    named = {"clock_mode": "lockstep", **{key.replace("__", "."): value for key, value in parameters.items()}}
    with start_node(domain, tiny, named) as child:

        def watch() -> None:
            if child.returncode is not None:
                raise AssertionError(f"policy_node ended with {child.returncode}: {child.tail()}")

        robot = FakeRobot(domain, watch)
        robot.stamped = named.get("command_ahead_s", 0.0) > 0.0
        try:
            yield robot, child
        finally:
            robot.close()


def storm(child: ChildProcess) -> None:
    """Ctrl-C until the process has ended, which it has to do cleanly."""
    deadline = time.monotonic() + DEADLINE_S
    while child.returncode is None and time.monotonic() < deadline:
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.001)
    assert child.wait(DEADLINE_S) == 0, child.tail()
    assert not any("Traceback" in line or "Fatal" in line for line in child.tail()), child.tail()


class Pace:
    """Calls a function at a fixed rate from inside a wait, as a driver's timer would."""

    def __init__(self, robot: FakeRobot, period_s: float, action: Callable[[], None]) -> None:
        self._timer = robot.node.create_timer(period_s, action)
        self._robot = robot

    def __enter__(self) -> Pace:
        return self

    def __exit__(self, *_: object) -> None:
        self._robot.node.destroy_timer(self._timer)


def now_ns() -> int:
    return time.time_ns()
