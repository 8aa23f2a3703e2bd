"""How the world simulator's tokens meet Qwen's: merged two by two as Qwen merges its own, then fused.

Source: `src/qwen_vl/model/feature_fusion.py` of VEGA-3D's branch spatial-reasoning (ca64583).  Its fusions are those of
`policies.fusion`, without a projector of their own: the merger has done that.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from policies.fusion.gated_fusion import (
    AdaptiveGatedFusion,
    AddFusion,
    ChannelGatedFusion,
    ConcatFusion,
    CrossAttentionFusion,
    Fusion,
    WeightedFusion,
)
from policies.types import VegaError

RESIDUAL = 0.2
# The reference's name for a part -> ours, in this order.
RENAMED = (
    ("cross_attn_blocks.", "blocks."),
    ("norm1_query.", "norm_query."),
    ("norm1_key.", "norm_key."),
    ("norm1_value.", "norm_value."),
    ("cross_attention.", "attention."),
    ("gate_projection.0.", "gate."),
    ("projection.", "merge."),
)


class GenerativeMerger(nn.Module):
    """f_gen on patches (N, h, w, C) -> on tokens (N, h // 2, w // 2, D), raster order; odd sides lose one.

    kind: "mlp" norms each patch and joins four, "avg" takes their mean.
    """

    def __init__(self, kind: str, channels: int, hidden: int, dim: int):
        super().__init__()
        if kind not in ("mlp", "avg"):
            raise VegaError(f"generative_merger_type '{kind}' is unknown: choose mlp or avg.")
        self.kind = kind
        self.ln_q = nn.RMSNorm(channels, eps=1e-6) if kind == "mlp" else None
        self.mlp = nn.Sequential(
            nn.Linear(4 * channels if kind == "mlp" else channels, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x[:, : 2 * rows, : 2 * columns]
        if self.ln_q is not None:
            x = self.ln_q(x)
        cells = x.unflatten(2, (columns, 2)).unflatten(1, (rows, 2)).transpose(2, 3).flatten(3, 4)
        return self.mlp(cells.flatten(3) if self.ln_q is not None else cells.mean(3))


def build_branch_fusion(
    method: str, dim: int, *, grid: tuple[int, int] = (16, 16), heads: int = 8, dropout: float = 0.1, layers: int = 1
) -> Fusion:
    """The fusion that `generative_fusion_method` names, for two streams of width `dim`.  Raises VegaError."""
    if method == "cross_attention":
        return CrossAttentionFusion(dim, None, None, grid, heads, dropout, layers)
    simple = {"add": AddFusion, "concat": ConcatFusion, "gated": ChannelGatedFusion, "token_gated": AdaptiveGatedFusion}
    if method in simple:
        return simple[method](dim, None)
    if method == "weighted":
        return WeightedFusion(dim, None)
    if method == "token_gated_residual":
        return AdaptiveGatedFusion(dim, None, "raw", RESIDUAL)
    known = sorted([*simple, "cross_attention", "token_gated_residual", "weighted"])
    raise VegaError(f"generative_fusion_method '{method}' is unknown: choose one of {known}.")


def fusion_state(fusion: Fusion, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reference's tensors under our names, as `fusion.load_state_dict` takes them."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        if name.startswith("blocks."):
            name = name.replace(".norm2.", ".norm_mlp.")
        else:
            name = name.replace("norm1.", "norm_sem.").replace("norm2.", "norm_gen.")
        state[name.replace("residual_scale", "residual")] = tensor
    if isinstance(fusion, WeightedFusion):
        state["weights"] = torch.stack([state.pop("weight_2d"), state.pop("weight_3d")])
    if fusion.residual is None:
        state.pop("residual", None)  # left over where the method was changed by hand
    return state
