"""The last stage before a command leaves: nothing passes whose whole path is not within every limit.

The guard knows the path that the arm's controller is following, since it let every piece of it pass: position and
velocity at any time, up to the rest at its end.  A command is judged as the cubic that leads from there to its end and
the braking after it.  Where it is refused, the arm goes on along the path it has and rests at its end; that path was
judged when it left.  Measurements never become commands, but for the place at which an arm at rest is taken over.

NumPy only, no ROS.  Not a rated safety function: it makes commands plausible for the arm, and knows nothing of people
or of what the driver does with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray, VegaError
from vega3d_ros.control.guard.course import Course
from vega3d_ros.control.guard.decision import GuardDecision
from vega3d_ros.control.guard.limits import ArmModel, GuardLimits
from vega3d_ros.control.guard.motion import SHORTEST_BRAKING_S, Cubic, Motion, braking, resting, slow_s
from vega3d_ros.control.guard.zones import Pace, Workspace, Zone, look_along

BoolArray = NDArray[np.bool_]
RULES = ("finite", "shape", "position", "velocity", "acceleration", "workspace", "rate")
# Room for rounding between computing a bound and comparing with it; far below what an encoder resolves.
EPSILON = 1e-9
SHARE = 1.0 + 1e-9
# An arm that moves faster is not taken over.
REST_RAD_S = 0.05
# Periods after which what leads a controller is said again where it may not be heard; and by which it may begin late,
# twice as many, since a controller that has just come up may have it before it looks.
AGAIN, LATE = 2, 4
TAKEN_OVER = "The arm is being taken over."
UNDER_WAY = "The arm is still on the path that it was commanded last: wait until it rests."
HALVINGS = 8
MOSTLY = 0.8


class SafetyGuard:
    """Judges commands, and keeps the path of those that passed.  Not thread-safe.

    limits: None raises VegaError, since an arm without limits must not be commanded.  period_s: time a command has to
    be carried out.  mode: `reject` refuses a command that breaks a rule; `clamp` moves it to the nearest that breaks
    none, and refuses it where there is none.  committed: a command carries its braking with it; else it is one point,
    for a simulated driver that begins each point at the state it has (the measured one), and counts as braking over a
    whole period at least.  zones: beside the box of the limits.  pace: slows commands down before they are judged, None
    for none; may be set later.  at_once: the controller cannot be led, as it is at once where it is told to be; may be
    set later.  counts: interventions per rule since the start.

    ahead_ns: committed, a command leaves so long before its path departs from the one under way; may be set later.
    Whenever the controller takes it over until then, it goes along the very path that was judged; with 0 that is so
    only if it takes it over at once.

    Of each command: `take_over` (until it says nothing more), `start`, `check`, with one time_ns for all three.
    """

    def __init__(
        self,
        arm: ArmModel,
        limits: GuardLimits | None,
        period_s: float,
        mode: Literal["reject", "clamp"] = "reject",
        committed: bool = True,
        zones: Sequence[Zone] = (),
    ) -> None:
        if limits is None:
            raise VegaError("There are no safety limits: give acceleration (and what the URDF lacks) in its YAML.")
        if mode not in ("reject", "clamp"):
            raise VegaError(f"There is no guard mode '{mode}': choose reject or clamp.")
        if not period_s > 0:
            raise VegaError("The control period must be positive: set the policy's rate.")
        self.limits, self.mode, self.committed = limits, mode, committed
        self.counts = dict.fromkeys((*RULES, *(zone.rule for zone in zones)), 0)
        self.checked = self.rejected_in_a_row = 0
        self._arm, self._period = arm, period_s
        self._period_ns = round(1e9 * period_s)
        self.ahead_ns, self.at_once = 0, False
        self.pace: Pace | None = None
        self._zones: list[Zone] = list(zones)
        if limits.workspace_lower is not None and limits.workspace_upper is not None:
            self._zones.append(Workspace(arm, limits.workspace_lower, limits.workspace_upper))
        self._shortest_s = SHORTEST_BRAKING_S if committed else period_s
        self._tolerance = np.broadcast_to(limits.tolerance, (arm.n,))
        self._motion: Motion | None = None
        self._course: Course | None = None  # all that left, for a controller that is late
        self._last_ns: int | None = None
        self._ready_ns: int | None = None
        self._lead_s = 0.0
        self._measured: tuple[FloatArray, FloatArray] | None = None
        self._from: tuple[FloatArray, FloatArray] | None = None
        self._before: tuple[Motion | None, int | None] = (None, None)  # the last command that passed
        self._astray = False

    def reset(self, elsewhere: bool = False, held: FloatArray | None = None) -> None:
        """Take the arm over anew before the next command: at activation, after a stop, at a new episode.

        elsewhere: its controller does not hold it at the end of our path, since it was restarted, obeys somebody else,
        or did not hear the rest of it.  held (n,) rad: where it does, if that is known.
        """
        self._ready_ns = self._last_ns = self._from = None
        self._astray = False
        self.rejected_in_a_row = 0
        if not self.committed or (elsewhere and self.at_once):
            self._motion, self._course = None if held is None else resting(held), None

    def take_over(
        self, measured: FloatArray, rate: FloatArray, time_ns: int, heard: bool = True, late_ns: int = 0
    ) -> tuple[GuardDecision | None, str]:
        """What has to leave before the first command; and why that must wait still, '' when it need not.

        The controller holds the arm where it was told last, which may be a little beside where it is measured.  It is
        led to the beginning of our path, slowly enough for twice the tolerance, and to come from the end of our last.
        Within the tolerance of the arm the new path begins at that end, so that stopping and starting makes no arm sag.
        The lead begins when it arrives, however late: one with a time of its own would leave a controller that has just
        come up little time, or none.
        heard: whether all who listen have what this said last.  Else it says it again, and waits anew: one that has
        just come up may be known here and not hear us yet, and would be jolted by the first command.
        late_ns: as for `start`.
        Raises VegaError where the arm is outside the limits; at_once, where it is not within the tolerance of that end.
        """
        if not self.committed:
            return None, ""
        if self._ready_ns is None:
            # An arm that turns round, or lags, is measured at rest where its controller is not.
            if self._motion is not None and self._motion.is_under_way(time_ns, late_ns + self._period_ns):
                return None, UNDER_WAY
            fast = _first(np.abs(rate) > REST_RAD_S)
            if fast is not None:
                return None, (
                    f"{self._arm.joint_names[fast]} still moves at {rate[fast]:.2f} rad/s: wait until the arm rests."
                )
            origin, away = measured, np.zeros_like(measured)
            if self._motion is not None:
                end = self._motion.positions[-1]
                away = np.abs(end - measured)
                far = _first(~(away <= self._tolerance))
                if far is not None and self.at_once:
                    raise VegaError(
                        f"{self._arm.joint_names[far]} is measured at {measured[far]:.3f} rad and was told to be at "
                        f"{end[far]:.3f} rad, and position commands would jump by that: reactivate its controller, "
                        "clean up, configure and activate policy_node, then call ~/start."
                    )
                origin = end if far is None else measured
            self._check_inside(origin)
            distance = np.maximum(2.0 * self._tolerance, 1.1 * away)  # as far as its controller may have to go
            self._lead_s = max(self._period, slow_s(distance, self.limits.velocity, self.limits.acceleration))
        else:
            assert self._motion is not None
            if heard or time_ns < self._motion.start_ns + (AGAIN - 0.5) * self._period_ns:
                return None, "" if heard and time_ns >= self._ready_ns else TAKEN_OVER
            origin = self._motion.positions[-1]
        self._ready_ns = time_ns + round(1e9 * self._lead_s) + LATE * self._period_ns
        motion = self._leave(resting(origin, time_ns, self._lead_s))
        return GuardDecision(origin.copy(), np.zeros_like(origin), 0.0, False, (), motion), TAKEN_OVER

    def start(
        self, measured: FloatArray, rate: FloatArray, time_ns: int, late_ns: int = 0
    ) -> tuple[FloatArray, FloatArray]:
        """Positions (n,) rad and velocities (n,) rad/s from which the next command is to be computed.

        Committed: those of the path where the command will depart from it, which no measurement disturbs; else those
        measured, from which that driver goes.
        late_ns: committed, so long ago the path was where the controller has been told to be by now.
        Raises VegaError where the arm is further from there than the tolerance, or was not taken over.
        """
        self._measured = (measured, rate)
        if self._motion is None:
            if self.committed:
                raise VegaError("The arm was not taken over before its first command: report this with the log.")
            self._from = (measured.copy(), rate.copy())
            return self._from
        here = self._path_at(self._motion, time_ns)
        told = here
        if self._course is not None:
            self._course.forget_before(time_ns - late_ns)
            told = self._course.at(time_ns - late_ns) if late_ns else here
        off = np.abs(measured - told[0])
        far = _first(~(off <= self._tolerance))
        if far is not None:
            self._astray = True
            raise VegaError(
                f"{self._arm.joint_names[far]} is at {measured[far]:.3f} rad, {off[far]:.3f} rad from where it was "
                f"commanded (safety.tracking_tolerance {self._tolerance[far]:g}): see what holds the arm or shifts its "
                "joint_states, then call ~/start again."
            )
        ahead = self.committed and self.ahead_ns
        self._from = self._path_at(self._motion, time_ns + self.ahead_ns) if ahead else here
        return self._from if self.committed else self._measured

    def check(
        self,
        positions: FloatArray,
        velocities: FloatArray,
        gripper: float,
        time_ns: int,
        joint_names: tuple[str, ...] | None = None,
    ) -> GuardDecision:
        """Decide about one command: positions (n,) rad, velocities (n,) rad/s at the end of the period.

        time_ns: as given to `start`.  joint_names: names that the command will carry, checked if given.  Never raises
        on bad numbers.
        """
        assert self._from is not None
        self.checked += 1
        position, velocity = _array(positions), _array(velocities)
        n = self._arm.n
        # Shape comes first in the code since arrays of the wrong length cannot be compared; both refuse outright.
        if not (np.isfinite(position).all() and np.isfinite(velocity).all() and np.isfinite(gripper)):
            return self._refuse(("finite",), time_ns)
        names_match = joint_names is None or tuple(joint_names) == self._arm.joint_names
        if position.shape != (n,) or velocity.shape != (n,) or not names_match:
            return self._refuse(("shape",), time_ns)
        if self._last_ns is not None and (time_ns - self._last_ns) * 1e-9 < self.limits.min_interval_s - EPSILON:
            return self._refuse(("rate",), time_ns)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite is also too far
            if self.pace is not None:
                position, velocity = self.pace.scaled(*self._from, position, velocity, self._period)
            broken = self._broken(position, velocity)
            if broken:
                clamped = self._clamp(position, velocity) if self.mode == "clamp" else None
                if clamped is None:
                    return self._refuse(broken, time_ns)
                position, velocity = clamped
        self._count(broken)
        self.rejected_in_a_row = 0
        self._before = (self._motion, self._last_ns)
        self._last_ns = time_ns
        rest, seconds = braking(position, velocity, self.limits.acceleration, self._shortest_s)
        points = [(self._period, position, velocity), (self._period + seconds, rest, np.zeros(n))]
        motion = self._leave(self._departing(time_ns, points))
        return GuardDecision(position, velocity, float(gripper), False, broken, motion)

    def withdraw(self) -> None:
        """The command that passed last does not leave: the path is the one before it."""
        self._motion, self._last_ns = self._before

    def brake(self, time_ns: int, late_ns: int = 0) -> GuardDecision | None:
        """The path under way is left for the quickest braking along the limits; None where it brakes as soon by itself.

        late_ns: as for `start`; there the path is left, and the braking begins in the past.
        None too where that braking would lead out of the limits, and where the arm is known to be beside the path.
        """
        if not self.committed or self._motion is None or self._astray or self._ready_ns is None:
            return None
        begin_ns = time_ns + self.ahead_ns - late_ns
        motion = self._course.motion_at(begin_ns) if late_ns and self._course else self._motion
        brakes = motion is self._motion and begin_ns >= motion.start_ns + round(1e9 * motion.times_s[-2])
        if brakes or motion.start_ns > min(time_ns, begin_ns):
            return None
        self._from = q, v = motion.at(begin_ns)
        rest, seconds = braking(q, v, self.limits.acceleration, self._shortest_s)
        out = np.any(rest < self.limits.lower - EPSILON) or np.any(rest > self.limits.upper + EPSILON)
        still = np.zeros_like(rest)
        seen = look_along(braking=Cubic(q, v, rest, still, seconds))
        if out or not all(zone.allows(seen) for zone in self._zones):
            return None
        self._before = (self._motion, self._last_ns)
        motion = self._leave(self._departing(time_ns - late_ns, [(seconds, rest, still)]))
        return GuardDecision(rest, still, 0.0, False, (), motion)

    def _leave(self, motion: Motion) -> Motion:
        self._motion, self._course = motion, self._course or Course(motion)
        self._course.follow(motion)
        return motion

    def _departing(self, time_ns: int, points: Sequence[tuple[float, FloatArray, FloatArray]]) -> Motion:
        """From now on: the path under way until a command departs from it, and then its points."""
        assert self._from is not None
        begin_s = 1e-9 * self.ahead_ns if self.committed else 0.0
        times_s, positions, velocities = np.zeros(1), self._from[0][None], self._from[1][None]
        if begin_s and self._motion is not None:
            times_s, positions, velocities = self._motion.between(time_ns, time_ns + self.ahead_ns)
        return Motion(
            time_ns,
            np.array([*times_s, *(begin_s + seconds for seconds, _, _ in points)]),
            np.concatenate([positions, [q for _, q, _ in points]]),
            np.concatenate([velocities, [v for _, _, v in points]]),
        )

    def _path_at(self, motion: Motion, time_ns: int) -> tuple[FloatArray, FloatArray]:
        if self.committed:
            return motion.at(time_ns)
        # A simulated driver goes from point to point in whole periods, and stands where no new one comes.
        periods = (time_ns - motion.start_ns) * 1e-9 / self._period
        if periods < 0.5:
            return motion.positions[0].copy(), motion.velocities[0].copy()
        positions, velocities = motion.at(motion.start_ns + self._period_ns)
        return positions, velocities if periods < 1.5 else np.zeros_like(velocities)

    def _refuse(self, rules: tuple[str, ...], time_ns: int) -> GuardDecision:
        self._count(rules)
        self.rejected_in_a_row += 1
        assert self._from is not None
        if not self.committed:
            # One point at a time: the next stretch of the braking that was judged with the last command.
            q, v = self._from
            rest, seconds = braking(q, v, self.limits.acceleration, self._shortest_s)
            self._motion = Motion(time_ns, np.array([0.0, seconds]), np.array([q, rest]), np.array([v, 0.0 * v]))
        assert self._motion is not None
        ahead_ns = self.ahead_ns if self.committed else 0
        positions, velocities = self._motion.at(time_ns + ahead_ns + self._period_ns)
        return GuardDecision(positions, velocities, 0.0, True, rules, self._motion)

    def _count(self, rules: tuple[str, ...]) -> None:
        for rule in rules:
            self.counts[rule] += 1

    def _check_inside(self, position: FloatArray) -> None:
        limits = self.limits
        out = _first(~((position >= limits.lower - EPSILON) & (position <= limits.upper + EPSILON)))
        if out is not None:
            raise VegaError(
                f"{self._arm.joint_names[out]} is at {position[out]:.3f} rad, outside its limits "
                f"{limits.lower[out]:.3f} to {limits.upper[out]:.3f}: move the arm inside, then call ~/start again."
            )
        for zone in self._zones:
            if not zone.allows(position[None]):
                raise VegaError(
                    f"The arm begins outside what safety allows ({zone.rule}): move it inside, then call ~/start again."
                )

    def _bends(
        self, q0: FloatArray, v0: FloatArray, q1: FloatArray, v1: FloatArray, rest: FloatArray
    ) -> list[tuple[str, BoolArray]]:
        """For each rule that is a joint's own: which joints (n,), or (k, n) where q0, v0 are (k, n), the cubic or the
        braking after it, which ends at `rest`, breaks it with."""
        limits, cubic = self.limits, Cubic(q0, v0, q1, v1, self._period)
        low, high = cubic.extent()
        low, high = np.minimum(low, rest), np.maximum(high, rest)
        return [
            ("position", ~((low >= limits.lower - EPSILON) & (high <= limits.upper + EPSILON))),
            ("velocity", ~(cubic.largest_velocity() <= limits.velocity * SHARE)),
            ("acceleration", ~(cubic.largest_acceleration() <= limits.acceleration * SHARE + EPSILON)),
        ]

    def _broken(self, position: FloatArray, velocity: FloatArray) -> tuple[str, ...]:
        """Rules that the command's path breaks, from the path's state and, not committed, from the measured one."""
        assert self._from is not None and self._measured is not None
        rest, seconds = braking(position, velocity, self.limits.acceleration, self._shortest_s)
        q0, v0 = self._from if self.committed else map(np.array, zip(self._from, self._measured, strict=True))
        broken = {rule for rule, joints in self._bends(q0, v0, position, velocity, rest) if joints.any()}
        # Far away, where a body is need not be looked at.
        if self._zones and not broken & {"position", "velocity"}:
            way = Cubic(*self._from, position, velocity, self._period)
            seen = look_along(way, braking=Cubic(position, velocity, rest, np.zeros_like(rest), seconds))
            broken |= {zone.rule for zone in self._zones if not zone.allows(seen)}
        return tuple(rule for rule in self.counts if rule in broken)

    def _clamp(self, position: FloatArray, velocity: FloatArray) -> tuple[FloatArray, FloatArray] | None:
        """A command near it and within all limits: on the way to braking, joint by joint and then together; or None."""
        assert self._from is not None
        limits, period, (q0, v0) = self.limits, self._period, self._from
        rest, seconds = braking(q0, v0, limits.acceleration, period)
        slow_q, slow_v = Cubic(q0, v0, rest, np.zeros_like(rest), seconds).at(period)
        # The cubic bends by (v1 - v0) / T -+ 6 c / T^2 at its ends, where c is how far its end is beside that of even
        # acceleration; most of what a joint may bend goes to its velocity, what is left to its place.
        change = MOSTLY * limits.acceleration * period
        velocity = np.clip(np.clip(velocity, -limits.velocity, limits.velocity), v0 - change, v0 + change)
        even = q0 + 0.5 * period * (v0 + velocity)
        beside = (limits.acceleration - np.abs(velocity - v0) / period) * period**2 / 6.0
        position = np.clip(position, even - beside, even + beside)

        def between(share: FloatArray | float) -> tuple[FloatArray, FloatArray]:
            return slow_q + share * (position - slow_q), slow_v + share * (velocity - slow_v)

        good, bad = np.zeros_like(q0), np.ones_like(q0)
        for share in [bad] + [None] * HALVINGS:
            middle = (good + bad) / 2 if share is None else share
            place, rate = between(middle)
            rest, _ = braking(place, rate, limits.acceleration, self._shortest_s)
            wrong = np.logical_or.reduce([joints for _, joints in self._bends(q0, v0, place, rate, rest)])
            good, bad = np.where(wrong, good, middle), np.where(wrong, middle, bad)
        position, velocity = between(good)
        inside, outside = 0.0, 1.0
        for share_of_all in [1.0] + [0.0] * HALVINGS:
            middle_of_all = share_of_all or (inside + outside) / 2
            if self._broken(*between(middle_of_all)):
                outside = middle_of_all
            else:
                inside = middle_of_all
            if inside == 1.0:
                break
        candidate = between(inside)
        return None if inside == 0.0 and self._broken(*candidate) else candidate


def _first(which: BoolArray) -> int | None:
    """Index of the first joint of which it is true."""
    return int(np.argmax(which)) if which.any() else None


def _array(values: Any) -> FloatArray:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)
