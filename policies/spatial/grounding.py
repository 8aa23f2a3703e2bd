"""Which of the proposed boxes a sentence means: a contrastive head over object features, with a row for "none".

Source: `llava/model/language_model/llava_qwen.py` of VEGA-3D's branch main (9c96924), ground_head_type "infonce".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

TEMPERATURE = 0.07


def _projection(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim), nn.Linear(dim, dim))


class GroundingHead(nn.Module):
    """objects (M, D), query (D,), the hidden state at the token <ground> -> scores (M + 1,) in [-1, 1], "none" last."""

    def __init__(self, dim: int):
        super().__init__()
        self.objects, self.query = _projection(dim), _projection(dim)
        self.none = nn.Parameter(torch.randn(dim))

    def forward(self, objects: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        rows = self.objects(torch.cat([objects, self.none[None]]).to(query.dtype))
        return F.normalize(rows, dim=-1) @ F.normalize(self.query(query), dim=-1)


def grounding_loss(scores: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """-log of the targets' share of the softmax at temperature 0.07; without targets "none" is right."""
    logits = scores / TEMPERATURE
    right = list(targets) or [len(scores) - 1]
    return logits.logsumexp(0) - logits[right].logsumexp(0)


def object_patches(coordinates: torch.Tensor, box: torch.Tensor, patch: int = 14, share: float = 0.5) -> torch.Tensor:
    """(V, H, W, 3) m and a box (6,) -> (V, H // patch, W // patch) bool: at least `share` of the pixels lie inside."""
    low, high = box[:3] - box[3:] / 2, box[:3] + box[3:] / 2
    rows, columns = (size // patch for size in coordinates.shape[1:3])
    inside = ((low <= coordinates) & (coordinates <= high)).all(-1)[:, : rows * patch, : columns * patch]
    counts = inside.unflatten(2, (columns, patch)).unflatten(1, (rows, patch)).sum(dim=(2, 4))
    return counts >= int(patch * patch * share)
