"""The small parts of `vega-nano`: words, a convolutional encoder per camera modulated by language, a trunk.

They stand where DINOv2 + SigLIP, Llama and its tokenizer stand in the large policy, and speak the same shapes: images
in, tokens (B, rows * cols, C) in row-major order out, so that the same world simulator and fusion fit between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.nano.config import CHANNEL_GROUPS, TOKEN_PX


class BagOfWords(nn.Module):
    """Mean of word embeddings, then one hidden layer: (B, L) ids, 0 = padding -> (B, dim)."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dim, padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, ids: Tensor) -> Tensor:
        count = (ids > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return self.mlp(self.embedding(ids).sum(dim=1) / count * 2.0)


class SentenceEncoder(nn.Module):
    """Words in their order: embeddings, each seen with its neighbours, and an attended mean; (B, L) ids -> (B, dim)."""

    def __init__(self, words: int, dim: int, neighbours: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dim, padding_idx=0)
        self.near = nn.ModuleList(nn.Conv1d(dim, dim, 3, padding=1) for _ in range(neighbours))
        self.weight = nn.Linear(dim, 1)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, ids: Tensor) -> Tensor:
        here = (ids > 0)[:, :, None]
        x = self.embedding(ids)
        for conv in self.near:
            # Masked each time: a sentence means the same with more padding behind it.
            x = (x + F.gelu(conv(x.mT).mT)) * here
        weight = self.weight(x).masked_fill(~here, -torch.inf).softmax(dim=1)
        return self.mlp((weight * x).sum(dim=1) * 2.0)


# By their names in a checkpoint's config.
TEXT_ENCODERS: dict[str, type[BagOfWords] | type[SentenceEncoder]] = {"bag": BagOfWords, "sequence": SentenceEncoder}


class FilmBlock(nn.Module):
    """Residual block of two 3x3 convolutions whose normalised features are scaled and shifted by the instruction."""

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(CHANNEL_GROUPS, channels, affine=False)
        self.film = nn.Linear(text, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        gain, bias = self.film(text)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.conv1(x)) * (1 + gain) + bias
        return x + self.scale * self.conv2(F.gelu(h))


class FilmConvEncoder(nn.Module):
    """One camera: (B, 3, H, W) in [-1, 1] -> (B, C, H/8, W/8)."""

    def __init__(self, channels: int, text: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 48, 4, stride=4),
            nn.GELU(),
            nn.Conv2d(48, 48, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(48, channels, 3, stride=2, padding=1),
            nn.GroupNorm(CHANNEL_GROUPS, channels),
            nn.GELU(),
        )
        self.blocks = nn.ModuleList(FilmBlock(channels, text) for _ in range(blocks))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x, text)
        return x


class SemanticEncoder(nn.Module):
    """A `FilmConvEncoder` per camera; f_sem of every camera as tokens."""

    stride = TOKEN_PX

    def __init__(self, cameras: Sequence[str], channels: int, text: int, blocks: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({camera: FilmConvEncoder(channels, text, blocks) for camera in cameras})

    def forward(self, images: Mapping[str, Tensor], text: Tensor) -> dict[str, Tensor]:
        """camera -> (B, 3, H, W) and (B, text) -> camera -> (B, rows * cols, C)."""
        return {camera: encoder(images[camera], text).flatten(2).mT for camera, encoder in self.encoders.items()}


def soft_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, rows, cols) -> expected (row, col) in [-1, 1], (B, K, 2), and the probabilities (B, K, rows * cols)."""
    rows, cols = logits.shape[-2:]
    probability = logits.flatten(2).float().softmax(dim=-1)
    y = torch.linspace(-1, 1, rows, device=logits.device).repeat_interleave(cols)
    x = torch.linspace(-1, 1, cols, device=logits.device).repeat(rows)
    return torch.stack([(probability * y).sum(-1), (probability * x).sum(-1)], dim=-1), probability


class CameraReadout(nn.Module):
    """What the trunk takes from one camera: keypoints, and where the thing asked for is.

    A spatial softmax (Finn et al. 2016) gives `keypoints` positions; one more map, trained against the target's pixel,
    gives the target's position and the features there.
    """

    def __init__(self, channels: int, text: int, keypoints: int) -> None:
        super().__init__()
        self.block = FilmBlock(channels, text)
        self.maps = nn.Conv2d(channels, keypoints + 1, 1)
        self.presence = nn.Linear(channels, 1)
        self.width = 2 * (keypoints + 1) + 2 * channels + 1

    def forward(self, grid: Tensor, text: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        grid = self.block(grid, text)
        logits = self.maps(grid)
        points, probability = soft_argmax(logits)
        features = grid.flatten(2).mT.float()  # (B, rows * cols, C)
        at_target = (probability[:, :1] @ features).squeeze(1)
        mean = features.mean(dim=1)
        presence = self.presence(at_target)
        readout = torch.cat([points.flatten(1), at_target, mean, presence], dim=1)
        return readout, {"map": logits[:, 0].flatten(1).float(), "point": points[:, 0], "presence": presence.squeeze(1)}


class Trunk(nn.Module):
    """Camera readouts, proprioception and text -> (B, width)."""

    def __init__(
        self,
        grids: Mapping[str, tuple[int, int]],
        channels: int,
        text: int,
        proprio: int,
        keypoints: int,
        width: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.grids = dict(grids)
        self.readouts = nn.ModuleDict({camera: CameraReadout(channels, text, keypoints) for camera in grids})
        self.proprio = nn.Sequential(nn.Linear(proprio, 64), nn.GELU(), nn.Linear(64, 64))
        inputs = sum(r.width for r in self.readouts.values()) + 64 + text  # type: ignore[misc]
        self.inlet = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Mapping[str, Tensor], text: Tensor, proprio: Tensor
    ) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        parts, grounding = [text, self.proprio(proprio)], {}
        for camera, readout in self.readouts.items():
            grid = tokens[camera].mT.unflatten(2, self.grids[camera])
            part, grounding[camera] = readout(grid, text)
            parts.append(part)
        x = self.inlet(torch.cat([p.float() for p in parts], dim=1))
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x), grounding


class Decision(NamedTuple):
    """actions (B, chunk, dim); hidden (B, width), the trunk's output; grounding: where each camera sees the target.

    progress (B,): logit of the share of the task that the policy believes done, if it remembers that.
    """

    actions: Tensor
    hidden: Tensor
    grounding: dict[str, dict[str, Tensor]]
    progress: Tensor | None


class L1Head(nn.Module):
    """(B, width) -> a chunk of actions (B, H, dim), trained with the L1 loss (OpenVLA-OFT section 4)."""

    def __init__(self, width: int, chunk_length: int, dim: int) -> None:
        super().__init__()
        self.chunk_length, self.dim = chunk_length, dim
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, chunk_length * dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x).unflatten(1, (self.chunk_length, self.dim))
