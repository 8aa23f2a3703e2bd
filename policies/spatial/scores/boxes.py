"""Boxes in 3D: overlap, ScanRefer's accuracy and Multi3DRefer's F1.

A box is (cx, cy, cz, dx, dy, dz), axis-aligned, m.  Source: `llava/eval` of VEGA-3D's branch main (9c96924):
`box_utils.py`, `eval_scanrefer.py`, `eval_multi3drefer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

TEMPERATURE = 0.07
EPSILON = 1e-8


def overlap(one: ArrayLike, other: ArrayLike) -> float:
    """Intersection over union of two boxes."""
    a, b = (np.asarray(box, dtype=np.float64).reshape(2, 3) for box in (one, other))
    low = np.maximum(a[0] - a[1] / 2, b[0] - b[1] / 2)
    high = np.minimum(a[0] + a[1] / 2, b[0] + b[1] / 2)
    shared = np.maximum(high - low, 0).prod()
    return float(shared / (a[1].prod() + b[1].prod() - shared + EPSILON))


def as_bfloat16(box: ArrayLike) -> NDArray[np.float64]:
    """Numbers rounded to bfloat16, to the nearest and then to even, as the reference's predicted boxes are."""
    bits = np.asarray(box, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def accuracy(pairs: Sequence[tuple[ArrayLike, ArrayLike]], threshold: float) -> float:
    """Per cent of (predicted, true) boxes that overlap by at least `threshold` (ScanRefer's Acc@0.25 and @0.5)."""
    return 100.0 * float(np.mean([overlap(one, other) >= threshold for one, other in pairs]))


def choose(scores: ArrayLike, threshold: float = 0.4) -> list[int]:
    """Indices of the proposals that are meant: none if the last score, that of "no such object", is the largest.

    Else those of the largest share of the softmax at temperature 0.07, which the last one takes part in, until their
    sum reaches `threshold`.
    """
    values = np.asarray(scores, dtype=np.float64)
    if int(values.argmax()) == len(values) - 1:
        return []
    weights = np.exp((values - values.max()) / TEMPERATURE)
    shares = (weights / weights.sum())[:-1]
    order = np.argsort(-shares, kind="stable")
    count = int(np.searchsorted(np.cumsum(shares[order]), threshold)) + 1
    return [int(i) for i in order[:count]]


def f1(predicted: Sequence[ArrayLike], true: Sequence[ArrayLike], threshold: float) -> float:
    """F1 of one query after the best matching of boxes; 1 where both are none."""
    if not predicted and not true:
        return 1.0
    if not predicted or not true:
        return 0.0
    overlaps: NDArray[np.float64] = np.array([[overlap(p, t) for t in true] for p in predicted])
    rows, columns = linear_sum_assignment(-overlaps)
    return 2.0 * float((overlaps[rows, columns] >= threshold).sum()) / (len(predicted) + len(true))
