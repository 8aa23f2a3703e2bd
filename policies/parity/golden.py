"""Golden vectors: how their files are read, and what a comparison is."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from policies.types import VegaError

NETWORK_TOLERANCE = 1e-4

Case = Mapping[str, NDArray]
Line = tuple[str, float, float]  # quantity, largest error, tolerance


def read_arrays(path: Path) -> dict[str, NDArray]:
    """All arrays of an .npz, or VegaError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error, AttributeError, TypeError) as error:  # no archive
        raise VegaError(f"File '{path}' is no readable .npz ({error}): copy the golden folder again.") from None


def read_cases(path: Path) -> dict[str, dict[str, NDArray]]:
    """Arrays of a golden file by case, or VegaError."""
    cases: dict[str, dict[str, NDArray]] = {}
    for key, array in read_arrays(path).items():
        case, _, quantity = key.partition("_")
        cases.setdefault(case, {})[quantity] = array
    if not cases:
        raise VegaError(f"File '{path}' holds no case: copy the golden folder again.")
    return cases


def some(lines: Iterator[Line], path: Path) -> Iterator[Line]:
    """These comparisons of what `path` holds; VegaError where there are none, which would pass for agreement."""
    compared = False
    for line in lines:
        compared = True
        yield line
    if not compared:
        raise VegaError(f"'{path}' holds no case: copy the golden folder again.")


def largest(ours: NDArray | torch.Tensor, golden: NDArray) -> float:
    """Largest absolute difference; infinite where shapes differ or a number is not finite."""
    array = ours.detach().float().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    if array.shape != golden.shape or not np.isfinite(array).all():
        return float("inf")
    return float(np.abs(array.astype(np.float64) - golden.astype(np.float64)).max())
