"""What an arm carries and does not move itself, fingers above all: it is wherever its own joints can bring it.

Nobody tells the guard where the fingers are, and they move while the arm does.  So each piece of theirs is there
several times along its stroke, in capsules so much wider that they contain all places between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import coal
import numpy as np
import pinocchio as pin

from policies.types import FloatArray

# Places are added until the capsules are at most so much wider, m, or until there are so many.
WIDER_M, PLACES = 0.005, 25
# How far a joint follows another: its leader, multiplier, and offset.
Follows = tuple[str, float, float]


def spread(
    urdf_xml: str,
    model: pin.Model,
    joint_names: Collection[str],
    pieces: pin.GeometryModel,
    capsules: pin.GeometryModel,
) -> tuple[pin.GeometryModel, pin.GeometryModel]:
    """Both, with all that joints beyond the arm's carry fixed to the arm's, once for each place.

    model: of all joints.  joint_names: the arm's.  pieces, capsules: the same in the same order, as are the results.
    Strokes are the URDF's limits; a joint without an end goes all around, and one that mimics another follows it.
    """
    hand = _Hand(urdf_xml, model, joint_names)
    everywhere = pin.GeometryModel(), pin.GeometryModel()
    for piece, capsule in zip(pieces.geometryObjects, capsules.geometryObjects, strict=True):
        carrier, leaders = hand.carried_by(piece.parentJoint)
        if not leaders:
            everywhere[0].addGeometryObject(piece)
            everywhere[1].addGeometryObject(capsule)
            continue
        radius, length = float(capsule.geometry.radius), 2 * float(capsule.geometry.halfLength)
        ends = capsule.placement.translation + np.outer((-length / 2, length / 2), capsule.placement.rotation[:, 2])
        places, wider = hand.places(piece.parentJoint, carrier, leaders, ends, radius)
        shape = coal.Capsule(wider, length)
        fixed = carrier, model.getFrameId(model.names[carrier])
        for place in places:
            for kind, item, what in zip(everywhere, (piece, capsule), (piece.geometry, shape), strict=True):
                kind.addGeometryObject(pin.GeometryObject(item.name, *fixed, place * item.placement, what))
    return everywhere


@dataclass(frozen=True)
class _Stroke:
    """A joint that moves by itself, from low to high (rad or m), and by index those that it moves: times, plus."""

    low: float
    high: float
    moved: tuple[tuple[int, float, float], ...]


class _Hand:
    """All joints beyond the arm's."""

    def __init__(self, urdf_xml: str, model: pin.Model, joint_names: Collection[str]) -> None:
        self._model, self._data = model, model.createData()
        self._arm = {model.getJointId(name) for name in joint_names}
        self._follows = _followers(urdf_xml)

    def carried_by(self, joint: int) -> tuple[int, list[_Stroke]]:
        """The arm's joint that carries this one (0: none, or it is the arm's own), and what moves it."""
        chain: list[int] = []
        while joint and joint not in self._arm:
            chain.append(joint)
            joint = int(self._model.parents[joint])
        moved: dict[str, list[tuple[int, float, float]]] = {}
        for index in chain if joint else []:
            leader, times, plus = _leader(self._model.names[index], self._follows)
            moved.setdefault(leader, []).append((index, times, plus))
        known = set(self._model.names)
        # One that follows the arm's own stays where it is.
        free = [name for name in moved if name in known and self._model.getJointId(name) not in self._arm]
        return joint, [_Stroke(*self._range(name), tuple(moved[name])) for name in free]

    def places(
        self, joint: int, carrier: int, leaders: Sequence[_Stroke], ends: FloatArray, radius: float
    ) -> tuple[list[pin.SE3], float]:
        """Where `joint` is, in the carrier's frame, and how wide (m) a capsule round a segment has to be at each place.

        ends (2, 3) m: of the segment, in the joint's frame.  radius: what is enough where nothing moves, m.
        """
        count = 2  # along each stroke
        while True:
            # Every other one is between two places.
            grid = [np.linspace(leader.low, leader.high, 2 * count - 1) for leader in leaders]
            frames = {
                at: self._frame(joint, carrier, leaders, [values[i] for values, i in zip(grid, at, strict=True)])
                for at in itertools.product(range(2 * count - 1), repeat=len(leaders))
            }
            wider = radius
            for axis in range(len(leaders)):  # what contains all along one stroke is to be contained along the next
                begins = [at for at in frames if at[axis] % 2 == 0 and at[axis] < 2 * count - 2]
                wider = max(
                    _wide_enough(wider, ends, [frames[(*at[:axis], at[axis] + i, *at[axis + 1 :])] for i in range(3)])
                    for at in begins
                )
            if wider - radius <= WIDER_M or (count + 1) ** len(leaders) > PLACES:
                return [frame for at, frame in frames.items() if not any(i % 2 for i in at)], wider
            count += 1

    def _range(self, name: str) -> tuple[float, float]:
        joint = self._model.joints[self._model.getJointId(name)]
        if joint.nq != 1:
            return -math.pi, math.pi
        return float(self._model.lowerPositionLimit[joint.idx_q]), float(self._model.upperPositionLimit[joint.idx_q])

    def _frame(self, joint: int, carrier: int, leaders: Sequence[_Stroke], values: Sequence[float]) -> pin.SE3:
        step = np.zeros(self._model.nv)
        for leader, value in zip(leaders, values, strict=True):
            for index, times, plus in leader.moved:
                step[self._model.joints[index].idx_v] = times * value + plus
        pin.forwardKinematics(self._model, self._data, pin.integrate(self._model, pin.neutral(self._model), step))
        return self._data.oMi[carrier].actInv(self._data.oMi[joint])


def _wide_enough(radius: float, ends: FloatArray, frames: Sequence[pin.SE3]) -> float:
    """The radius with which capsules round a segment, at the first and the last of three frames, contain a narrower one
    wherever it is between.

    p in it, between its places p0 and p1 at a share s of the way, is u0 + s d off the first axis and u1 - (1 - s) d
    off the last, with |u0| = |u1| <= radius, |d| = move: the smaller square is at most the mean of both weighted with
    1 - s and s, which is radius^2 + s (1 - s) (move^2 + 2 |u0 - u1| move).  The way is an arc, which is `bulge` beside
    that line.
    """
    here, between, there = (frame.translation + ends @ frame.rotation.T for frame in frames)
    turn = 2 * max(_angle(frames[1], frame) for frame in (frames[0], frames[2]))
    move = float(np.linalg.norm(here - there, axis=1).max()) + radius * turn
    bulge = float(np.linalg.norm(between - (here + there) / 2, axis=1).max()) + radius * turn**2 / 8
    return math.sqrt(radius**2 + move**2 / 4 + radius * turn * move / 2) + bulge


def _angle(first: pin.SE3, second: pin.SE3) -> float:
    return float(np.linalg.norm(pin.log3(first.rotation.T @ second.rotation)))


def _followers(urdf_xml: str) -> dict[str, Follows]:
    """Joints that mimic another."""
    return {
        joint.get("name", ""): (
            mimic.get("joint", ""),
            float(mimic.get("multiplier", 1.0)),
            float(mimic.get("offset", 0.0)),
        )
        for joint in ET.fromstring(urdf_xml).findall("joint")
        if (mimic := joint.find("mimic")) is not None
    }


def _leader(name: str, follows: Mapping[str, Follows]) -> Follows:
    """Whom a joint follows in the end, itself if nobody."""
    times, plus, seen = 1.0, 0.0, {name}
    while name in follows and follows[name][0] not in seen:
        name, more, off = follows[name]
        times, plus = times * more, times * off + plus
        seen.add(name)
    return name, times, plus
