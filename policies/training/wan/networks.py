"""Wan's classes in small sizes, and what they are trained for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

LATENT_CHANNELS = 16
TEXT_DIM = 32
KL_WEIGHT = 1e-6
SHIFT = 5.0  # of Wan's schedule: most of the training sits at high noise
SAMPLE_STEPS = 30


def small_vae() -> AutoencoderKLWan:
    """Wan's VAE with 16 base channels: 8 x 8 pixels and 4 frames to a latent of 16 channels, as its own."""
    vae = AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.forward = partial(_causal, module, module.forward)
    return vae


def _causal(conv: WanCausalConv3d, full: Callable[..., Tensor], x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """The same convolution; of a lone frame without the two thirds that only meet the zeros before it."""
    if cache_x is not None or x.shape[2] > 1:
        return full(x, cache_x)
    left, _, top, *_ = conv._padding
    lone = F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, conv.stride[1:], padding=(top, left))
    return lone[:, :, None]


def small_transformer() -> WanTransformer3DModel:
    """Wan's transformer with 6 blocks of width 128."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=384,
        num_layers=6,
        rope_max_seq_len=128,
    )


def vae_loss(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    posterior = vae.encode(video).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    return F.l1_loss(reconstruction, video) + KL_WEIGHT * posterior.kl().mean()


class Generator(nn.Module):
    """A transformer, or a UNet, and the stand-in for its prompt, (1, TEXT_DIM)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.prompt = nn.Parameter(torch.randn(1, TEXT_DIM) * 0.02)

    def velocity(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """latents (B, C, t, h, w) at noise sigma (B,) in [0, 1] -> noise - data."""
        text = self.prompt[None].expand(len(latents), -1, -1)
        found: Tensor = self.network(latents, sigma * 1000.0, text, return_dict=False)[0]
        return found

    def loss(self, latents: Tensor) -> Tensor:
        uniform = torch.rand(len(latents))
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noise = torch.randn_like(latents)
        at = sigma.view(-1, 1, 1, 1, 1)
        return F.mse_loss(self.velocity((1 - at) * latents + at * noise, sigma).float(), noise - latents)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...], generator: torch.Generator, begun: Tensor | None = None) -> Tensor:
        """Latents of new clips: Euler steps along the velocity, from noise.

        begun: (B, C, t', h, w) first latent frames that are known; at every step they stand there with the noise of
        that step, as in RePaint (Lugmayr et al. 2022), and the others are drawn to fit.
        """
        noise = torch.randn(shape, generator=generator)
        x, known = noise.clone(), 0 if begun is None else begun.shape[2]
        levels = torch.linspace(1, 0, SAMPLE_STEPS + 1)
        levels = SHIFT * levels / (1 + (SHIFT - 1) * levels)
        for here, there in itertools.pairwise(levels):
            if begun is not None:
                x[:, :, :known] = (1 - here) * begun + here * noise[:, :, :known]
            x = x + (there - here) * self.velocity(x, here.expand(len(x)))
        if begun is not None:
            x[:, :, :known] = begun
        return x
