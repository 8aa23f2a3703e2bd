"""How a frozen world simulator's tokens are kept on disk: in half the bytes, where those hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.types import VegaError

KeptFile = np.memmap[Any, np.dtype[np.floating[Any]]]


def as_kept(tokens: Tensor, camera: str = "") -> NDArray[np.floating[Any]]:
    """Tokens as float16, or as float32 where they are too large for it; VegaError where they are no numbers."""
    if not bool(torch.isfinite(tokens).all()):
        whose = f" of camera '{camera}'" if camera else ""
        raise VegaError(f"The world simulator's tokens{whose} are not all finite: give another one.")
    half = tokens.half()
    return (half if bool(torch.isfinite(half).all()) else tokens.float()).cpu().numpy()


def keep(path: Path, kept: KeptFile | None, rows: int, first: int, block: NDArray[np.floating[Any]]) -> KeptFile:
    """Put a block `as_kept` into the file of `rows` of them from row `first` on; returns the file to go on with.

    kept: the file so far, None to begin it.  It becomes one of float32 with the first block that is.
    """
    if kept is None:
        kept = np.lib.format.open_memmap(path, "w+", block.dtype, (rows, *block.shape[1:]))
    elif np.promote_types(block.dtype, kept.dtype) != kept.dtype:
        kept.flush()
        wider = path.with_suffix(".wider")
        wide = np.lib.format.open_memmap(wider, "w+", block.dtype, kept.shape)
        wide[:first] = kept[:first]
        wide.flush()
        wider.rename(path)  # whole, whenever a kill comes
        kept = wide
    kept[first : first + len(block)] = block
    return kept
