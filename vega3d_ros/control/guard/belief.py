"""Whether joint states are possible: a measurement that cannot be true is not acted upon.  No ROS.

A sensor that jumps, degrees for radians, velocities with the wrong sign, or two publishers that tell of two arms look
well formed.  What betrays them is that no arm could have done it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

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

    Plain numbers, not arrays: of so few joints the first call of each kind that NumPy has, which comes with cold caches
    20 times a second, takes longer than all the arithmetic.

    problem: why joint states are not believed at present, one sentence, '' while they are.  rejected: how many were
    not.
    """

    def __init__(self, joint_names: Sequence[str], limits: GuardLimits) -> None:
        self._names = tuple(joint_names)
        self._lower = (limits.lower if limits.arm_lower is None else limits.arm_lower).tolist()
        self._upper = (limits.upper if limits.arm_upper is None else limits.arm_upper).tolist()
        self._velocity = (limits.velocity if limits.arm_velocity is None else limits.arm_velocity).tolist()
        self._acceleration = limits.acceleration.tolist()
        self.rejected = 0
        self.reset()

    def reset(self) -> None:
        """Nothing from before counts: at ~/start, and after a clock was set back."""
        self.problem = ""
        self._good = 0
        self._sums: tuple[list[float], list[float], list[float]]  # of the newest, the last three of these:
        # stamp, positions, velocities; integrals of the velocities, of their magnitudes, of what is not known of them
        self._window: deque[tuple[int, list[float], list[float], list[float], list[float], list[float]]] = deque()
        self._number: int | None = None
        self._switched_ns: deque[int] = deque(maxlen=SWITCHES)
        self._agreed_ns: list[int] | None = None  # of each joint, the last time

    def observe(self, stamp_ns: int, positions: FloatArray, velocities: FloatArray, number: int | None = None) -> str:
        """Take a joint state, stamps not falling; returns `problem`.

        positions (n,) rad, velocities (n,) rad/s, finite.  number: of the message among those of its publisher, if
        known.
        """
        q, v = positions.tolist(), velocities.tolist()
        self._sums = self._integrated(stamp_ns, v)
        wrong = (
            self._two_publishers(stamp_ns, number)
            or self._impossible(q, v)
            or self._jumped(stamp_ns, q)
            or self._mirrored(stamp_ns, v)
            or self._opposed(stamp_ns, q)
            or self._contradicts(stamp_ns, q, v)
        )
        if wrong:
            self.problem, self._good = wrong, 0
            self.rejected += 1
            self._window.clear()
            self._agreed_ns = None
            self._sums = self._integrated(stamp_ns, v)
        self._window.append((stamp_ns, q, v, *self._sums))
        if not wrong and self.problem:
            self._good += 1
            if self._good >= PATIENCE:
                self.problem = ""
            else:
                self.rejected += 1
        return self.problem

    def _impossible(self, q: list[float], v: list[float]) -> str:
        beyond = [max(low - x, x - high) for low, x, high in zip(self._lower, q, self._upper, strict=True)]
        joint = _largest(beyond)
        if beyond[joint] > BEYOND_RAD:
            limits = f"{self._lower[joint]:.3f} to {self._upper[joint]:.3f}"
            as_degrees = zip(self._lower, map(math.radians, q), self._upper, strict=True)
            if all(low - BEYOND_RAD <= x <= high + BEYOND_RAD for low, x, high in as_degrees):
                return (
                    f"joint_states say {q[joint]:.1f} rad of {self._names[joint]}, whose limits are {limits}, "
                    "and would be right in degrees: make the driver publish radians, then call ~/start again."
                )
            return f"joint_states say {q[joint]:.3f} rad of {self._names[joint]}, whose limits are {limits}: {HINT}."
        fast = [abs(x) - 2.0 * FASTER * limit for x, limit in zip(v, self._velocity, strict=True)]
        joint = _largest(fast)
        if fast[joint] > 0.0:
            return (
                f"joint_states say that {self._names[joint]} moves at {v[joint]:.2f} rad/s, and it can do "
                f"{self._velocity[joint]:.2f}: {HINT}."
            )
        return ""

    def _jumped(self, stamp_ns: int, q: list[float]) -> str:
        if not self._window:
            return ""
        before_ns, before = self._window[-1][:2]
        seconds = (stamp_ns - before_ns) * 1e-9
        states = zip(q, before, self._velocity, strict=True)
        far = [abs(x - was) - FASTER * limit * seconds - MARGIN_RAD for x, was, limit in states]
        joint = _largest(far)
        if far[joint] <= 0.0:
            return ""
        return (
            f"{self._names[joint]} went from {before[joint]:.3f} to {q[joint]:.3f} rad within "
            f"{1e3 * seconds:.0f} ms by joint_states, and it can do {self._velocity[joint]:.2f} rad/s: look for a "
            "second publisher (ros2 topic info -v joint_states) or a broken encoder, then call ~/start again."
        )

    def _mirrored(self, stamp_ns: int, v: list[float]) -> str:
        if not self._window:
            return ""
        before_ns, _, before = self._window[-1][:3]
        seconds = (stamp_ns - before_ns) * 1e-9
        far = []
        for x, was, limit in zip(v, before, self._acceleration, strict=True):
            change = abs(x - was)
            far.append(change - limit * seconds - NOISE_RAD_S if abs(x + was) < MIRRORED * 0.5 * change else 0.0)
        joint = _largest(far)
        if far[joint] <= 0.0:
            return ""
        return (
            f"{self._names[joint]} went from {before[joint]:.2f} to {v[joint]:.2f} rad/s within "
            f"{1e3 * seconds:.0f} ms by joint_states: check the sign of their velocities, then call ~/start again."
        )

    def _opposed(self, stamp_ns: int, q: list[float]) -> str:
        then = next((e for e in reversed(self._window) if stamp_ns - e[0] >= SPAN_S * 1e9), None)
        if then is None or self._agreed_ns is None or stamp_ns - then[0] > 2.0 * SPAN_S * 1e9:
            self._agreed_ns = [stamp_ns] * len(q)
            return ""
        seconds = (stamp_ns - then[0]) * 1e-9
        way, _, unknown = self._sums
        # Their mean over the same time: at its end alone an arm that turns round is against where it was going, and
        # between joint states that are far apart it may have turned round unseen.
        rates = [(x - was) / seconds for x, was in zip(q, then[1], strict=True)]
        meant = [(to - since) / seconds for to, since in zip(way, then[3], strict=True)]
        for joint, (rate, mean) in enumerate(zip(rates, meant, strict=True)):
            slow = min(abs(rate), abs(mean)) <= SLOW_RAD_S
            if rate * mean >= 0.0 or slow or abs(rate - mean) <= LATE * (unknown[joint] - then[5][joint]) / seconds:
                self._agreed_ns[joint] = stamp_ns
        joint = min(range(len(q)), key=self._agreed_ns.__getitem__)
        if (stamp_ns - self._agreed_ns[joint]) * 1e-9 < OPPOSED_S:
            return ""
        return (
            f"{self._names[joint]} moves at {rates[joint]:.2f} rad/s by its positions in joint_states, and at "
            f"{meant[joint]:.2f} by its velocities: check their sign, then call ~/start again."
        )

    def _contradicts(self, stamp_ns: int, q: list[float], v: list[float]) -> str:
        if not self._window:
            return ""
        self._forget_until(stamp_ns - round(WINDOW_S * 1e9))
        first_ns, *first = self._window[0]
        far, moves = [], []
        for x, rate, way, length, unknown, x0, rate0, way0, length0, unknown0 in zip(
            q, v, *self._sums, *first, strict=True
        ):
            moved, meant = x - x0, way - way0
            room = DIFFERENT * max(length - length0, abs(moved)) + DELAY_S * abs(rate - rate0) + CONTRADICTS_RAD
            far.append(abs(moved - meant) - room - (unknown - unknown0))
            moves.append((moved, meant))
        joint = _largest(far)
        if far[joint] <= 0.0:
            return ""
        moved, meant = moves[joint]
        return (
            f"{self._names[joint]} moved by {moved:.3f} rad in {(stamp_ns - first_ns) * 1e-6:.0f} ms, and by "
            f"its velocities in joint_states it should have been {meant:.3f}: check their sign and unit, then "
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

    def _integrated(self, stamp_ns: int, v: list[float]) -> tuple[list[float], list[float], list[float]]:
        if not self._window:
            return [0.0] * len(v), [0.0] * len(v), [0.0] * len(v)
        last_ns, _, last, way, length, unknown = self._window[-1]
        half = 0.5e-9 * (stamp_ns - last_ns)
        # Between two joint states that are far apart the velocity may have been another altogether.
        if half > APART_S:
            unknown = [room + limit * half**2 for room, limit in zip(unknown, self._acceleration, strict=True)]
        pairs = list(zip(last, v, strict=True))
        way = [so_far + half * (was + x) for so_far, (was, x) in zip(way, pairs, strict=True)]
        length = [so_far + half * (abs(was) + abs(x)) for so_far, (was, x) in zip(length, pairs, strict=True)]
        return way, length, unknown

    def _forget_until(self, oldest_ns: int) -> None:
        while len(self._window) > 2 and self._window[0][0] < oldest_ns:
            self._window.popleft()


def _largest(values: list[float]) -> int:
    """Index of the largest, of equals the first."""
    return values.index(max(values))
