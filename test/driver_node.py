"""A stand-in for a real arm's driver: joint_trajectory_controller on the wire, with faults that can be switched on.

    python test/driver_node.py --ros-args -p joint_names:=[a, b] -p home:=[0.0, 0.0]

Listens to `<controller>/joint_trajectory`; publishes `joint_states` (sensor data) and the truth, `~/truth`, which no
fault touches (reliable JointState: where the joints are, stamped with the time of the step).  As the controller of
ros2_controllers does, it

- starts a trajectory at its stamp, or on arrival where the stamp is 0, joins one whose first point is past at once, and
  refuses one that ends in the past;
- refuses one that ends in motion, lacks a joint, or whose times do not grow;
- begins at the state it is commanding, replaces the trajectory under way, goes along cubics where velocities are given
  and along straight lines where they are not, and holds the end, from where its timeout would count;
- holds the position it has, and refuses everything until the next start, once the arm is further than `tolerance` from
  where it should be.

Topic `~/fault` (std_msgs/String) switches one fault on, '' all off: `lost`, `nan`, `renamed`, `frozen` (stamps stand
still), `back` (stamps go back by 5 s), `slow` (moves at a tenth of the speed), `drops` (hears every second command).
What was refused is logged and counted in `~/refused` (std_msgs/UInt32).  Parameter `mimic_joints`: joints that are not
commanded, and stand in joint_states where the last of `joint_names` is (the other finger).
"""

from __future__ import annotations

import sys

import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import String, UInt32
from trajectory_msgs.msg import JointTrajectory

FAULTS = ("", "lost", "nan", "renamed", "frozen", "back", "slow", "drops")


def cubic(p0, v0, p1, v1, seconds, at):
    """Position and velocity at time `at` of the cubic from (p0, v0) to (p1, v1) in `seconds`."""
    s = at / seconds
    a, b = v0 * seconds - (p1 - p0), -v1 * seconds + (p1 - p0)
    position = (1 - s) * p0 + s * p1 + s * (1 - s) * ((1 - s) * a + s * b)
    velocity = (p1 - p0 + (1 - 2 * s) * ((1 - s) * a + s * b) + s * (1 - s) * (b - a)) / seconds
    return position, velocity


class Path:
    """A trajectory: points (seconds from its start, positions, velocities or None), the first where it begins."""

    def __init__(self, start_s: float, points: list) -> None:
        self.start_s, self.points = start_s, points

    @property
    def end_s(self) -> float:
        return self.start_s + self.points[-1][0]

    def at(self, now_s: float):
        """Position and velocity; after the end, the end at rest."""
        since = max(0.0, now_s - self.start_s)
        for (t0, p0, v0), (t1, p1, v1) in zip(self.points, self.points[1:], strict=False):
            if since < t1:
                if v1 is None:
                    rate = (p1 - p0) / (t1 - t0)
                    return p0 + rate * (since - t0), rate
                return cubic(p0, np.zeros_like(p0) if v0 is None else v0, p1, v1, t1 - t0, since - t0)
        end = self.points[-1][1]
        return end, np.zeros_like(end)


class Driver(Node):
    def __init__(self) -> None:
        super().__init__("driver")
        self.names = list(self.declare_parameter("joint_names", ["joint1"]).value)
        home = np.array(self.declare_parameter("home", [0.0]).value)
        self.mimics = list(self.declare_parameter("mimic_joints", Parameter.Type.STRING_ARRAY).value or ())
        controller = self.declare_parameter("controller", "panda_arm_controller").value
        rate_hz = float(self.declare_parameter("rate_hz", 100.0).value)
        self.tolerance = float(self.declare_parameter("tolerance", 0.2).value)
        self.fault, self.heard, self.refusals, self.aborted = "", 0, 0, False
        self.position, self.velocity = home, np.zeros_like(home)
        self.path = Path(0.0, [(0.0, home, np.zeros_like(home))])
        self.last_stamp = self.get_clock().now().to_msg()
        self.steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.step_s = 1.0 / rate_hz
        self.states = self.create_publisher(JointState, "joint_states", qos_profile_sensor_data)
        self.truth = self.create_publisher(JointState, "~/truth", 100)
        self.refused = self.create_publisher(UInt32, "~/refused", 10)
        self.create_subscription(JointTrajectory, f"{controller}/joint_trajectory", self.on_command, 10)
        self.create_subscription(String, "~/fault", self.on_fault, 10)
        self.create_timer(self.step_s, self.step, clock=self.steady)

    def now_s(self) -> float:
        return self.steady.now().nanoseconds / 1e9

    def on_fault(self, message: String) -> None:
        if message.data not in FAULTS:
            raise SystemExit(f"There is no fault '{message.data}': choose one of {FAULTS}.")
        self.fault = message.data
        if not self.fault:
            self.aborted = False

    def on_command(self, message: JointTrajectory) -> None:
        self.heard += 1
        if self.fault == "drops" and self.heard % 2:
            return
        try:
            self.path = self.accept(message)
        except ValueError as error:
            self.refusals += 1
            self.refused.publish(UInt32(data=self.refusals))
            self.get_logger().warning(f"Refused: {error}", throttle_duration_sec=1.0)

    def accept(self, message: JointTrajectory) -> Path:
        if self.aborted:
            raise ValueError("the last trajectory was aborted")
        if not message.points or sorted(message.joint_names) != sorted(self.names):
            raise ValueError(f"it names {list(message.joint_names)} with {len(message.points)} points")
        order = [list(message.joint_names).index(name) for name in self.names]
        stamp = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
        late_s = self.get_clock().now().nanoseconds / 1e9 - stamp if stamp else 0.0
        times = [p.time_from_start.sec + p.time_from_start.nanosec / 1e9 for p in message.points]
        if late_s > times[-1] or any(b <= a for a, b in zip([0.0, *times], times, strict=False)):
            raise ValueError(f"it ends in the past, or its times {times} do not grow")
        now_s = self.now_s()
        position, velocity = self.path.at(now_s)
        points = [(late_s, position, velocity)] if late_s < times[0] else []
        for time_s, point in zip(times, message.points, strict=True):
            positions = np.array(point.positions)[order]
            velocities = np.array(point.velocities)[order] if len(point.velocities) else None
            points.append((time_s, positions, velocities))
        last = points[-1][2]
        if last is not None and np.abs(last).max() > 1e-9:
            raise ValueError("it ends in motion")
        return Path(now_s - late_s, points)

    def step(self) -> None:
        goal, rate = self.path.at(self.now_s())
        if self.aborted:
            goal, rate = self.position, np.zeros_like(self.position)
        if self.fault == "slow":
            rate = 0.1 * rate
            goal = self.position + self.step_s * rate
        self.position, self.velocity = goal, rate
        wanted, _ = self.path.at(self.now_s())
        if np.abs(wanted - self.position).max() > self.tolerance and not self.aborted:
            self.aborted = True
            self.get_logger().error("The arm left its path: the trajectory is aborted, and the position held.")
        state = JointState(name=self.names)
        state.header.stamp = self.get_clock().now().to_msg()
        state.position, state.velocity = [float(x) for x in self.position], [float(x) for x in self.velocity]
        self.truth.publish(state)
        if self.fault == "lost":
            return
        mimics = len(self.mimics)
        state.name = [*self.names, *self.mimics]
        state.position.extend([state.position[-1]] * mimics)
        state.velocity.extend([state.velocity[-1]] * mimics)
        if self.fault == "nan":
            state.position = [float("nan")] * len(state.name)
        elif self.fault == "renamed":
            state.name = [f"other_{name}" for name in state.name]
        elif self.fault == "frozen":
            state.header.stamp = self.last_stamp
        elif self.fault == "back":
            state.header.stamp.sec -= 5
        self.last_stamp = state.header.stamp
        self.states.publish(state)


def main() -> int:
    rclpy.init()
    executor = SingleThreadedExecutor()
    try:
        executor.add_node(Driver())
        while rclpy.ok():
            executor.spin_once(timeout_sec=0.2)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
