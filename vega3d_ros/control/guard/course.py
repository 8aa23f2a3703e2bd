"""Motions that follow one another, for whoever goes along them later than they were made.  NumPy only, no ROS."""

from __future__ import annotations

import copy
from collections import deque

import numpy as np

from policies.types import FloatArray
from vega3d_ros.control.guard.motion import IntArray, Motion


class Course:
    """Each motion is followed from its start until that of the next; those that no longer begin before it are dropped.

    motion: the first, followed before its start too, where it is at its beginning.  longest: so many are remembered,
    None for all.  Not thread-safe.
    """

    def __init__(self, motion: Motion, longest: int | None = None) -> None:
        self._motions = deque([motion], longest)

    @property
    def newest(self) -> Motion:
        return self._motions[-1]

    def follow(self, motion: Motion) -> None:
        if motion is self._motions[-1]:
            return
        while self._motions and self._motions[-1].start_ns >= motion.start_ns:
            self._motions.pop()
        self._motions.append(motion)

    def copy(self) -> Course:
        made = copy.copy(self)
        made._motions = self._motions.copy()
        return made

    def motion_at(self, time_ns: int) -> Motion:
        """The one that is followed then; the oldest that is remembered where that began later."""
        return next((motion for motion in reversed(self._motions) if motion.start_ns <= time_ns), self._motions[0])

    def at(self, time_ns: int) -> tuple[FloatArray, FloatArray]:
        """Positions (n,) rad and velocities (n,) rad/s then."""
        return self.motion_at(time_ns).at(time_ns)

    def along(self, times_ns: IntArray) -> FloatArray:
        """Positions (k, n) rad at times (k,), which grow."""
        starts_ns = np.array([motion.start_ns for motion in self._motions])
        followed = np.maximum(starts_ns.searchsorted(times_ns, side="right") - 1, 0)
        pieces = [self._motions[index].along(times_ns[followed == index]) for index in np.unique(followed)]
        return np.concatenate(pieces)

    def forget_before(self, time_ns: int) -> None:
        """What is over by then is not asked for any more."""
        while len(self._motions) > 1 and self._motions[1].start_ns <= time_ns:
            self._motions.popleft()
