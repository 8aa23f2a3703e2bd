"""The arms: what enters the fusion in each, everything else being equal.

    semantic    nothing; the trunk is widened to as many parameters
    prior       the world simulator's tokens of the newest frame
    noise       noise with the mean and deviation of those, frame by frame and channel by channel
    untrained   the tokens of a world simulator of the same shape whose matrices and kernels were drawn at random
    vae         the VAE's latents through the patch embedding
    imagenet    EfficientNet-Lite0 with ImageNet weights
    window      the world simulator's tokens in the light of the frames before
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from policies.files.weight_files import write_tensors
from policies.world_simulator.simulator import LatentWorldSimulator

WINDOW = 5  # frames, what small world simulators are trained on


@dataclass(frozen=True)
class Arm:
    """tokens: --tokens of `train_nano`.  made: how its world simulator is made of the one that is given, if it is."""

    tokens: str = "wan"
    made: str = ""


ARMS = {
    "semantic": Arm("none"),
    "prior": Arm(),
    "noise": Arm("noise"),
    "untrained": Arm(made="untrained"),
    "vae": Arm("vae"),
    "imagenet": Arm("imagenet"),
    "window": Arm(made="window"),
}


def simulator_of(arm: Arm, given: Path, folder: Path, frames: int = WINDOW) -> Path:
    """The arm's world simulator: that in `given`, or one made of it below `folder`, once.  Raises VegaError."""
    if not arm.made:
        return given
    target = folder / (arm.made if arm.made != "window" else f"window_{frames}")
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        if arm.made == "window":
            make_windowed(given, partial, frames)
        else:
            make_untrained(given, partial)
        partial.rename(target)
    return target


def make_windowed(given: Path, target: Path, frames: int) -> None:
    """The same world simulator, which looks at so many frames of a camera (1 + 4 n)."""
    simulator = LatentWorldSimulator.from_pretrained(given, dtype=torch.float32, mode="window", window=frames)
    simulator.save_pretrained(target)


def make_untrained(given: Path, target: Path, seed: int = 0) -> None:
    """One of the same shape: matrices and kernels N(0, 1 / fan in), norms and biases as they are."""
    simulator = LatentWorldSimulator.from_pretrained(given, dtype=torch.float32)
    simulator.save_pretrained(target)
    generator = torch.Generator().manual_seed(seed)
    for path in sorted(target.glob("*/*.safetensors")):
        drawn = {
            name: torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5 if value.ndim >= 2 else value
            for name, value in sorted(load_file(path).items())
        }
        write_tensors(drawn, path)
