"""Fusing semantic tokens f_sem with the world simulator's tokens f_gen: VEGA-3D's gate and what it was compared with.

Every fusion takes f_sem (B, N, D) and f_gen (B, N, G), token i of both looking at the same pixels, and
returns the fused tokens (B, N, D) and the gate (B, N, 1), the share of f_sem, or None without one.
f_gen is first brought to width D by a two-layer MLP.

Reference: VEGA-3D, arXiv 2603.19235, section 3.3 (Eq. 7 and 8) and Table 6; `feature_fusion.py` of its code.
The code blends the LayerNormed streams, the paper's Eq. 8 the raw ones; both are here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from policies.types import VegaError

Fused = tuple[torch.Tensor, torch.Tensor | None]


class GenerativeProjector(nn.Sequential):
    """f_gen (B, N, G) to the width of f_sem (B, N, D): Linear, GELU, Linear."""

    def __init__(self, gen_dim: int, dim: int):
        super().__init__(nn.Linear(gen_dim, dim), nn.GELU(), nn.Linear(dim, dim))


class Fusion(nn.Module):
    """Base: projects f_gen, checks shapes, and leaves the rest to `mix`.

    gen_dim: width of f_gen; None where it comes in width D already and there is nothing to project.
    residual: None, or r in f_sem + r (mixed - f_sem), learned from this value on.  With r = 0 a
    pretrained policy starts out unchanged, and r itself gets a gradient from the first step.
    gradient_floor: in training, gate and projector get the gradient that they would have were r at least this large, so
    that they learn from the first step too; what is computed stays the same bit for bit.
    """

    gradient_floor = 0.0

    def __init__(self, dim: int, gen_dim: int | None, residual: float | None = None):
        super().__init__()
        self.widths = dim, dim if gen_dim is None else gen_dim
        self.project = nn.Identity() if gen_dim is None else GenerativeProjector(gen_dim, dim)
        self.residual = None if residual is None else nn.Parameter(torch.tensor(float(residual)))

    def forward(self, f_sem: torch.Tensor, f_gen: torch.Tensor) -> Fused:
        """f_sem (B, N, D), f_gen (B, N, G) -> fused (B, N, D), gate (B, N, 1) in [0, 1] or None."""
        dim, gen_dim = self.widths
        if f_sem.shape[:-1] != f_gen.shape[:-1] or f_sem.shape[-1] != dim or f_gen.shape[-1] != gen_dim:
            raise VegaError(
                f"Tokens {tuple(f_sem.shape)} and {tuple(f_gen.shape)} do not fit this fusion: give the same grid, "
                f"{dim} semantic and {gen_dim} generative channels."
            )
        mixed, gate = self.mix(f_sem, self.project(f_gen.to(f_sem.dtype)))
        if self.residual is not None:
            change = mixed - f_sem
            mixed = f_sem + self.residual.to(f_sem.dtype) * change
            if self.training and self.gradient_floor:
                missing = (self.gradient_floor - self.residual.detach().abs()).clamp_min(0.0).to(f_sem.dtype)
                mixed = mixed + missing * (change - change.detach())  # adds nothing but a gradient
        return mixed, gate

    def mix(self, sem: torch.Tensor, gen: torch.Tensor) -> Fused:
        """Both (B, N, D) -> mixed (B, N, D) and the gate."""
        raise NotImplementedError

    closable = False

    def check_closable(self) -> None:
        """Raise VegaError unless this fusion can leave the generative stream out."""
        if not self.closable:
            raise VegaError(
                f"A {type(self).__name__} has no gate that could be closed: choose world simulator noise, not off."
            )

    def closed(self, f_sem: torch.Tensor) -> Fused:
        """What becomes of f_sem (B, N, D) when nothing generative comes through, and a gate of 1."""
        self.check_closable()
        mixed = self.semantic_only(f_sem)
        if self.residual is not None:
            mixed = f_sem + self.residual.to(f_sem.dtype) * (mixed - f_sem)
        return mixed, f_sem.new_ones(*f_sem.shape[:-1], 1)

    def semantic_only(self, sem: torch.Tensor) -> torch.Tensor:
        """`mix` with the gate at 1."""
        return sem


class AdaptiveGatedFusion(Fusion):
    """The paper's token gate: g = sigmoid(w [LN f_sem; LN f_gen] + b), out = g sem + (1 - g) gen.

    blend: "normed" blends the LayerNormed streams (the code), "raw" the streams themselves (Eq. 8).
    """

    per_channel = False
    closable = True

    def __init__(self, dim: int, gen_dim: int | None, blend: str = "normed", residual: float | None = None):
        super().__init__(dim, gen_dim, residual)
        if blend not in ("normed", "raw"):
            raise VegaError(f"Blend '{blend}' is unknown: choose 'normed' or 'raw'.")
        self.blend = blend
        self.norm_sem, self.norm_gen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.gate = nn.Linear(2 * dim, dim if self.per_channel else 1)

    def mix(self, sem: torch.Tensor, gen: torch.Tensor) -> Fused:
        a, b = self.norm_sem(sem), self.norm_gen(gen)
        gate = torch.sigmoid(self.gate(torch.cat([a, b], dim=-1)))
        mixed = gate * a + (1 - gate) * b if self.blend == "normed" else gate * sem + (1 - gate) * gen
        return mixed, gate.mean(-1, keepdim=True)

    def semantic_only(self, sem: torch.Tensor) -> torch.Tensor:
        return self.norm_sem(sem) if self.blend == "normed" else sem


class ChannelGatedFusion(AdaptiveGatedFusion):
    """A gate for every channel of every token; what is returned as gate is its mean over channels."""

    per_channel = True


class AddFusion(Fusion):
    """sem + gen."""

    closable = True

    def mix(self, sem: torch.Tensor, gen: torch.Tensor) -> Fused:
        return sem + gen, None


class ConcatFusion(Fusion):
    """One linear layer over both LayerNormed streams."""

    def __init__(self, dim: int, gen_dim: int | None, residual: float | None = None):
        super().__init__(dim, gen_dim, residual)
        self.norm_sem, self.norm_gen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.merge = nn.Linear(2 * dim, dim)

    def mix(self, sem: torch.Tensor, gen: torch.Tensor) -> Fused:
        return self.merge(torch.cat([self.norm_sem(sem), self.norm_gen(gen)], dim=-1)), None


class WeightedFusion(Fusion):
    """Two learned numbers, normalised to sum to 1, weigh the streams."""

    def __init__(self, dim: int, gen_dim: int | None, residual: float | None = None):
        super().__init__(dim, gen_dim, residual)
        self.weights = nn.Parameter(torch.tensor([0.5, 0.5]))

    def mix(self, sem: torch.Tensor, gen: torch.Tensor) -> Fused:
        share = (self.weights / self.weights.sum()).to(sem.dtype)
        return share[0] * sem + share[1] * gen, share[0].expand(*sem.shape[:-1], 1)


class CrossAttentionBlock(nn.Module):
    """Semantic tokens ask, generative ones answer; then an MLP.  Pre-norm, both residual.  All (B, N, D)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.norm_query, self.norm_key, self.norm_value = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, sem: torch.Tensor, gen: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        queries, keys = self.norm_query(sem) + positions, self.norm_key(gen) + positions
        x = sem + self.attention(queries, keys, self.norm_value(gen), need_weights=False)[0]
        return x + self.mlp(self.norm_mlp(x))


class CrossAttentionFusion(Fusion):
    """Semantic tokens ask, the same image's generative tokens answer, `layers` times.

    Positions on the grid are added to queries and keys as 2-D sines and cosines.
    """

    def __init__(
        self,
        dim: int,
        gen_dim: int | None,
        residual: float | None = None,
        grid: tuple[int, int] = (16, 16),
        heads: int = 8,
        dropout: float = 0.1,
        layers: int = 1,
    ):
        super().__init__(dim, gen_dim, residual)
        self.grid = grid
        if dim % heads or dim % 4:
            raise VegaError(
                f"Cross-attention needs a width that {heads} heads and 4 divide, not {dim}: choose another."
            )
        self.blocks = nn.ModuleList(CrossAttentionBlock(dim, heads, dropout) for _ in range(layers))

    def mix(self, sem: torch.Tensor, gen: torch.Tensor) -> Fused:
        cells, dim = self.grid[0] * self.grid[1], sem.shape[-1]
        if sem.shape[1] % cells:
            raise VegaError(f"{sem.shape[1]} tokens are no whole images of grid {self.grid}: give the fusion its grid.")
        positions = grid_positions(self.grid, dim).to(sem)
        x, answers = (tokens.reshape(-1, cells, dim) for tokens in (sem, gen))
        for block in self.blocks:
            x = block(x, answers, positions)
        return x.reshape(sem.shape), None


class GenerativeOnly(Fusion):
    """gen alone; the control that shows what the semantic stream is worth."""

    def mix(self, sem: torch.Tensor, gen: torch.Tensor) -> Fused:
        return gen, None


FUSIONS: dict[str, type[Fusion]] = {
    "token_gate": AdaptiveGatedFusion,
    "channel_gate": ChannelGatedFusion,
    "add": AddFusion,
    "concat": ConcatFusion,
    "weighted": WeightedFusion,
    "cross_attention": CrossAttentionFusion,
    "generative_only": GenerativeOnly,
}


def build_fusion(
    name: str, dim: int, gen_dim: int | None, *, grid: tuple[int, int] = (16, 16), unchanged: bool = False
) -> Fusion:
    """A fusion by name, for f_sem of width `dim` and f_gen of width `gen_dim`.

    name: a key of FUSIONS, with `_raw` for a gate that blends the raw streams (Eq. 8), or
        "token_gate_residual" (raw blend, r = 0.2).
    grid: (rows, columns) of one image's tokens, for cross-attention.
    unchanged: start with r = 0, so that a pretrained policy's f_sem passes bit for bit.
    """
    residual = 0.0 if unchanged else None
    if name == "token_gate_residual":
        return AdaptiveGatedFusion(dim, gen_dim, "raw", 0.0 if unchanged else 0.2)
    stem = name.removesuffix("_raw")
    kind = FUSIONS.get(stem)
    if kind is not None and issubclass(kind, AdaptiveGatedFusion):
        return kind(dim, gen_dim, "raw" if stem != name else "normed", residual)
    if kind is None or stem != name:
        raise VegaError(f"Fusion '{name}' is unknown: choose one of {fusion_names()}.")
    if kind is CrossAttentionFusion:
        return CrossAttentionFusion(dim, gen_dim, residual, grid)
    return kind(dim, gen_dim, residual)


def fusion_names() -> list[str]:
    """All names `build_fusion` knows."""
    gates = [f"{name}_raw" for name, kind in FUSIONS.items() if issubclass(kind, AdaptiveGatedFusion)]
    return sorted([*FUSIONS, *gates, "token_gate_residual"])


def grid_positions(grid: tuple[int, int], dim: int) -> torch.Tensor:
    """(rows * columns, dim) sines and cosines: half of the channels tell the row, half the column."""
    frequencies = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    rows, columns = (
        torch.cat([angles.sin(), angles.cos()], dim=1)
        for angles in (torch.arange(n)[:, None] * frequencies for n in grid)
    )
    return torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], dim=1)


def gate_image(
    gate: NDArray[np.float32], frame: tuple[int, int], view: Sequence[float] = (0.0, 0.0, 1.0, 1.0)
) -> NDArray[np.float32]:
    """A gate (rows, columns) in [0, 1] laid over the camera's frame (H, W) px it speaks of, every cell visible: (H, W).

    view: the part of the frame under the tokens, (top, left, bottom, right) in [0, 1]; 1 where nothing looks.
    """
    top, bottom = (round(edge * frame[0]) for edge in (view[0], view[2]))
    left, right = (round(edge * frame[1]) for edge in (view[1], view[3]))
    rows = np.arange(bottom - top) * gate.shape[0] // (bottom - top)
    columns = np.arange(right - left) * gate.shape[1] // (right - left)
    image = np.ones(frame, dtype=np.float32)
    image[top:bottom, left:right] = gate.take(columns, axis=1).take(rows, axis=0)
    return image
