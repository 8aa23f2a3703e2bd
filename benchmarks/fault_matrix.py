"""How soon a stand-in arm rests after each fault, and whether it stays so.

A real policy_node process, in real time with the settings of a real arm, moves `test/driver_node.py`; this process is
the cameras, the person and the saboteur.  Time counts from the fault to the last moment at which the arm moved, by the
driver's own account (`driver/truth`); where the fault is the policy's, from the moment at which it misbehaves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from policies.types import ActionChunk, ActionSpace, Observation, PolicySpec, VegaError
from vega3d_ros.process import ChildProcess
from vega3d_ros.resources import share_folder

CAMERAS = ("agentview", "wrist")
JOINTS = [*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1"]
HOME = [0.0, -0.161, 0.0, -2.4446, 0.0, 2.2268, 0.7854, 0.04]
SIZE = 64
MOVING_RAD_S = 0.005
STAYS_S = 1.0
DEADLINE_S = 60.0
DRIVER = Path(__file__).resolve().parent.parent / "test" / "driver_node.py"
PARAMETERS: dict[str, Any] = {
    "policy": "benchmarks.fault_matrix:CirclingPolicy",
    "clock_mode": "realtime",
    "committed": True,
    "dry_run": False,
    "after_problem": "deactivate",
    "max_age_s": 0.1,
    "policy_timeout_s": 0.1,
    "base_pose_topic": "",
    "gripper.joints": ["panda_finger_joint1"],
    "safety.acceleration": [20.0],
    **{f"cameras.{name}.{key}": SIZE for name in CAMERAS for key in ("width", "height")},
    **{f"cameras.{name}.max_identical": 1 for name in CAMERAS},
}
# What the policy does when the first pixel of the first camera has this value.
POLICY_FAULTS = {"hangs": 1, "raises": 2, "nan": 3, "shape": 4, "slow": 5}


class CirclingPolicy:
    """Moves the tool in a circle; misbehaves when the first pixel says so, and prints when it does."""

    spec = PolicySpec("circling", CAMERAS, ActionSpace("eef_delta"), chunk_length=8, open_loop_horizon=8)

    def __init__(self) -> None:
        self._phase = 0.0

    def act(self, observation: Observation) -> ActionChunk:
        code = int(observation.images[CAMERAS[0]][0, 0, 0, 0])
        if code:
            print(f"misbehaves {time.time_ns()}", flush=True)
        if code in (1, 5):
            time.sleep(5.0 if code == 1 else 1.0)
        if code == 2:
            raise RuntimeError("CUDA error: device lost")
        self._phase += 0.1
        angle = self._phase + 0.02 * np.arange(8)
        actions = np.zeros((8, 7))
        actions[:, 0], actions[:, 1] = 0.2 * np.cos(angle), 0.2 * np.sin(angle)
        if code == 3:
            actions[3, 1] = np.nan
        return ActionChunk(actions[:, :6] if code == 4 else actions, observation.stamp_ns, observation.instruction)

    def reset(self) -> None:
        """The circle goes on from where it was."""


class Bench:
    """One domain with a node, a driver, two cameras and this process.  Raises VegaError where it cannot be set up."""

    def __init__(self) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import Bool, String

        from sim.ros_client import RosClient, unused_domain

        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_domain()), "OMP_NUM_THREADS": "1"}
        self.client = RosClient("saboteur", int(self.environment["ROS_DOMAIN_ID"]))
        node = self.client.node
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.cameras = {n: node.create_publisher(Image, f"{n}/image_raw", qos_profile_sensor_data) for n in CAMERAS}
        self.instruction = node.create_publisher(String, "instruction", latched)
        self.button = node.create_publisher(Bool, "e_stop", 1)
        self.driver_fault = node.create_publisher(String, "driver/fault", 10)
        self.samples: list[tuple[int, float]] = []  # (ns, fastest joint rad/s)
        node.create_subscription(JointState, "driver/truth", self._on_truth, 100)
        self.camera_fault: dict[str, str] = {}
        self.flooding = False
        self.code = 0
        self._rng = np.random.default_rng(0)
        self._frames = {n: self._frame() for n in CAMERAS}
        self._frozen_ns = 0
        node.create_timer(1.0 / 30.0, self._send_frames)
        node.create_timer(0.01, self._flood)
        self.driver = self._start_driver()
        self.node = self._start_node()
        self.extra: Any = None

    def _start_driver(self) -> ChildProcess:
        command = [sys.executable, str(DRIVER), "--ros-args"]
        command += ["-p", f"joint_names:={json.dumps(JOINTS)}", "-p", f"home:={json.dumps(HOME)}"]
        return ChildProcess("driver", command, environment=self.environment, on_line=None)

    def _start_node(self) -> ChildProcess:
        robot = share_folder() / "config" / "robots" / "libero.yaml"
        command = [sys.executable, "-m", "vega3d_ros.policy_node", "--ros-args", "--params-file", str(robot)]
        for key, value in PARAMETERS.items():
            command += ["-p", f"{key}:={json.dumps(value)}"]
        return ChildProcess("policy_node", command, environment=self.environment, on_line=None)

    # Cameras

    def _frame(self) -> Any:
        return self._rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)

    def _send_frames(self) -> None:
        from vega3d_ros.conversions import image_message

        for name, publisher in self.cameras.items():
            fault = self.camera_fault.get(name, "")
            stamp = time.time_ns()
            if fault == "lost":
                continue
            if fault != "same_picture":
                self._frames[name] = self._frame()
                self._frames[name][0, 0, 0] = self.code
            if fault == "frozen":
                stamp = self._frozen_ns
            elif fault == "late":
                stamp -= 500_000_000
            elif fault == "back":
                stamp -= 5_000_000_000
            image = self._frames[name][:32] if fault == "resized" else self._frames[name]
            message = image_message(image, stamp, name)
            if fault == "garbled":
                message.data = message.data[: len(message.data) // 2]
            publisher.publish(message)

    def _flood(self) -> None:
        from std_msgs.msg import String

        if self.flooding:
            self.instruction.publish(String(data=f"go round in a circle {self._rng.integers(1 << 30)}"))

    def _on_truth(self, message: Any) -> None:
        ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        self.samples.append((ns, float(np.abs(message.velocity).max())))

    # Before and after a fault

    def change(self, transition: str) -> bool:
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(id=getattr(Transition, f"TRANSITION_{transition}")))
        return bool(self.client.call(ChangeState, "policy_node/change_state", request, DEADLINE_S).success)

    def state(self) -> str:
        from lifecycle_msgs.srv import GetState

        answer = self.client.call(GetState, "policy_node/get_state", GetState.Request(), DEADLINE_S)
        return str(answer.current_state.label)

    def move(self) -> None:
        """Mend everything, and wait until the arm moves."""
        from std_msgs.msg import String
        from std_srvs.srv import Trigger

        self.camera_fault, self.code, self.flooding = {}, 0, False
        if self.extra is not None:
            self.client.node.destroy_publisher(self.extra)
            self.extra = None
        if self.driver.returncode is not None:
            self.driver = self._start_driver()
        if self.node.returncode is not None:
            self.node = self._start_node()
        self.driver_fault.publish(String(data=""))
        if not self.client.until(lambda: self.instruction.get_subscription_count() > 0 or self._idle(), DEADLINE_S):
            raise VegaError("policy_node did not come up: read its output.")
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            self.instruction.publish(String(data="go round in a circle"))
            state = self.state()
            if state == "unconfigured":
                self.change("CONFIGURE")
            elif state == "inactive":
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
        recent = [speed for ns, speed in self.samples[-40:] if ns > time.time_ns() - 200_000_000]
        return len(recent) > 10 and min(recent) > MOVING_RAD_S

    def rest_ms(self, fault: Callable[[Bench], int | None]) -> float:
        """Time from the fault to the last motion, ms; `fault` returns its time in ns, None for now."""
        self.move()
        self.samples.clear()
        started = time.time_ns()
        told = fault(self)
        began = started if told is None else told
        self.client.until(lambda: False, STAYS_S)
        if not self.client.until(
            lambda: bool(self.samples) and self.samples[-1][0] > time.time_ns() - 300_000_000, 20.0
        ):
            raise VegaError("The driver does not say where the arm is: read its output.")
        self.client.until(lambda: False, 0.3)
        moved = [ns for ns, speed in self.samples if speed > MOVING_RAD_S]
        return max(0.0, (max(moved) - began) / 1e6) if moved else 0.0

    def close(self) -> None:
        self.node.stop(3.0)
        self.driver.stop(3.0)
        self.client.close()


def _camera(name: str, kind: str) -> Callable[[Bench], None]:
    def fault(bench: Bench) -> None:
        bench._frozen_ns = time.time_ns()
        bench.camera_fault = {name: kind}

    return fault


def _driver(kind: str) -> Callable[[Bench], None]:
    def fault(bench: Bench) -> None:
        from std_msgs.msg import String

        bench.driver_fault.publish(String(data=kind))

    return fault


def _policy(kind: str) -> Callable[[Bench], int]:
    def fault(bench: Bench) -> int:
        seen = [line for line in bench.node.tail(200) if line.startswith("misbehaves")]
        bench.code = POLICY_FAULTS[kind]

        def told() -> list[str]:
            return [line for line in bench.node.tail(200) if line.startswith("misbehaves")][len(seen) :]

        if not bench.client.until(lambda: bool(told()), 5.0):
            raise VegaError("The policy was not asked any more before it could misbehave: run this again.")
        return int(told()[0].split()[1])

    return fault


def _kill_node(bench: Bench) -> None:
    os.kill(bench.node.pid, signal.SIGKILL)


def _restart_driver(bench: Bench) -> None:
    os.kill(bench.driver.pid, signal.SIGKILL)
    bench.driver.wait(5.0)
    bench.samples.clear()
    bench.driver = bench._start_driver()


def _stop_service(bench: Bench) -> None:
    from std_srvs.srv import Trigger

    bench.client.call(Trigger, "policy_node/e_stop", Trigger.Request(), DEADLINE_S)


def _stop_topic(bench: Bench) -> None:
    from std_msgs.msg import Bool

    bench.button.publish(Bool(data=True))


def _rival(bench: Bench) -> None:
    from trajectory_msgs.msg import JointTrajectory

    bench.extra = bench.client.node.create_publisher(JointTrajectory, "panda_arm_controller/joint_trajectory", 1)


def _qos(bench: Bench) -> None:
    from std_msgs.msg import String

    bench.extra = bench.client.node.create_publisher(String, "instruction", 1)  # volatile; latched is asked for


def _flood(bench: Bench) -> None:
    bench.flooding = True


FAULTS: dict[str, Callable[[Bench], int | None]] = {
    **{
        f"camera_{name}_{kind}": _camera(name, kind)
        for name in CAMERAS
        for kind in ("lost", "frozen", "same_picture", "garbled", "resized", "late", "back")
    },
    **{f"joint_states_{kind}": _driver(kind) for kind in ("lost", "nan", "renamed", "frozen", "back")},
    **{f"policy_{kind}": _policy(kind) for kind in POLICY_FAULTS},
    "node_killed": _kill_node,
    "driver_restarted": _restart_driver,
    "e_stop_service": _stop_service,
    "e_stop_topic": _stop_topic,
    "second_commander": _rival,
    "qos_mismatch": _qos,
    "instruction_flood": _flood,
}


def run(names: list[str], repetitions: int, say: Callable[[str, list[float]], None]) -> None:
    """Run each fault `repetitions` times; `say(name, milliseconds of each)` after each fault."""
    bench = Bench()
    try:
        for name in names:
            times = []
            for _ in range(repetitions):
                times.append(bench.rest_ms(FAULTS[name]))
                if name == "qos_mismatch" and bench.state() == "inactive":
                    bench.change("CLEANUP")  # what could not be heard is remembered until then
            say(name, times)
    finally:
        bench.close()
