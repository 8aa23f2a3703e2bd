"""How a command reaches the arm's controller: as a short trajectory, or as a stream of positions.

Each writer owns its publishers, sends one JointCommand per call, and leaves the arm at rest when it is destroyed.
`gripper` is the position of the gripper's joint (m or rad), None where it is told nothing.  Everything runs in the
executor's thread.
"""

from __future__ import annotations

import array
import math
import time
from typing import Protocol

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from policies.types import FloatArray
from vega3d_ros.control.control_loop import JointCommand, JointSample
from vega3d_ros.control.guard.limits import GuardLimits
from vega3d_ros.control.guard.motion import Motion
from vega3d_ros.control.guard.smoothing import PathStream, stands_after_s
from vega3d_ros.inference.process import END_S
from vega3d_ros.ros import conversions
from vega3d_ros.ros.node_parameters import NodeParameters
from vega3d_ros.ros.qos_events import publisher_events
from vega3d_ros.topics.action_writer import ActionWriter
from vega3d_ros.topics.rivals import Audience
from vega3d_ros.topics.trajectories import trajectories

LATEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
BRAKING_DEADLINE_S = END_S - 1.0  # after a signal the process is ended with whatever it still streams
HEARD, NOW = Duration(seconds=0.1), Duration(nanoseconds=0)
DRY_RUN = "~/dry_run/"
CLOCK_STEP_NS = 20_000_000
LAST_WORDS = 5
DEAF = "For a moment nobody listened to the arm's commands: see what restarts its controller."


def command_topics(parameters: NodeParameters) -> list[str]:
    """The topics that a writer for these parameters publishes on: the arm's, then the gripper's if it has its own."""
    prefix = DRY_RUN if parameters.dry_run else ""
    arm = "commands" if parameters.command_interface == "forward_position" else "joint_trajectory"
    topics = [f"{prefix}{parameters.controller}/{arm}"]
    if parameters.gripper_controller:
        topics.append(f"{prefix}{parameters.gripper_controller}/joint_trajectory")
    return topics


def command_actions(parameters: NodeParameters) -> list[str]:
    """The actions of which a writer for these parameters is a client, in the same order."""
    if parameters.command_interface != "follow_joint_trajectory" or parameters.dry_run:
        return []
    gripper = f"{parameters.gripper_controller}/{parameters.gripper_action}"
    return [f"{parameters.controller}/follow_joint_trajectory", *([gripper] if parameters.gripper_controller else [])]


def make_writer(node: Node, parameters: NodeParameters, limits: GuardLimits, qos_problems: dict[str, str]) -> Writer:
    """The writer that these parameters ask for.  Raises VegaError where it needs what is not installed."""
    if parameters.command_interface == "follow_joint_trajectory" and not parameters.dry_run:
        return ActionWriter(node, parameters)
    if parameters.command_interface == "forward_position":
        return ForwardWriter(node, parameters, limits, qos_problems)
    return TrajectoryWriter(node, parameters, qos_problems)


class Writer(Protocol):
    """What every command interface can do.

    own_publishers: on each of `command_topics`; own_clients: of each of `command_actions`.  unheard: why a command
    would be lost, '' if it would not; missing: the same, of who does not listen alone.  lost: whether the arm's
    controller may have left our path, since it does not listen or gave up; the gripper's alone does not lose it.
    confirmed: whether all who listen have the last lead that was sent.  To ask changes nothing.
    leave: the arm is taken over anew, and nothing more of the path under way leaves.  forget_gripper: its controller is
    away, and one that comes up has been told nothing.  stop: no command follows; alone: nobody else commands the arm
    and it is not lost.
    held: where the controller holds the arm (n,) rad since a path was left on its way; None if none was.  late_ns: so
    long ago the path was where the controller has been told to be by now; behind: a sentence where that is too long.
    reset: an episode begins.  destroy: where the controller holds the arm if its path could not be ended.
    """

    @property
    def own_publishers(self) -> int: ...

    @property
    def own_clients(self) -> int: ...

    @property
    def held(self) -> FloatArray | None: ...

    @property
    def late_ns(self) -> int: ...

    def unheard(self) -> str: ...

    def missing(self) -> str: ...

    def lost(self) -> bool: ...

    def behind(self) -> str: ...

    def confirmed(self) -> bool: ...

    def write(self, command: JointCommand, gripper: float | None, sample: JointSample) -> None: ...

    def leave(self) -> None: ...

    def forget_gripper(self) -> None: ...

    def stop(self, alone: bool = True) -> None: ...

    def reset(self) -> None: ...

    def destroy(self) -> tuple[bool, FloatArray | None]: ...


class TrajectoryWriter:
    """`<controller>/joint_trajectory`, and the gripper's own where it has a controller of its own.

    Committed, a trajectory goes on to where the arm has braked: joint_trajectory_controller counts its timeout from the
    end of the trajectory, and by default refuses one that ends in motion (ros2_controllers, parameter
    allow_nonzero_velocity_at_trajectory_end).  A refused command sends nothing: the braking that belongs to it left
    with the command before.

    Without `command_ahead_s` it starts on arrival, stamp 0, and every delay shifts it against the one before.  With it
    the trajectory is stamped and begins with the rest of the one before: that controller goes from the state it has to
    the first point, which on the same cubic is no detour.  One that comes after its first points is joined where it is
    by then, with a jump; so the node does not send what has become late.
    """

    own_publishers, own_clients, held, late_ns = 1, 0, None, 0

    def __init__(self, node: Node, parameters: NodeParameters, qos_problems: dict[str, str]) -> None:
        self._parameters, self._node = parameters, node
        self._publishers = [
            node.create_publisher(
                JointTrajectory, topic, LATEST, event_callbacks=publisher_events(node, topic, qos_problems)
            )
            for topic in command_topics(parameters)
        ]
        self._audience = Audience(node, self._publishers)
        self._told: list[set[bytes]] = []

    def unheard(self) -> str:
        return self.missing()

    def missing(self) -> str:
        return self._audience.missing()

    def lost(self) -> bool:
        return not self._audience.arm

    def behind(self) -> str:
        """Controllers keep the time of trajectories themselves."""
        return ""

    def confirmed(self) -> bool:
        # Who began to listen since has nothing to confirm.
        acked = all(publisher.wait_for_all_acked(NOW) for publisher in self._publishers)
        return acked and self._told == self._audience.listeners()

    def write(self, command: JointCommand, gripper: float | None, sample: JointSample) -> None:
        if command.lead:
            self._told = self._audience.listeners()
        messages = trajectories(command, gripper, self._parameters)
        for publisher, message in zip(self._publishers, messages, strict=False):
            publisher.publish(message)
        self._audience.look_ahead()

    def leave(self) -> None:
        """The next trajectory takes the place of the one under way."""

    def forget_gripper(self) -> None:
        """It is told with every command."""

    def stop(self, alone: bool = True) -> None:
        """A committed trajectory ends at rest by itself."""

    def reset(self) -> None:
        """Nothing is kept from one command to the next."""

    def destroy(self) -> tuple[bool, FloatArray | None]:
        for publisher in self._publishers:
            if self._node.context.ok():
                publisher.wait_for_all_acked(HEARD)  # what was said last, the braking, must not be lost with it
            self._node.destroy_publisher(publisher)
        return False, None


class ForwardWriter:
    """`<controller>/commands` (Float64MultiArray) at a rate of its own: the checked path to its rest, jerk-limited.

    A killed process cannot brake: such a controller then holds the last position at once.
    """

    own_publishers, own_clients = 1, 0

    def __init__(
        self, node: Node, parameters: NodeParameters, limits: GuardLimits, qos_problems: dict[str, str]
    ) -> None:
        self._node, self._limits, self._parameters = node, limits, parameters
        self._jerk = np.broadcast_to(parameters.forward_jerk, limits.velocity.shape)
        self._period_s = 1.0 / parameters.forward_rate_hz
        self._simulated = bool(node.get_parameter("use_sim_time").value)
        self._stream: PathStream | None = None
        self._motion: Motion | None = None
        self._sent = array.array("d")  # last, of the stream under way or the one before
        self._told_s, self._longest_s, self._held_up_s, self._latest_s = 0.0, math.inf, 0.0, math.inf
        self._ahead_ns = 0  # of the path's clock against the steady one
        self._deaf = False  # nobody heard a stream, and the arm has not been taken over anew since
        topics = command_topics(parameters)
        self._publishers = [
            node.create_publisher(kind, topic, LATEST, event_callbacks=publisher_events(node, topic, qos_problems))
            for topic, kind in zip(topics, (Float64MultiArray, JointTrajectory), strict=False)
        ]
        self._audience = Audience(node, self._publishers)
        self._gripper_sent: float | None = None
        self._timer = node.create_timer(self._period_s, self._step, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def unheard(self) -> str:
        if stood_s := self._stood_s:
            return (
                f"The stream of positions was held up for {stood_s:.2f} s: see what stopped this process or "
                "keeps the machine busy, then call ~/start again."
            )
        return self.missing() or (DEAF if self._deaf else "")

    def missing(self) -> str:
        return self._audience.missing()

    def lost(self) -> bool:
        return bool(self._stood_s) or self._deaf or not self._audience.arm

    @property
    def late_ns(self) -> int:
        told_ns = None if self._stream is None or self._simulated else self._stream.time_ns
        return 0 if told_ns is None else max(0, time.monotonic_ns() + self._ahead_ns - told_ns)

    def behind(self) -> str:
        late_s = 1e-9 * self.late_ns
        if late_s <= self._latest_s:
            return ""
        return (
            f"The positions that are sent are {late_s:.2f} s behind the path: see what keeps the machine busy, or "
            "lower forward_position.rate_hz."
        )

    @property
    def held(self) -> FloatArray | None:
        known = self._stood_s and self._sent and self._audience.arm
        return np.array(self._sent) if known else None

    def confirmed(self) -> bool:
        """What follows at once is never confirmed in time."""
        return True

    def write(self, command: JointCommand, gripper: float | None, sample: JointSample) -> None:
        if command.motion is not None and command.motion is not self._motion:
            if self._simulated or not self._parameters.committed:
                # The path is on another clock than ours.  How far apart they are is taken once, or the time that a
                # command took to come here would be a jolt.
                ahead_ns = command.motion.start_ns - time.monotonic_ns()
                if self._motion is None or abs(ahead_ns - self._ahead_ns) > CLOCK_STEP_NS:
                    self._ahead_ns = ahead_ns
            self._motion = command.motion
            if self._parameters.max_gap_periods:
                self._longest_s = (self._parameters.max_gap_periods + 0.5) * command.period_s
                self._latest_s = self._longest_s + command.period_s  # one pause that is allowed does not make it so
            if self._stream is None:
                self._sent, self._told_s = array.array("d"), time.monotonic()
                limits = self._limits.acceleration, self._jerk
                self._stream = PathStream(command.motion, *limits, self._period_s, not self._simulated)
            self._stream.motion = command.motion
        if command.lead or command.rejected or gripper is None:
            return
        # Said once: repeating it would make the gripper's controller begin its motion anew at every step.
        if len(self._publishers) > 1 and gripper != self._gripper_sent:
            joint = self._parameters.gripper_command_joint
            self._publishers[1].publish(conversions.trajectory_message(0, [joint], [gripper], [0.0], command.period_s))
            self._gripper_sent = gripper

    @property
    def _stood_s(self) -> float:
        """For so long the arm was told nothing, where that is too long; else 0."""
        late_s = 0.0 if self._stream is None else time.monotonic() - self._told_s
        return self._held_up_s or (late_s if late_s > self._longest_s else 0.0)

    def _notice_delay(self) -> None:
        if stood_s := self._stood_s:
            # The arm rests since then where it was told to be last: where the path is by now would be a jump.
            self._stream, self._held_up_s = None, stood_s

    def _notice_deafness(self) -> None:
        if self._stream is not None and not self._parameters.dry_run and not self._audience.arm:
            # Whoever listens next holds the arm where it is, which may be beside our path.
            self._stream, self._deaf = None, True

    def _step(self) -> None:
        self._notice_delay()
        while self._stream is not None:
            now_s = time.monotonic()
            stood = self._stands(now_s)
            stream = self._stream.copy()
            positions = array.array("d", stream.step(round(1e9 * now_s) + self._ahead_ns, stood))
            message = Float64MultiArray(data=positions)
            self._notice_delay()
            # Held up within this very step, for which the arm stood: it is made anew, from where it stands.
            if self._stream is not None and self._stands(time.monotonic()) == stood:
                self._publishers[0].publish(message)
                self._sent_by(stream, positions)
                break
        self._notice_deafness()

    def _stands(self, now_s: float) -> bool:
        return now_s - self._told_s > stands_after_s(self._period_s)

    def _sent_by(self, stream: PathStream, positions: array.array[float]) -> None:
        self._stream, self._sent = stream, positions
        self._notice_delay()  # a pause until it left is one, too
        self._told_s = time.monotonic()
        if stream.at_rest:
            self._stream = None  # the next path begins where this one ended

    def leave(self) -> None:
        self._notice_delay()
        self._stream, self._deaf = None, False

    def forget_gripper(self) -> None:
        self._gripper_sent = None

    def stop(self, alone: bool = True) -> None:
        """The path ends at rest when no command follows; where the arm may be on another's, it is left at once."""
        if not alone:
            self.leave()

    def reset(self) -> None:
        self._gripper_sent = None
        self._held_up_s = 0.0

    def destroy(self) -> tuple[bool, FloatArray | None]:
        """Goes on to the path's rest first, for which it takes the executor's thread.

        Where no path is under way nothing is said, nor once nobody hears it: the arm may have been moved since by
        others, and one who comes up then holds it where it is.
        """
        self._node.destroy_timer(self._timer)
        due_s = time.monotonic()
        deadline = due_s + BRAKING_DEADLINE_S
        streamed = self._stream is not None
        while self._stream is not None and self._node.context.ok() and time.monotonic() < deadline:
            self._step()
            # In time again after a step that was late; what was missed is no reason for one after the other at once.
            due_s = max(due_s, time.monotonic() - 0.5 * self._period_s) + self._period_s
            time.sleep(max(0.0, due_s - time.monotonic()))
        heard = streamed and self._node.context.ok() and not self._deaf
        for _ in range(LAST_WORDS if heard and self._sent else 0):
            # What is said last may be lost with the publisher, and it is where the arm shall rest: no further along
            # the path, which is not over where its braking took too long.
            self._publishers[0].publish(Float64MultiArray(data=self._sent))
            time.sleep(self._period_s)
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        if self._deaf:
            return True, None
        cut = bool(self._sent) and (self._stream is not None or bool(self._held_up_s))
        return cut, np.array(self._sent) if cut else None
