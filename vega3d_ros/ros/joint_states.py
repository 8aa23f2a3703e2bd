"""What the topic joint_states says about this robot: samples of its arm, and how far its fingers are open.

Drivers differ: arm and fingers come in one message or in several, other devices publish on the same topic, some
drivers know no velocities, and joints that turn without end are reported within one turn.  Used from one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
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


@dataclass(frozen=True)
class _Found:
    """Of one message: the arm's joints and fingers that it names, and their places among those that are wanted."""

    arm: tuple[str, ...]
    fingers: tuple[str, ...]
    places: NDArray[np.intp]


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
        self._wanted = (*self._arm, *self._fingers)
        self._filter_s = velocity_filter_s
        self._together = together
        arm, every = len(self._arm), len(self._wanted)
        self._continuous = np.array([name in continuous for name in self._wanted], dtype=bool)
        self._limits_s = np.full(every, patience_s)
        self._limits_s[arm:] = max(FINGERS_AGE_S, patience_s)
        # Of each joint the last report: unwrapped position, the driver's velocity, the one from differences (NaN where
        # there is none), stamp, arrival.
        self._positions, self._velocities, self._derived = (np.full(every, np.nan) for _ in range(3))
        self._stamps = np.zeros(every, dtype=np.int64)
        self._arrivals_s = np.full(every, -np.inf)
        self._fresh = np.zeros(arm, dtype=bool)
        self._turned = np.full(every, np.nan)
        self._places_of = lru_cache(maxsize=8)(self._find)  # drivers name their joints the same way every time

    def clear(self) -> None:
        """Forget all reports, but not how often a joint has turned."""
        self._arrivals_s[:] = -np.inf
        self._fresh[:] = False

    def concerns(self, message: JointState) -> bool:
        """Whether the message names any joint of this robot."""
        return len(self._places_of(tuple(message.name)).places) > 0

    def lacks(self, message: JointState) -> VegaError:
        """What to say of a message that names none."""
        return _lacks(self._wanted, message)

    def read(self, message: JointState, now_s: float) -> JointSample | None:
        """The sample that this message completes, None while joints are awaited; now_s: any steady clock.

        Positions (n,) rad, unwrapped; velocities (n,) rad/s; gripper_positions in units of the gripper's joints.  The
        stamp is the oldest of the arm's joints.  Raises VegaError on what cannot be used.
        """
        found = self._places_of(tuple(message.name))
        arm = len(found.arm)
        if not len(found.places):
            raise self.lacks(message)
        part = joint_sample(message, found.arm, found.fingers, velocities=bool(arm) and not self._filter_s)
        velocities = np.zeros(len(found.places))
        velocities[:arm] = part.velocities
        # Drivers without velocities send none, NaN, or zeros.
        if self._filter_s and not np.any(np.isfinite(part.velocities) & (part.velocities != 0.0)):
            velocities[:arm] = np.nan
        positions = np.concatenate([part.positions, part.gripper_positions])
        self._store(found.places, positions, velocities, part.stamp_ns, now_s)
        self._fresh[found.places[:arm]] = True
        missed = now_s - self._arrivals_s > self._limits_s
        if missed.any():
            raise _lacks([name for name, gone in zip(self._wanted, missed, strict=True) if gone], message)
        if self._together and (self._stamps != part.stamp_ns).any():
            return None
        if not self._fresh.all() or not (arm or self._together):
            return None
        self._fresh[:] = False
        return self._sample()

    def _find(self, names: tuple[str, ...]) -> _Found:
        here = set(names)
        arm = tuple(name for name in self._arm if name in here)
        fingers = tuple(name for name in self._fingers if name in here)
        places = [self._wanted.index(name) for name in (*arm, *fingers)]
        return _Found(arm, fingers, np.array(places, dtype=np.intp))

    def _store(
        self, places: NDArray[np.intp], positions: FloatArray, velocities: FloatArray, stamp: int, now_s: float
    ) -> None:
        if self._continuous.any():
            turned = self._turned[places]
            turns = np.round((turned - positions) / TURN)
            positions = positions + TURN * np.where(self._continuous[places] & np.isfinite(turned), turns, 0.0)
            self._turned[places] = positions
        if self._filter_s:
            self._derived[places] = self._derive(places, positions, stamp)
        self._positions[places], self._velocities[places] = positions, velocities
        self._stamps[places], self._arrivals_s[places] = stamp, now_s

    def _derive(self, places: NDArray[np.intp], positions: FloatArray, stamp: int) -> FloatArray:
        """Velocities from differences, NaN where there is nothing to take the difference to."""
        known = self._arrivals_s[places] > -np.inf
        seconds = (stamp - self._stamps[places]) / 1e9
        last = self._derived[places]
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = (positions - self._positions[places]) / seconds
            smooth = np.where(np.isnan(last), rates, last + (rates - last) * seconds / (self._filter_s + seconds))
        smooth = np.where((seconds > 0.0) & (seconds <= RESTART_S), smooth, np.where(seconds == 0.0, last, np.nan))
        return np.where(known, smooth, np.nan)

    def _sample(self) -> JointSample | None:
        arm = len(self._arm)
        velocities = self._velocities[:arm].copy()
        if self._filter_s:
            velocities = np.where(np.isnan(velocities), self._derived[:arm], velocities)
            if np.isnan(velocities).any():
                return None  # the first of two positions
        return JointSample(
            stamp_ns=int(self._stamps[:arm].min()),
            positions=self._positions[:arm].copy(),
            velocities=velocities,
            gripper_positions=self._positions[arm:].copy(),
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
