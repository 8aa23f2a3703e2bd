"""What vega-nano is trained for: chunks of actions, and beside them what makes it see, remember and understand.

Beside the L1 loss on actions (OpenVLA-OFT section 4): where the teacher headed for, per camera as a map over its tokens
and in the base frame from the trunk; how far the task is, for policies that remember that; and what the sentence means,
after a teacher of language.  Labels that a dataset lacks are NaN and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.nano.layers import SemanticEncoder
from policies.nano.policy import VegaPolicy
from policies.training.dataset import Batch

MAP_WEIGHT, POINT_WEIGHT, TARGET_WEIGHT, PROGRESS_WEIGHT, MEANING_WEIGHT = 0.03, 0.2, 0.5, 0.1, 0.05
MEANING_DIM = 384  # of the language teacher's vectors


# Of what is believed (logits) and the share of the task that is done.  Nothing is done in most rows: the absolute
# distance is least, on average, for who always believes that, and what a policy of it remembers stays at nothing.
PROGRESS_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": lambda found, done: F.binary_cross_entropy_with_logits(found.float(), done),
    "l1": lambda found, done: F.l1_loss(found.sigmoid().float(), done),
}


class Learner(nn.Module):
    """The policy and the heads that exist in training only.

    progress_loss: one of PROGRESS_LOSSES.
    """

    def __init__(self, policy: VegaPolicy, progress_loss: str = "bce") -> None:
        super().__init__()
        self.policy = policy
        self._progress_loss = PROGRESS_LOSSES[progress_loss]
        self.target = nn.Linear(policy.config.trunk_width, 3)
        self.meaning = nn.Linear(policy.config.text_dim, MEANING_DIM)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts."""
        decision = self.policy(batch.images, batch.ids, batch.proprio, batch.before, batch.f_gen)
        parts = {
            "action": F.l1_loss(decision.actions.float(), batch.actions),
            "target_m": _known_l1(self.target(decision.hidden.float()), batch.target),
            **self._grounding(decision.grounding, batch.points, batch.pointed),
        }
        total = parts["action"] + TARGET_WEIGHT * parts["target_m"]
        total = total + MAP_WEIGHT * parts["map"] + POINT_WEIGHT * parts["point"]
        if decision.progress is not None:
            parts["progress"] = _of_known(self._progress_loss, decision.progress, batch.progress, batch.told)
            total = total + PROGRESS_WEIGHT * parts["progress"]
        if batch.meaning is not None:
            meant = self.meaning(self.policy.text(batch.ids).float())
            parts["meaning"] = (1 - F.cosine_similarity(meant, batch.meaning, dim=1)).mean()
            total = total + MEANING_WEIGHT * parts["meaning"]
        return total, {key: value.detach() for key, value in parts.items()}

    def _grounding(
        self, grounding: Mapping[str, Mapping[str, Tensor]], wanted: Mapping[str, Tensor], told: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """How well each camera's map, point and presence say where the teacher headed for, where that is told."""
        maps, points = [], []
        for camera, seen in grounding.items():
            size = self.policy.config.cameras[camera].output_size
            labels, valid = token_targets(wanted[camera], size)
            nll = -(labels * seen["map"].log_softmax(dim=-1)).sum(dim=-1)
            maps.append((nll * valid).sum() / valid.sum().clamp(min=1))
            cell = (wanted[camera].nan_to_num() + 0.5) / SemanticEncoder.stride - 0.5
            goal = cell / (torch.tensor(size, device=cell.device) / SemanticEncoder.stride - 1) * 2 - 1
            points.append(((seen["point"] - goal).abs().sum(-1) * valid).sum() / valid.sum().clamp(min=1))
            presence = seen["presence"].float()
            points.append(0.1 * _of_known(F.binary_cross_entropy_with_logits, presence, valid, told[camera]))
        return {"map": torch.stack(maps).sum(), "point": torch.stack(points).sum()}


def _known_l1(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean distance of what is not NaN."""
    known = torch.isfinite(wanted)
    return ((found - wanted.nan_to_num()).abs() * known).sum() / known.sum().clamp(min=1)


def _of_known(loss: Callable[[Tensor, Tensor], Tensor], found: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """A mean loss over those of a batch (B,) that are known (K,); 0, with no gradient but 0, where none is."""
    return loss(found[known], wanted[known]) if len(known) else 0.0 * found.float().sum()


def token_targets(points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B, 2) pixels -> ((B, rows * cols) bilinear weights over the four nearest tokens, (B,) 1 where inside)."""
    rows, cols = size[0] // SemanticEncoder.stride, size[1] // SemanticEncoder.stride
    limit = torch.tensor(size, device=points.device)
    inside = torch.isfinite(points).all(1) & (points >= 0).all(1) & (points < limit).all(1)
    cell = ((points.nan_to_num() + 0.5) / SemanticEncoder.stride - 0.5).clamp(min=0)
    y, x = cell[:, 0].clamp(max=rows - 1), cell[:, 1].clamp(max=cols - 1)
    y0, x0 = y.floor().long().clamp(max=rows - 2), x.floor().long().clamp(max=cols - 2)
    fy, fx = y - y0, x - x0
    labels = torch.zeros(len(points), rows * cols, device=points.device)
    for dy, dx, weight in ((0, 0, (1 - fy) * (1 - fx)), (0, 1, (1 - fy) * fx), (1, 0, fy * (1 - fx)), (1, 1, fy * fx)):
        labels.scatter_add_(1, ((y0 + dy) * cols + x0 + dx)[:, None], weight[:, None])
    return labels, inside.float()
