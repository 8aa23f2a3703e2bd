"""franka_driver: moves a Franka FR3 by the topics of a joint_trajectory_controller, without ros2_control.

Topics, services and parameters: docs/interfaces.md.  The robot's own file is its parameter file.  Everything runs in
the executor's thread; the arm's 1 kHz loop on threads of franka-rs (`franka_arm.py`), the hand on its own.

Trajectories are followed from the state that is commanded, and end at rest, or are refused.  At SIGINT, SIGTERM and the
launcher's end the arm slows down along the path that it is on; if this process is killed, the robot stops by itself.
"""

from __future__ import annotations

import array
import contextlib
import time
from typing import Any

from vega3d_ros.ros.dds import apply_defaults

apply_defaults()  # before rclpy reads the environment

import numpy as np  # noqa: E402
from rclpy.clock import Clock, ClockType  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from policies.types import FloatArray, VegaError  # noqa: E402
from vega3d_ros.driver.driver_parameters import declare, read  # noqa: E402
from vega3d_ros.driver.following import STEP_S, look_ahead, stopping_times  # noqa: E402
from vega3d_ros.driver.franka_arm import FrankaArm  # noqa: E402
from vega3d_ros.driver.franka_hand import FrankaHand  # noqa: E402
from vega3d_ros.driver.trajectory import TrajectoryController, seconds_of  # noqa: E402
from vega3d_ros.ros.conversions import stamp_ns, time_message  # noqa: E402
from vega3d_ros.ros.node_process import may_end_at_once, run_from_words  # noqa: E402

LONGEST_S = 300.0
SETTLES_S = 0.1  # for which it is still told where the arm is, once its path has come to rest
SPEED_ROOM = 1.1  # beyond the limit of velocity, as messages come unevenly
# A first point at time 0 says where its sender saw the arm, which rests a little off where it is commanded to be.
BEGINS_RAD = 0.05
ROUNDING_RAD = 1e-9


class FrankaDriver(Node):
    """One arm.  Raises VegaError from the constructor where it cannot be had."""

    def __init__(self, **options: Any) -> None:
        super().__init__("franka_driver", **options)
        declare(self)
        own = self._own = read(self)
        with may_end_at_once():
            middle = (own.gripper_open + own.gripper_closed) / 2.0
            self._hand = FrankaHand(own.address, middle, self._say) if own.hand else None
            self._arm = FrankaArm(own.address, own.realtime, own.fraction, own.collision_torque, own.collision_force)
        self._check_braking()
        self._controller = TrajectoryController(own.joint_names, own.finger_names)
        self._problem = ""
        self._refused = 0
        self._hold()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._states = self.create_publisher(JointState, "joint_states", QoSProfile(depth=1))
        self.create_subscription(JointTrajectory, f"{own.controller}/joint_trajectory", self._on_trajectory, 10)
        if self._hand is not None and own.gripper_controller:
            self.create_subscription(JointTrajectory, f"{own.gripper_controller}/joint_trajectory", self._on_hand, 10)
        self.create_service(Trigger, "~/recover", self._on_recover)
        self.create_timer(1.0 / own.rate_hz, self._publish, clock=steady)
        self.get_logger().info(f"The arm at {own.address} is held where it is, and follows {own.controller}.")

    # The arm

    def _check_braking(self) -> None:
        """Raises VegaError where commands may brake harder than the arm: it would run past the end of its path."""
        asked, able = self._own.acceleration, self._arm.acceleration
        harder = int(np.argmax(np.where(np.isfinite(asked), asked / able, 0.0)))
        if np.isfinite(asked[harder]) and asked[harder] > able[harder] + 1e-9:
            raise VegaError(
                f"franka.fraction {self._own.fraction:g} gives {self._own.joint_names[harder]} {able[harder]:g} "
                f"rad/s^2, and commands may ask for {asked[harder]:g}: raise it, or lower safety.acceleration_scale."
            )

    def _publish(self) -> None:
        """What is measured; nothing while the robot has stopped, so that who commands it stops too."""
        if not self._problem and not self._arm.running:
            self._problem = self._arm.end() or "the motion ended by itself"
            self.get_logger().error(f"The robot stopped ({self._problem}): find out why, then call ~/recover.")
            if self._hand is not None:
                self._hand.begin_nothing()
        if self._problem:
            return
        state = self._arm.state()
        opening = None if self._hand is None else self._hand.opening
        fingers = () if opening is None else self._own.finger_names
        message = JointState(name=[*self._own.joint_names, *fingers])
        message.header.stamp = self.get_clock().now().to_msg()
        message.position = array.array("d", [*state.positions, *([opening] * len(fingers))])
        message.velocity = array.array("d", [*state.velocities, *([0.0] * len(fingers))])
        self._states.publish(message)

    def _on_trajectory(self, message: JointTrajectory) -> None:
        """Begin a trajectory at the state that is commanded now; one that is refused leaves that under way alone."""
        now_s = time.monotonic()
        try:
            if self._problem:
                raise VegaError(f"The robot has stopped ({self._problem}): call ~/recover.")
            stamp = stamp_ns(message.header.stamp)
            if stamp:  # of the node's clock; what is followed has a clock that nobody sets
                since_ns = stamp - self.get_clock().now().nanoseconds
                message.header.stamp = time_message(max(1, round(now_s * 1e9) + since_ns))
            before = self._controller.at(now_s)
            candidate = TrajectoryController(self._own.joint_names, self._own.finger_names)
            candidate.accept(message, now_s, before[0], before[1])
            self._check_start(message, before[0])
            positions, velocities = self._path(candidate, now_s)
            self._check(candidate, np.vstack([before[0][: positions.shape[1]], positions]), velocities)
            self._follow(positions, velocities)
        except VegaError as error:
            self._refused += 1
            self.get_logger().error(f"A trajectory is refused. {error}", throttle_duration_sec=1.0)
            return
        self._controller = candidate
        if self._hand is not None and not self._own.gripper_controller:
            self._command_hand(message)

    def _path(self, controller: TrajectoryController, now_s: float) -> tuple[FloatArray, FloatArray]:
        """Positions and velocities (m, 7) of the arm from now to the end, every `STEP_S`."""
        lasts_s = max(0.0, controller.end_s - now_s)
        if lasts_s > LONGEST_S:
            raise VegaError(f"It lasts {lasts_s:.0f} s: send at most {LONGEST_S:.0f} s at once.")
        times: FloatArray = now_s + STEP_S * np.arange(int(lasts_s / STEP_S) + 2, dtype=np.float64)
        positions, velocities = controller.along(times)
        n = len(self._own.joint_names)
        return positions[:, :n], velocities[:, :n]

    def _check_start(self, message: JointTrajectory, here: FloatArray) -> None:
        """Raises VegaError where a trajectory gives no time to its first point, and the arm is not there already.

        here (n,): where it is commanded to be.  One with a stamp is joined under way, wherever its points have gone.
        """
        first = message.points[0]
        since_s = seconds_of(first)
        if since_s < 0.0:
            raise VegaError(f"Its first point lies {-since_s:g} s before its start: send times above 0.")
        if since_s > 0.0 or stamp_ns(message.header.stamp):
            return
        where = dict(zip(message.joint_names, first.positions, strict=True))
        away = np.abs([where[name] - place for name, place in zip(self._own.joint_names, here, strict=False)])
        worst = int(np.argmax(away))
        if away[worst] > BEGINS_RAD:
            raise VegaError(
                f"Its first point, at time 0, is {away[worst]:.3f} rad from where {self._own.joint_names[worst]} is: "
                "begin where the arm is, or give it time to go there."
            )

    def _check(self, controller: TrajectoryController, positions: FloatArray, velocities: FloatArray) -> None:
        """Raises VegaError where the path leaves the limits of the robot's file (one that begins outside may lead
        back), or is faster than the arm may follow.

        positions (m + 1, 7): where the arm is commanded to be, then the path every `STEP_S`; velocities (m, 7) of the
        path.  Between these the polynomials count, and from one to the next how far it is, however a segment ends.
        How hard the path accelerates does not count: targets are shaped within what the arm can.
        """
        own, n = self._own, len(self._own.joint_names)
        seconds, lowest, highest, speeds = controller.extremes()
        places = np.vstack([positions, lowest[:, :n], highest[:, :n]])
        outside = np.maximum(own.lower - places, places - own.upper).clip(min=0.0)
        farther = outside.max(axis=0) - outside[0]
        worst = int(np.argmax(farther))
        if farther[worst] > ROUNDING_RAD:
            raise VegaError(
                f"It leads {own.joint_names[worst]} {farther[worst]:.3f} rad beyond its limits, {own.lower[worst]:g} "
                f"to {own.upper[worst]:g} rad: stay inside safety.lower and safety.upper."
            )
        # Just before one of its points a path is joined at a place that two clocks give, microseconds apart: over less
        # than a step only how far it is counts.
        between = speeds[int(seconds[0] < STEP_S) :, :n]
        steps = np.diff(positions, axis=0) / STEP_S
        fastest = np.abs(np.vstack([steps, velocities, between])).max(axis=0)
        allowed = SPEED_ROOM * np.minimum(own.velocity, self._arm.velocity)
        worst = int(np.argmax(fastest / allowed))
        if fastest[worst] > allowed[worst]:
            raise VegaError(
                f"It moves {own.joint_names[worst]} with {fastest[worst]:.2f} rad/s, and may with "
                f"{allowed[worst]:.2f}: send slower ones, or raise safety.velocity and franka.fraction."
            )

    def _follow(self, positions: FloatArray, velocities: FloatArray) -> None:
        self._arm.follow(look_ahead(positions, velocities, self._arm.acceleration, self._arm.ramp_s))

    def _hold(self) -> None:
        # Where the fingers are does not matter to the arm's path; the hand has its orders apart.
        self._controller.hold(np.append(self._arm.target(), [0.0] * len(self._own.finger_names)))

    def _slow_down(self) -> None:
        """Rest on the path that is under way, as soon as it allows."""
        now_s = time.monotonic()
        _, velocities = self._path(self._controller, now_s)
        times = stopping_times(velocities, self._arm.acceleration)
        positions, _ = self._controller.along(now_s + times)
        positions = positions[:, : len(self._own.joint_names)]
        self._follow(positions, np.gradient(positions, STEP_S, axis=0))
        while time.monotonic() < now_s + STEP_S * len(times) + SETTLES_S and self._arm.running:
            self._publish()
            time.sleep(1.0 / self._own.rate_hz)

    # The hand

    def _on_hand(self, message: JointTrajectory) -> None:
        # Somebody's fingers may be what the robot has stopped for.
        if self._problem or not self._arm.running:
            why = self._problem or "it is being found out why"
            sentence = f"The hand is not moved, as the robot has stopped ({why}): call ~/recover."
            self.get_logger().error(sentence, throttle_duration_sec=1.0)
            return
        self._command_hand(message)

    def _command_hand(self, message: JointTrajectory) -> None:
        """The finger's place at the end of a trajectory that names it."""
        name = self._own.gripper_command_joint
        if self._hand is None or name not in message.joint_names or not message.points:
            return
        positions = message.points[-1].positions
        index = list(message.joint_names).index(name)
        if index < len(positions) and np.isfinite(positions[index]):
            self._hand.command(float(np.clip(positions[index], self._own.gripper_closed, self._own.gripper_open)))

    def _say(self, sentence: str) -> None:
        self.get_logger().error(sentence)

    # Its end, and a new beginning

    def _on_recover(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            if not self._problem:
                raise VegaError("The robot has not stopped: there is nothing to recover from.")
            self._arm.recover()
            self._problem = ""
            self._hold()
            response.success, response.message = True, "The arm is held where it is."
        except VegaError as error:
            response.message = str(error)
        return response

    def destroy_node(self) -> None:
        if self._arm.running:
            with contextlib.suppress(VegaError):  # it has stopped just now; why, its end tells
                self._slow_down()
        why = self._arm.end()
        if why and not self._problem:
            self.get_logger().error(f"The robot stopped ({why}).")
        if self._hand is not None:
            self._hand.end()
        super().destroy_node()


def main(args: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_from_words(FrankaDriver, "vega3d-franka-driver", __doc__, declare, args)


if __name__ == "__main__":
    raise SystemExit(main())
