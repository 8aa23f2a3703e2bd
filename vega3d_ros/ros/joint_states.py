"""What the topic joint_states says about this robot: samples of its arm, and how far its fingers are open.

Drivers differ: arm and fingers come in one message or in several, other devices publish on the same topic, some
drivers know no velocities, and joints that turn without end are reported within one turn.  Used from one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import JointState

from policies.types import FloatArray, PolicySpec, VegaError
from vega3d_ros.control.control_loop import JointSample
from vega3d_ros.ros.conversions import joint_sample
from vega3d_ros.ros.node_parameters import NodeParameters

FINGERS_AGE_S = 1.0  # grippers report at 5 Hz and more
RESTART_S = 0.5  # a difference over a longer gap is no velocity
TURN = 2.0 * np.pi
# Beyond these shares of the way from closed to open the file and the joint are in different units.
SHARES = (-2.0, 3.0)


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
        share = float(self._share(readings)[self.main])
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
    """The last report of a joint: unwrapped position, the driver's velocity, and the one from differences, if any."""

    position: float
    velocity: float
    derived: float | None
    stamp_ns: int
    arrival_s: float


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
        self._arm, self._fingers = tuple(joint_names), tuple(gripper_joints)
        self._filter_s = velocity_filter_s
        self._continuous = frozenset(continuous)
        self._together = together
        self._patience_s = patience_s
        self._known: dict[str, _Joint] = {}
        self._fresh: set[str] = set()
        self._turned: dict[str, float] = {}

    def clear(self) -> None:
        """Forget all reports, but not how often a joint has turned."""
        self._known.clear()
        self._fresh.clear()

    def concerns(self, message: JointState) -> bool:
        """Whether the message names any joint of this robot."""
        return not {*self._arm, *self._fingers}.isdisjoint(message.name)

    def lacks(self, message: JointState) -> VegaError:
        """What to say of a message that names none."""
        return _lacks([*self._arm, *self._fingers], message)

    def read(self, message: JointState, now_s: float) -> JointSample | None:
        """The sample that this message completes, None while joints are awaited; now_s: any steady clock.

        Positions (n,) rad, unwrapped; velocities (n,) rad/s; gripper_positions in units of the gripper's joints.  The
        stamp is the oldest of the arm's joints.  Raises VegaError on what cannot be used.
        """
        here = set(message.name)
        arm = [name for name in self._arm if name in here]
        fingers = [name for name in self._fingers if name in here]
        if not arm and not fingers:
            raise self.lacks(message)
        part = joint_sample(message, arm, fingers, velocities=bool(arm) and not self._filter_s)
        # Drivers without velocities send none, NaN, or zeros.
        silent = bool(self._filter_s) and not np.any(np.isfinite(part.velocities) & (part.velocities != 0.0))
        for index, name in enumerate(arm):
            velocity = float("nan") if silent else float(part.velocities[index])
            self._store(name, float(part.positions[index]), velocity, part.stamp_ns, now_s)
        for index, name in enumerate(fingers):
            self._store(name, float(part.gripper_positions[index]), 0.0, part.stamp_ns, now_s)
        self._fresh.update(arm)
        wanted = (*self._arm, *self._fingers)
        missing = [
            name
            for name in wanted
            if name not in self._known or now_s - self._known[name].arrival_s > self._limit_s(name)
        ]
        if missing:
            raise _lacks(missing, message)
        if self._together and any(self._known[name].stamp_ns != part.stamp_ns for name in wanted):
            return None
        if self._fresh != set(self._arm) or not (arm or self._together):
            return None
        self._fresh.clear()
        return self._sample()

    def _limit_s(self, name: str) -> float:
        return self._patience_s if name in self._arm else max(FINGERS_AGE_S, self._patience_s)

    def _store(self, name: str, position: float, velocity: float, stamp: int, now_s: float) -> None:
        if name in self._continuous and name in self._turned:
            position += TURN * round((self._turned[name] - position) / TURN)
        self._turned[name] = position
        self._known[name] = _Joint(position, velocity, self._derive(name, position, stamp), stamp, now_s)

    def _derive(self, name: str, position: float, stamp: int) -> float | None:
        last = self._known.get(name)
        if not self._filter_s or last is None:
            return None
        seconds = (stamp - last.stamp_ns) / 1e9
        if seconds == 0.0:
            return last.derived
        if not 0.0 < seconds <= RESTART_S:
            return None
        rate = (position - last.position) / seconds
        if last.derived is None:
            return rate
        return last.derived + (rate - last.derived) * seconds / (self._filter_s + seconds)

    def _sample(self) -> JointSample | None:
        arm = [self._known[name] for name in self._arm]
        velocities = [joint.derived if np.isnan(joint.velocity) else joint.velocity for joint in arm]
        if any(velocity is None for velocity in velocities):
            return None  # the first of two positions
        return JointSample(
            stamp_ns=min(joint.stamp_ns for joint in arm),
            positions=np.array([joint.position for joint in arm]),
            velocities=np.array(velocities, dtype=np.float64),
            gripper_positions=np.array([self._known[name].position for name in self._fingers]),
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


def _lacks(missing: Sequence[str], message: JointState) -> VegaError:
    shown = [name[:32] for name in message.name[:12]]
    return VegaError(
        f"joint_states lacks {list(missing)} and has {shown}{' ...' if len(message.name) > 12 else ''}: correct "
        "joint_names and gripper.joints in the robot's YAML."
    )
