"""An unkind driver that is also the judge: every message on the wire is judged as its controller would run it.

    python -m benchmarks.wire_judge.driver --ros-args -p joint_names:=[a, b] -p home:=[0.0, 0.0] ...

The arm follows what the controller commands with a lag; `joint_states` (100 Hz, sensor data) tell of it with an offset
and noise; `~/truth` (reliable JointState, stamped by the system's clock) tells without.  `~/judged` (std_msgs/String,
JSON, latched): messages judged, how many are outside, the worst of each kind (`controller.Verdict`), the first that was
outside, and how long after its stamp the latest came, since the start.  Commands are trajectories, or positions (topic
`<controller>/commands`), which are taken at once as a forward_command_controller does.

Parameters: joint_names, home; lower, upper, velocity, acceleration of each (0 velocity: not judged, a finger);
mimic_joints: as the last of joint_names; controller; offset_rad, lag_s, noise_rad.

Topic `~/fault` (std_msgs/String), '' for none: `lost`, `nan`, `renamed`, `frozen`, `back` as in test/driver_node.py;
`glitch` (+0.5 rad of the second joint for 60 ms), `degrees`, `second` (a second publisher with another pose),
`offset` (+0.15 rad of the first joint from now on), `wrong_sign` (of velocities).

Imports NumPy, rclpy and `controller.py`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any

import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from benchmarks.wire_judge.controller import Controller, Limits, Stream, Verdict, points_of

STEP_S = 0.01
GLITCH_S = 0.06
PRIORITY = 50
TOGETHER_S = 2e-5
FAULTS = ("", "lost", "nan", "renamed", "frozen", "back", "glitch", "degrees", "second", "offset", "wrong_sign")


class UnkindDriver(Node):
    """See above.  Ends with SystemExit at a fault that it does not know."""

    def __init__(self) -> None:
        super().__init__("driver")
        self.names = list(self._parameter("joint_names", ["joint1"]))
        home = np.array(self._parameter("home", [0.0]))
        self.mimics = list(self._parameter("mimic_joints", [""]))
        velocity = np.array(self._parameter("velocity", [1.0]))
        free = np.where(velocity > 0.0, 0.0, np.inf)
        self.limits = Limits(
            np.array(self._parameter("lower", [-1.0])) - free,
            np.array(self._parameter("upper", [1.0])) + free,
            np.where(velocity > 0.0, velocity, np.inf),
            np.where(velocity > 0.0, np.array(self._parameter("acceleration", [1.0])), np.inf),
        )
        self.offset = float(self._parameter("offset_rad", 0.0))
        self.lag = float(self._parameter("lag_s", 0.0))
        self.noise = float(self._parameter("noise_rad", 0.0))
        controller = self._parameter("controller", "panda_arm_controller")
        self.rng = np.random.default_rng(0)
        self.controller = Controller(self.limits, home)
        self.stream = Stream(self.limits)
        self.position, self.velocity = home.copy(), np.zeros_like(home)
        self.fault, self.fault_s = "", 0.0
        self.messages = self.outside = 0
        self.latest_ms = self.last_s = self.set_back_s = 0.0
        self.simulated = bool(self.get_parameter("use_sim_time").value)
        self.worst, self.first, self.last_stamp_ns = Verdict(), "", 0
        self.steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.system = Clock(clock_type=ClockType.SYSTEM_TIME)
        self.states = self.create_publisher(JointState, "joint_states", qos_profile_sensor_data)
        self.second: Any = None
        self.last_stamp = self.get_clock().now().to_msg()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.truth = self.create_publisher(JointState, "~/truth", 100)
        self.judged = self.create_publisher(String, "~/judged", latched)
        for kind, end, callback in (
            (JointTrajectory, "joint_trajectory", self.on_command),
            (Float64MultiArray, "commands", self.on_positions),
        ):
            self.create_subscription(kind, f"{controller}/{end}", callback, 10)  # type: ignore[arg-type]
        self.create_subscription(String, "~/fault", self.on_fault, 10)
        self.create_timer(STEP_S, self.step, clock=self.steady)

    def _parameter(self, name: str, default: Any) -> Any:
        return self.declare_parameter(name, default).value

    def now_s(self) -> float:
        """When the arm is where: a simulated one lives by the simulated clock, and goes on where that is set back."""
        if not self.simulated:
            return self.steady.now().nanoseconds / 1e9
        now_s = self.get_clock().now().nanoseconds / 1e9 + self.set_back_s
        self.set_back_s += max(0.0, self.last_s - now_s)
        self.last_s = max(self.last_s, now_s)
        return self.last_s

    def both_clocks(self) -> tuple[float, int]:
        """`now_s` and the system's time, ns, of one moment: read again if something came between."""
        while True:
            now_s = self.now_s()
            system_ns = time.time_ns()
            if self.simulated or self.now_s() - now_s < TOGETHER_S:
                return now_s, system_ns

    def on_fault(self, message: String) -> None:
        if message.data not in FAULTS:
            raise SystemExit(f"There is no fault '{message.data}': choose one of {FAULTS}.")
        self.fault, self.fault_s = message.data, self.now_s()
        if self.second is not None:
            self.destroy_publisher(self.second)
            self.second = None
        if self.fault == "second":
            self.second = self.create_publisher(JointState, "joint_states", qos_profile_sensor_data)

    def on_command(self, message: JointTrajectory, info: dict[str, int]) -> None:
        self.messages += 1
        points = points_of(message, self.names)
        now_s, system_ns = self.both_clocks()
        # A controller's own thread has it when the middleware has, however late Python gets to it.
        late_s = 0.0 if self.simulated else max(0.0, (system_ns - info["received_timestamp"]) / 1e9)
        stamp_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        begun_s = (system_ns - stamp_ns) / 1e9 - late_s if stamp_ns else 0.0
        verdict = Verdict(math.inf, math.inf, math.inf)
        if points is not None:
            verdict = self.controller.take(now_s - late_s, points, begun_s)
            if stamp_ns:
                self.latest_ms = max(self.latest_ms, 1e3 * begun_s)
        since_ms, self.last_stamp_ns = (stamp_ns - self.last_stamp_ns) / 1e6, stamp_ns
        self.tell(verdict, f"{1e3 * begun_s:.1f} ms after its stamp, which is {since_ms:.1f} ms after the last one's")

    def on_positions(self, message: Float64MultiArray, info: dict[str, int]) -> None:
        self.messages += 1
        positions = self.controller.state(self.now_s())[0].copy()
        positions[: len(message.data)] = message.data
        verdict = self.stream.take(info["source_timestamp"] / 1e9, positions)
        self.controller.positions, self.controller.points = positions, []
        self.tell(verdict, "of a stream")

    def tell(self, verdict: Verdict, which: str) -> None:
        self.worst.add(verdict)
        if verdict.outside:
            self.outside += 1
            self.first = self.first or f"message {self.messages}, {which}: {verdict}"
        told = {"messages": self.messages, "outside": self.outside, "first": self.first, **vars(self.worst)}
        told["latest_ms"] = self.latest_ms
        self.judged.publish(String(data=json.dumps(told)))

    def step(self) -> None:
        wanted, _ = self.controller.state(self.now_s())
        share = 1.0 if self.lag == 0.0 else 1.0 - math.exp(-STEP_S / self.lag)
        before = self.position
        self.position = before + share * (wanted - before)
        self.velocity = (self.position - before) / STEP_S
        state = JointState(name=self.names)
        state.header.stamp = self.system.now().to_msg()
        state.position, state.velocity = list(map(float, self.position)), list(map(float, self.velocity))
        self.truth.publish(state)
        if self.fault != "lost":
            self.states.publish(self.told())
        if self.second is not None:
            other = JointState(name=state.name, position=state.position, velocity=[0.0] * len(state.name))
            other.header.stamp = self.get_clock().now().to_msg()
            other.position = [q + 0.4 for q in state.position]
            self.second.publish(other)

    def told(self) -> JointState:
        """What joint_states say of the arm."""
        since_s = self.now_s() - self.fault_s
        position = self.position + self.offset + self.noise * self.rng.standard_normal(len(self.names))
        velocity = self.velocity + self.noise * self.rng.standard_normal(len(self.names))
        position[-1], velocity[-1] = self.position[-1], 0.0
        if self.fault == "glitch" and since_s < GLITCH_S:
            position[1] += 0.5
        elif self.fault == "offset":
            position[0] += 0.15
        elif self.fault == "degrees":
            position, velocity = np.rad2deg(position), np.rad2deg(velocity)
        elif self.fault == "wrong_sign":
            velocity = -velocity
        elif self.fault == "nan":
            position[0] = math.nan
        state = JointState(name=[*self.names, *self.mimics])
        state.header.stamp = self.get_clock().now().to_msg()
        if self.fault == "frozen":
            state.header.stamp = self.last_stamp
        elif self.fault == "back":
            state.header.stamp.sec -= 5
        elif self.fault == "renamed":
            state.name = [f"other_{name}" for name in state.name]
        self.last_stamp = state.header.stamp
        state.position = [*map(float, position), *[float(position[-1])] * len(self.mimics)]
        state.velocity = [*map(float, velocity), *[0.0] * len(self.mimics)]
        return state


def take_priority() -> None:
    """Of real time, as ros2_control_node does: a controller that gets no processor gets its commands late."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        print(f"driver: no real-time priority ({error.strerror}), so delays of its own are judged too", flush=True)


def main() -> int:
    """Entry point; returns the exit status."""
    take_priority()  # before the middleware makes its threads, which inherit it
    rclpy.init()
    executor = SingleThreadedExecutor()
    try:
        executor.add_node(UnkindDriver())
        while rclpy.ok():
            executor.spin_once(timeout_sec=0.2)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
