"""OpenVLA-OFT's small parts: image projector, proprio projector, L1 action head.

Sizes come from the tensors.  Names of the parameters are the published ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from policies.files.tensor_sources import TensorSource, depth, shape_of
from policies.types import VegaError


class ImageProjector(nn.Module):
    """Vision tokens (B, N, V) to the language width (B, N, D): three linear layers with exact GELU between."""

    def __init__(self, vision_dim: int, hidden_dim: int, language_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, language_dim)
        self.fc3 = nn.Linear(language_dim, language_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class ProprioProjector(nn.Module):
    """Normalised robot state (B, P) to one token (B, D)."""

    def __init__(self, proprio_dim: int, language_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, language_dim)
        self.fc2 = nn.Linear(language_dim, language_dim)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(state)))


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, dim: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(x)


class L1ActionHead(nn.Module):
    """Hidden states of the action tokens (B, chunk * A, D) to normalised actions (B, chunk, A); no clip, no tanh."""

    def __init__(self, language_dim: int, hidden_dim: int, action_dim: int, blocks: int):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(language_dim * action_dim)
        self.fc1 = nn.Linear(language_dim * action_dim, hidden_dim)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden_dim) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, action_dim)

    @property
    def action_dim(self) -> int:
        return self.fc2.out_features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = hidden.shape
        x = hidden.reshape(batch, tokens // self.action_dim, self.action_dim * dim)
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


def build_projector(source: TensorSource, prefix: str = "projector.") -> ImageProjector:
    """Image projector on the meta device, sized by the tensors."""
    hidden, vision = shape_of(source, f"{prefix}fc1.weight", 2)
    with torch.device("meta"):
        return ImageProjector(vision, hidden, shape_of(source, f"{prefix}fc3.weight", 2)[0])


def build_proprio_projector(source: TensorSource, language_dim: int) -> ProprioProjector:
    """Proprio projector on the meta device, sized by the tensors."""
    width, proprio_dim = shape_of(source, "fc1.weight", 2)
    _check_width(source, width, language_dim)
    with torch.device("meta"):
        return ProprioProjector(proprio_dim, language_dim)


def build_action_head(source: TensorSource, language_dim: int, prefix: str = "model.") -> L1ActionHead:
    """L1 head on the meta device, sized by the tensors; VegaError for a diffusion head."""
    if any(key.startswith("noise_predictor.") for key in source.names()):
        raise VegaError(
            f"'{source.name}' is a diffusion action head, which this package does not run: choose a checkpoint with an "
            "L1 head (keys 'model.fc1.weight', ...)."
        )
    action_dim, _ = shape_of(source, f"{prefix}fc2.weight", 2)
    hidden, flat = shape_of(source, f"{prefix}fc1.weight", 2)
    _check_width(source, flat // action_dim, language_dim)
    with torch.device("meta"):
        return L1ActionHead(language_dim, hidden, action_dim, depth(source, f"{prefix}mlp_resnet_blocks."))


def _check_width(source: TensorSource, width: int, language_dim: int) -> None:
    if width != language_dim:
        raise VegaError(
            f"'{source.name}' was made for a language model of width {width}, this one has {language_dim}: use the "
            "file that came with this checkpoint."
        )
