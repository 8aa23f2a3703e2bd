"""A world simulator of the same shape that has learned nothing: every weight is as it is before training.

Nothing of the trained one is kept but the prompt's embedding.  Latents are normalised nevertheless, as a trained VAE's
are by what its config says: else they would be small beside the noise that is added to them, and the tokens would show
that noise in the place of the picture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from policies.world_simulator.simulator import LatentWorldSimulator
from policies.world_simulator.vae import WanEncoder

SEED = 0
EPSILON = 1e-6


def before_training(build: Callable[[], Any]) -> Any:
    """What `build` makes, with weights drawn from SEED."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build()


def untrained_networks(simulator: LatentWorldSimulator) -> tuple[AutoencoderKLWan, WanTransformer3DModel]:
    """VAE (latents neither shifted nor scaled) and transformer up to the tap, of `simulator`'s shapes, in float32."""
    vae_config, channels = simulator.encoder.config, simulator.encoder.channels
    unscaled = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    blocks = {"num_layers": simulator.config.tap + 1}
    vae, transformer = before_training(
        lambda: (
            AutoencoderKLWan.from_config(_plain(vae_config) | unscaled),
            WanTransformer3DModel.from_config(_plain(simulator.trunk.config) | blocks),
        )
    )
    return vae.eval(), transformer.eval()


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config without what diffusers notes about where it came from."""
    return {name: copy.copy(value) for name, value in config.items() if not name.startswith("_")}


class UntrainedSimulator(LatentWorldSimulator):
    """Each frame's own mean and deviation normalise its latents, channel by channel: there are no others."""

    @classmethod
    def like(cls, simulator: LatentWorldSimulator) -> UntrainedSimulator:
        """Of the same shapes, settings, device and precision."""
        vae, transformer = untrained_networks(simulator)
        for network in (vae, transformer):
            # diffusers' own `to` warns of layers that its loader would keep in float32; ours keeps none either.
            nn.Module.to(network, simulator.device, simulator.encoder.dtype)
        return cls(WanEncoder(vae), transformer, simulator.prompt, simulator.config).eval()

    def latents(self, frames: Tensor) -> Tensor:
        latents = super().latents(frames)
        mean, std = latents.mean((2, 3, 4), keepdim=True), latents.std((2, 3, 4), keepdim=True)
        return (latents - mean) / (std + EPSILON)
