"""Faster, or smaller, at the price of bits: kernels made for the device, and weights in eight bits.

What each costs in exactness is printed by `python -m policies.benchmark --rows speed`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import torch
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


def prepare_kernels(model: OpenVLAOFT, simulator: LatentWorldSimulator | None) -> None:
    """Make the kernels ready for the device: on a CPU linear layers in float32 become oneDNN's, on a GPU torch compiles
    the blocks at their first call.

    torch multiplies float32 matrices with MKL, which on some processors uses half of their width.
    """
    if model.device.type == "cpu":
        for module in (*blocks(model, simulator), model.projector, model.head):
            _pack(module)
        return
    for block in blocks(model, simulator):
        block.compile()  # prompts differ in length: what changes is compiled for any size at its second call


class PackedLinear(nn.Module):
    """A linear layer through oneDNN, (..., in) -> (..., out), float32 on a CPU; inference only."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        # No parameter: an opaque tensor can be neither saved nor moved.
        self._weight, self._bias = layer.weight.detach().to_mkldnn(), layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self._weight, self._bias, "none", [], "")


def _pack(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and child.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)


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
