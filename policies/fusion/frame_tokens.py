"""Convolutional encoders that give a frame's tokens as a world simulator does: on a canvas, pooled under the pixels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from policies.types import VegaError
from policies.world_simulator.canvas import draw, place, pool_registered

TOKEN_PX = 16  # on the canvas, as Wan's
F = TypeVar("F", bound="FrameTokens")


class FrameTokens(nn.Module):
    """Inference only unless a subclass is trained on its own.  canvas, grid, view: see `WorldSimulatorConfig`."""

    what = ""
    stand_ins: tuple[str, ...] = ("on", "off", "noise", "shuffled")

    def __init__(self, dim: int, frames_needed: int = 1) -> None:
        super().__init__()
        self.dim, self.frames_needed = dim, frames_needed
        self.folder: Path | None = None
        self.canvas, self.grid = (TOKEN_PX, TOKEN_PX), (1, 1)
        self.view = (0.0, 0.0, 1.0, 1.0)

    def looking(
        self: F, *, canvas: tuple[int, int], grid: tuple[int, int], view: tuple[float, float, float, float]
    ) -> F:
        """The same encoder, weights shared, for a camera with another canvas, grid and view."""
        if any(side < TOKEN_PX or side % TOKEN_PX for side in canvas):
            raise VegaError(f"Canvas {canvas} does not divide into tokens: give multiples of {TOKEN_PX}.")
        other = copy.copy(self)
        other.canvas, other.grid, other.view = canvas, grid, view
        return other

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 3, T, canvas rows, canvas columns) in [-1, 1], oldest first -> (B, G, rows, columns)."""
        raise NotImplementedError

    @torch.no_grad()
    def native(self, frames: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 RGB, oldest first -> (B, rows, columns, G) on the whole canvas."""
        device = next(self.parameters()).device
        pictures = draw(frames[:, -self.frames_needed :].to(device), self.canvas, "registered", torch.float32)
        return self.features(pictures).permute(0, 2, 3, 1)

    def pool(self, tokens: Tensor, frame: tuple[int, int]) -> Tensor:
        """Tokens (B, T, rows, columns, G) of a frame (H, W) px -> (B, T, grid rows * grid columns, G)."""
        spot = place((frame[0], frame[1]), self.canvas, "registered")
        return pool_registered(tokens, spot, TOKEN_PX, self.grid, self.view)

    def forward(self, frames: Tensor) -> Tensor:
        """f_gen (B, rows * columns, G) of the newest frame."""
        return self.pool(self.native(frames)[:, None], (frames.shape[2], frames.shape[3]))[:, 0]
