"""Faster, or smaller, at the price of bits: compiled blocks, and weights in eight bits.

What each costs in exactness is printed by `python -m policies.benchmark --rows speed`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from torch import nn

from policies.openvla.model import OpenVLAOFT
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator


def blocks(model: OpenVLAOFT, simulator: LatentWorldSimulator | None) -> Iterator[nn.Module]:
    """The repeated blocks of every network, in which nearly all time is spent and nearly all weights are."""
    yield from model.layers
    for tower in model.towers:
        yield from tower.get_submodule("blocks").children()
    if simulator is not None:
        yield from simulator.trunk.blocks


def compile_blocks(model: OpenVLAOFT, simulator: LatentWorldSimulator | None) -> None:
    """Let torch compile every block at its first call, once for all blocks of a kind.

    Prompts differ in length and so do windows at their start: sizes that change are compiled for any size at once.
    """
    for block in blocks(model, simulator):
        block.compile()


def linears(model: OpenVLAOFT, simulator: LatentWorldSimulator | None) -> list[nn.Linear]:
    """The layers whose weights may be in eight bits: those of the blocks and the image projector's.

    Left as they are: embeddings, norms, the action head, the robot state's projector, the VAE and the fusion.
    """
    modules = [*blocks(model, simulator), model.projector]
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


def quantise(model: OpenVLAOFT, simulator: LatentWorldSimulator | None) -> None:
    """Keep the weights of `linears` as int8, a scale for each row; products are computed as before."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it tells of kernels for other machines that it cannot load
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise VegaError("Weights in int8 need the package torchao: install it, or set weights to plain.") from None
    for layer in linears(model, simulator):
        quantize_(layer, Int8WeightOnlyConfig())
