"""What the guard says to one command.  NumPy only, no ROS."""

from __future__ import annotations

from dataclasses import dataclass

from policies.types import FloatArray
from vega3d_ros.control.guard.motion import Motion


@dataclass(frozen=True)
class GuardDecision:
    """positions (n,) rad, velocities (n,) rad/s: where the path is one period later.  gripper: what may be commanded.

    motion: the path from now on, to rest.  rejected: the intended command was refused, and the path is the one that was
    under way.  rules: those that were broken, in the order of RULES; empty if the command passed untouched.
    """

    positions: FloatArray
    velocities: FloatArray
    gripper: float
    rejected: bool
    rules: tuple[str, ...]
    motion: Motion
