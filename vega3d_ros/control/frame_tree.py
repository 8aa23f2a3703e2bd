"""Where coordinate frames stand to each other, as tf tells it: a tree of transforms with stamps.  NumPy only.

tf2 does the same, but is not everywhere where this package runs.  As there, a moving frame is interpolated between two
transforms (linearly, and along the shorter arc), and never extrapolated.  Used from one thread.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from policies.types import FloatArray, VegaError

HISTORY_NS = 10_000_000_000


@dataclass
class _Edge:
    """A frame in its parent: (stamp, position (3,), quaternion (4,) xyzw), oldest first; a fixed one has no time."""

    parent: str
    fixed: bool
    stamps: list[int] = field(default_factory=list)
    poses: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)


class FrameTree:
    """Transforms as they come, and what follows from them."""

    def __init__(self) -> None:
        self._edges: dict[str, _Edge] = {}

    def take(
        self, parent: str, child: str, stamp_ns: int, position: FloatArray, quaternion: FloatArray, fixed: bool = False
    ) -> None:
        """`child` stands in `parent` at position (3,) m with quaternion (4,) xyzw.  Raises VegaError on numbers that
        are no transform.

        One that is older than what is kept says that the clock was set back: what is held is then of another time.
        """
        if not np.all(np.isfinite(position)) or not abs(np.linalg.norm(quaternion) - 1.0) < 1e-3:
            raise VegaError(f"tf has no rotation and position for {child!r} in {parent!r}: correct its publisher.")
        edge = self._edges.get(child)
        other = edge is None or (edge.parent, edge.fixed) != (parent, fixed) or fixed
        if edge is None or other or stamp_ns < edge.stamps[-1] - HISTORY_NS:
            edge = self._edges[child] = _Edge(parent, fixed)
        place = bisect.bisect_left(edge.stamps, stamp_ns)
        pose = (np.array(position, dtype=np.float64), np.array(quaternion, dtype=np.float64))
        if place < len(edge.stamps) and edge.stamps[place] == stamp_ns:
            edge.poses[place] = pose
            return
        edge.stamps.insert(place, stamp_ns)
        edge.poses.insert(place, pose)
        old = bisect.bisect_left(edge.stamps, edge.stamps[-1] - HISTORY_NS)
        del edge.stamps[:old], edge.poses[:old]

    def clear(self) -> None:
        """Forget what moves, as where the clock was set back."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.fixed}

    def lookup(self, target: str, source: str, stamp_ns: int) -> FloatArray:
        """(4, 4): a point in `source` -> the same in `target`, m.

        Raises VegaError where the two do not hang together, or a moving frame is not known at that time (yet).
        """
        up = dict(self._upwards(source, stamp_ns, target))
        if target in up:
            return up[target]
        for name, matrix in self._upwards(target, stamp_ns):
            if name in up:
                return np.asarray(np.linalg.inv(matrix) @ up[name])
        raise VegaError(
            f"tf does not connect {source!r} with {target!r}: start what publishes it (robot_state_publisher, a "
            "static_transform_publisher), or correct the names of the frames."
        )

    def _upwards(self, name: str, stamp_ns: int, stop: str = "") -> Iterator[tuple[str, FloatArray]]:
        """Every frame above `name`, itself first, with the (4, 4) of `name` in it."""
        matrix, seen = np.eye(4), {name}
        yield name, matrix
        while name in self._edges and name != stop:
            edge = self._edges[name]
            matrix = _pose_at(name, edge, stamp_ns) @ matrix
            name = edge.parent
            if name in seen:
                raise VegaError(f"tf goes round in a circle at {name!r}: see who publishes it twice.")
            seen.add(name)
            yield name, matrix


def _pose_at(name: str, edge: _Edge, stamp_ns: int) -> FloatArray:
    if edge.fixed:
        return pose_matrix(*edge.poses[-1])
    if stamp_ns > edge.stamps[-1]:
        behind_s = (stamp_ns - edge.stamps[-1]) / 1e9
        raise VegaError(f"tf of {name!r} ends {behind_s:.2f} s before the picture: see whether its publisher runs.")
    if stamp_ns < edge.stamps[0]:
        raise VegaError(
            f"tf of {name!r} begins {(edge.stamps[0] - stamp_ns) / 1e9:.2f} s after the picture: compare the clocks."
        )
    after = bisect.bisect_left(edge.stamps, stamp_ns)
    if edge.stamps[after] == stamp_ns:
        return pose_matrix(*edge.poses[after])
    (p0, q0), (p1, q1) = edge.poses[after - 1], edge.poses[after]
    share = (stamp_ns - edge.stamps[after - 1]) / (edge.stamps[after] - edge.stamps[after - 1])
    return pose_matrix(p0 + share * (p1 - p0), _slerp(q0, q1, share))


def _slerp(q0: FloatArray, q1: FloatArray, share: float) -> FloatArray:
    """Between two unit quaternions along the shorter arc."""
    cosine = float(q0 @ q1)
    if cosine < 0.0:
        q1, cosine = -q1, -cosine
    if cosine > 0.9995:
        mixed = q0 + share * (q1 - q0)
    else:
        angle = np.arccos(cosine)
        mixed = np.sin((1 - share) * angle) * q0 + np.sin(share * angle) * q1
    return np.asarray(mixed / np.linalg.norm(mixed))


def pose_matrix(position: FloatArray, quaternion: FloatArray) -> FloatArray:
    """(4, 4) of position (3,) m and unit quaternion (4,) xyzw."""
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = position
    return matrix
