"""The latched emergency stop: once set, it stays until the arm has demonstrably come to rest.  NumPy only.

Not a rated stop: it ends commanding.  What stops an arm for certain is the red button of its own controller.
Times are seconds of time.monotonic(); used from one thread.
"""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray, VegaError

COOLDOWN_S = 0.5
REST_RAD_S = 0.02
FRESH_S = 0.5


class StopLatch:
    """Set by anybody, cleared only `COOLDOWN_S` after the last motion.

    reason: who set it, '' while it is not set.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._busy_s = 0.0  # last time at which the stop was set or the arm was seen moving
        self._seen_s: float | None = None

    def set(self, reason: str, now_s: float) -> bool:
        """Latch; False if it was set before (the first reason stands, the cooldown begins anew)."""
        self._busy_s = now_s
        if self.reason:
            return False
        self.reason, self._seen_s = reason, None
        return True

    def observe(self, velocities: FloatArray, now_s: float) -> None:
        """Joint velocities (n,) rad/s of the arm now; what is not finite counts as motion."""
        self._seen_s = now_s
        if not bool(np.all(np.abs(velocities) <= REST_RAD_S)):
            self._busy_s = now_s

    def clear(self, now_s: float) -> None:
        """Release.  Raises VegaError unless the arm has been at rest, and seen to be, for `COOLDOWN_S`."""
        if not self.reason:
            raise VegaError("The emergency stop is not set: activate policy_node and call ~/start to command.")
        if self._seen_s is None or now_s - self._seen_s > FRESH_S:
            raise VegaError("Nobody knows whether the arm is at rest: start its driver, so that joint_states come.")
        if now_s - self._busy_s < COOLDOWN_S:
            raise VegaError(
                f"The stop was set, or the arm moved, less than {COOLDOWN_S:g} s ago: wait until it is at rest."
            )
        self.reason = ""
