"""Statistics of a dataset's columns and pictures, as lerobot computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray, Image

QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
STATS_STRIDE = 4  # of the pixels that statistics look at
Stats = dict[str, NDArray[Any]]


def column_stats(values: NDArray[Any]) -> Stats:
    """values (n,) or (n, d): min, max, mean, std, quantiles (d,) over the first axis, and count (1,)."""
    table = values.reshape(len(values), -1)
    real = table.astype(float)
    quantiles = np.quantile(real, QUANTILES, axis=0)
    return {
        "min": table.min(axis=0), "max": table.max(axis=0), "mean": real.mean(axis=0), "std": real.std(axis=0),
        "count": np.array([len(values)]),
        **{f"q{round(100 * q):02d}": row for q, row in zip(QUANTILES, quantiles, strict=True)},
    }  # fmt: skip


def image_stats(frames: Sequence[Image]) -> Stats:
    """The same for each colour in [0, 1], as (3, 1, 1), over some pixels of every frame; count is that of frames.

    From how often each of the 256 levels occurs: there are few of them and many pixels.
    """
    pixels = np.stack([frame[::STATS_STRIDE, ::STATS_STRIDE] for frame in frames]).reshape(-1, 3)
    counts, levels = np.stack([np.bincount(colour, minlength=256) for colour in pixels.T]), np.arange(256) / 255.0
    mean = counts @ levels / len(pixels)
    variance = np.sum(counts * (levels - mean[:, None]) ** 2, axis=1) / len(pixels)
    seen = [levels[count > 0] for count in counts]
    stats = {
        "min": np.array([found[0] for found in seen]), "max": np.array([found[-1] for found in seen]),
        "mean": mean, "std": np.sqrt(variance),
        **{f"q{round(100 * q):02d}": np.array([_quantile(count, levels, q) for count in counts]) for q in QUANTILES},
    }  # fmt: skip
    return {**{name: value.reshape(3, 1, 1) for name, value in stats.items()}, "count": np.array([len(frames)])}


def _quantile(counts: NDArray[np.int64], values: FloatArray, q: float) -> float:
    """Of values that occur so often each, ascending: between two neighbours in a line, as np.quantile has it."""
    place, up_to = q * (counts.sum() - 1), np.cumsum(counts)
    low, high = (values[np.searchsorted(up_to, index, side="right")] for index in (np.floor(place), np.ceil(place)))
    return float(low + (high - low) * (place - np.floor(place)))


def combine(episodes: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Statistics of all episodes; quantiles are the episodes' own, weighted by their lengths, as lerobot does it."""
    total: dict[str, Stats] = {}
    for key in episodes[0]:
        parts = [episode[key] for episode in episodes]
        weights = np.array([float(part["count"][0]) for part in parts])

        def mean(values: Sequence[NDArray[Any]], weights: FloatArray = weights) -> NDArray[Any]:
            return np.asarray(np.average(np.stack(values), axis=0, weights=weights))

        middle = mean([part["mean"] for part in parts])
        variance = mean([part["std"] ** 2 + (part["mean"] - middle) ** 2 for part in parts])
        total[key] = {
            **{name: mean([part[name] for part in parts]) for name in parts[0] if name.startswith("q")},
            "min": np.minimum.reduce([part["min"] for part in parts]),
            "max": np.maximum.reduce([part["max"] for part in parts]),
            "mean": middle, "std": np.sqrt(variance), "count": np.array([int(weights.sum())]),
        }  # fmt: skip
    return total
