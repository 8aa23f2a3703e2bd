"""The arms: what enters the fusion in each, everything else being equal.

    semantic    nothing; the trunk is widened to as many parameters
    prior       the world simulator's tokens of the newest frame
    noise       noise with the mean and deviation of those, frame by frame and channel by channel
    untrained   the tokens of a world simulator of the same shape that has learned nothing
    vae         the VAE's latents through the patch embedding
    imagenet    EfficientNet-Lite0 with ImageNet weights
    window      the world simulator's tokens in the light of the frames before
    kN, blockN  those of the newest frame at noise index N, and behind block N: for sweeps, beside the seven
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from policies.files.made_once import made_once
from policies.fusion.untrained import untrained_networks
from policies.training.wan.clips import Clips
from policies.training.wan.training import note_latents
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator, save_world_simulator

WINDOW = 5  # frames, what small world simulators are trained on
SEVEN = ("semantic", "prior", "noise", "untrained", "vae", "imagenet", "window")
Make = Callable[[Path, Path, Sequence[Path]], None]  # (given world simulator, where to write another, datasets)


@dataclass(frozen=True)
class Arm:
    """tokens: --tokens of `train_nano`.  made, make: name of a world simulator made of the one given, and how."""

    tokens: str = "wan"
    made: str = ""
    make: Make | None = None


def arm_named(name: str, frames: int = WINDOW) -> Arm:
    """frames: of the window.  Raises VegaError for a name that no arm has."""
    if name == "untrained":
        return Arm(made=name, make=make_untrained)
    if name == "window":
        return Arm(made=f"window_{frames}", make=made_with(mode="window", window=frames))
    if name in SEVEN:
        return Arm({"semantic": "none", "prior": "wan"}.get(name, name))
    if (found := re.fullmatch(r"(k|block)(\d+)", name)) is None:
        raise VegaError(f"There is no arm '{name}': choose from {', '.join(SEVEN)}, or kN and blockN for a sweep.")
    field = {"k": "noise_index", "block": "tap"}[found[1]]
    return Arm(made=name, make=made_with(**{field: int(found[2])}))


def simulator_of(arm: Arm, given: Path, folder: Path, data: Sequence[Path] = ()) -> Path:
    """The arm's world simulator: that in `given`, or one made of it below `folder`, once.  Raises VegaError.

    data: folders of the study's datasets.
    """
    if arm.make is None:
        return given
    make = arm.make
    folder.mkdir(parents=True, exist_ok=True)

    def afresh(partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        make(given, partial, data)

    return made_once(folder / arm.made, afresh)


def made_with(**settings: Any) -> Make:
    """The same world simulator with other settings of `WorldSimulatorConfig`."""

    def make(given: Path, target: Path, data: Sequence[Path]) -> None:
        LatentWorldSimulator.from_pretrained(given, dtype=torch.float32, **settings).save_pretrained(target)

    return make


def make_untrained(given: Path, target: Path, data: Sequence[Path]) -> None:
    """One of the same shape, as it is before training.

    Its latents are normalised over the first dataset's clips, as those of a trained VAE are over what it learned from.
    """
    simulator = LatentWorldSimulator.from_pretrained(given, dtype=torch.float32)
    vae, transformer = untrained_networks(simulator)
    note_latents(vae, Clips(data[:1]))
    save_world_simulator(target, vae, transformer, simulator.prompt, simulator.config)
