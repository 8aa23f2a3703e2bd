"""One frame at a time: the nano's encoder, the world simulator's gate, and what every token says about named things.

    picture ─► encoder = f_sem ─┐
       └─► world simulator = f_gen ─┴► gate ─► tokens ─► context (attention over the whole picture) ─► camera
                                                 └──────────────┴► heads: which thing lies here, where, how large
    noun ─► sequence encoder = query ─► scores of all tokens

No question enters before the scores, so that a frame is encoded once, when it comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.fusion.gated_fusion import build_fusion
from policies.fusion.world_view import CameraView, WorldView
from policies.nano.layers import SemanticEncoder, SentenceEncoder
from policies.spatial.nano.config import SpatialConfig
from policies.world_simulator.simulator import LatentWorldSimulator

CAMERA = "eye"
MATCH = 64  # width in which nouns and tokens meet
HARMONICS = 5  # numbers of a footprint, see `log_widths`
GEOMETRY = 6 + HARMONICS
POSE, SPREADS = 6, 5
PRIOR = -4.6  # logit of a thing lying at a token, before anything is learned
UNIT_M = 0.1  # sizes are learned as logarithms of multiples of this


class Geometry(NamedTuple):
    """What tokens say of the thing whose centre lies there.

    offset: (..., 2) column and row from the token's middle to the centre of its box, tokens.  depth: of the centre
    along the optical axis, log m.  height, longest: of its upright box, log m.  share: of the picture that it covers,
    log10.  shape: (..., HARMONICS), see `log_widths`.
    """

    offset: Tensor
    depth: Tensor
    height: Tensor
    longest: Tensor
    share: Tensor
    shape: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Geometry:
        """(..., GEOMETRY), as the head gives them."""
        depth, height, longest, share = values[..., 2:6].unbind(-1)
        unit = torch.tensor(UNIT_M, device=values.device).log()
        return cls(values[..., :2], depth, height + unit, longest + unit, share - 2.0, values[..., 6:])


def log_widths(shape: Tensor, angle: Tensor) -> Tensor:
    """Logarithm of the width in m of footprints (..., HARMONICS) along a direction, rad from the camera's heading."""
    waves = [torch.ones_like(angle), (2 * angle).cos(), (2 * angle).sin(), (4 * angle).cos(), (4 * angle).sin()]
    return (shape * torch.stack(waves, dim=-1)).sum(-1) + torch.tensor(UNIT_M, device=shape.device).log()


class Pose(NamedTuple):
    """Where the camera is, from what it sees; all (B,).  It is taken to be level: no roll.

    right, forward: m, from the camera to the middle of the surface, along its heading and to the right of it.
    height: of the camera over the surface, m.  cosine, sine: of the heading about the vertical.  pitch: up, rad.
    """

    right: Tensor
    forward: Tensor
    height: Tensor
    cosine: Tensor
    sine: Tensor
    pitch: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Pose:
        """(B, POSE), as the head gives them."""
        right, forward, height, cosine, sine, pitch = values.unbind(-1)
        return cls(right, forward + 0.75, height + 0.55, cosine, sine, 0.3 * pitch - 0.65)


class Seen(NamedTuple):
    """What a batch of frames shows.

    match: (B, N, MATCH).  geometry: (B, N, GEOMETRY).  pose: (B, POSE).  spread: (B, SPREADS), log of the expected
    error of right, forward, height (m), heading and pitch (rad).  table: (B,) log m^2 of the table top, if that is what
    things stand on.  gate: (B, rows, columns) share of f_sem.
    """

    match: Tensor
    geometry: Tensor
    pose: Tensor
    spread: Tensor
    table: Tensor
    gate: Tensor


class Context(nn.Module):
    """Every token with the whole picture in mind, and the camera: (B, C, rows, columns) -> the same, (B, width)."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        rows, columns = config.grid
        self.down = nn.Conv2d(config.channels, config.width, 3, stride=2, padding=1)
        self.places = nn.Parameter(0.02 * torch.randn(1, (rows // 2) * (columns // 2), config.width))
        self.camera = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, config.heads, 2 * config.width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.channels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.down(tokens)
        size = coarse.shape[-2:]
        x = coarse.flatten(2).mT + self.places
        x = torch.cat([self.camera.expand(len(x), -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        spread = self.up(x[:, 1:]).mT.unflatten(2, size)
        return F.interpolate(spread, tokens.shape[-2:], mode="bilinear"), x[:, 0]


class SpatialNetwork(nn.Module):
    """Frames to what they show, and nouns to queries."""

    def __init__(self, config: SpatialConfig, words: int, simulator: LatentWorldSimulator) -> None:
        """words: of the vocabulary.  Raises VegaError for settings that do not fit."""
        super().__init__()
        self.config = config
        channels = config.channels
        self.look = nn.Parameter(0.02 * torch.randn(1, config.text_dim))
        self.semantic_encoder = SemanticEncoder((CAMERA,), channels, config.text_dim, config.encoder_blocks)
        fusion = build_fusion(config.fusion, channels, simulator.dim)
        self.world = WorldView(simulator, {CAMERA: CameraView(config.canvas, config.grid)}, fusion)
        self.world.control = config.world_control
        self.context = Context(config)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * channels, config.width, 1),
            nn.GELU(),
            nn.Conv2d(config.width, config.width, 3, padding=1),
            nn.GroupNorm(8, config.width),
            nn.GELU(),
            nn.Conv2d(config.width, config.width, 3, padding=1),
            nn.GELU(),
        )
        self.match = nn.Linear(config.width, MATCH)
        self.geometry = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, GEOMETRY)
        )
        self.pose = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, POSE + SPREADS + 1)
        )
        self.nouns = SentenceEncoder(words, config.text_dim)
        self.query = nn.Linear(config.text_dim, MATCH + 1)

    def forward(self, pictures: Tensor, f_gen: Mapping[str, Tensor]) -> Seen:
        """pictures: (B, 3, H, W) in [-1, 1].  f_gen: of `world.look` for CAMERA, (B, N, G)."""
        text = self.look.expand(len(pictures), -1)
        fused, gates = self.world.fuse(self.semantic_encoder({CAMERA: pictures}, text), f_gen)
        tokens = fused[CAMERA].mT.unflatten(2, self.config.grid)
        around, camera = self.context(tokens)
        mixed = self.mix(torch.cat([tokens, around], dim=1)).flatten(2).mT
        pose = self.pose(camera).float()
        return Seen(
            self.match(mixed).float(), self.geometry(mixed).float(), pose[:, :POSE],
            pose[:, POSE:-1].clamp(-5.0, 1.0), pose[:, -1], gates[CAMERA],
        )  # fmt: skip

    def unmirrored(self, seen: Seen) -> Seen:
        """What frames seen in a mirror say of the frames themselves."""
        grid = self.config.grid

        def turned(tokens: Tensor) -> Tensor:
            return tokens.unflatten(1, grid).flip(2).flatten(1, 2)

        signs = torch.ones(GEOMETRY)
        signs[[0, 6 + 2, 6 + 4]] = -1.0  # columns of the offset, sines of the footprint
        sides = torch.tensor([-1.0, 1.0, 1.0, 1.0, -1.0, 1.0])  # right, and the heading's sine
        return Seen(
            turned(seen.match), turned(seen.geometry) * signs.to(seen.geometry), seen.pose * sides.to(seen.pose),
            seen.spread, seen.table, seen.gate.flip(2),
        )  # fmt: skip

    def queries(self, ids: Tensor) -> Tensor:
        """Nouns as word ids (K, L), 0 = padding -> (K, MATCH + 1)."""
        return self.query(self.nouns(ids)).float()

    @staticmethod
    def scores(match: Tensor, queries: Tensor) -> Tensor:
        """(..., N, MATCH), (K, MATCH + 1) -> logits (..., K, N) of the noun's thing having its centre at a token."""
        return (match @ queries[:, :-1].mT / MATCH**0.5 + queries[:, -1] + PRIOR).mT
