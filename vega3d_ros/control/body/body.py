"""The arm's whole body: how near its links are to each other, to the floor, to walls and to listed obstacles.

Pinocchio places the capsules, its collision library coal measures the distances; a configuration takes some
microseconds.  Not thread-safe.  Everything stands still but the arm and its fingers, which may be anywhere in their
stroke: nothing here sees people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from policies.types import FloatArray, VegaError
from vega3d_ros.control.body.capsules import box, capsules_round, collision_pieces, half_space, link_name
from vega3d_ros.control.body.hand import spread
from vega3d_ros.control.kinematics import ENDLESS_RAD, bounded

SAMPLES = 400
STILL_M = 1e-6  # a distance that changes by less, whatever the joints do, is one that no motion can better


@dataclass(frozen=True)
class Surroundings:
    """What the arm must keep away from, m in the root link's frame.

    floor: height below which no link may be, None for none.  cell: lower and upper corner of a room that no link may
    leave, None for none.  boxes: obstacles, each by its lower and upper corner.
    """

    floor: float | None = None
    cell: tuple[FloatArray, FloatArray] | None = None
    boxes: tuple[tuple[FloatArray, FloatArray], ...] = ()


@dataclass(frozen=True)
class Nearest:
    """The two that are nearest to each other: links, `floor`, `wall -x` or `box 1`; negative m: they overlap."""

    distance_m: float
    names: tuple[str, str]


class Body:
    """A zone for the guard, and distances for slowing down.

    home (n,) rad: a posture that is right by definition.  clearance_m: nothing may come nearer to what stands around;
    of two links the capsules, which are wider than they, may not meet.  slow_m: below it the arm is to slow down.
    ignored: pairs of links `a:b` that may touch.  unwatched: pairs of links that are not watched, since their capsules
    meet at `home` already, or since the ends of the two joints between them keep them apart.

    Raises VegaError if the geometry cannot be had, or if the arm touches its surroundings at `home`.
    """

    rule = "body"

    def __init__(
        self,
        urdf_xml: str,
        joint_names: Sequence[str],
        home: FloatArray,
        surroundings: Surroundings,
        clearance_m: float = 0.02,
        slow_m: float = 0.1,
        ignored: Sequence[str] = (),
    ) -> None:
        # One number for each joint, as the arm's angles are given everywhere, also of those that turn without end.
        urdf_xml, _ = bounded(urdf_xml, joint_names)
        full = pin.buildModelFromXML(urdf_xml)
        pieces = collision_pieces(urdf_xml, full)
        both = spread(urdf_xml, full, joint_names, pieces, capsules_round(pieces))
        locked = [full.getJointId(name) for name in full.names[1:] if name not in joint_names]
        self._model, (pieces, self._geometry) = pin.buildReducedModel(
            full, list(both), locked, pin.neutral(full)
        )
        self._data = self._model.createData()
        self.clearance_m, self.slow_m = clearance_m, slow_m
        links = self._geometry.ngeoms
        for thing in _things(surroundings, clearance_m):
            self._geometry.addGeometryObject(thing)
        self._names = [link_name(item.name) for item in self._geometry.geometryObjects[:links]]
        self._names += [item.name for item in self._geometry.geometryObjects[links:]]
        self.unwatched = self._choose_pairs(links, home, self._ignored(ignored), pieces)
        # What stands around is wider by the clearance, so that everything has to stop at the same distance, 0.
        self._wider = np.array([clearance_m if pair.second >= links else 0.0 for pair in self._pairs])
        # Links near to each other in the chain are never far apart: they slow the arm only where they come nearer than
        # half of what they have at home.
        self._slow = np.minimum(slow_m - self._wider, self._measure(home) / 2)
        self._cache: tuple[FloatArray, FloatArray] | None = None

    @property
    def pairs(self) -> int:
        """How many pairs are watched."""
        return len(self._pairs)

    def nearest(self, q: FloatArray) -> Nearest | None:
        """Of all pairs the one that is nearest to slowing the arm, at q (n,) rad; None if nothing is watched."""
        if not self._pairs:
            return None
        distances = self._measure(q)
        index = int(np.argmin(distances / self._slow))
        pair = self._pairs[index]
        return Nearest(
            float(distances[index] + self._wider[index]), (self._names[pair.first], self._names[pair.second])
        )

    def allows(self, configurations: FloatArray) -> bool:
        """Whether at none of (m, n) rad anything is nearer than it may be."""
        return not self._pairs or all(self._place(q) >= 0.0 for q in configurations)

    def speed_factor(self, q: FloatArray, goal: FloatArray) -> float:
        """1 to 0: how fast the arm may go from q to goal, (n,) rad, so that what it approaches stays at its clearance.

        Linear in the distance at `goal`; what goes away from each other slows nothing.
        """
        if not self._pairs:
            return 1.0
        before = self._remembered(q)
        after = self._measure(goal)
        self._cache = (goal.copy(), after)
        nearer = (after < before - STILL_M) & (after < self._slow)
        if not nearer.any():
            return 1.0
        return float(np.clip(after[nearer] / self._slow[nearer], 0.0, 1.0).min())

    def _remembered(self, q: FloatArray) -> FloatArray:
        if self._cache is not None and np.array_equal(self._cache[0], q):
            return self._cache[1]
        return self._measure(q)

    def _place(self, q: FloatArray) -> float:
        """Measure everything; the smallest distance."""
        pin.updateGeometryPlacements(self._model, self._data, self._geometry, self._found, q)
        return float(self._found.distanceResults[pin.computeDistances(self._geometry, self._found)].min_distance)

    def _measure(self, q: FloatArray) -> FloatArray:
        """(pairs,) m, less the clearance for what stands around."""
        self._place(q)
        return np.fromiter((result.min_distance for result in self._found.distanceResults), float, len(self._pairs))

    def _watch(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._geometry.removeAllCollisionPairs()
        for first, second in pairs:
            self._geometry.addCollisionPair(pin.CollisionPair(first, second))
        self._pairs = list(self._geometry.collisionPairs)
        self._found = pin.GeometryData(self._geometry)

    def _ignored(self, ignored: Sequence[str]) -> set[frozenset[str]]:
        known = set(self._names)
        pairs = [frozenset(text.split(":")) for text in ignored]
        for text, pair in zip(ignored, pairs, strict=True):
            if len(pair) != 2 or not pair <= known:
                raise VegaError(f"body.ignore has '{text}': write link:link, with two of {', '.join(sorted(known))}.")
        return set(pairs)

    def _choose_pairs(
        self, links: int, home: FloatArray, ignored: set[frozenset[str]], pieces: pin.GeometryModel
    ) -> tuple[str, ...]:
        """Watch every pair that a motion could bring together; returns the pairs of links that it had to leave out."""
        joints = [item.parentJoint for item in self._geometry.geometryObjects]
        every = [
            (first, second)
            for second in range(self._geometry.ngeoms)
            for first in range(min(second, links))
            if not self._rigid(joints[first], joints[second], second >= links)
            and frozenset((self._names[first], self._names[second])) not in ignored
        ]
        self._watch(every)
        if not every:
            return ()
        rng = np.random.default_rng(0)
        low, high = self._model.lowerPositionLimit, self._model.upperPositionLimit
        endless = high - low >= 2.0 * ENDLESS_RAD  # of these one turn is as good as all
        low, high = np.where(endless, -np.pi, low), np.where(endless, np.pi, high)
        samples = rng.uniform(low, high, (SAMPLES, low.size))
        distances = np.array([self._measure(q) for q in samples])
        at_home = self._measure(home)
        left_out = []
        watched = []
        for column, pair in enumerate(every):
            first, second = self._names[pair[0]], self._names[pair[1]]
            if np.ptp(distances[:, column]) <= STILL_M:
                continue
            if pair[1] >= links:
                if at_home[column] <= 0.0:
                    apart_m = at_home[column] + self.clearance_m
                    raise VegaError(
                        f"At 'home' {first} is {apart_m:.3f} m from {second}, nearer than body.clearance "
                        f"{self.clearance_m:g} m: correct home, or the body's surroundings in the robot's YAML."
                    )
                watched.append(pair)
            elif at_home[column] <= 0.0 or self._kept_apart(pair, pieces, samples[distances[:, column] <= 0.0]):
                left_out.append(f"{first}:{second}")
            else:
                watched.append(pair)
        self._watch(watched)
        return tuple(dict.fromkeys(left_out))  # what the arm carries is there several times

    def _kept_apart(self, pair: tuple[int, int], pieces: pin.GeometryModel, samples: FloatArray) -> bool:
        """Whether two links with two joints between them, whose capsules meet at these samples (k, n), never do."""
        first, second = (self._geometry.geometryObjects[index].parentJoint for index in pair)
        parents = self._model.parents
        if not len(samples) or int(parents[int(parents[second])]) != first:
            return False
        pieces.removeAllCollisionPairs()
        pieces.addCollisionPair(pin.CollisionPair(*pair))
        found = pin.GeometryData(pieces)
        for q in samples:
            pin.updateGeometryPlacements(self._model, self._data, pieces, found, q)
            if pin.computeCollision(pieces, found, 0):
                return False
        return True

    def _rigid(self, first: int, second: int, is_thing: bool) -> bool:
        """Whether two pieces are on one link or on neighbours, which always touch; what stands around is no link."""
        if first == second:
            return True
        if is_thing:
            return False
        parents = self._model.parents
        return int(parents[first]) == second or int(parents[second]) == first


def _things(surroundings: Surroundings, wider_m: float) -> list[pin.GeometryObject]:
    things = []
    if surroundings.floor is not None:
        things.append(half_space("floor", (0, 0, 1), surroundings.floor + wider_m))
    if surroundings.cell is not None:
        for axis, name in enumerate("xyz"):
            inwards = np.eye(3)[axis]
            things.append(half_space(f"wall -{name}", inwards, surroundings.cell[0][axis] + wider_m))
            things.append(half_space(f"wall +{name}", -inwards, wider_m - surroundings.cell[1][axis]))
    for number, (low, high) in enumerate(surroundings.boxes, 1):
        things.append(box(f"box {number}", low - wider_m, high + wider_m))
    return things
