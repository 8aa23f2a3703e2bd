"""Faster, or smaller, at the price of bits: kernels made for the device, and weights in eight bits.

What each costs in exactness is printed by `python -m policies.benchmark --rows speed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from policies.openvla.model import OpenVLAOFT
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
            _replace(module, _packed)
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


def _packed(layer: nn.Linear) -> nn.Module:
    return PackedLinear(layer) if layer.weight.dtype == torch.float32 else layer


def linears(model: OpenVLAOFT, simulator: LatentWorldSimulator | None) -> list[nn.Linear]:
    """The layers whose weights may be in eight bits: those of the blocks and the image projector's.

    Left as they are: embeddings, norms, the action head, the robot state's projector, the VAE and the fusion.
    """
    modules = [*blocks(model, simulator), model.projector]
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


def quantise(model: OpenVLAOFT, simulator: LatentWorldSimulator | None) -> None:
    """Keep the weights of `linears` as int8, a scale for each row; products are computed in the precision of before."""
    wanted = {id(layer) for layer in linears(model, simulator)}
    for module in (*blocks(model, simulator), model.projector):
        _replace(module, lambda layer: EightBitLinear(layer) if id(layer) in wanted else layer)


class EightBitLinear(nn.Module):
    """A linear layer with weights of 8 bits, symmetric by rows: (..., in) -> (..., out); inference only."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        self.register_buffer("weight", (weight.float() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0].to(weight.dtype))
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return product if self.bias is None else product + self.bias


def _replace(module: nn.Module, change: Callable[[nn.Linear], nn.Module]) -> None:
    """Put what `change` makes of it in the place of every linear layer inside `module`."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, change(child))
        else:
            _replace(child, change)
