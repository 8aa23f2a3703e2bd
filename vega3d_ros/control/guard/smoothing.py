"""Position commands without jolts, for controllers that do what they are told at once.  NumPy only, no ROS.

A forward_command_controller neither interpolates nor brakes.  It is given the checked path at its own rate, averaged
over a window: an average of positions is within every limit that its members are within, keeps their timing (half a
window later), and changes its acceleration by no more than 2 a_max in a window, which bounds the jerk.
"""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray, VegaError
from vega3d_ros.control.guard.motion import Motion


class PathStream:
    """Samples of a path, smoothed.  Used from one thread.

    acceleration (n,) rad/s^2: what the paths keep to; jerk (n,) rad/s^3: what `step` keeps to.  period_s: time between
    two calls of `step`.  motion: the path followed now.  Raises VegaError on limits that are not positive.
    """

    def __init__(self, motion: Motion, acceleration: FloatArray, jerk: FloatArray, period_s: float) -> None:
        n = motion.positions.shape[1]
        limits = [np.asarray(limit, dtype=np.float64) for limit in (acceleration, jerk)]
        if any(limit.shape != (n,) or not np.all(limit > 0.0) for limit in limits):
            raise VegaError(f"Acceleration and jerk limits must be {n} positive numbers: correct the YAML.")
        self.motion = motion
        window_s = float(np.max(2.0 * limits[0] / limits[1]))
        self._recent = np.tile(motion.positions[0], (max(1, int(np.ceil(window_s / period_s))), 1))

    @property
    def at_rest(self) -> bool:
        """Whether the last window saw one place, the path's end."""
        return bool(np.all(self._recent == self.motion.positions[-1]))

    def step(self, time_ns: int) -> FloatArray:
        """Positions (n,) rad for the next period."""
        self._recent = np.roll(self._recent, -1, axis=0)
        self._recent[-1] = self.motion.at(time_ns)[0]
        return np.asarray(self._recent.mean(axis=0))
