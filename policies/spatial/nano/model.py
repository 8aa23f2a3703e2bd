"""vega-nano-spatial as others use it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from policies.fusion.fused_policy import read_weights, write_policy
from policies.spatial.nano.config import SpatialConfig
from policies.spatial.nano.network import SpatialNetwork
from policies.spatial.nano.nouns import Nouns
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator


def build_network(config: SpatialConfig, simulator: LatentWorldSimulator) -> SpatialNetwork:
    """With random weights.  Raises VegaError."""
    return SpatialNetwork(config, len(Nouns(config.things)), simulator)


def save_network(network: SpatialNetwork, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` and the world simulator's folder."""
    write_policy(folder, network.config, network.state_dict())
    target = folder / network.config.world_simulator
    if network.world.simulator.folder != target:
        network.world.simulator.save_pretrained(target)


def load_network(folder: Path, device: torch.device | str = "cpu") -> SpatialNetwork:
    """Raises VegaError on a missing or corrupt file."""
    config = SpatialConfig.load(folder)
    source = folder / config.world_simulator
    if not source.is_dir():
        raise VegaError(f"The checkpoint {folder} has no folder {config.world_simulator}/: get the checkpoint again.")
    simulator = LatentWorldSimulator.from_pretrained(source, device=device, dtype=torch.float32)
    network = build_network(config, simulator)
    read_weights(network, folder, "model")
    return network.to(device).eval().requires_grad_(False)
