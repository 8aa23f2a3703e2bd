"""Wan's transformer against the reference: noising, block outputs, velocity."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from policies.files.json_config import read_counts
from policies.parity.golden import NETWORK_TOLERANCE, Line, largest, read_cases
from policies.types import VegaError
from policies.world_simulator.simulator import add_noise, noise_level
from policies.world_simulator.transformer import WanTrunk, load_transformer


@torch.no_grad()
def check_wan(folder: Path) -> Iterator[Line]:
    """Noising, block outputs and velocity of a Wan transformer."""
    (blocks,) = read_counts(folder / "transformer" / "config.json", "num_layers")
    files = [folder / "cases.npz", *sorted(folder.glob("*_case.npz"))]
    for name, case in [item for file in files for item in read_cases(file).items()]:
        timestep, sigma = noise_level(300)
        yield f"{name}/timestep", largest(np.asarray(timestep), case["timestep"]), 0.0
        yield f"{name}/sigma", largest(np.asarray(sigma), case["sigma"]), 1e-6
        noisy = add_noise(torch.from_numpy(case["latents"]), torch.from_numpy(case["noise"]), sigma)
        yield f"{name}/noisy", largest(noisy, case["noisy"]), NETWORK_TOLERANCE
        model = load_transformer(folder / "transformer", None, torch.device("cpu"), torch.float32)
        trunk = WanTrunk(model, torch.from_numpy(case["prompt_embedding"]), int(case["timestep"]), head=True)
        taps = sorted(int(m.group(1)) for key in case if (m := re.fullmatch(r"features_block(\d+)", key)))
        if any(tap >= blocks for tap in taps):
            raise VegaError(f"'{folder}' has features of block {taps[-1]} but {blocks} blocks: copy the folder again.")
        for tap, features in zip(taps, trunk(noisy, taps) if taps else [], strict=True):
            yield f"{name}/features_block{tap}", largest(features, case[f"features_block{tap}"]), NETWORK_TOLERANCE
        yield f"{name}/velocity", largest(trunk.velocity(noisy), case["velocity"]), NETWORK_TOLERANCE
