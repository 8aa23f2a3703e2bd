"""Position commands without jolts, for controllers that do what they are told at once.  NumPy only, no ROS.

A forward_command_controller neither interpolates nor brakes.  It is given the checked path at its own rate, averaged
over a window: an average of positions is within every limit that its members are within, keeps their timing (half a
window later), and changes its acceleration by no more than 2 a_max in a window, which bounds the jerk.

All of that holds for evenly spaced samples.  So the stream has a time of its own, which goes on evenly whenever it is
asked: where it is asked late it falls behind, and after a pause, for which the arm stood, it begins as an arm at rest
does; then it catches up slowly.  A machine that is always late is left behind, which whoever asks can see.  A simulated
clock goes as it likes, and a simulated arm is not hurt: there the stream is where the path is.
"""

from __future__ import annotations

import copy

import numpy as np

from policies.types import FloatArray, VegaError
from vega3d_ros.control.guard.course import Course
from vega3d_ros.control.guard.motion import Motion

# Of the limits, what leaves after a pause may have: of velocity, and of acceleration.
FASTEST, BENT = 1.05, 1.2
# So long it takes to catch up, or to wait, at most; s.
CATCH_UP_S = 0.5
# Of a period, the stream may be ahead of the path's clock, whose next motion it does not know, or behind it.
AHEAD, BEHIND = 0.25, 1.0
HALVINGS = 4
# An arm that is told nothing for fewer periods, and for less, goes on, however often it is told else.
STANDS, STANDS_S = 2.5, 0.025


def stands_after_s(period_s: float) -> float:
    """So long after the last position an arm stands that is told one in every period."""
    return max(STANDS * period_s, STANDS_S)


class PathStream:
    """Samples of a path, smoothed.  Used from one thread.

    acceleration (n,) rad/s^2: what the paths keep to; jerk (n,) rad/s^3: what `step` keeps to while it is called in
    time.  period_s: time between two calls of `step`.  evenly: false where the path's clock is a simulated one.
    motion: the path followed from its start on; of those before it what a late stream has yet to go is kept.  Raises
    VegaError on limits that are not positive.
    """

    def __init__(
        self, motion: Motion, acceleration: FloatArray, jerk: FloatArray, period_s: float, evenly: bool = True
    ) -> None:
        n = motion.positions.shape[1]
        limits = [np.asarray(limit, dtype=np.float64) for limit in (acceleration, jerk)]
        if any(limit.shape != (n,) or not np.all(limit > 0.0) for limit in limits):
            raise VegaError(f"Acceleration and jerk limits must be {n} positive numbers: correct the YAML.")
        window_s = float(np.max(2.0 * limits[0] / limits[1]))
        self._period_ns = round(1e9 * period_s)
        self._evenly = evenly
        self._bend = BENT * limits[0] * period_s**2
        self._recent = np.tile(motion.positions[0], (max(1, int(np.ceil(window_s / period_s))), 1))
        self._ages_ns = self._period_ns * np.arange(len(self._recent))[::-1]  # of the samples, oldest first
        self._course = Course(motion, None if evenly else 1)
        self._time_ns: int | None = None  # of the newest sample
        self._advance_ns = self._period_ns  # of the last step
        self._sent = motion.positions[0].copy()
        self._moved = np.zeros(n)  # by the last step

    @property
    def motion(self) -> Motion:
        return self._course.newest

    @motion.setter
    def motion(self, motion: Motion) -> None:
        self._course.follow(motion)

    @property
    def time_ns(self) -> int | None:
        """Of which time of the path the newest sample is; None before the first."""
        return self._time_ns

    def copy(self) -> PathStream:
        """Another that goes on from here, so that a step which is not sent need not count."""
        made = copy.copy(self)
        made._course = self._course.copy()
        return made

    @property
    def at_rest(self) -> bool:
        """Whether the last window saw one place, the path's end."""
        return bool(np.all(self._recent == self.motion.positions[-1]))

    def step(self, time_ns: int, stood: bool = False) -> FloatArray:
        """Positions (n,) rad for the next period.

        time_ns: now, on the path's clock.  stood: the last step was so long ago that the arm has stood since.
        """
        if not self._evenly:
            self._append(self.motion.at(time_ns)[0])
            return np.asarray(self._recent.mean(axis=0))
        if self._time_ns is None:
            self._time_ns = min(time_ns - self._period_ns, self.motion.start_ns)
        if stood:
            self._advance_ns, self._moved = 0, np.zeros_like(self._moved)
        advance_ns = self._next_advance(time_ns - self._time_ns - self._period_ns)
        self._time_ns += advance_ns
        if advance_ns == self._period_ns:
            self._append(self._course.at(self._time_ns)[0])
        else:
            self._recent = self._window(self._time_ns)
        sent = np.asarray(self._recent.mean(axis=0))
        self._advance_ns, self._moved, self._sent = advance_ns, sent - self._sent, sent
        self._course.forget_before(self._time_ns - int(self._ages_ns[0]))
        return sent

    def _next_advance(self, late_ns: int) -> int:
        """How far to go along the path, ns: as its clock asks for, as far as the limits allow.

        late_ns: how late the stream is on the path's clock if it goes on by a period.
        """
        period_ns, wanted_ns = self._period_ns, self._period_ns
        if not -AHEAD * period_ns <= late_ns <= BEHIND * period_ns:
            wanted_ns = round(period_ns * float(np.clip(1.0 + 1e-9 * late_ns / CATCH_UP_S, 0.0, FASTEST)))
        if wanted_ns == self._advance_ns == period_ns or self._may_advance(wanted_ns):
            return wanted_ns
        # As fast as before bends no more than the path does itself.
        good, bad, left = self._advance_ns, wanted_ns, HALVINGS
        while left and abs(bad - good) > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self._may_advance(middle) else (good, middle)
            left -= good != self._advance_ns  # however small a step has to be, one is found
        return good

    def _may_advance(self, advance_ns: int) -> bool:
        assert self._time_ns is not None
        moved = self._window(self._time_ns + advance_ns).mean(axis=0) - self._sent
        return bool(np.all(np.abs(moved - self._moved) <= self._bend))

    def _window(self, time_ns: int) -> FloatArray:
        """All samples if the newest is of this time; before its first motion the path is at its beginning."""
        return self._course.along(time_ns - self._ages_ns)

    def _append(self, place: FloatArray) -> None:
        self._recent = np.roll(self._recent, -1, axis=0)
        self._recent[-1] = place
