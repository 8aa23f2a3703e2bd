"""The Multi-view Correspondence Score of VEGA-3D, and what tells a high score from features that are all alike.

Tokens are lifted to where they lie in the world and fall into voxels of 0.1 m.  For each voxel that two views share the
score is the cosine of what the two say of it: unit tokens, averaged in voxel and view, made unit again; the mean over
all such pairs.  The paper gives no control, and cosines of one network's features are often high whatever they show:

    random      the same features of the same two views, of different voxels; matched - random is what matching adds
    centred     the mean of the scene's tokens taken off first
    retrieval   how often a voxel's feature in one view is nearest to that voxel's in the other, of all voxels there

Reference: VEGA-3D, arXiv 2603.19235, and `wan_t2v_adjacent_correspondence_matching.py` of its code, which does not mask
pixels without depth; here they count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from policies.correspondence.scenes import VOXEL_M, PosedViews
from policies.spatial.scene import world_coordinates
from policies.types import FloatArray, VegaError

KNOWN = 0.1  # share of a token's pixels whose depth is known, at least
TIE = 1e-6
EPSILON = 1e-12
NOWHERE = -1


@dataclass(frozen=True)
class Evidence:
    """Sums over a scene; those of several scenes add up.

    pairs: of a voxel and two views that share it.  mixed: those of views that share more than one, which have a random
    counterpart.  asked: retrievals.  The others are sums of cosines over pairs (`random`: over mixed ones), and of hits
    and of chances over what was asked.
    """

    pairs: float = 0.0
    mixed: float = 0.0
    matched: float = 0.0
    matched_mixed: float = 0.0
    random: float = 0.0
    centred: float = 0.0
    centred_mixed: float = 0.0
    centred_random: float = 0.0
    asked: float = 0.0
    hits: float = 0.0
    chances: float = 0.0

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Scores:
    """Percent.  raw: the paper's score.  gap: matched minus random.  centred, centred_gap: the same, mean taken off."""

    raw: float
    random: float
    gap: float
    centred: float
    centred_gap: float
    retrieval: float
    chance: float


def scores(evidence: Sequence[Evidence]) -> Scores:
    """Of all scenes, pair-weighted.  Raises VegaError where no two views share a voxel, or none more than one."""
    total = sum(evidence, Evidence())
    if not total.pairs or not total.mixed:
        raise VegaError("No two of these views see enough of the same places: render more views, or lower --apart.")
    return Scores(
        raw=100 * total.matched / total.pairs,
        random=100 * total.random / total.mixed,
        gap=100 * (total.matched_mixed - total.random) / total.mixed,
        centred=100 * total.centred / total.pairs,
        centred_gap=100 * (total.centred_mixed - total.centred_random) / total.mixed,
        retrieval=100 * total.hits / total.asked,
        chance=100 * total.chances / total.asked,
    )


def of_places(evidence: Sequence[Evidence], names: Sequence[str]) -> list[Evidence]:
    """What scenes say of each place together.

    Two scenes are of one place where their names differ in a last _NN alone: ScanNet's scans of a room, and what
    `sim.render_views` makes of a task's initial states, which are much alike.
    """
    found: dict[str, Evidence] = {}
    for name, scene in zip(names, evidence, strict=True):
        place = re.sub(r"_\d\d$", "", name)
        found[place] = found.get(place, Evidence()) + scene
    return list(found.values())


def intervals(evidence: Sequence[Evidence], draws: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % of each field of Scores when places are drawn again with replacement; needs two of them, else empty.

    Places whose views share nothing say nothing, and draws of them alone would have no score.
    """
    evidence = [place for place in evidence if place.pairs and place.mixed]
    if len(evidence) < 2:
        return {}
    rng = np.random.default_rng(seed)
    names = [f.name for f in fields(Scores)]
    drawn = []
    for chosen in rng.integers(len(evidence), size=(draws, len(evidence))):
        found = scores([evidence[i] for i in chosen])
        drawn.append([getattr(found, name) for name in names])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def token_places(scene: PosedViews, grid: tuple[int, int]) -> FloatArray:
    """(V, rows * columns, 3) m: mean of the known pixels of each token of the picture; NaN where few are known."""
    depth = torch.from_numpy(scene.depth_mm.astype(np.int32))
    intrinsics, poses = torch.from_numpy(scene.intrinsics), torch.from_numpy(scene.poses)
    points = world_coordinates(depth, intrinsics, poses).double().permute(0, 3, 1, 2)
    known = ~points.isnan().any(dim=1, keepdim=True)
    share = F.adaptive_avg_pool2d(known.double(), grid)
    means = F.adaptive_avg_pool2d(points.nan_to_num(0.0), grid) / share
    means[(share < KNOWN).expand_as(means)] = torch.nan
    return means.flatten(2).mT.numpy()


def voxel_ids(places: FloatArray, size: float = VOXEL_M) -> NDArray[np.int64]:
    """(V, N, 3) m -> (V, N): equal numbers for tokens in one voxel of the scene, NOWHERE where the place is unknown."""
    known = ~np.isnan(places).any(axis=-1)
    ids = np.full(known.shape, NOWHERE, dtype=np.int64)
    if known.any():
        corner = places[known].min(axis=0)
        cells = np.floor((places[known] - corner) / size).astype(np.int64)
        ids[known] = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    return ids


def view_pairs(scene: PosedViews, apart_deg: float = 0.0) -> list[tuple[int, int]]:
    """Every two views whose optical axes differ by at least so much."""
    angles = scene.angles_deg()
    return [(i, j) for i, j in combinations(range(len(scene.poses)), 2) if angles[i, j] >= apart_deg]


def compare(tokens: NDArray[np.floating], ids: NDArray[np.int64], pairs: Sequence[tuple[int, int]]) -> Evidence:
    """What the tokens (V, N, C) say of voxels (V, N) that two views share."""
    tokens = tokens.astype(np.float64)
    seen = [_voxel_features(view, own) for view, own in zip(tokens, ids, strict=True)]
    mean = tokens[ids != NOWHERE].mean(axis=0) if (ids != NOWHERE).any() else 0.0
    centred = [_voxel_features(view - mean, own) for view, own in zip(tokens, ids, strict=True)]
    return sum((_pair(seen[i], seen[j], centred[i], centred[j]) for i, j in pairs), Evidence())


Seen = tuple[NDArray[np.int64], FloatArray]


def _voxel_features(tokens: FloatArray, ids: NDArray[np.int64]) -> Seen:
    """Voxels (n,) of one view, in order, and what it says of each: (n, C), unit or zero."""
    known = ids != NOWHERE
    voxels, inverse = np.unique(ids[known], return_inverse=True)
    sums = np.zeros((len(voxels), tokens.shape[1]))
    np.add.at(sums, inverse.reshape(-1), _unit(tokens[known]))
    return voxels, _unit(sums)


def _unit(rows: FloatArray) -> FloatArray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), EPSILON)


def _pair(one: Seen, other: Seen, one_centred: Seen, other_centred: Seen) -> Evidence:
    """Of two views; the voxels are those of `one` and `other`."""
    shared, here, there = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    count = len(shared)
    if not count:
        return Evidence()
    cosines = one[1] @ other[1].T
    matched, random = _matched_and_random(cosines[np.ix_(here, there)])
    centred, centred_random = _matched_and_random(one_centred[1][here] @ other_centred[1][there].T)
    mixed = count > 1
    return Evidence(
        pairs=count,
        mixed=count * mixed,
        matched=matched,
        matched_mixed=matched * mixed,
        random=random,
        centred=centred,
        centred_mixed=centred * mixed,
        centred_random=centred_random,
        asked=2 * count,
        hits=_hits(cosines[here], there) + _hits(cosines[:, there].T, here),
        chances=count / len(other[0]) + count / len(one[0]),
    )


def _matched_and_random(cosines: FloatArray) -> tuple[float, float]:
    """Sums over the diagonal of (n, n), and over as many of the others' mean (0 for n = 1)."""
    count, matched = len(cosines), float(np.trace(cosines))
    others = (float(cosines.sum()) - matched) / (count - 1) if count > 1 else 0.0
    return matched, others


def _hits(cosines: FloatArray, right: NDArray[np.int64]) -> float:
    """How many rows (n, m) are highest where they should be (n,); among k equal ones a hit counts 1 / k."""
    ties = cosines >= cosines.max(axis=1, keepdims=True) - TIE
    found = np.take_along_axis(ties, right[:, None], axis=1)[:, 0]
    return float((found / ties.sum(axis=1)).sum())
