"""Points on true surfaces, upright boxes around them, and the gap between two things.  Metres, z up.

As in VSI-Bench (arXiv 2412.14171): a distance is that of the closest points of two things, a size the longest side of
the box around one, which stands upright and is turned about the vertical to be as small as possible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError, cKDTree

from policies.types import FloatArray

SPACING = 0.003  # of the points that stand for a surface, m
FEW = 400  # points that give a first bound of a gap


@dataclass(frozen=True)
class Box:
    """Upright: centre (3,), size (length, width, height) with length >= width, yaw of the length (rad, in [0, pi))."""

    centre: FloatArray
    size: FloatArray
    yaw: float

    @property
    def corners(self) -> FloatArray:
        """(8, 3), the lower four first."""
        signs = np.array([[x, y, z] for z in (-0.5, 0.5) for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
        cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
        turned = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        return np.asarray(self.centre + (signs * self.size) @ turned.T)


def surface_points(vertices: FloatArray, faces: NDArray[np.int64], spacing: float = SPACING) -> FloatArray:
    """(V, 3) and (F, 3) vertex numbers -> (N, 3): the corners, and points on the triangles at most `spacing` apart."""
    corners = vertices[faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1, initial=0.0)
    steps = np.maximum(np.ceil(longest / spacing).astype(int), 1)
    parts = [vertices[np.unique(faces)]]
    for count in np.unique(steps[steps > 1]):
        first, second = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        inside = first + second <= count
        a, b = first[inside] / count, second[inside] / count
        weights = np.stack([1.0 - a - b, a, b], axis=1)
        parts.append(np.einsum("pk,fkd->fpd", weights, corners[steps == count]).reshape(-1, 3))
    every = np.concatenate(parts)
    # The outermost stay, so that sizes are exact.
    return np.concatenate([_outermost(vertices[np.unique(faces)]), thinned(every, spacing)])


def _outermost(points: FloatArray) -> FloatArray:
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:  # all in a plane
        return points


def thinned(points: FloatArray, spacing: float) -> FloatArray:
    """One point of each cell of a grid with this spacing, the first."""
    _, kept = np.unique(np.floor(points / spacing).astype(np.int64), axis=0, return_index=True)
    return points[np.sort(kept)]


def upright_box(points: FloatArray) -> Box:
    """The upright box of least area around points (N, 3)."""
    low, high = points[:, 2].min(), points[:, 2].max()
    flat = points[:, :2]
    try:
        hull = flat[ConvexHull(flat).vertices]
    except QhullError:  # all on a line
        hull = flat
    edges = np.roll(hull, -1, axis=0) - hull
    best: tuple[float, float, FloatArray, FloatArray] | None = None
    for angle in np.unique(np.round(np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2), 9)):
        cosine, sine = np.cos(angle), np.sin(angle)
        turned = hull @ np.array([[cosine, -sine], [sine, cosine]])
        least, most = turned.min(axis=0), turned.max(axis=0)
        area = float(np.prod(most - least))
        if best is None or area < best[0]:
            middle = (least + most) / 2
            centre = np.array([[cosine, -sine], [sine, cosine]]) @ middle
            best = (area, float(angle), most - least, centre)
    assert best is not None
    _, yaw, sides, centre = best
    if sides[1] > sides[0]:
        sides, yaw = sides[::-1], yaw + np.pi / 2
    return Box(np.array([*centre, (low + high) / 2]), np.array([*sides, high - low]), float(yaw % np.pi))


def aligned_box(points: FloatArray) -> FloatArray:
    """(6,): centre and sides of the box along the world's axes around points (N, 3), as ScanRefer has it."""
    low, high = points.min(axis=0), points.max(axis=0)
    return np.concatenate([(low + high) / 2, high - low])


class Cloud:
    """The surface of one thing, for measuring gaps; points (N, 3) in the world."""

    def __init__(self, points: FloatArray) -> None:
        self.points = points
        self._tree = cKDTree(points)
        self._low, self._high = points.min(axis=0), points.max(axis=0)
        self._some = points[:: max(len(points) // FEW, 1)]

    def gap(self, other: Cloud) -> float:
        """Distance of the closest points of two surfaces."""
        bound = float(self._tree.query(other._some)[0].min())
        outside = np.maximum(np.maximum(self._low - other.points, other.points - self._high), 0.0)
        near = other.points[np.linalg.norm(outside, axis=1) <= bound]
        return float(self._tree.query(near, distance_upper_bound=bound + 1e-9)[0].min(initial=bound))


def level_area(vertices: FloatArray, faces: NDArray[np.int64], height: float, tolerance: float = 0.02) -> float:
    """Area in m^2 that the faces at this height span, their convex hull: what one calls the size of a table top."""
    corners = vertices[faces]
    level = corners[(np.abs(corners[:, :, 2] - height) <= tolerance).all(axis=1)]
    return float(ConvexHull(level.reshape(-1, 3)[:, :2]).volume) if len(level) else 0.0
