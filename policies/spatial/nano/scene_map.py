"""All frames together: every thing once, where it stands on the surface, its size and footprint.  NumPy only.

    sightings ─► things (of one kind, near each other) ─► bundle adjustment ─► things again ─► adjustment ─► the map

The map's frame is that of the films: its origin in the middle of the surface on which things stand, z up, m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from policies.spatial.nano.bundle import Observed, adjust, onto_surface, relocated, surface_rise, towards
from policies.spatial.nano.network import UNIT_M
from policies.spatial.nano.sightings import Sightings
from policies.types import FloatArray

ROUNDS_M = (0.16, 0.10)  # within which two sightings are of one thing, before and after the cameras are better known
DIRECTIONS = np.arange(72) * np.pi / 36  # in which footprints are measured
TOUCHING = 0.01  # least gap between two things, m
INSIDE, SAME, OTHER = 0.6, 0.1, 0.4  # of two things at one place: when, and what becomes of the weaker one's score
LEAST = 0.2  # of the best score of a kind: what is fainter is left out
RESCALED = (0.6, 1.6)  # sizes follow better known depths so far
CLEAR = 8e-4  # share of a picture from which a thing is clearly seen


@dataclass(frozen=True, eq=False)
class Found:
    """A thing.  kind: number of its category.  centre: (3,) m.  score: in [0, 1].  height, longest: m.

    widths: (72,) m of its footprint along `DIRECTIONS`.  first: frame in which it is seen first.  evidence: scores of
    all frames that show it, summed.  number: its place in the map's covariance.
    """

    kind: int
    centre: FloatArray
    score: float
    height: float
    longest: float
    widths: FloatArray
    first: int
    evidence: float
    number: int

    @property
    def box(self) -> FloatArray:
        """(6,) centre and sides along the axes, m."""
        return np.concatenate([self.centre, [self.widths[0], self.widths[18], self.height]])


@dataclass(frozen=True, eq=False)
class SceneMap:
    """things: strongest first.  cameras: (T, 5) of the frames.  covariance: (2M, 2M) of the places of things, m^2.

    tables: (T,) m^2 of the table top, if there is one, as the frames say.
    """

    things: tuple[Found, ...]
    cameras: FloatArray
    covariance: FloatArray
    tables: FloatArray

    def of(self, kind: int) -> list[Found]:
        """Those for which most frames speak first."""
        return sorted((thing for thing in self.things if thing.kind == kind), key=lambda thing: -thing.evidence)

    @cached_property
    def places(self) -> FloatArray:
        """(M, 2) m, by `Found.number`."""
        found = np.zeros((len(self.things), 2))
        for thing in self.things:
            found[thing.number] = thing.centre[:2]
        return found


def gap(first: Found, second: Found, places: FloatArray) -> FloatArray:
    """Between two footprints, taken to be convex, whose things stand at places (..., M, 2): (...) m."""
    away = places[..., second.number, :] - places[..., first.number, :]
    along = away @ np.stack([np.cos(DIRECTIONS), np.sin(DIRECTIONS)])
    return np.maximum((along - (first.widths + second.widths) / 2).max(axis=-1), TOUCHING)


def map_of(frames: Sequence[Sightings], focal: float, told: FloatArray | None = None) -> SceneMap:
    """Of frames in the order in which they were seen.

    told: (T, 5) their cameras where those are known but for how high the surface lies, NaN where they are not.
    """
    own = np.stack([frame.pose for frame in frames])
    spreads = np.stack([frame.spread for frame in frames])
    known = np.zeros(len(frames), bool) if told is None else np.isfinite(told).all(axis=1)
    if told is not None:
        own[known], spreads[known] = told[known], 0.0
    cameras = own.copy()
    tables = np.array([frame.table for frame in frames])
    seen = _Joined(frames)
    if not len(seen.kind):
        return SceneMap((), cameras, np.zeros((0, 0)), tables)
    covariance = np.zeros((0, 0))
    for radius in ROUNDS_M:
        where = onto_surface(cameras[seen.frame], seen.uv, seen.depth, focal)
        thing = _grouped(seen, where, radius)
        count = int(thing.max()) + 1
        weight = seen.score**2
        total = np.bincount(thing, weight, count)
        places = np.stack([np.bincount(thing, weight * where[:, i], count) / total for i in (0, 1)], axis=-1)
        middles = np.bincount(thing, weight * seen.height, count) / total / 2
        observed = Observed(seen.frame, thing, seen.uv, seen.depth, seen.score)
        rise = surface_rise(cameras, middles, observed, focal) if known.any() else 0.0
        own[known, 2] -= rise
        cameras, places, covariance = adjust(own, spreads, places, middles, observed, focal)
        if radius == ROUNDS_M[0] and not known.any():
            anew = relocated(cameras, own, spreads, seen.kind, observed, focal)
            cameras, own = np.where((anew != own).any(axis=1, keepdims=True), anew, cameras), anew
        points = np.column_stack([places, middles])[thing]
        seen.rescale(towards(cameras[seen.frame], points)[:, 2])
    middles = np.bincount(thing, weight * seen.height, count) / total / 2
    headings = cameras[seen.frame, 3]
    found = [_found(i, seen, thing == i, places[i], middles[i], headings, len(frames)) for i in range(count)]
    return SceneMap(tuple(apart(found)), cameras, covariance, tables)


def apart(found: Sequence[Found]) -> list[Found]:
    """Strongest first; what stands where something stronger stands is doubted, and more so if it is of its kind."""
    kept: list[Found] = []
    for thing in sorted(found, key=lambda one: -one.score):
        doubt = 1.0
        for other in kept:
            if _share_place(thing, other):
                doubt = min(doubt, SAME if other.kind == thing.kind else OTHER)
        kept.append(replace(thing, score=thing.score * doubt, evidence=thing.evidence * doubt))
    return sorted(kept, key=lambda one: -one.score)


def _share_place(one: Found, other: Found) -> bool:
    """Whether the middles of two footprints are nearer than `INSIDE` of what is between those of things that touch."""
    away = other.centre[:2] - one.centre[:2]
    far = float(np.linalg.norm(away))
    direction = round(float(np.arctan2(away[1], away[0])) / (np.pi / 36)) % len(DIRECTIONS)
    return far < INSIDE * float(one.widths[direction] + other.widths[direction]) / 2


class _Joined:
    """The sightings of all frames in one list, without those much fainter than the best of their kind."""

    def __init__(self, frames: Sequence[Sightings]) -> None:
        frame = np.repeat(np.arange(len(frames)), [len(frame.kind) for frame in frames])
        kind = np.concatenate([frame.kind for frame in frames])
        score = np.concatenate([frame.score for frame in frames])
        best = np.zeros(int(kind.max(initial=0)) + 1)
        np.maximum.at(best, kind, score)
        kept = score >= LEAST * best[kind]
        self.frame: NDArray[np.int64] = frame[kept]
        self.kind: NDArray[np.int64] = kind[kept]
        for name in ("score", "uv", "depth", "height", "longest", "share", "shape"):
            setattr(self, name, np.concatenate([getattr(frame, name) for frame in frames])[kept])
        self._scale = np.ones(len(self.frame))

    score: FloatArray
    uv: FloatArray
    depth: FloatArray
    height: FloatArray
    longest: FloatArray
    share: FloatArray
    shape: FloatArray

    def rescale(self, depth: FloatArray) -> None:
        """Depths (n,) m are better known than the frames tell: who takes a thing for too far takes it for too large."""
        scale = np.clip(depth / self.depth, *RESCALED)
        more, self._scale = scale / self._scale, scale
        self.height, self.longest = self.height * more, self.longest * more
        self.shape = np.column_stack([self.shape[:, 0] + np.log(more), self.shape[:, 1:]])


def _grouped(seen: _Joined, where: FloatArray, radius: float) -> NDArray[np.int64]:
    """(n,) number of the thing that each sighting is of: the nearest of its kind that its frame does not yet show."""
    thing = np.full(len(where), -1)
    members: list[list[int]] = []
    of_kind: dict[int, list[int]] = {}
    for i in np.argsort(-seen.score, kind="stable"):
        best, nearest = -1, radius
        known = of_kind.setdefault(int(seen.kind[i]), [])
        for number in known:
            group = members[number]
            if seen.frame[i] in seen.frame[group]:
                continue
            weight = seen.score[group]
            away = float(np.linalg.norm(weight @ where[group] / weight.sum() - where[i]))
            if away < nearest:
                best, nearest = number, away
        if best < 0:
            best = len(members)
            members.append([])
            known.append(best)
        members[best].append(int(i))
        thing[i] = best
    return thing


def _found(
    number: int,
    seen: _Joined,
    mine: NDArray[np.bool_],
    place: FloatArray,
    middle: float,
    headings: FloatArray,
    frames: int,
) -> Found:
    """From the sightings `mine`, of so many frames; what only one of several shows is believed half."""
    weight = seen.score[mine] ** 2 * np.sqrt(np.maximum(seen.share[mine], 1e-4))
    weight = weight / weight.sum()
    angle = DIRECTIONS[None] - headings[mine][:, None]
    waves = np.stack([np.ones_like(angle), np.cos(2 * angle), np.sin(2 * angle), np.cos(4 * angle), np.sin(4 * angle)])
    widths = UNIT_M * np.exp(weight @ np.einsum("nk,knd->nd", seen.shape[mine], waves))
    scores = np.sort(seen.score[mine])[::-1]
    believed = scores[:2].sum() / min(2, frames)
    clear = seen.frame[mine][(seen.share[mine] >= CLEAR) & (seen.score[mine] >= 0.5 * scores[0])]
    return Found(
        kind=int(seen.kind[mine][0]), centre=np.array([*place, middle]), score=float(believed),
        height=2 * middle, longest=float(np.exp(weight @ np.log(seen.longest[mine]))), widths=widths,
        first=int(clear.min() if len(clear) else seen.frame[mine].min()), evidence=float(scores.sum()), number=number,
    )  # fmt: skip
