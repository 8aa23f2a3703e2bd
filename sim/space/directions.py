"""Left, right, back: where something lies for who stands at one place and faces another.  Seen from above, metres.

As VSI-Bench asks (arXiv 2412.14171).  Ambiguous is a direction near the border of two answers, or where more than two
of the eight corners of the thing asked for lie in another one (the filters of VLM-3R, which writes such questions for
ScanNet; here the margin holds on both sides of a border).
"""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray

MARGIN_DEG = 10.0
STRAY_CORNERS = 2
LEVELS = {"easy": ("left", "right"), "medium": ("left", "right", "back")}
QUADRANTS = ("front-left", "front-right", "back-left", "back-right")
BORDERS = {"easy": (0.0, 180.0), "medium": (0.0, 135.0, -135.0), "hard": (0.0, 90.0, 180.0, -90.0)}
TURNS = ("turn left", "turn right", "turn back")


def bearing(standing: FloatArray, facing: FloatArray, points: FloatArray) -> FloatArray:
    """Degrees in (-180, 180] by which one turns to the left to face points (..., 2) instead of `facing`."""
    ahead = facing[:2] - standing[:2]
    there = points[..., :2] - standing[:2]
    cross = ahead[0] * there[..., 1] - ahead[1] * there[..., 0]
    angle = np.rad2deg(np.arctan2(cross, there @ ahead))
    return np.asarray(np.where(angle <= -180.0, 180.0, angle))


def named(angle: FloatArray, level: str) -> list[str]:
    """The answers for bearings (N,) at a level: easy, medium or hard."""
    return [_name(float(value), level) for value in np.atleast_1d(angle)]


def _name(angle: float, level: str) -> str:
    side = "left" if angle >= 0 else "right"
    if level == "hard":
        return f"{'front' if abs(angle) < 90 else 'back'}-{side}"
    return "back" if level == "medium" and abs(angle) >= 135 else side


def relative_direction(
    standing: FloatArray, facing: FloatArray, centre: FloatArray, corners: FloatArray, level: str
) -> str | None:
    """Where a thing with this centre (3,) and these corners (8, 3) lies; None where that is ambiguous."""
    angle = float(bearing(standing, facing, centre))
    if min(apart(angle, border) for border in BORDERS[level]) < MARGIN_DEG:
        return None
    answer = _name(angle, level)
    strays = sum(name != answer for name in named(bearing(standing, facing, corners), level))
    return answer if strays <= STRAY_CORNERS else None


def turn(origin: FloatArray, here: FloatArray, goal: FloatArray) -> str | None:
    """How one turns who came from `origin` and goes on from `here` to `goal`; None where no answer is clear."""
    angle = float(bearing(here, 2 * here - origin, goal))
    if abs(angle) < 45.0 + MARGIN_DEG or abs(abs(angle) - 135.0) < MARGIN_DEG:
        return None
    return "turn back" if abs(angle) > 135.0 else "turn left" if angle > 0 else "turn right"


def apart(angle: float, other: float) -> float:
    """Degrees between two directions, in [0, 180]."""
    return abs((angle - other + 180.0) % 360.0 - 180.0)
