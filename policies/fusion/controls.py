"""What stands in for the world simulator's tokens, to see whether a policy uses them: standing controls.

    on          the tokens as they are
    off         the gate is closed to them: what the policy sees is the semantic stream alone, and no simulator runs
    noise       Gaussian noise
    shuffled    the tokens of the frame, in another order
    untrained   what a simulator of the same shape says that has learned nothing
    vae         the VAE's latents through Wan's patch embedding: no noise, no block

What noise, untrained and vae give has the mean and deviation, channel by channel, of the tokens it stands in for: the
content is gone, the statistics are not.  Whatever is drawn depends on the frame alone, so that an episode is repeatable
and does not depend on what ran before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from policies.fusion.gated_fusion import Fusion
from policies.fusion.untrained import EPSILON, UntrainedSimulator
from policies.types import WORLD_CONTROLS, VegaError
from policies.world_simulator.simulator import LatentWorldSimulator


def check_control(name: str) -> None:
    """Raise VegaError unless `name` is one of WORLD_CONTROLS."""
    if name not in WORLD_CONTROLS:
        raise VegaError(f"World simulator '{name}' is unknown: choose one of {', '.join(WORLD_CONTROLS)}.")


class WorldControl:
    """One of WORLD_CONTROLS, for one fusion.  Raises VegaError where the fusion cannot do without the tokens."""

    def __init__(self, name: str, fusion: Fusion) -> None:
        check_control(name)
        self.name = name
        if name == "off":
            fusion.check_closable()
        self._untrained: dict[int, LatentWorldSimulator] = {}

    @property
    def closed(self) -> bool:
        """Nothing generative comes through: there is nothing to look at."""
        return self.name == "off"

    def look(self, source: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """f_gen (B, N, G) of frames (B, T, H, W, 3), or what stands in for it; not to be asked where `closed`.

        Raises VegaError for "untrained" and "vae" where the source is no world simulator.
        """
        tokens = source(frames)
        if self.name == "on":
            return tokens
        if self.name in ("noise", "shuffled"):
            seeds = seeds_of(frames)
            if self.name == "noise":
                return noise_like(tokens, seeds)
            orders = (torch.randperm(tokens.shape[1], generator=g).to(tokens.device) for g in _generators(seeds))
            return torch.stack([row[order] for row, order in zip(tokens, orders, strict=True)])
        if not isinstance(source, LatentWorldSimulator):
            raise VegaError(f"Only a world simulator's tokens can be stood in for by '{self.name}': choose noise.")
        if self.name == "vae":
            return like(source.embedded(frames), tokens)
        return like(self._random(source)(frames), tokens)

    def _random(self, simulator: LatentWorldSimulator) -> LatentWorldSimulator:
        # Cameras share the trunk: one random one serves them all.
        key = id(simulator.trunk)
        if key not in self._untrained:
            self._untrained[key] = UntrainedSimulator.like(simulator)
        config = simulator.config
        return self._untrained[key].looking(canvas=config.canvas, grid=config.grid, view=config.view)


def like(tokens: Tensor, model: Tensor) -> Tensor:
    """Tokens (B, N, G) with the mean and deviation of `model` (B, N, G), for every sample and channel."""
    mean, std = tokens.float().mean(1, keepdim=True), tokens.float().std(1, keepdim=True)
    scaled = (tokens.float() - mean) / (std + EPSILON)
    return (scaled * model.float().std(1, keepdim=True) + model.float().mean(1, keepdim=True)).to(model.dtype)


def noise_like(tokens: Tensor, seeds: Sequence[int]) -> Tensor:
    """Gaussian noise, a seed for every sample, with the statistics of tokens (B, N, G)."""
    drawn = torch.stack([torch.randn(tokens.shape[1:], generator=generator) for generator in _generators(seeds)])
    return like(drawn.to(tokens), tokens)


def seeds_of(frames: Tensor) -> list[int]:
    """A seed for every sample of frames (B, T, H, W, 3), from their pixels."""
    return [zlib.crc32(video.cpu().contiguous().numpy().tobytes()) for video in frames]


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
