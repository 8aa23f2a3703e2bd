"""The loss of vega-nano-spatial, from what the simulator knows of every frame: things, their sizes, the camera.

Which thing has its centre at which token: a focal loss (CenterNet, arXiv 1904.07850).  Depth, sizes and footprints:
L1 of their logarithms, at tokens near centres.  The camera: Laplace's likelihood, so that it knows how sure it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.spatial.nano.config import SpatialConfig
from policies.spatial.nano.network import Geometry, Pose, Seen, SpatialNetwork, log_widths
from policies.training.spatial.films import Films

TRACE, SHOWN = 1e-4, 8e-4  # shares of a picture: below, a thing is not there; between, it may be
NEAR = 0.35  # of the label's peak: tokens that tell a thing's geometry
SPREAD = 0.18  # of the label's bump, in widths of the thing
WEIGHTS = {"heat": 1.0, "offset": 0.5, "depth": 1.0, "sizes": 1.0, "share": 0.1, "camera": 0.2, "table": 0.1}


class Batch(NamedTuple):
    """Frames with what is true of them; see `Films`.  All in the camera's own terms.

    uv: (B, T, 2) px of the centres.  depth: (B, T) m.  angles: (B, T, 4) rad from the heading.  pose: (B, 6).
    table: (B,) m^2, NaN where there is none.
    """

    pictures: Tensor
    f_gen: dict[str, Tensor]
    uv: Tensor
    depth: Tensor
    height: Tensor
    longest: Tensor
    widths: Tensor
    angles: Tensor
    kind: Tensor
    share: Tensor
    pose: Tensor
    table: Tensor


def labels(films: Films, index: NDArray[np.int64], mirrored: NDArray[np.bool_], focal: float) -> dict[str, Tensor]:
    """What is true of frames `index`, some seen in a mirror."""
    height, width = films.pictures.shape[1:3]
    pose, sign = films.camera_to_world[index], np.where(mirrored, -1.0, 1.0)
    rotation, position = pose[:, :3, :3], pose[:, :3, 3]
    local = np.einsum("bji,btj->bti", rotation, films.centre[index] - position[:, None])
    depth = np.maximum(local[..., 2], 0.05)
    uv = focal * local[..., :2] / depth[..., None]
    uv = np.stack([sign[:, None] * uv[..., 0] + (width - 1) / 2, uv[..., 1] + (height - 1) / 2], axis=-1)
    heading = np.arctan2(rotation[:, 1, 2], rotation[:, 0, 2])
    origin = -position[:, :2]
    right = origin[:, 0] * np.sin(heading) - origin[:, 1] * np.cos(heading)
    forward = origin[:, 0] * np.cos(heading) + origin[:, 1] * np.sin(heading)
    camera = [
        sign * right,
        forward,
        position[:, 2],
        np.cos(heading),
        sign * np.sin(heading),
        np.arcsin(rotation[:, 2, 2]),
    ]
    found = {
        "uv": uv, "depth": depth, "height": films.height[index], "longest": films.longest[index],
        "widths": films.widths[index],
        "angles": sign[:, None, None] * (films.angles[index] - heading[:, None, None]),
        "share": films.share[index], "pose": np.stack(camera, axis=-1),
        "table": films.table[index],
    }  # fmt: skip
    return {name: torch.from_numpy(value).float() for name, value in found.items()} | {
        "kind": torch.from_numpy(films.kind[index])
    }


class SpatialLearner(nn.Module):
    """The network, and the nouns of all that it is shown."""

    nouns: Tensor

    def __init__(self, network: SpatialNetwork, nouns: Tensor) -> None:
        """nouns: (K, L) word ids of the config's things."""
        super().__init__()
        self.network, self.config = network, network.config
        self.register_buffer("nouns", nouns, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts: heat (nats a thing), offset (tokens), log errors, camera (nats), camera_m, _deg."""
        seen = self.network(batch.pictures, batch.f_gen)
        logits = self.network.scores(seen.match, self.network.queries(self.nouns))
        bumps = bump(batch, self.config)
        parts = {"heat": heat_loss(logits, bumps, batch), **geometry_losses(seen, bumps, batch, self.config)}
        parts |= camera_losses(seen, batch.pose)
        known = batch.table.isfinite()
        missed = (seen.table - batch.table.nan_to_num(1.0).log()).abs() * known
        parts["table"] = missed.sum() / known.sum().clamp(min=1)
        total = torch.stack([weight * parts[name] for name, weight in WEIGHTS.items()]).sum()
        return total, {name: value.detach() for name, value in parts.items()}


def bump(batch: Batch, config: SpatialConfig) -> Tensor:
    """(B, T, N) in [0, 1]: 1 at the token nearest to a thing's centre, or to where that leaves the picture."""
    rows, columns = config.grid
    cell = (batch.uv + 0.5) / 8 - 0.5
    limit = torch.tensor([columns - 1.0, rows - 1.0])
    at = torch.minimum(cell.round().clamp(min=0), limit)
    y, x = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    away = (x - at[..., :1]) ** 2 + (y - at[..., 1:]) ** 2
    across = config.focal * batch.widths.mean(-1) / batch.depth / 8
    sigma = (SPREAD * across).clamp(min=0.6)
    return torch.exp(-away / (2 * sigma**2)[..., None])


def heat_loss(logits: Tensor, bumps: Tensor, batch: Batch) -> Tensor:
    """logits (B, K, N), bumps (B, T, N)."""
    there = (batch.kind >= 0) & (batch.share >= SHOWN)
    unsure = (batch.kind >= 0) & (batch.share >= TRACE) & ~there
    kind = batch.kind.clamp(min=0)[..., None].expand_as(bumps)
    wanted = torch.zeros_like(logits).scatter_reduce(1, kind, bumps * there[..., None], "amax")
    doubt = torch.zeros_like(logits).scatter_reduce(1, kind, bumps * unsure[..., None], "amax")
    probability = logits.sigmoid()
    hit = (wanted == 1.0) * (1 - probability) ** 2 * F.logsigmoid(logits)
    miss = (wanted < 1.0) * (1 - wanted) ** 4 * (1 - doubt) ** 4 * probability**2 * F.logsigmoid(-logits)
    return -(hit + miss).sum() / there.sum().clamp(min=1)


def geometry_losses(seen: Seen, bumps: Tensor, batch: Batch, config: SpatialConfig) -> dict[str, Tensor]:
    """At tokens near the centres of things that are shown."""
    there = (batch.kind >= 0) & (batch.share >= SHOWN)
    weight = (bumps * there[..., None]).where(bumps > NEAR, torch.zeros(()))
    # A token near several things tells of the nearest.
    weight = weight * (weight == weight.amax(dim=1, keepdim=True))
    frame, thing, token = weight.nonzero(as_tuple=True)
    share = weight[frame, thing, token]
    share = share / share.sum().clamp(min=1e-6)
    found = Geometry.of(seen.geometry[frame, token])
    columns = config.grid[1]
    middle = torch.stack([token % columns, token // columns], dim=-1)
    offset = (batch.uv[frame, thing] + 0.5) / 8 - 0.5 - middle
    widths = log_widths(found.shape[:, None], batch.angles[frame, thing])
    errors = {
        "offset": (found.offset - offset).abs().mean(-1),
        "depth": (found.depth - batch.depth[frame, thing].log()).abs(),
        "sizes": (widths - batch.widths[frame, thing].log()).abs().mean(-1)
        + (found.height - batch.height[frame, thing].log()).abs()
        + (found.longest - batch.longest[frame, thing].log()).abs(),
        "share": (found.share - batch.share[frame, thing].clamp(min=TRACE).log10()).abs(),
    }
    return {name: (share * error).sum() for name, error in errors.items()}


def camera_losses(seen: Seen, pose: Tensor) -> dict[str, Tensor]:
    """pose: (B, 6), the true one."""
    found = Pose.of(seen.pose)
    errors = [(a - b).abs() for a, b in zip(found, pose.unbind(-1), strict=True)]
    turned = torch.hypot(errors[3], errors[4])
    five = torch.stack([*errors[:3], turned, errors[5]], dim=-1)
    nats = five / seen.spread.exp() + seen.spread
    heading = torch.atan2(found.sine, found.cosine) - torch.atan2(pose[:, 4], pose[:, 3])
    away = torch.atan2(heading.sin(), heading.cos()).abs().rad2deg()
    return {"camera": nats.sum(-1).mean(), "camera_m": five[:, :3].mean(), "heading_deg": away.mean()}
