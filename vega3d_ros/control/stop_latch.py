"""The latched emergency stop: once set, it stays until the arm has demonstrably come to rest.

Not a rated stop: it ends commanding.  What stops an arm for certain is the red button of its own controller.
Times are seconds of time.monotonic(); used from one thread.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from policies.types import VegaError

COOLDOWN_S = 0.5
REST_RAD_S = 0.02
FRESH_S = 0.5
# A joint that is still here has been slower than that.  Half of it for what is reported now and then only.
REST_RAD = REST_RAD_S * COOLDOWN_S / 2
TURN = 2.0 * math.pi


class StopLatch:
    """Set by anybody, cleared only `COOLDOWN_S` after the last motion.

    reason: who set it, '' while it is not set.
    """

    def __init__(self) -> None:
        self.reason = ""
        # Last time at which the stop was set, or a joint of the arm was seen moving or for the first time.
        self._busy_s = 0.0
        self._places: dict[str, float] = {}
        self._seen_s: dict[str, float] = {}

    def set(self, reason: str, now_s: float) -> bool:
        """Latch; False if it was set before (the first reason stands, the cooldown begins anew)."""
        self._busy_s = now_s
        if self.reason:
            return False
        self.reason = reason
        self._places.clear()
        self._seen_s.clear()
        return True

    def observe(self, joints: Mapping[str, tuple[float, float]], now_s: float) -> None:
        """Joints of the arm that are seen now, all or some: position rad, velocity rad/s.

        A position that is not finite counts as motion; so does an infinite velocity, and NaN is one that nobody tells.
        Positions count in any case, since drivers without velocities send zeros, too.  A whole turn is none.
        """
        for name, (position, velocity) in joints.items():
            way = position - self._places.get(name, math.nan)
            stays = math.isfinite(way) and abs(math.remainder(way, TURN)) <= REST_RAD
            if not stays or abs(velocity) > REST_RAD_S:
                self._busy_s = now_s
                self._places[name] = position
            self._seen_s[name] = now_s

    def clear(self, joints: Collection[str], now_s: float) -> None:
        """Release.  joints: of the whole arm.  Raises VegaError unless all have been at rest, and seen to be, for
        `COOLDOWN_S`."""
        if not self.reason:
            raise VegaError("The emergency stop is not set: activate policy_node and call ~/start to command.")
        unseen = [name for name in joints if now_s - self._seen_s.get(name, -math.inf) > FRESH_S]
        if unseen or not joints:
            raise VegaError(
                f"Nobody knows whether the arm is at rest: start its driver, so that joint_states come with "
                f"{', '.join(unseen) or 'joints that joint_names names'}."
            )
        if now_s - self._busy_s < COOLDOWN_S:
            raise VegaError(
                f"The stop was set, or the arm moved or was first seen, less than {COOLDOWN_S:g} s ago: wait until it "
                "is at rest."
            )
        self.reason = ""
