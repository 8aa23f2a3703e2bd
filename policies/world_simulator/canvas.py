"""Where camera pixels lie on the world simulator's canvas, and which of its tokens cover which semantic cell.

Two streams are fused cell by cell, so both must look at the same pixels.  `registered` letterboxes the
frame onto the canvas and pools exactly the tokens under it, by area.  `official` does what the VEGA-3D
code does: it covers the canvas, crops what hangs over (42 to 44 % of the rows of a square frame) and
pools everything; kept for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from policies.types import VegaError

BORDER = -1.0  # black, in the VAE's range [-1, 1]


@dataclass(frozen=True)
class Placement:
    """A frame resized to (height, width) px with its upper left corner at (top, left) of the canvas, maybe negative."""

    top: int
    left: int
    height: int
    width: int


def place(frame: tuple[int, int], canvas: tuple[int, int], framing: str) -> Placement:
    """Place a frame (H, W) px centred on a canvas (H, W) px: inside it ("registered") or over it ("official")."""
    ratios = canvas[0] / frame[0], canvas[1] / frame[1]
    scale = {"registered": min, "official": max}[framing](ratios)
    height, width = max(round(frame[0] * scale), 1), max(round(frame[1] * scale), 1)
    # Halves are rounded towards 0: an odd overhang loses the smaller half above and to the left, as in the code.
    return Placement(int((canvas[0] - height) / 2), int((canvas[1] - width) / 2), height, width)


def draw(frames: torch.Tensor, canvas: tuple[int, int], framing: str, dtype: torch.dtype) -> torch.Tensor:
    """Put frames (B, T, H, W, 3) uint8 RGB onto the canvas: (B, 3, T, canvas rows, canvas columns) in [-1, 1]."""
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise VegaError(
            f"Frames are {frames.dtype} {tuple(frames.shape)}: give uint8 RGB of shape (batch, time, height, width, 3)."
        )
    batch, time, height, width, _ = frames.shape
    spot = place((height, width), canvas, framing)
    x = frames.flatten(0, 1).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1.0
    if (spot.height, spot.width) != (height, width):
        # The official code does not antialias; upwards, as usual, it makes no difference.
        x = F.interpolate(
            x, (spot.height, spot.width), mode="bilinear", align_corners=False, antialias=framing == "registered"
        )
    bottom, right = canvas[0] - spot.top - spot.height, canvas[1] - spot.left - spot.width
    x = F.pad(x, (spot.left, right, spot.top, bottom), value=BORDER)  # negative widths crop
    return x.unflatten(0, (batch, time)).transpose(1, 2)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # kept for later calls, in whatever mode those are
def coverage(tokens: int, start: float, stop: float, cells: int) -> torch.Tensor:
    """(cells, tokens) weights with rows summing to 1: how much of each token lies in each of `cells` equal cells.

    The cells divide [start, stop], in tokens, from the edge of the first token.  Every time the same tensor: only read
    it.
    """
    edges = torch.linspace(start, stop, cells + 1, dtype=torch.float64)
    left = torch.arange(tokens, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    overlap = overlap.clamp_min(0.0)
    return (overlap / overlap.sum(1, keepdim=True)).float()


def pool_registered(
    tokens: torch.Tensor, spot: Placement, token_px: int, grid: tuple[int, int], view: Sequence[float]
) -> torch.Tensor:
    """Pool (B, T, rows, columns, D) to (B, T, grid rows * grid columns, D), by area, over the frame's own pixels.

    token_px: side of a token on the canvas.  view: (top, left, bottom, right) in [0, 1], the part of
    the frame that the semantic tokens cover.
    """
    top, left, bottom, right = view
    rows = coverage(
        tokens.shape[2],
        (spot.top + top * spot.height) / token_px,
        (spot.top + bottom * spot.height) / token_px,
        grid[0],
    ).to(tokens)
    columns = coverage(
        tokens.shape[3],
        (spot.left + left * spot.width) / token_px,
        (spot.left + right * spot.width) / token_px,
        grid[1],
    ).to(tokens)
    pooled = torch.einsum("ri,btijd->btrjd", rows, tokens)
    return torch.einsum("cj,btrjd->btrcd", columns, pooled).flatten(2, 3)


def pool_official(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Pool (B, T, rows, columns, D) to (B, T, grid rows * grid columns, D) over the whole canvas, in whole tokens."""
    batch, time = tokens.shape[:2]
    pooled = F.adaptive_avg_pool2d(tokens.flatten(0, 1).permute(0, 3, 1, 2), grid)
    return pooled.flatten(2).transpose(1, 2).unflatten(0, (batch, time))
