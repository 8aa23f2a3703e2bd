"""Wan's encoder for single frames on a CPU: the same numbers up to rounding, in half the time.

A frame that is a video of its own meets one temporal tap of each kernel, so the whole network is two-dimensional.  Here
it runs channels last without a change of layout: a normalisation is one pass over memory instead of five, residuals are
added in place, and everything behind the last activation (two convolutions, the latents' mean and scale) is one
convolution of as many channels as there are latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanEncoder3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import nn

TINY = 1e-24  # keeps a pixel without any signal finite; the plain network clamps its norm at 1e-12
Layer = Callable[[torch.Tensor], torch.Tensor]


def runs_here(encoder: WanEncoder3d, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `SingleFrames` can stand in: float32 on a CPU, and Wan 2.1's kinds of layers."""
    layers = [*encoder.down_blocks, *encoder.mid_block.resnets, *encoder.mid_block.attentions]
    known = all(isinstance(layer, WanResidualBlock | WanResample | WanAttentionBlock) for layer in layers)
    return known and dtype == torch.float32 and device.type == "cpu" and torch.backends.mkldnn.is_available()


def identity(weights: Iterable[torch.Tensor]) -> tuple[object, ...]:
    """Changes with what the weights are: moved, copied, or written to."""
    return tuple((w.data_ptr(), w.dtype, -1 if w.is_inference() else w._version) for w in weights)


class SingleFrames:
    """Frames (N, 3, H, W) in [-1, 1] to normalised latents (N, C, h, w).  Takes the weights as they are now.

    quant_conv: what follows the encoder.  mean, std: of the latents, one number a channel.
    """

    def __init__(self, encoder: WanEncoder3d, quant_conv: nn.Module, mean: torch.Tensor, std: torch.Tensor) -> None:
        middle = [encoder.mid_block.resnets[0]]
        for attention, resnet in zip(encoder.mid_block.attentions, encoder.mid_block.resnets[1:], strict=True):
            middle += [resnet] if attention is None else [attention, resnet]
        self._layers: list[Layer] = [
            _conv(*_last_tap(encoder.conv_in)),
            *(_layer(layer) for layer in (*encoder.down_blocks, *middle)),
            _activation(encoder.norm_out),
            _conv(*_folded(encoder.conv_out, quant_conv, mean.flatten(), std.flatten())),
        ]

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames.permute(0, 2, 3, 1).contiguous()  # every layer: (N, rows, columns, channels)
        for layer in self._layers:
            x = layer(x)
        return x.permute(0, 3, 1, 2)


def _last_tap(conv: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel (out, in, rows, columns) and the bias of a causal convolution, as a video's first frame meets it."""
    conv = getattr(conv, "conv", conv)
    return conv.weight.detach()[:, :, -1], conv.bias.detach()


def _folded(
    conv_out: Any, quant_conv: nn.Module, mean: torch.Tensor, std: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last convolution with the one behind it, of whose outputs the first half is the latents' mean."""
    weight, bias = (value.double() for value in _last_tap(conv_out))
    mix, shift = (value.double() for value in _last_tap(quant_conv))
    count = len(mean)
    mix = mix[:count, :, 0, 0] / std.double()[:, None]
    shift = (shift[:count] - mean.double()) / std.double()
    return torch.einsum("oc,cixy->oixy", mix, weight).float(), (mix @ bias + shift).float()


def _conv(weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, padding: int | None = None) -> Layer:
    weight = weight.contiguous(memory_format=torch.channels_last)
    margin = [weight.shape[-1] // 2 if padding is None else padding] * 2

    def run(x: torch.Tensor) -> torch.Tensor:
        # Called by its name: for small pictures conv2d would take a slower way.
        out = torch.mkldnn_convolution(x.permute(0, 3, 1, 2), weight, bias, margin, [stride] * 2, [1, 1], 1)
        return out.permute(0, 2, 3, 1)

    return run


def _normalised(norm: WanRMS_norm) -> Layer:
    gamma = norm.gamma.detach().flatten().contiguous()
    return lambda x: F.rms_norm(x, (len(gamma),), gamma, TINY)


def _activation(norm: WanRMS_norm) -> Layer:
    normalised = _normalised(norm)
    return lambda x: F.silu(normalised(x), inplace=True)


def _layer(layer: nn.Module) -> Layer:
    if isinstance(layer, WanResidualBlock):
        return _residual(layer)
    if isinstance(layer, WanAttentionBlock):
        return _attention(layer)
    assert isinstance(layer, WanResample)
    pad, conv = layer.resample
    half = _conv(conv.weight.detach(), conv.bias.detach(), stride=2, padding=0)
    left, right, top, bottom = pad.padding
    return lambda x: half(F.pad(x, (0, 0, left, right, top, bottom)))


def _residual(block: WanResidualBlock) -> Layer:
    first, second = _activation(block.norm1), _activation(block.norm2)
    conv1, conv2 = _conv(*_last_tap(block.conv1)), _conv(*_last_tap(block.conv2))
    shortcut = None if isinstance(block.conv_shortcut, nn.Identity) else _conv(*_last_tap(block.conv_shortcut))

    def run(x: torch.Tensor) -> torch.Tensor:
        branch = conv2(second(conv1(first(x))))
        return branch.add_(x if shortcut is None else shortcut(x))

    return run


def _attention(block: WanAttentionBlock) -> Layer:
    normalised, width = _normalised(block.norm), block.to_qkv.in_channels
    qkv, project = block.to_qkv.weight.detach().view(-1, width), block.proj.weight.detach().view(-1, width)
    qkv_bias, project_bias = block.to_qkv.bias.detach(), block.proj.bias.detach()

    def run(x: torch.Tensor) -> torch.Tensor:
        q, k, v = F.linear(normalised(x).flatten(1, 2), qkv, qkv_bias)[:, None].chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return F.linear(seen, project, project_bias).view(x.shape).add_(x)

    return run
