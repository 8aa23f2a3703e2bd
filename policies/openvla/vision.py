"""OpenVLA's two vision towers, from `transformers`, filled with tensors that timm named.

Each tower gives the output of its second-to-last block without a final norm (OpenVLA's
`get_intermediate_layers` trick), so its last block is never built.  With FiLM, the mean language
embedding scales and shifts every block between attention and MLP (OpenVLA-OFT, section on FiLM).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from policies.files.tensor_sources import TensorSource, depth, shape_of
from policies.files.weight_files import assign, fill, read_as
from policies.types import VegaError

HEADS = 16  # of both published towers (DINOv2-L, SigLIP-so400m); tensors do not show it
LAYER_NORM_EPS = 1e-6

_COMMON = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_DINOV2_NAMES = _COMMON | {
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.scale_factor",
    "layer_scale2.lambda1": "ls2.scale_factor",
}
_SIGLIP_NAMES = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"} | _COMMON
_QKV = re.compile(r"(?:attention|self_attn)\.([qkv])_proj\.(weight|bias)$")


class FiLM(nn.Module):
    """Scale and shift (B, N, C) by linear maps of a language embedding (B, D): x (1 + gamma) + beta."""

    def __init__(self, language_dim: int, vision_dim: int):
        super().__init__()
        self.scale = nn.Linear(language_dim, vision_dim)
        self.shift = nn.Linear(language_dim, vision_dim)

    def forward(self, x: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        return x * (1 + self.scale(language)[:, None]) + self.shift(language)[:, None]


class VisionTower(nn.Module):
    """One ViT.  forward: pixels (B, 3, S, S) normalised, language (B, D) or None -> patch tokens (B, rows*cols, C)."""

    def __init__(self, embeddings: nn.Module, blocks: nn.ModuleList, prefix_tokens: int, film_dim: int = 0):
        super().__init__()
        self.embeddings = embeddings
        self.blocks = blocks
        self.prefix_tokens = prefix_tokens
        norm = blocks[0].norm1 if hasattr(blocks[0], "norm1") else blocks[0].layer_norm1
        assert isinstance(norm, nn.LayerNorm)
        width = self.width = norm.normalized_shape[0]
        self.films = nn.ModuleList(FiLM(film_dim, width) for _ in blocks) if film_dim else None

    @property
    def patch_pixels(self) -> int:
        """Side of a patch in pixels."""
        return next(m for m in self.embeddings.modules() if isinstance(m, nn.Conv2d)).kernel_size[0]

    @property
    def patches(self) -> int:
        """How many patches it knows the places of."""
        places = dict(self.embeddings.named_parameters())
        if self.prefix_tokens:
            return places["position_embeddings"].shape[1] - 1
        return len(places["position_embedding.weight"])

    def forward(self, pixels: torch.Tensor, language: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embeddings(pixels)
        for i, block in enumerate(self.blocks):
            x = block(x, None) if self.films is None else self._film_block(block, self.films[i], x, language)
        return x[:, self.prefix_tokens :]

    @staticmethod
    def _film_block(block: Any, film: nn.Module, x: torch.Tensor, language: torch.Tensor | None) -> torch.Tensor:
        if hasattr(block, "layer_scale1"):
            x = film(x + block.layer_scale1(block.attention(block.norm1(x))[0]), language)
            return x + block.layer_scale2(block.mlp(block.norm2(x)))
        x = film(x + block.self_attn(block.layer_norm1(x))[0], language)
        return x + block.mlp(block.layer_norm2(x))


def _geometry(source: TensorSource, prefix: str, patches: int) -> tuple[dict, int]:
    """Sizes of a timm ViT, read from its tensors: arguments that both transformers configs share, and the MLP width."""
    width, _, patch, _ = shape_of(source, f"{prefix}patch_embed.proj.weight", 4)
    side = round(patches**0.5)
    blocks = depth(source, f"{prefix}blocks.")
    if side * side != patches or width % HEADS or blocks < 2:
        raise VegaError(
            f"'{source.name}' has a vision tower '{prefix}' of {patches} patches, width {width} and {blocks} blocks: a "
            f"square grid, a width divisible by {HEADS} and at least 2 blocks are needed; use an OpenVLA checkpoint."
        )
    shared = {
        "hidden_size": width,
        "num_hidden_layers": blocks - 1,
        "num_attention_heads": HEADS,
        "image_size": side * patch,
        "patch_size": patch,
        "layer_norm_eps": LAYER_NORM_EPS,
        "hidden_act": "gelu",  # timm's towers use the exact GELU in both
        "attn_implementation": "sdpa",
    }
    return shared, shape_of(source, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0]


def build_dinov2(source: TensorSource, prefix: str, film_dim: int = 0) -> VisionTower:
    """DINOv2 with registers on the meta device, sized by the tensors under `prefix`."""
    sizes, mlp = _geometry(source, prefix, shape_of(source, f"{prefix}pos_embed", 3)[1])
    if mlp % sizes["hidden_size"]:
        raise VegaError(f"'{source.name}' has an MLP of {mlp} under '{prefix}': use a DINOv2 tower as published.")
    registers = shape_of(source, f"{prefix}reg_token", 3)[1]
    config = Dinov2WithRegistersConfig(mlp_ratio=mlp // sizes["hidden_size"], num_register_tokens=registers, **sizes)
    with torch.device("meta"):
        model = Dinov2WithRegistersModel(config)
        return VisionTower(model.embeddings, model.encoder.layer, 1 + registers, film_dim)


def build_siglip(source: TensorSource, prefix: str, film_dim: int = 0) -> VisionTower:
    """SigLIP's vision tower on the meta device, sized by the tensors under `prefix`."""
    sizes, mlp = _geometry(source, prefix, shape_of(source, f"{prefix}pos_embed", 3)[1])
    config = SiglipVisionConfig(intermediate_size=mlp, vision_use_head=False, **sizes)
    with torch.device("meta"):
        model = SiglipVisionModel(config)
        return VisionTower(model.embeddings, model.encoder.layers, 0, film_dim)


def stored_place(tower: VisionTower, prefix: str, name: str) -> tuple[str, slice | None]:
    """Where a checkpoint has the parameter `name` of `tower.blocks`: timm's name under `prefix`, and rows of it."""
    names = _DINOV2_NAMES if tower.prefix_tokens else _SIGLIP_NAMES
    number, _, rest = name.partition(".")
    if match := _QKV.search(rest):
        first = "qkv".index(match.group(1)) * tower.width
        return f"{prefix}blocks.{number}.attn.qkv.{match.group(2)}", slice(first, first + tower.width)
    if rest in names:
        return f"{prefix}blocks.{number}.{names[rest]}", None
    module, _, leaf = rest.rpartition(".")
    return f"{prefix}blocks.{number}.{names[module]}.{leaf}", None


def fill_tower(tower: VisionTower, source: TensorSource, prefix: str, device: torch.device, dtype: torch.dtype) -> None:
    """Stream timm's tensors under `prefix` into a tower built on the meta device."""
    fill(tower.blocks, source, lambda name: stored_place(tower, prefix, name), device, dtype)
    if tower.films is not None:
        fill(tower.films, source, lambda name: (f"{prefix}blocks.{name}", None), device, dtype)
    _fill_embeddings(tower, source, prefix, device, dtype)


def _fill_embeddings(
    tower: VisionTower, source: TensorSource, prefix: str, device: torch.device, dtype: torch.dtype
) -> None:
    projection = {"weight": f"{prefix}patch_embed.proj.weight", "bias": f"{prefix}patch_embed.proj.bias"}
    embeddings = tower.embeddings
    convolution = next(m for m in embeddings.modules() if isinstance(m, nn.Conv2d))
    fill(convolution, source, lambda name: (projection[name], None), device, dtype)

    def read(key: str, tokens: int) -> torch.Tensor:
        return read_as(source, prefix + key, None, (1, tokens, tower.width), device, dtype)

    positions = read("pos_embed", tower.patches)
    if tower.prefix_tokens:
        # timm gives the class token no position; transformers adds one, which is zero here.
        assign(embeddings, "position_embeddings", torch.cat([torch.zeros_like(positions[:, :1]), positions], 1))
        assign(embeddings, "cls_token", read("cls_token", 1))
        assign(embeddings, "register_tokens", read("reg_token", tower.prefix_tokens - 1))
        assign(embeddings, "mask_token", torch.zeros(1, tower.width, device=device, dtype=dtype))
    else:
        assign(embeddings, "position_embedding.weight", positions[0].clone())
        embeddings.position_ids = torch.arange(positions.shape[1], device=device)[None]
