"""Whether joint states are possible: a measurement that cannot be true is not acted upon.  NumPy only, no ROS.

A sensor that jumps, degrees for radians, velocities with the wrong sign, or two publishers that tell of two arms look
well formed.  What betrays them is that no arm could have done it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray
from vega3d_ros.control.guard.limits import GuardLimits

# Noise of an encoder, a joint's play, the rounding of a driver, rad.
MARGIN_RAD = 0.02
# A joint may be found so far beyond its limit: stops are soft, and margins of description and arm differ.
BEYOND_RAD = 0.1
FASTER = 1.2  # than the joint's limit
# Velocities are compared with differences over a window, since noise spoils single ones and filters delay them.
WINDOW_S, DIFFERENT, DELAY_S, CONTRADICTS_RAD = 0.25, 0.35, 0.06, 0.012
APART_S = 0.0125  # half of it
# Of velocities, rad/s, beside what the acceleration allows between two joint states.
NOISE_RAD_S, MIRRORED = 0.1, 0.35
# Differences of positions over so long may go against the velocities, both faster than that, for less than what filters
# delay and a bit.
SPAN_S, SLOW_RAD_S, OPPOSED_S = 0.04, 0.05, 0.08
LATE = 2.0  # a command that comes late bends the arm's path more than was meant
# Good joint states in a row after which they are believed again.
PATIENCE = 10
# Of publishers: how often the numbers of messages may go back within so long.
SWITCHES, SWITCH_S = 2, 2.0
HINT = "check its driver, then call ~/start again"


class Belief:
    """Judges joint states one after another.  Used from one thread.

    problem: why joint states are not believed at present, one sentence, '' while they are.  rejected: how many were
    not.
    """

    def __init__(self, joint_names: Sequence[str], limits: GuardLimits) -> None:
        self._names = tuple(joint_names)
        self._lower = limits.lower if limits.arm_lower is None else limits.arm_lower
        self._upper = limits.upper if limits.arm_upper is None else limits.arm_upper
        self._velocity = limits.velocity if limits.arm_velocity is None else limits.arm_velocity
        self._acceleration = limits.acceleration
        self.rejected = 0
        self.reset()

    def reset(self) -> None:
        """Nothing from before counts: at ~/start, and after a clock was set back."""
        self.problem = ""
        self._good = 0
        self._sums: tuple[FloatArray, FloatArray, FloatArray]  # of the newest, the last three of these:
        # stamp, positions, velocities; integrals of the velocities, of their magnitudes, of what is not known of them
        self._window: deque[tuple[int, FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]] = deque()
        self._number: int | None = None
        self._switched_ns: deque[int] = deque(maxlen=SWITCHES)
        self._agreed_ns: NDArray[np.int64] | None = None  # of each joint, the last time

    def observe(self, stamp_ns: int, positions: FloatArray, velocities: FloatArray, number: int | None = None) -> str:
        """Take a joint state, stamps not falling; returns `problem`.

        positions (n,) rad, velocities (n,) rad/s.  number: of the message among those of its publisher, if known.
        """
        self._sums = self._integrated(stamp_ns, velocities)
        wrong = (
            self._two_publishers(stamp_ns, number)
            or self._impossible(positions, velocities)
            or self._jumped(stamp_ns, positions)
            or self._mirrored(stamp_ns, velocities)
            or self._opposed(stamp_ns, positions, velocities)
            or self._contradicts(stamp_ns, positions, velocities)
        )
        if wrong:
            self.problem, self._good = wrong, 0
            self.rejected += 1
            self._window.clear()
            self._agreed_ns = None
            self._sums = self._integrated(stamp_ns, velocities)
        self._remember(stamp_ns, positions, velocities)
        if not wrong and self.problem:
            self._good += 1
            if self._good >= PATIENCE:
                self.problem = ""
            else:
                self.rejected += 1
        return self.problem

    def _impossible(self, positions: FloatArray, velocities: FloatArray) -> str:
        beyond = np.maximum(self._lower - positions, positions - self._upper)
        joint = int(beyond.argmax())
        if beyond[joint] > BEYOND_RAD:
            limits = f"{self._lower[joint]:.3f} to {self._upper[joint]:.3f}"
            as_degrees = np.deg2rad(positions)
            low, high = self._lower - BEYOND_RAD, self._upper + BEYOND_RAD
            if np.all((as_degrees >= low) & (as_degrees <= high)):
                return (
                    f"joint_states say {positions[joint]:.1f} rad of {self._names[joint]}, whose limits are {limits}, "
                    "and would be right in degrees: make the driver publish radians, then call ~/start again."
                )
            return (
                f"joint_states say {positions[joint]:.3f} rad of {self._names[joint]}, whose limits are {limits}: "
                f"{HINT}."
            )
        fast = np.abs(velocities) - 2.0 * FASTER * self._velocity
        joint = int(fast.argmax())
        if fast[joint] > 0.0:
            return (
                f"joint_states say that {self._names[joint]} moves at {velocities[joint]:.2f} rad/s, and it can do "
                f"{self._velocity[joint]:.2f}: {HINT}."
            )
        return ""

    def _jumped(self, stamp_ns: int, positions: FloatArray) -> str:
        if not self._window:
            return ""
        before_ns, before = self._window[-1][:2]
        seconds = (stamp_ns - before_ns) * 1e-9
        far = np.abs(positions - before) - FASTER * self._velocity * seconds - MARGIN_RAD
        joint = int(far.argmax())
        if far[joint] <= 0.0:
            return ""
        return (
            f"{self._names[joint]} went from {before[joint]:.3f} to {positions[joint]:.3f} rad within "
            f"{1e3 * seconds:.0f} ms by joint_states, and it can do {self._velocity[joint]:.2f} rad/s: look for a "
            "second publisher (ros2 topic info -v joint_states) or a broken encoder, then call ~/start again."
        )

    def _mirrored(self, stamp_ns: int, velocities: FloatArray) -> str:
        if not self._window:
            return ""
        before_ns, _, before = self._window[-1][:3]
        seconds = (stamp_ns - before_ns) * 1e-9
        change = np.abs(velocities - before)
        far = change - self._acceleration * seconds - NOISE_RAD_S
        far = np.where(np.abs(velocities + before) < MIRRORED * 0.5 * change, far, 0.0)
        joint = int(far.argmax())
        if far[joint] <= 0.0:
            return ""
        return (
            f"{self._names[joint]} went from {before[joint]:.2f} to {velocities[joint]:.2f} rad/s within "
            f"{1e3 * seconds:.0f} ms by joint_states: check the sign of their velocities, then call ~/start again."
        )

    def _opposed(self, stamp_ns: int, positions: FloatArray, velocities: FloatArray) -> str:
        then = next((e for e in reversed(self._window) if stamp_ns - e[0] >= SPAN_S * 1e9), None)
        if then is None or self._agreed_ns is None or stamp_ns - then[0] > 2.0 * SPAN_S * 1e9:
            self._agreed_ns = np.full(len(positions), stamp_ns)
            return ""
        seconds = (stamp_ns - then[0]) * 1e-9
        way, _, unknown = self._sums
        # Their mean over the same time: at its end alone an arm that turns round is against where it was going, and
        # between joint states that are far apart it may have turned round unseen.
        rate, meant = (positions - then[1]) / seconds, (way - then[3]) / seconds
        against = (rate * meant < 0.0) & (np.minimum(np.abs(rate), np.abs(meant)) > SLOW_RAD_S)
        against &= np.abs(rate - meant) > LATE * (unknown - then[5]) / seconds
        self._agreed_ns[~against] = stamp_ns
        since_s = (stamp_ns - self._agreed_ns) * 1e-9
        joint = int(since_s.argmax())
        if since_s[joint] < OPPOSED_S:
            return ""
        return (
            f"{self._names[joint]} moves at {rate[joint]:.2f} rad/s by its positions in joint_states, and at "
            f"{meant[joint]:.2f} by its velocities: check their sign, then call ~/start again."
        )

    def _contradicts(self, stamp_ns: int, positions: FloatArray, velocities: FloatArray) -> str:
        if not self._window:
            return ""
        self._forget_until(stamp_ns - round(WINDOW_S * 1e9))
        way, length, unknown = self._sums
        first_ns, first, first_rate, first_way, first_length, first_unknown = self._window[0]
        moved, meant, length = positions - first, way - first_way, length - first_length
        room = DIFFERENT * np.maximum(length, np.abs(moved)) + DELAY_S * np.abs(velocities - first_rate)
        room += CONTRADICTS_RAD
        far = np.abs(moved - meant) - room - (unknown - first_unknown)
        joint = int(far.argmax())
        if far[joint] <= 0.0:
            return ""
        return (
            f"{self._names[joint]} moved by {moved[joint]:.3f} rad in {(stamp_ns - first_ns) * 1e-6:.0f} ms, and by "
            f"its velocities in joint_states it should have been {meant[joint]:.3f}: check their sign and unit, then "
            "call ~/start again."
        )

    def _two_publishers(self, stamp_ns: int, number: int | None) -> str:
        before, self._number = self._number, number
        # Each publisher counts its own messages: one that starts anew goes back once, two of them again and again.
        if number is None or before is None or number > before:
            return ""
        self._switched_ns.append(stamp_ns)
        if len(self._switched_ns) < SWITCHES or stamp_ns - self._switched_ns[0] > SWITCH_S * 1e9:
            return ""
        return (
            "Two publishers send joint_states of this arm in turns: stop one of them (ros2 topic info -v joint_states "
            "names both), then call ~/start again."
        )

    def _integrated(self, stamp_ns: int, velocities: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        if not self._window:
            zero = np.zeros_like(velocities)
            return zero, zero, zero
        last_ns, _, last, way, length, unknown = self._window[-1]
        half = 0.5e-9 * (stamp_ns - last_ns)
        # Between two joint states that are far apart the velocity may have been another altogether.
        if half > APART_S:
            unknown = unknown + self._acceleration * half**2
        return way + half * (last + velocities), length + half * (np.abs(last) + np.abs(velocities)), unknown

    def _remember(self, stamp_ns: int, positions: FloatArray, velocities: FloatArray) -> None:
        self._window.append((stamp_ns, positions.copy(), velocities.copy(), *self._sums))

    def _forget_until(self, oldest_ns: int) -> None:
        while len(self._window) > 2 and self._window[0][0] < oldest_ns:
            self._window.popleft()
