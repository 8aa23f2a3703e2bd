"""What a policy's generative tokens come from; a checkpoint's configuration names it.

    wan         a video generator's inner view of the frames: the prior
    vae         its latents through Wan's patch embedding: no noise, no block
    noise       Gaussian noise with the mean and deviation of the first's tokens of that frame, channel by channel
    imagenet    EfficientNet-Lite0 with ImageNet weights, which come from its package
    distilled   a small encoder that has learned what another source says of a frame

All are frozen, lie on a grid of their own and are pooled onto that of the semantic tokens in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from policies.files.paths import leads_out
from policies.fusion.controls import noise_like, seeds_of
from policies.fusion.distilled import DistilledEncoder
from policies.fusion.imagenet import ImageNetEncoder
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator

Kind = Literal["wan", "vae", "noise", "imagenet", "distilled"]
View = tuple[float, float, float, float]
WORLD_FOLDER = "world_simulator"  # in a checkpoint, of one that lay elsewhere


class TokenSource(Protocol):
    """Frames to f_gen.  folder: where its weights lie, None where it has none of its own.

    what: how it is called in a sentence.  stand_ins: those of WORLD_CONTROLS that make sense for it.
    """

    folder: Path | None

    @property
    def what(self) -> str: ...

    @property
    def stand_ins(self) -> tuple[str, ...]: ...

    @property
    def dim(self) -> int: ...

    @property
    def frames_needed(self) -> int:
        """Frames of a camera that one call looks at."""
        ...

    def __call__(self, frames: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 RGB, oldest first -> f_gen (B, rows * columns, G) of the newest."""
        ...

    def native(self, frames: Tensor) -> Tensor:
        """The tokens before they are pooled: (B, rows, columns, G)."""
        ...

    def pool(self, tokens: Tensor, frame: tuple[int, int]) -> Tensor:
        """Tokens (B, T, rows, columns, G) of a frame (H, W) px -> (B, T, grid rows * grid columns, G)."""
        ...

    def looking(self, *, canvas: tuple[int, int], grid: tuple[int, int], view: View) -> TokenSource:
        """The same, weights shared, for a camera with another canvas, grid and view."""
        ...

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write what `open_source` reads."""
        ...


def keep_inside(source: TokenSource, name: str, folder: Path) -> str:
    """Write a source into a checkpoint's `folder` under `name`, or where that leads out under WORLD_FOLDER; which."""
    name = WORLD_FOLDER if leads_out(name) else name
    target = folder / name
    if source.folder is None or source.folder.resolve() != target.resolve():
        source.save_pretrained(target)
    return name


class OfSimulator:
    """What follows from a world simulator's tokens or latents without anything that is learned."""

    what = ""
    stand_ins: tuple[str, ...] = ("on", "off")

    def __init__(self, simulator: LatentWorldSimulator) -> None:
        self.simulator, self.folder = simulator, simulator.folder
        self.dim, self.frames_needed, self.pool = simulator.dim, simulator.frames_needed, simulator.pool

    def looking(self, *, canvas: tuple[int, int], grid: tuple[int, int], view: View) -> OfSimulator:
        return type(self)(self.simulator.looking(canvas=canvas, grid=grid, view=view))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        self.simulator.save_pretrained(folder)

    def __call__(self, frames: Tensor) -> Tensor:
        raise NotImplementedError

    def native(self, frames: Tensor) -> Tensor:
        raise NotImplementedError


class LatentTokens(OfSimulator):
    """The VAE's latents through the patch embedding."""

    what = "the VAE's latents"
    stand_ins = ("on", "off", "noise", "shuffled")

    def __call__(self, frames: Tensor) -> Tensor:
        return self.simulator.embedded(frames)

    def native(self, frames: Tensor) -> Tensor:
        return self.simulator.native_embedded(frames)


class NoiseTokens(OfSimulator):
    """What WorldControl "noise" gives.  native: the tokens whose statistics the noise has."""

    what = "noise already"

    def __call__(self, frames: Tensor) -> Tensor:
        return noise_like(self.simulator(frames), seeds_of(frames))

    def native(self, frames: Tensor) -> Tensor:
        return self.simulator.native(frames)


def open_source(kind: str, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> TokenSource:
    """The source of this kind, its weights in `folder` unless they come from a package.  Raises VegaError."""
    if kind == "imagenet":
        return ImageNetEncoder.from_package(device)
    if kind == "distilled":
        return DistilledEncoder.from_pretrained(Path(folder), device)
    of: dict[str, Callable[[LatentWorldSimulator], Any]] = {"wan": lambda it: it, "vae": LatentTokens}
    of["noise"] = NoiseTokens
    if kind not in of:
        raise VegaError(f"Generative tokens of kind '{kind}' are unknown: choose one of {', '.join(get_args(Kind))}.")
    source: TokenSource = of[kind](LatentWorldSimulator.from_pretrained(folder, device=device, dtype=torch.float32))
    return source


def same_source(one: TokenSource, other: TokenSource) -> bool:
    """Whether two give the same tokens of a frame on the same canvas: equal weights and equal settings."""
    if type(one) is not type(other):
        return False
    first, second = (it.simulator if isinstance(it, OfSimulator) else it for it in (one, other))
    if isinstance(first, LatentWorldSimulator) and isinstance(second, LatentWorldSimulator):
        own = first.config
        alike = own == replace(second.config, canvas=own.canvas, grid=own.grid, view=own.view)
        if not alike or not torch.equal(first.prompt, second.prompt):
            return False
    assert isinstance(first, nn.Module) and isinstance(second, nn.Module)
    weights, others = first.state_dict(), second.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
