"""A bench without a robot: a real policy_node process moves the stand-in driver `test/driver_node.py` in real time.

This process is the cameras (30 Hz) and the person, and hears from the driver's own account (`driver/truth`) how the arm
really moves.  Settings are those of a real arm.  Another arm may take the stand-in's place.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.types import Image, VegaError
from vega3d_ros.control.resources import share_folder
from vega3d_ros.inference.process import ChildProcess

CAMERAS = ("agentview", "wrist")
JOINTS = [*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1"]
HOME = [0.0, -0.161, 0.0, -2.4446, 0.0, 2.2268, 0.7854, 0.04]
COMMANDS = "panda_arm_controller/joint_trajectory"
CAMERA_HZ = 30.0
MOVING_RAD_S = 0.005
PRIORITY = 40
DEADLINE_S = 60.0
DRIVER = Path(__file__).resolve().parents[2] / "test" / "driver_node.py"
PARAMETERS: dict[str, Any] = {
    "clock_mode": "realtime",
    "committed": True,
    "command_ahead_s": 0.01,
    "dry_run": False,
    "base_pose_topic": "",
    "safety.acceleration": [20.0],
}


@dataclass(frozen=True)
class Arm:
    """file: name in config/robots.  driver: words after Python's that start its driver.  truth: topic (JointState) on
    which that tells how the arm really moves.  commands: topic of the trajectories."""

    file: str
    driver: Sequence[str]
    truth: str
    commands: str


def stand_in(words: Sequence[str] = (str(DRIVER), "--ros-args")) -> Arm:
    """The Panda of LIBERO, whose driver is started with these words and the joints it has."""
    joints = ["-p", f"joint_names:={json.dumps(JOINTS)}", "-p", f"home:={json.dumps(HOME)}"]
    mimics = ["-p", 'mimic_joints:=["panda_finger_joint2"]']
    return Arm("libero", (*words, *joints, *mimics), "driver/truth", COMMANDS)


@contextmanager
def _punctual() -> Iterator[None]:
    """Where that is allowed, this process has real-time priority from now on, with the threads that are made within and
    not with its children: it is a robot's cameras, and where they are late, the node has not done it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        allowed = True
    except PermissionError:
        allowed = False
    yield
    if allowed:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))


class Bench:
    """One domain with a node, a driver, two cameras and this process.  Raises VegaError where it cannot be set up.

    policy, parameters: of policy_node, beside `PARAMETERS`.  picture(camera) -> (H, W, 3) uint8: the next frame.
    sentence: the instruction.  on_line: as of ChildProcess, for the output of policy_node.

    samples: (ns, speed of the fastest joint in rad/s), newest last, as the driver tells.  commands_ns: when each
    command was published, by the publisher's own clock.
    camera_fault: camera -> what is wrong with it (`_send_frames`).  before_move: called once before the next `move`.
    """

    def __init__(
        self,
        policy: str,
        parameters: Mapping[str, Any],
        picture: Callable[[str], Image],
        sentence: str,
        on_line: Callable[[str, str], None] | None = None,
        arm: Arm | None = None,
    ) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import Bool, String
        from trajectory_msgs.msg import JointTrajectory

        from sim.robot.ros_client import RosClient, unused_domain
        from vega3d_ros.ros.qos_events import PublisherEventCallbacks

        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_domain()), "OMP_NUM_THREADS": "1"}
        with _punctual():
            self.client = RosClient("saboteur", int(self.environment["ROS_DOMAIN_ID"]))
        node = self.client.node
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.cameras = {n: node.create_publisher(Image, f"{n}/image_raw", qos_profile_sensor_data) for n in CAMERAS}
        self.instruction = node.create_publisher(String, "instruction", latched)
        # Volatile, as a plain button is: one of the node's subscriptions of it is deaf to that, which is no news.
        quiet = PublisherEventCallbacks(use_default_callbacks=False)
        self.button = node.create_publisher(Bool, "e_stop", 1, event_callbacks=quiet)
        self.driver_fault = node.create_publisher(String, "driver/fault", 10)
        self.samples: deque[tuple[int, float]] = deque(maxlen=1000)
        self.commands_ns: list[int] = []
        self.arm = arm or stand_in()
        node.create_subscription(JointState, self.arm.truth, self._on_truth, 100)
        node.create_subscription(JointTrajectory, self.arm.commands, self._on_command, 10)  # type: ignore[arg-type]
        self.camera_fault: dict[str, str] = {}
        self.frozen_ns = 0
        self.clock_offset_ns = 0  # of the clock of stamps against this machine's
        self.before_move: list[Callable[[], object]] = []
        self._parameters = {**PARAMETERS, **parameters, "policy": policy}
        self._picture, self._sentence, self._on_line = picture, sentence, on_line
        self._frames = {n: picture(n) for n in CAMERAS}
        node.create_timer(1.0 / CAMERA_HZ, self._send_frames)
        self.driver = self.start_driver()
        self.node = self.start_node({})
        self._took_place = False  # of one that was killed, since the arm moved last

    def start_driver(self) -> ChildProcess:
        self._took_place = True
        return ChildProcess("driver", [sys.executable, *self.arm.driver], environment=self.environment, on_line=None)

    def start_node(self, parameters: Mapping[str, Any], name: str = "policy_node") -> ChildProcess:
        """parameters: beside those of this bench."""
        self._took_place = True
        robot = share_folder() / "config" / "robots" / f"{self.arm.file}.yaml"
        command = [sys.executable, "-m", "vega3d_ros.node.policy_node", "--ros-args", "-r", f"__node:={name}"]
        command += ["--params-file", str(robot)]
        for key, value in {**self._parameters, **parameters}.items():
            command += ["-p", f"{key}:={json.dumps(value)}"]
        return ChildProcess(name, command, environment=self.environment, on_line=self._on_line)

    # Cameras

    def _send_frames(self) -> None:
        from vega3d_ros.ros.conversions import image_message

        for name, publisher in self.cameras.items():
            fault = self.camera_fault.get(name, "")
            stamp = self.now_ns()
            if fault == "lost":
                continue
            if fault != "same_picture":
                self._frames[name] = self._picture(name)
            if fault == "frozen":
                stamp = self.frozen_ns
            elif fault == "late":
                stamp -= 500_000_000
            elif fault == "back":
                stamp -= 5_000_000_000
            image = self._frames[name][::2] if fault == "resized" else self._frames[name]
            message = image_message(image, stamp, name)
            if fault == "garbled":
                message.data = message.data[: len(message.data) // 2]
            publisher.publish(message)

    def now_ns(self) -> int:
        """On the clock of stamps."""
        return time.time_ns() + self.clock_offset_ns

    def _on_truth(self, message: Any) -> None:
        ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        self.samples.append((ns, float(np.abs(message.velocity).max())))

    def _on_command(self, _: Any, info: dict[str, int]) -> None:
        self.commands_ns.append(info["source_timestamp"])

    # Before and after a fault

    def change(self, transition: str) -> bool:
        from lifecycle_msgs.msg import Transition

        return self.client.change_state("policy_node", getattr(Transition, f"TRANSITION_{transition}"), DEADLINE_S)

    def state(self) -> str:
        # Asked again, since a question may go to the service of a node that was killed, which is known for a while yet.
        return str(self.client.state("policy_node", DEADLINE_S).label)

    def move(self) -> None:
        """Mend everything, and wait until the arm moves."""
        try:
            self._mend_and_move()
        except VegaError as error:
            if not self._took_place:
                raise
            # Senders of Fast DDS 2.14.5 look without its lock whether a dead process has left shared memory behind, and
            # may take it from the one that has that port next, which then does not hear them: seen once in 150 kills.
            told = (*self.node.tail(3), *self.driver.tail(3))
            print(f"# Once more, with processes in no dead one's place: {error} {' '.join(told)}", flush=True)
            self.node.stop(3.0)
            self.driver.stop(3.0)
            self._mend_and_move()
        self._took_place = False

    def _mend_and_move(self) -> None:
        from std_msgs.msg import Bool, String
        from std_srvs.srv import Trigger

        self.camera_fault = {}
        while self.before_move:
            self.before_move.pop()()
        if self.driver.returncode is not None:
            self.driver = self.start_driver()
        if self.node.returncode is not None:
            self.node = self.start_node({})
        self.driver_fault.publish(String(data=""))
        if not self.client.until(lambda: self.instruction.get_subscription_count() > 0 or self._idle(), DEADLINE_S):
            raise VegaError("policy_node did not come up: read its output.")
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            self.instruction.publish(String(data=self._sentence))
            state = self.state()
            if state == "unconfigured":
                self.change("CONFIGURE")
            elif state == "inactive":
                self.button.publish(Bool(data=False))
                # Only succeeds where it is set and the arm is at rest; activation tells whether it is still set.
                self.client.call(Trigger, "policy_node/clear_stop", Trigger.Request(), DEADLINE_S)
                self.change("ACTIVATE")
            else:
                self.client.call(Trigger, "policy_node/start", Trigger.Request(), DEADLINE_S)
                if self.client.until(self.moving, 3.0) and self.client.until(lambda: False, 0.5) is False:
                    if self.moving():
                        return
                    continue
                self.client.until(lambda: False, 0.2)
        raise VegaError(f"The arm did not begin to move: {' '.join(self.node.tail(3))}")

    def _idle(self) -> bool:
        return self.state() in ("unconfigured", "inactive")

    def moving(self) -> bool:
        """Whether the arm has moved at every step of the last 0.2 s."""
        recent = [speed for ns, speed in self.samples if ns > time.time_ns() - 200_000_000]
        return len(recent) > 10 and min(recent) > MOVING_RAD_S

    def close(self) -> None:
        self.node.stop(3.0)
        self.driver.stop(3.0)
        self.client.close()
