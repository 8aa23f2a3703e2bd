"""What the topic joint_states says about this robot: samples of its arm, and how far its fingers are open.

Drivers differ: arm and fingers come in one message or in several, other devices publish on the same topic, some
drivers know no velocities, and joints that turn without end are reported within one turn.  Used from one thread.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sensor_msgs.msg import JointState

from policies.types import FloatArray, PolicySpec, VegaError
from vega3d_ros.control.control_loop import JointSample
from vega3d_ros.ros.conversions import joint_values, stamp_ns
from vega3d_ros.ros.node_parameters import NodeParameters

FINGERS_AGE_S = 1.0  # grippers report at 5 Hz and more
RESTART_S = 0.5  # a difference over a longer gap is no velocity
TURN = 2.0 * np.pi
COUNTS_RAD = 0.1  # a driver that reports angles further apart than a turn and this counts turns itself
# Beyond these shares of the way from closed to open the file and the joint are in different units.
SHARES = (-2.0, 3.0)


class JointsMissing(VegaError):
    """Joints have not been told of, or not for too long; they may come in a message of their own."""


@dataclass(frozen=True)
class FingerMap:
    """Readings of the gripper's joints -> openings as the policy was trained on, m, 0 = closed, never the reverse.

    opened, closed: the commanded joint's readings (m, rad, per cent, or what the driver counts in).  main: index of
    the commanded joint.  finger_open: the policy's own opening of a finger, m; fingers: how many it reads, 0: as many
    as there are.
    """

    opened: float
    closed: float
    main: int = 0
    finger_open: float = 0.04
    fingers: int = 0

    def __call__(self, readings: FloatArray) -> FloatArray:
        """Opening of each finger that the policy reads, m; readings (m,) in units of the joints.

        A gripper in the policy's own metres is passed on bit for bit.  A joint that mirrors the commanded one counts by
        its distance; where the numbers differ, each finger of the policy is open as far as the commanded joint.
        """
        if not readings.size:
            return readings
        if self.closed == 0.0 and self.opened == self.finger_open:
            openings = np.abs(readings)
        else:
            shares = self._share(readings)
            mirrored = self._share(-readings)
            main = shares[self.main]
            nearest = np.where(np.abs(mirrored - main) < np.abs(shares - main), mirrored, shares)
            nearest[self.main] = main
            openings = self.finger_open * np.clip(nearest, 0.0, 1.0)
        if self.fingers in (0, openings.size):
            return openings
        return np.full(self.fingers, openings[self.main])

    def check(self, readings: FloatArray) -> None:
        """Raise VegaError where a reading cannot be in the unit of `opened` and `closed`."""
        if not readings.size:
            return
        share = float(self._share(readings[self.main]))
        if not SHARES[0] <= share <= SHARES[1]:
            raise VegaError(
                f"The gripper's joint reads {readings[self.main]:.4g}, far outside gripper.closed {self.closed:g} to "
                f"gripper.open {self.opened:g}: give both in the unit that joint_states has."
            )

    def _share(self, readings: FloatArray) -> FloatArray:
        return (readings - self.closed) / (self.opened - self.closed)


def finger_map(parameters: NodeParameters, spec: PolicySpec) -> FingerMap:
    """The map between this robot's gripper and this policy.  Raises VegaError where there can be none."""
    joints = parameters.gripper_joints
    if spec.fingers and not joints:
        raise VegaError(
            f"Policy {spec.name} reads {spec.fingers} finger opening(s) and this robot has no gripper.joints: name the "
            "joint of its gripper, or choose a policy for an arm without one."
        )
    if joints and parameters.gripper_open == parameters.gripper_closed:
        raise VegaError(
            f"gripper.open and gripper.closed are both {parameters.gripper_open:g}: give the joint's two positions."
        )
    main = joints.index(parameters.gripper_command_joint) if parameters.gripper_command_joint in joints else 0
    return FingerMap(parameters.gripper_open, parameters.gripper_closed, main, spec.finger_open, spec.fingers)


@dataclass
class _Joint:
    """One joint's last report.

    limit_s: after so long it is missed.  endless: it turns without end.  position: unwrapped; derived: the velocity
    from differences, NaN if there is none.  arrival_s: -inf before the first.  lowest, highest: as the driver said.
    """

    name: str
    limit_s: float
    endless: bool
    position: float = math.nan
    velocity: float = math.nan
    derived: float = math.nan
    stamp_ns: int = 0
    arrival_s: float = -math.inf
    turned: float = math.nan
    lowest: float = math.inf
    highest: float = -math.inf

    def take(self, position: float, velocity: float, stamp_ns: int, now_s: float, filter_s: float) -> None:
        if self.endless:
            self.lowest, self.highest = min(self.lowest, position), max(self.highest, position)
            # One that counts turns itself is believed, also about those that nobody saw: its controller counts so, too.
            within_a_turn = self.highest - self.lowest <= TURN + COUNTS_RAD
            if within_a_turn and not math.isnan(self.turned):
                position += TURN * round((self.turned - position) / TURN)
            self.turned = position
        if filter_s:
            self.derived = self._derive(position, stamp_ns, filter_s)
        self.position, self.velocity, self.stamp_ns, self.arrival_s = position, velocity, stamp_ns, now_s

    def _derive(self, position: float, stamp_ns: int, filter_s: float) -> float:
        seconds = (stamp_ns - self.stamp_ns) / 1e9
        if self.arrival_s == -math.inf or not 0.0 <= seconds <= RESTART_S:
            return math.nan
        if seconds == 0.0:
            return self.derived
        rate = (position - self.position) / seconds
        if math.isnan(self.derived):
            return rate
        return self.derived + (rate - self.derived) * seconds / (filter_s + seconds)


class JointReader:
    """Samples from messages.

    joint_names, gripper_joints: what is looked for.  velocity_filter_s: time constant of the filter over differences of
    positions, which stand for velocities where the driver has none; 0: such a driver is refused.  continuous: joints
    that turn without end.  together: all joints of a sample carry one stamp (a world that waits).  patience_s: after
    so long without a joint it is missed.
    """

    def __init__(
        self,
        joint_names: Sequence[str],
        gripper_joints: Sequence[str],
        velocity_filter_s: float = 0.0,
        continuous: Collection[str] = (),
        together: bool = False,
        patience_s: float = 1.0,
    ) -> None:
        self._filter_s = velocity_filter_s
        self._together = together
        longer_s = max(FINGERS_AGE_S, patience_s)
        self._arm = [_Joint(name, patience_s, name in continuous) for name in joint_names]
        self._fingers = [_Joint(name, longer_s, name in continuous) for name in gripper_joints]
        self._joints = [*self._arm, *self._fingers]
        self._fresh: set[str] = set()
        self._named = lru_cache(maxsize=8)(self._find)  # drivers name their joints the same way every time

    def clear(self) -> None:
        """Forget all reports, but not how often a joint has turned."""
        for joint in self._joints:
            joint.arrival_s = -math.inf
        self._fresh.clear()

    def forget_turns(self) -> None:
        """The next report counts in the turn in which the driver tells it."""
        self.clear()
        for joint in self._joints:
            joint.turned = math.nan

    def concerns(self, message: JointState) -> bool:
        """Whether the message names any joint of this robot."""
        return any(self._named(tuple(message.name)))

    def lacks(self, message: JointState) -> JointsMissing:
        """What to say of a message that names none."""
        return _lacks(self._joints, message)

    def read(self, message: JointState, now_s: float) -> JointSample | None:
        """The sample that this message completes, None while joints are awaited; now_s: any steady clock.

        Positions (n,) rad, unwrapped; velocities (n,) rad/s; gripper_positions in units of the gripper's joints.  The
        stamp is the oldest of the arm's joints.  Raises VegaError on what cannot be used; JointsMissing
        where some have not come.
        """
        arm, fingers = self._named(tuple(message.name))
        if not arm and not fingers:
            raise self.lacks(message)
        positions, velocities = joint_values(message, arm, fingers, velocities=bool(arm) and not self._filter_s)
        # Drivers without velocities send none, NaN, or zeros.
        if self._filter_s and not any(math.isfinite(velocity) and velocity != 0.0 for velocity in velocities):
            velocities = [math.nan] * len(arm)
        velocities += [0.0] * len(fingers)
        stamp, here = stamp_ns(message.header.stamp), {*arm, *fingers}
        named = self._joints if len(here) == len(self._joints) else [j for j in self._joints if j.name in here]
        for joint, position, velocity in zip(named, positions, velocities, strict=True):
            joint.take(position, velocity, stamp, now_s, self._filter_s)
        self._fresh.update(arm)
        missing = [joint for joint in self._joints if now_s - joint.arrival_s > joint.limit_s]
        if missing:
            raise _lacks(missing, message)
        if self._together and any(joint.stamp_ns != stamp for joint in self._joints):
            return None
        if len(self._fresh) != len(self._arm) or not (arm or self._together):
            return None
        self._fresh.clear()
        return self._sample()

    def _find(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Which of the arm's joints, and which fingers, are among them."""
        arm, fingers = (tuple(j.name for j in joints if j.name in names) for joints in (self._arm, self._fingers))
        return arm, fingers

    def _sample(self) -> JointSample | None:
        velocities = [joint.derived if math.isnan(joint.velocity) else joint.velocity for joint in self._arm]
        if any(map(math.isnan, velocities)):
            return None  # the first of two positions
        return JointSample(
            stamp_ns=min(joint.stamp_ns for joint in self._arm),
            positions=np.array([joint.position for joint in self._arm]),
            velocities=np.array(velocities),
            gripper_positions=np.array([joint.position for joint in self._fingers]),
        )


def joint_reader(parameters: NodeParameters, continuous: Collection[str], together: bool) -> JointReader:
    """The reader that a robot's file asks for."""
    return JointReader(
        parameters.joint_names,
        parameters.gripper_joints,
        parameters.velocity_filter_s,
        continuous,
        together,
        1.0 if together else parameters.max_age_s,
    )


def _lacks(missing: Sequence[_Joint], message: JointState) -> JointsMissing:
    names, shown = [joint.name for joint in missing], [name[:32] for name in message.name[:12]]
    return JointsMissing(
        f"joint_states lacks {names} and has {shown}{' ...' if len(message.name) > 12 else ''}: correct "
        "joint_names and gripper.joints in the robot's YAML."
    )
