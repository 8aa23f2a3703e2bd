"""Wan's causal video encoder: single frames at the price of single frames, and streams with a memory.

The encoder is diffusers' own; only its causal convolutions are wrapped.  Causal padding puts zeros
before the first frame, so of a kernel's three temporal taps the first frame of a video meets the last
one only: for it, the 3-D convolution is a 2-D one, a third of the work, with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify
from torch import nn

from policies.files.tensor_sources import TensorSource, refuse_unread
from policies.files.weight_files import (
    as_published,
    build_component,
    check_memory,
    component_config,
    fill,
    open_weights,
    write_component,
)
from policies.types import VegaError
from policies.world_simulator.frame_encoder import FrameEncoder, Past, identity


class CausalConv(nn.Module):
    """A Wan causal convolution that pays one tap for the first frame of a video.  (B, C, T, H, W) in and out."""

    def __init__(self, conv: WanCausalConv3d):
        super().__init__()
        self.conv = conv
        self._last_tap: torch.Tensor | None = None
        self._taken_from: tuple[object, ...] = ()

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        """cache_x: up to two frames before x, or None at the start of a video."""
        conv = self.conv
        first = cache_x is None and x.shape[2] == 1 and conv.stride[0] == 1
        if not first:
            return conv(x, cache_x)
        weight = conv.weight
        if self._last_tap is None or self._taken_from != identity([weight]):
            self._last_tap = weight.detach()[:, :, -1].contiguous(memory_format=torch.channels_last)
            self._taken_from = identity([weight])
        padding = (conv._padding[2], conv._padding[0])
        return F.conv2d(x[:, :, 0], self._last_tap, conv.bias, conv.stride[1:], padding)[:, :, None]


class WanEncoder(nn.Module):
    """Video (B, 3, T, H, W) in [-1, 1] to normalised latents (B, C, T', h, w): the posterior's mean, no sampling."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vae: AutoencoderKLWan):
        super().__init__()
        self.config = config = vae.config
        self.patch_size: int | None = config.patch_size
        self.temporal_stride: int = 2 ** sum(config.temperal_downsample)
        self.spatial_stride: int = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        self.channels: int = config.z_dim
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self._memories = sum(isinstance(module, WanCausalConv3d) for module in self.encoder.modules())
        for parent in list(self.encoder.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, WanCausalConv3d) and not isinstance(parent, CausalConv):
                    setattr(parent, name, CausalConv(child))
        weight = self.quant_conv.weight
        mean = torch.tensor(config.latents_mean, device=weight.device).view(1, -1, 1, 1, 1)
        std = torch.tensor(config.latents_std, device=weight.device).view(1, -1, 1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.requires_grad_(False)
        self._one_by_one: FrameEncoder | None = None
        self._weights: list[torch.Tensor] = []
        self._taken_from: tuple[object, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a video; VegaError if its length does not divide into them."""
        stride = self.temporal_stride
        if frames < 1 or (frames - 1) % stride:
            nearest = 1 + max(round((frames - 1) / stride), 0) * stride
            raise VegaError(f"A video of {frames} frames does not fit the VAE: give 1 + {stride} n, e.g. {nearest}.")
        return 1 + (frames - 1) // stride

    def frames(self, video: torch.Tensor) -> torch.Tensor:
        """Every frame as its own video: (B, 3, T, H, W) -> (B, C, T, h, w)."""
        batch, _, count = video.shape[:3]
        single = self._prepared(video.transpose(1, 2).flatten(0, 1)[:, :, None])
        if _in_two_dimensions(single):
            latents = self._frame_encoder()(single[:, :, 0])
        else:
            # Channels last is what convolutions run fastest in, on CPUs and GPUs alike.
            single = single.contiguous(memory_format=torch.channels_last_3d)
            latents = self._normalised(self.encoder(single))[:, :, 0]
        return latents.unflatten(0, (batch, count)).transpose(1, 2)

    def step(self, frame: torch.Tensor, past: Past) -> tuple[torch.Tensor, Past]:
        """The latent frame (B, C, 1, h, w) that ends with a stream's next frame (B, 3, 1, H, W); begin with `Past()`.

        Every frame ends one, `temporal_stride` frames after another of its kind (see `frame_encoder`).
        """
        latents, past = self._frame_encoder().step(self._prepared(frame)[:, :, 0], past)
        return latents[:, :, None], past

    def _frame_encoder(self) -> FrameEncoder:
        # Listing the parameters takes longer than looking at them, and the list stays what it is.
        if self._one_by_one is None or self._taken_from != identity(self._weights):
            self._one_by_one = FrameEncoder(self.encoder, self.quant_conv, self.mean, self.std)
            self._weights = list(self.parameters())
            self._taken_from = identity(self._weights)
        return self._one_by_one

    def window(self, video: torch.Tensor) -> torch.Tensor:
        """A whole video, later frames seeing earlier ones: (B, 3, T, H, W) -> (B, C, 1 + (T - 1) / stride, h, w)."""
        self.latent_frames(video.shape[2])
        video, latents = self._prepared(video), []
        if _in_two_dimensions(video):
            return torch.stack(self._frame_encoder().video(video.unbind(2)), dim=2)
        caches: list[torch.Tensor | None] = [None] * self._memories
        for part in [video[:, :, :1], *video[:, :, 1:].split(self.temporal_stride, dim=2)]:
            if part.shape[2]:
                latents.append(self._normalised(self.encoder(part, feat_cache=caches, feat_idx=[0])))
        return torch.cat(latents, dim=2)

    def _prepared(self, video: torch.Tensor) -> torch.Tensor:
        height, width = video.shape[-2:]
        if video.ndim != 5 or video.shape[1] != 3 or height % self.spatial_stride or width % self.spatial_stride:
            raise VegaError(
                f"A video of shape {tuple(video.shape)} does not fit the VAE: give (B, 3, T, height, width) with sides "
                f"that are multiples of {self.spatial_stride}."
            )
        video = video.to(self.dtype)
        return video if self.patch_size is None else patchify(video, patch_size=self.patch_size)

    def _normalised(self, encoded: torch.Tensor) -> torch.Tensor:
        return (self.quant_conv(encoded)[:, : self.channels].float() - self.mean) / self.std


def _in_two_dimensions(video: torch.Tensor) -> bool:
    """Whether `FrameEncoder` is the faster way: CPUs convolve in three dimensions several times slower."""
    return video.is_cpu and video.dtype == torch.float32


_DECODER = ("decoder.", "post_quant_conv.")


def open_vae(folder: Path) -> TensorSource:
    """A Wan VAE's tensors under diffusers' names, in that layout or in Wan's own."""
    return open_weights(folder, _diffusers_names)


def _diffusers_names(names: Iterable[str]) -> Mapping[str, str]:
    names = list(names)
    if "encoder.conv1.weight" not in names:
        return as_published(names)
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return {name: new for new, name in convert_wan_vae_to_diffusers({name: name for name in names}).items()}


def load_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> WanEncoder:
    """The encoder half of a diffusers Wan VAE from its folder, streamed to `device` in `dtype`; no decoder."""
    vae = _on_meta(folder)
    check_memory([vae], device, dtype, f"VAE '{folder}'")
    source = open_vae(folder)
    fill(vae, source, lambda name: (name, None), device, dtype)
    refuse_unread(source, lambda name: name.startswith(_DECODER))
    return WanEncoder(vae)


def _on_meta(folder: Path) -> AutoencoderKLWan:
    config = component_config(folder, AutoencoderKLWan, "give a Wan VAE from diffusers")
    vae = build_component(AutoencoderKLWan, config, folder)
    for name in ("latents_mean", "latents_std"):
        numbers = vae.config[name]
        right = isinstance(numbers, list | tuple) and len(numbers) == vae.config.z_dim
        if not right or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise VegaError(
                f"File '{folder / 'config.json'}' needs {vae.config.z_dim} numbers in '{name}': download it again."
            )
    if min(vae.config.latents_std) <= 0:
        raise VegaError(
            f"File '{folder / 'config.json'}' has numbers in 'latents_std' that are not above 0: download it again."
        )
    del vae.decoder, vae.post_quant_conv
    return vae


def kept_names(source: TensorSource) -> list[str]:
    """Tensors of a VAE that its encoder needs."""
    return [name for name in source.names() if name.startswith(("encoder.", "quant_conv."))]


def save_encoder(config: Mapping[str, Any], source: TensorSource, folder: Path) -> None:
    """Write a VAE's config and its encoder's tensors, as `load_encoder` reads them."""
    write_component(dict(config) | {"_class_name": "AutoencoderKLWan"}, source, kept_names(source), folder)
