"""Wan's encoder one frame at a time, in two dimensions: frames that are videos of their own, and a stream's next frame.

A frame alone meets one temporal tap of each kernel.  The next frame of a stream meets all three: with the inputs of the
two frames before it beside its own, along the channels, that is a two-dimensional convolution too.

Wan halves the rate of frames twice, so that a latent frame stands for a group of four.  Here no layer waits for a
group: behind a halving a layer sees the newest frame and those 2 (then 4) before it, each way of grouping having a
memory of its own.  Every frame thus ends a group, and its latents are those that Wan's encoder gives for the stream
grouped that way, at the price of one frame.  The three ways of grouping that do not begin with the stream's first frame
begin as if it had been there before; after two dozen groups nothing is left of how they began.

Layers run channels last: a normalisation is one pass over memory instead of five, residuals are added in place, and
everything behind the last activation (two convolutions, the latents' mean and scale) is one convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AvgDown3D,
    WanAttentionBlock,
    WanEncoder3d,
    WanResample,
    WanResidualBlock,
    WanResidualDownBlock,
    WanRMS_norm,
)
from torch import nn

TINY = 1e-24  # keeps a pixel without any signal finite; the plain network clamps its norm at 1e-12
TAPS = 3  # of Wan's kernels in time


@dataclass(frozen=True)
class Past:
    """What the layers remember of a stream: (layer, way of grouping) -> its last inputs.  Never changed in place."""

    frames: int = 0
    seen: dict[tuple[int, int], tuple[torch.Tensor, ...]] = field(default_factory=dict)


class Moment:
    """A stream's next frame on its way through the layers.

    every_frame: whether each frame ends a group; else only those of one way of grouping do, that of the first frame.
    """

    def __init__(self, past: Past, every_frame: bool = True) -> None:
        self._number, self._seen, self._every_frame = past.frames, dict(past.seen), every_frame

    @property
    def first(self) -> bool:
        """Whether it begins the stream."""
        return self._number == 0

    def ends(self, group: int) -> bool:
        """Whether layers that see a frame in every `group` have anything to do."""
        return self._every_frame or self._number % group == 0

    def met(self, layer: int, x: torch.Tensor, spacing: int, still: bool = False) -> tuple[torch.Tensor, ...]:
        """This layer's inputs every `spacing` frames, up to `TAPS` with x the last; and x is remembered.

        still: the first frame counts as having been there before it began the stream; for groups that do not begin with
        it, it always does.
        """
        if self.first:
            for way in range(0 if still else 1, spacing):
                self._seen[layer, way] = (x,) * (TAPS - 1)
        key = (layer, self._number % spacing)
        inputs = (*self._seen.get(key, ()), x)
        self._seen[key] = inputs[1 - TAPS :]
        return inputs

    def over(self) -> Past:
        return Past(self._number + 1, self._seen)


# Without a moment frames are videos of their own.  None: this frame ends no group, layers behind have nothing to do.
Layer = Callable[[torch.Tensor, Moment | None], torch.Tensor | None]
SameRate = Callable[[torch.Tensor, Moment | None], torch.Tensor]


def identity(weights: Iterable[torch.Tensor]) -> tuple[object, ...]:
    """Changes with what the weights are: moved, copied, or written to."""
    return tuple((w.data_ptr(), w.dtype, -1 if w.is_inference() else w._version) for w in weights)


class FrameEncoder:
    """Frames (N, C, H, W) in [-1, 1] to normalised latents (N, z, h, w) float32.  Takes the weights as they are now.

    quant_conv: what follows the encoder.  mean, std: of the latents, one number a channel.
    """

    def __init__(self, encoder: WanEncoder3d, quant_conv: nn.Module, mean: torch.Tensor, std: torch.Tensor) -> None:
        self._spacing, self._count = 1, 0
        middle = [encoder.mid_block.resnets[0]]
        for attention, resnet in zip(encoder.mid_block.attentions, encoder.mid_block.resnets[1:], strict=True):
            middle += [resnet] if attention is None else [attention, resnet]
        self._layers: list[Layer] = [
            self._causal(*_kernel(encoder.conv_in)),
            *(self._layer(layer) for layer in (*encoder.down_blocks, *middle)),
            _activation(encoder.norm_out),
            self._causal(*_folded(encoder.conv_out, quant_conv, mean.flatten(), std.flatten())),
        ]

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Each frame as its own video."""
        latents = self._run(frames, None)
        assert latents is not None, "a frame alone passes every layer"
        return latents

    @torch.no_grad()
    def step(self, frame: torch.Tensor, past: Past) -> tuple[torch.Tensor, Past]:
        """The latents of the group that ends with a stream's next frame, N streams side by side."""
        moment = Moment(past)
        latents = self._run(frame, moment)
        assert latents is not None, "every frame ends a group"
        return latents, moment.over()

    @torch.no_grad()
    def video(self, frames: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The latents of a whole video's groups, N videos side by side: what Wan's encoder gives."""
        past, found = Past(), []
        for frame in frames:
            moment = Moment(past, every_frame=False)
            latents = self._run(frame, moment)
            past = moment.over()
            if latents is not None:
                found.append(latents)
        return found

    def _run(self, frames: torch.Tensor, moment: Moment | None) -> torch.Tensor | None:
        # Every layer: (N, rows, columns, channels).
        x = _through(self._layers, frames.permute(0, 2, 3, 1).contiguous(), moment)
        return None if x is None else x.permute(0, 3, 1, 2).float()

    def _layer(self, layer: nn.Module) -> Layer:
        if isinstance(layer, WanResidualBlock):
            return self._residual(layer)
        if isinstance(layer, WanAttentionBlock):
            return _attention(layer)
        if isinstance(layer, WanResidualDownBlock):
            return self._down_block(layer)
        assert isinstance(layer, WanResample)
        return self._resample(layer)

    def _causal(self, weight: torch.Tensor, bias: torch.Tensor) -> SameRate:
        """A causal convolution (out, in, taps, rows, columns)."""
        alone = _conv(weight[:, :, -1], bias)
        if weight.shape[2] == 1:
            return lambda x, moment: alone(x)
        spread = _conv(weight.transpose(1, 2).flatten(1, 2), bias)
        number, spacing = self._count, self._spacing
        self._count += 1

        def run(x: torch.Tensor, moment: Moment | None) -> torch.Tensor:
            return alone(x) if moment is None else spread(_beside(moment.met(number, x, spacing)))

        return run

    def _resample(self, layer: WanResample) -> Layer:
        pad, conv = layer.resample
        half = _conv(conv.weight.detach(), conv.bias.detach(), stride=2, padding=0)
        left, right, top, bottom = pad.padding
        smaller = lambda x: half(F.pad(x, (0, 0, left, right, top, bottom)))  # noqa: E731
        if layer.mode == "downsample2d":
            return lambda x, moment: smaller(x)
        weight, bias = _kernel(layer.time_conv)
        mix = _conv(weight.transpose(1, 2).flatten(1, 2), bias)
        number, spacing = self._count, self._spacing
        self._count, self._spacing = number + 1, 2 * spacing

        def run(x: torch.Tensor, moment: Moment | None) -> torch.Tensor | None:
            x = smaller(x)
            if moment is None:
                return x
            inputs = moment.met(number, x, spacing, still=True)
            if not moment.ends(2 * spacing):
                return None
            return x if moment.first else mix(_beside(inputs))

        return run

    def _residual(self, block: WanResidualBlock) -> SameRate:
        first, second = _activation(block.norm1), _activation(block.norm2)
        conv1, conv2 = self._causal(*_kernel(block.conv1)), self._causal(*_kernel(block.conv2))
        plain = isinstance(block.conv_shortcut, nn.Identity)
        shortcut = None if plain else self._causal(*_kernel(block.conv_shortcut))

        def run(x: torch.Tensor, moment: Moment | None) -> torch.Tensor:
            branch = conv2(second(conv1(first(x, moment), moment), moment), moment)
            return branch.add_(x if shortcut is None else shortcut(x, moment))

        return run

    def _down_block(self, block: WanResidualDownBlock) -> Layer:
        """Of Wan 2.2: beside the residual blocks runs a mean over what they halve, in space and in time."""
        spacing = self._spacing
        layers = [self._layer(layer) for layer in block.resnets]
        if block.downsampler is not None:
            layers.append(self._layer(block.downsampler))
        shortcut, number = block.avg_shortcut, self._count
        assert isinstance(shortcut, AvgDown3D)
        self._count += 1

        def run(x: torch.Tensor, moment: Moment | None) -> torch.Tensor | None:
            inputs: Sequence[torch.Tensor] = (x,)
            if moment is not None and shortcut.factor_t > 1:
                met = moment.met(number, x, spacing, still=True)
                inputs = inputs if moment.first else met[-shortcut.factor_t :]
            branch = _through(layers, x, moment)
            if branch is None:
                return None
            mean = shortcut(torch.stack([frame.permute(0, 3, 1, 2) for frame in inputs], dim=2))[:, :, -1]
            return branch + mean.permute(0, 2, 3, 1)

        return run


def _through(layers: Iterable[Layer], x: torch.Tensor, moment: Moment | None) -> torch.Tensor | None:
    """x behind all layers; None where one of them waits for more frames."""
    for layer in layers:
        if (behind := layer(x, moment)) is None:
            return None
        x = behind
    return x


def _beside(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Up to TAPS inputs along the channels, zeros for those before the stream."""
    nothing = [torch.zeros_like(inputs[0])] * (TAPS - len(inputs))
    return torch.cat([*nothing, *inputs], dim=-1)


def _kernel(conv: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel (out, in, taps, rows, columns) of a causal convolution and its bias."""
    conv = getattr(conv, "conv", conv)
    return conv.weight.detach(), conv.bias.detach()


def _folded(
    conv_out: Any, quant_conv: nn.Module, mean: torch.Tensor, std: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last convolution with the one behind it, of whose outputs the first half is the latents' mean."""
    weight, bias = _kernel(conv_out)
    mix, shift = (value.double() for value in _kernel(quant_conv))
    count = len(mean)
    mix = mix[:count, :, 0, 0, 0] / std.double()[:, None]
    shift = (shift[:count] - mean.double()) / std.double()
    folded = torch.einsum("oc,citxy->oitxy", mix, weight.double())
    return folded.to(weight.dtype), (mix @ bias.double() + shift).to(weight.dtype)


def _conv(
    weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, padding: int | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = weight.contiguous(memory_format=torch.channels_last)
    margin = [weight.shape[-1] // 2 if padding is None else padding] * 2
    onednn = weight.is_cpu and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()

    def run(x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2)
        # Called by its name: for small pictures conv2d would take a slower way.  An exported graph knows conv2d alone.
        if onednn and not torch.compiler.is_exporting():
            out = torch.mkldnn_convolution(x, weight, bias, margin, [stride] * 2, [1, 1], 1)
        else:
            out = F.conv2d(x, weight, bias, stride, margin)
        return out.permute(0, 2, 3, 1)

    return run


def _normalised(norm: WanRMS_norm) -> Callable[[torch.Tensor], torch.Tensor]:
    gamma = norm.gamma.detach().flatten().contiguous()
    return lambda x: F.rms_norm(x, (len(gamma),), gamma, TINY)


def _activation(norm: WanRMS_norm) -> SameRate:
    normalised = _normalised(norm)
    return lambda x, moment: F.silu(normalised(x), inplace=True)


def _attention(block: WanAttentionBlock) -> SameRate:
    normalised, width = _normalised(block.norm), block.to_qkv.in_channels
    qkv, project = block.to_qkv.weight.detach().view(-1, width), block.proj.weight.detach().view(-1, width)
    qkv_bias, project_bias = block.to_qkv.bias.detach(), block.proj.bias.detach()

    def run(x: torch.Tensor, moment: Moment | None) -> torch.Tensor:
        q, k, v = F.linear(normalised(x).flatten(1, 2), qkv, qkv_bias)[:, None].chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return F.linear(seen, project, project_bias).view(x.shape).add_(x)

    return run
