"""Encoders to be scored, all on the same canvas and grid: pictures (V, H, W, 3) uint8 -> tokens (V, rows * columns, C).

    wan          a world simulator, every noise level k and block; its VAE alone; one of the same shape that has
                 learned nothing; and the UNet beside it, where there is one
    semantic     the convolutional encoder of a shipped policy, with its instruction, and the same with random weights
    imagenet     EfficientNet-Lite0 with ImageNet weights from a package, and the same with random weights
    pixels       the pixels under a token
    position     where a token lies in the picture, and nothing of what it shows
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet3DConditionModel
from torch import Tensor, nn

from policies.checkpoints import load_policy
from policies.files.json_config import read_counts
from policies.fusion.gated_fusion import grid_positions
from policies.fusion.imagenet import IMAGENET, load_imagenet
from policies.fusion.untrained import UntrainedSimulator, before_training
from policies.nano.layers import FilmConvEncoder
from policies.nano.policy import VegaPolicy
from policies.types import VegaError
from policies.world_simulator.canvas import draw, place, pool_registered
from policies.world_simulator.simulator import LatentWorldSimulator, add_noise
from policies.world_simulator.unet import FOLDER as UNET
from policies.world_simulator.unet import block_maps, load_unet

WHOLE = (0.0, 0.0, 1.0, 1.0)
POSITION_DIM = 64
PIXELS_PX = 16
BATCH = 8


class Reading(NamedTuple):
    """What was read where.  k: noise index; block: 0-based, -1 before the first; None where an encoder has none."""

    encoder: str
    k: int | None = None
    block: int | None = None


@dataclass(frozen=True)
class Look:
    """What all encoders share.  canvas: side in px that pictures lie on; grid: (rows, columns) of a picture."""

    canvas: int
    grid: tuple[int, int]

    def placed(self, pictures: Tensor) -> Tensor:
        """(V, 3, canvas, canvas) in [-1, 1]."""
        return draw(pictures[:, None], (self.canvas, self.canvas), "registered", torch.float32)[:, :, 0]

    def pooled(self, maps: Tensor, pictures: Tensor) -> Tensor:
        """(V, rows, columns, C) of the whole canvas -> (V, grid rows * grid columns, C) of the pictures on it."""
        canvas = self.canvas, self.canvas
        spot = place((pictures.shape[1], pictures.shape[2]), canvas, "registered")
        return pool_registered(maps[:, None].float(), spot, self.canvas // maps.shape[1], self.grid, WHOLE)[:, 0]


def vae_of(wan: str) -> str:
    """What a Wan's VAE alone is called."""
    return f"VAE of {wan}"


def random_of(encoder: str) -> str:
    """What an encoder with random weights is called."""
    return f"{encoder}, random weights"


Read = Callable[[Tensor], Iterable[tuple[Reading, Tensor]]]


def encoders(names: Sequence[str], look: Look, policy: str, wans: Sequence[Path], ks: Sequence[int]) -> Iterator[Read]:
    """What reads the encoders `names`, opened one after the other.  wans: folders beside the policy's own Wan.

    Raises VegaError for what cannot be loaded.
    """
    if "position" in names:
        yield lambda pictures: [(Reading("position only"), position_only(pictures, look))]
    if "pixels" in names:
        yield lambda pictures: [(Reading("pixels"), pixels(pictures, look))]
    if "imagenet" in names:
        yield from _imagenet(look)
    if "semantic" in names:
        yield from _semantic(look, _shipped(policy))
    if "wan" in names:
        folder = _own_wan(_shipped(policy))
        yield from _wan(f"Wan of {policy}", folder, look, ks)
    for folder in dict.fromkeys(wans):
        yield from _wan(name_of(folder, wans), folder, look, ks)


def name_of(wan: Path, wans: Sequence[Path]) -> str:
    """What a Wan is called in a table: as its folder, or by its whole path where another's folder is called so, too."""
    return wan.name if [other.name for other in dict.fromkeys(wans)].count(wan.name) == 1 else str(wan)


def position_only(pictures: Tensor, look: Look) -> Tensor:
    return grid_positions(look.grid, POSITION_DIM).expand(len(pictures), -1, -1)


def pixels(pictures: Tensor, look: Look) -> Tensor:
    """The PIXELS_PX x PIXELS_PX pixels of each token of the canvas, in [-1, 1]."""
    maps = nn.functional.pixel_unshuffle(look.placed(pictures), PIXELS_PX).permute(0, 2, 3, 1)
    return look.pooled(maps, pictures)


def _batches(read: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    return torch.cat([read(part) for part in pictures.split(BATCH)])


def _shipped(name: str) -> VegaPolicy:
    policy = load_policy(name)
    if not isinstance(policy, VegaPolicy):
        raise VegaError(f"Policy '{name}' is no small policy, whose encoder is scored here: give vega-nano.")
    return policy


def _own_wan(policy: VegaPolicy) -> Path:
    if policy.world is None or policy.world.simulator.folder is None:
        raise VegaError(f"Policy '{policy.spec.name}' has no world simulator of its own: leave wan out of --encoders.")
    return policy.world.simulator.folder


def _semantic(look: Look, policy: VegaPolicy) -> Iterator[Read]:
    """The encoder of the policy's first camera; its instruction is the policy's first thing."""
    camera = next(iter(policy.config.cameras))
    ids = policy.vocabulary.encode(f"pick up the {policy.config.things[0]} and place it in the basket")
    with torch.no_grad():
        text = policy.text(torch.tensor([ids]))
    config, trained = policy.config, policy.semantic_encoder.encoders[camera]
    random = before_training(lambda: FilmConvEncoder(config.channels, config.text_dim, config.encoder_blocks)).eval()
    for name, encoder in (("semantic", trained), (random_of("semantic"), random)):

        def read(pictures: Tensor, name: str = name, encoder: nn.Module = encoder) -> list[tuple[Reading, Tensor]]:
            def maps(part: Tensor) -> Tensor:
                seen = encoder(look.placed(part), text.expand(len(part), -1)).permute(0, 2, 3, 1)
                return look.pooled(seen, part)

            return [(Reading(f"{name}"), _batches(maps, pictures))]

        yield read


def _imagenet(look: Look) -> Iterator[Read]:
    random = before_training(lambda: load_imagenet(look.canvas, trained=False))
    for name, network in ((IMAGENET, load_imagenet(look.canvas)), (random_of(IMAGENET), random)):

        def read(pictures: Tensor, name: str = name, network: Any = network) -> list[tuple[Reading, Tensor]]:
            found: dict[int, list[Tensor]] = {}
            for part in pictures.split(BATCH):
                x = network._swish(network._bn0(network._conv_stem(look.placed(part))))
                for number, block in enumerate(network._blocks):
                    x = block(x)
                    found.setdefault(number, []).append(look.pooled(x.permute(0, 2, 3, 1), part))
            return [(Reading(name, block=number), torch.cat(maps)) for number, maps in found.items()]

        yield read


def _wan(name: str, folder: Path, look: Look, ks: Sequence[int]) -> Iterator[Read]:
    last = read_counts(folder / "transformer" / "config.json", "num_layers")[0] - 1
    side = look.canvas, look.canvas
    for k in ks:
        simulator = LatentWorldSimulator.from_pretrained(
            folder, dtype=torch.float32, tap=last, noise_index=k, canvas=side, grid=look.grid, view=WHOLE,
            mode="per_frame", framing="registered",
        )  # fmt: skip
        if k == ks[0]:
            yield _VaeReader(vae_of(name), simulator)
        yield _WanReader(name, k, simulator)
        if (folder / UNET).is_dir():
            yield _UnetReader(f"UNet beside {name}", k, look, simulator, *load_unet(folder))
    own = LatentWorldSimulator.from_pretrained(
        folder, dtype=torch.float32, tap=last, canvas=side, grid=look.grid, view=WHOLE, mode="per_frame",
        framing="registered",
    )  # fmt: skip
    yield _WanReader(random_of(name), own.config.noise_index, UntrainedSimulator.like(own))


@dataclass(frozen=True)
class _VaeReader:
    """The latents themselves."""

    name: str
    simulator: LatentWorldSimulator

    def __call__(self, pictures: Tensor) -> list[tuple[Reading, Tensor]]:
        simulator = self.simulator

        def read(part: Tensor) -> Tensor:
            latents = simulator.latents(part[:, None])
            config, stride = simulator.config, simulator.encoder.spatial_stride
            spot = place((part.shape[1], part.shape[2]), config.canvas, "registered")
            return pool_registered(latents.permute(0, 2, 3, 4, 1), spot, stride, config.grid, WHOLE)[:, 0]

        return [(Reading(self.name), _batches(read, pictures))]


@dataclass(frozen=True)
class _UnetReader:
    """Every block of the UNet at one noise level, on the latents and the noise of the Wan beside it."""

    name: str
    k: int
    look: Look
    simulator: LatentWorldSimulator
    unet: UNet3DConditionModel
    prompt: Tensor

    def __call__(self, pictures: Tensor) -> list[tuple[Reading, Tensor]]:
        simulator = self.simulator
        found: dict[int, list[Tensor]] = {}
        for part in pictures.split(BATCH):
            latents = simulator.latents(part[:, None])
            noisy = add_noise(latents, simulator.noise(latents), simulator.sigma)
            for block, maps in enumerate(block_maps(self.unet, noisy, simulator.timestep, self.prompt)):
                found.setdefault(block, []).append(self.look.pooled(maps, part))
        return [(Reading(self.name, self.k, block), torch.cat(parts)) for block, parts in found.items()]


@dataclass(frozen=True)
class _WanReader:
    """Every block at one noise level; block -1 is the patch embedding, before the first."""

    name: str
    k: int
    simulator: LatentWorldSimulator

    def __call__(self, pictures: Tensor) -> list[tuple[Reading, Tensor]]:
        simulator, frame = self.simulator, (pictures.shape[1], pictures.shape[2])
        blocks = range(len(simulator.trunk.blocks))
        found: dict[int, list[Tensor]] = {}
        for part in pictures.split(BATCH):
            latents = simulator.latents(part[:, None])
            noisy = add_noise(latents, simulator.noise(latents), simulator.sigma)
            rows, columns = (n // p for n, p in zip(noisy.shape[3:], simulator.trunk.patch_size[1:], strict=True))
            before = simulator.trunk.patch_embedding(noisy).flatten(2).mT
            for block, tokens in zip((-1, *blocks), (before, *simulator.trunk(noisy, blocks)), strict=True):
                grid = tokens.unflatten(1, (1, rows, columns))
                found.setdefault(block, []).append(simulator.pool(grid, frame)[:, 0].float())
        return [(Reading(self.name, self.k, block), torch.cat(parts)) for block, parts in found.items()]
