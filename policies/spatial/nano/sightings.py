"""What one frame shows, as a list: which thing may have its centre where in the picture, how far, how large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from policies.spatial.nano.network import Geometry, Pose, Seen, SpatialNetwork
from policies.types import FloatArray

FAINT = 0.04  # scores below are not looked at
MOST = 6  # of a kind in a frame
TOKEN_PX = 8


@dataclass(frozen=True, eq=False)
class Sightings:
    """Of one frame, n of them.

    pose: (5,) right, forward, height m; heading, pitch rad, see `network.Pose`.  spread: (5,) its expected errors.
    kind: (n,) number of the category.  score: (n,) in [0, 1].  uv: (n, 2) px from the middle of the picture.  depth,
    height, longest: (n,) m.  share: (n,) of the picture.  shape: (n, HARMONICS).
    table: m^2 of the table top, if there is one.  gate: (rows, columns) share of f_sem.
    """

    pose: FloatArray
    spread: FloatArray
    kind: NDArray[np.int64]
    score: FloatArray
    uv: FloatArray
    depth: FloatArray
    height: FloatArray
    longest: FloatArray
    share: FloatArray
    shape: FloatArray
    table: float
    gate: NDArray[np.float32]


def sightings(network: SpatialNetwork, seen: Seen, queries: torch.Tensor) -> list[Sightings]:
    """Of every frame of a batch; queries: (kinds, MATCH + 1) of all categories."""
    rows, columns = network.config.grid
    scores = network.scores(seen.match, queries).sigmoid().unflatten(2, (rows, columns))
    peaks = torch.nn.functional.max_pool2d(scores, 3, 1, 1) == scores
    return [_of_frame(network, Seen(*(part[i] for part in seen)), scores[i], peaks[i]) for i in range(len(scores))]


def _of_frame(network: SpatialNetwork, seen: Seen, scores: torch.Tensor, peaks: torch.Tensor) -> Sightings:
    rows, columns = network.config.grid
    kept = scores * peaks
    # What another kind explains much better there is no sighting of this one.
    strongest = torch.nn.functional.max_pool2d(scores.amax(0)[None], 3, 1, 1)[0]
    kept = torch.where(kept >= 0.5 * strongest, kept, torch.zeros(()))
    top, token = kept.flatten(1).topk(min(MOST, rows * columns), dim=1)
    kind, rank = (top > FAINT).nonzero(as_tuple=True)
    at = token[kind, rank]
    tells = Geometry.of(seen.geometry[at])
    middle = torch.stack([at % columns, at // columns], dim=-1)
    uv = (middle + tells.offset + 0.5) * TOKEN_PX - torch.tensor([columns, rows]).to(middle) * TOKEN_PX / 2
    pose = Pose.of(seen.pose)
    heading = torch.atan2(pose.sine, pose.cosine)

    def numbers(values: torch.Tensor) -> FloatArray:
        return values.double().cpu().numpy()

    return Sightings(
        pose=numbers(torch.stack([pose.right, pose.forward, pose.height, heading, pose.pitch])),
        spread=numbers(seen.spread.exp()), kind=kind.cpu().numpy(), score=numbers(top[kind, rank]), uv=numbers(uv),
        depth=numbers(tells.depth.exp()), height=numbers(tells.height.exp()), longest=numbers(tells.longest.exp()),
        share=numbers(10**tells.share), shape=numbers(tells.shape),
        table=float(seen.table.exp()), gate=seen.gate.float().cpu().numpy(),
    )  # fmt: skip
