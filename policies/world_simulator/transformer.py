"""Wan's diffusion transformer, cut at a block and folded for one prompt and one noise level.

VEGA-3D reads the residual stream after one block (0-based 20 of 30), always at the same timestep and
with the same empty prompt.  Everything that depends only on those is computed once per checkpoint:

- time modulation: scale and shift become the weights of the LayerNorms, gates go into the output
  projections of attention and MLP;
- prompt attention: keys and values of the prompt are constants.  Its padding rows (511 of 512 for the
  empty prompt) are one row repeated n times, which softmax cannot tell from that row with log n added
  to its score, so one remains.  What comes out is a sum of so many constant vectors, each already through
  the output projection: a matrix of heads x rows columns takes that projection's place.

Both are algebra: the features are those of the plain network up to rounding.  Blocks behind the tap
do not exist here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from torch import nn

from policies.files.tensor_sources import TensorSource, refuse_unread
from policies.files.weight_files import (
    assign,
    build_component,
    check_memory,
    component_config,
    fill,
    open_weights,
    write_component,
)
from policies.types import VegaError
from policies.world_simulator.prompt import PROMPT_ROWS


class WanTrunk(nn.Module):
    """Blocks 0..tap of a Wan transformer at one timestep and for one prompt; with `head`, its velocity too.

    Latents (B, C, T, H, W) -> tokens (B, T * rows * cols, D), row-major, rows = H / patch.
    """

    def __init__(self, model: WanTransformer3DModel, prompt: torch.Tensor, timestep: int, head: bool = False):
        """Take `model` apart (its blocks are used up).  prompt: (n, text width), the rows before the padding."""
        super().__init__()
        device, dtype = model.patch_embedding.weight.device, model.patch_embedding.weight.dtype
        self.config = model.config
        self.patch_size: tuple[int, int, int] = tuple(model.config.patch_size)
        self.patch_embedding = model.patch_embedding
        # Rotary frequencies are computed, not loaded: made here, off the meta device.
        self.rope = WanRotaryPosEmbed(model.config.attention_head_dim, self.patch_size, model.config.rope_max_seq_len)
        self.rope.to(device)
        self._rotations: dict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        with torch.no_grad():
            # Constants are cheap: they are computed in float32 whatever the network runs in.
            rows, log_counts = _distinct_rows(prompt.to(device, torch.float32))
            time = torch.tensor([timestep], device=device)
            temb, modulation, text, _ = model.condition_embedder.float()(time, rows[None])
            modulation, text = modulation.unflatten(1, (6, -1)), text[0].to(dtype)
            self.blocks = nn.ModuleList(FoldedBlock(block, modulation, text, log_counts) for block in model.blocks)
            self.head = FoldedHead(model, temb) if head else None
        self.requires_grad_(False)

    @property
    def dim(self) -> int:
        """Width of the tokens."""
        return self.patch_embedding.out_channels

    def forward(self, latents: torch.Tensor, taps: Sequence[int] | None = None) -> list[torch.Tensor]:
        """Outputs of the blocks `taps` (default: the last one here), each (B, tokens, D); latents already noised."""
        self._check(latents)
        wanted = [len(self.blocks) - 1] if taps is None else list(taps)
        x = self.patch_embedding(latents.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2).contiguous()
        rotation = self._rotation(latents)
        found: dict[int, torch.Tensor] = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x, rotation)
            if i in wanted:
                found[i] = x
        return [found[i] for i in wanted]

    def remember(
        self, latents: torch.Tensor, memory: TrunkMemory | None, kept: int
    ) -> tuple[torch.Tensor, TrunkMemory]:
        """The last block's output for `latents`, which see what came before them, and a memory of `kept` latent frames.

        Without a memory as `forward`; with one, a frame costs itself alone.  Frames before it do not see it, which
        `forward` on all of them lets them do.  VegaError where Wan's positions in time are used up.
        """
        self._check(latents)
        start = 0 if memory is None else memory.frames
        if start + latents.shape[2] > self.positions_in_time:
            raise VegaError(f"A stream has at most {self.positions_in_time} latent frames: start it again.")
        x = self.patch_embedding(latents.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2).contiguous()
        rotation = self._rotation(latents, start)
        per_frame = x.shape[1] // latents.shape[2]
        seen = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, FoldedBlock)
            x, keys, values = block.extend(x, rotation, None if memory is None else memory.seen[i])
            first = max(keys.shape[2] - kept * per_frame, 0)
            seen.append((keys[:, :, first:], values[:, :, first:]))
        return x, TrunkMemory(tuple(seen), start + latents.shape[2])

    @property
    def positions_in_time(self) -> int:
        """Latent frames that Wan's rotary table can tell apart."""
        return int(self.config.rope_max_seq_len)

    def several(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`forward` of several videos of their own, whatever their sizes, in one pass; the same batch size each."""
        videos, rotations = [], []
        for video in latents:
            self._check(video)
            videos.append(self.patch_embedding(video.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2))
            rotations.append(self._rotation(video))
        sizes = [video.shape[1] for video in videos]
        x = torch.cat(videos, dim=1)
        cos, sin = (torch.cat(parts, dim=1) for parts in zip(*rotations, strict=True))
        for block in self.blocks:
            x = block(x, (cos, sin), sizes)
        return list(x.split(sizes, dim=1))

    def velocity(self, latents: torch.Tensor) -> torch.Tensor:
        """The network's own output (B, C, T, H, W): noise minus data.  Needs all blocks and `head`."""
        if self.head is None:
            raise VegaError("This world simulator was cut behind its tap and cannot predict velocities: load it whole.")
        return self.head(self(latents)[0], latents.shape)

    def _check(self, latents: torch.Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.config.in_channels:
            raise VegaError(f"Latents have shape {tuple(latents.shape)}: give (B, {self.config.in_channels}, T, H, W).")
        if any(size % patch for size, patch in zip(latents.shape[2:], self.patch_size, strict=True)):
            raise VegaError(
                f"Latents of size {tuple(latents.shape[2:])} do not divide into patches {self.patch_size}: use a "
                "canvas whose sides are multiples of the VAE's stride times the patch."
            )

    def _rotation(self, latents: torch.Tensor, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin (1, tokens, 1, head / 2) float32 for this grid, computed once per size.

        start: place of the first latent frame in time.
        """
        key = (*latents.shape[2:], latents.device)
        if key not in self._rotations:
            cos, sin = self.rope(latents)
            # Every angle stands twice, for the two halves of a rotated pair.
            self._rotations[key] = cos[..., ::2].float().contiguous(), sin[..., 1::2].float().contiguous()
        cos, sin = self._rotations[key]
        if start == 0:
            return cos, sin
        # Only the first angles of a token are those of its time.
        count, angles = latents.shape[2] // self.patch_size[0], self.rope.t_dim // 2
        later = []
        for table, values, first in ((self.rope.freqs_cos, cos, 0), (self.rope.freqs_sin, sin, 1)):
            moved = values.unflatten(1, (count, -1)).clone()
            moved[..., :angles] = table[start : start + count, first : self.rope.t_dim : 2].float()[:, None, None]
            later.append(moved.flatten(1, 2))
        return later[0], later[1]


@dataclass(frozen=True)
class TrunkMemory:
    """Of every block the keys (rotated) and values (B, heads, tokens, d) of the last latent frames.

    frames: seen so far.  Never changed in place.
    """

    seen: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    frames: int


class FoldedBlock(nn.Module):
    """One Wan block with its modulation and prompt folded in.  (B, N, D) -> (B, N, D)."""

    prompt_k: torch.Tensor
    prompt_bias: torch.Tensor
    prompt_out: torch.Tensor
    prompt_out_bias: torch.Tensor

    def __init__(
        self, block: WanTransformerBlock, modulation: torch.Tensor, text: torch.Tensor, log_counts: torch.Tensor
    ):
        """modulation: (1, 6, D) from the timestep.  text: (n, D) distinct prompt rows, log_counts: (n,) of each."""
        super().__init__()
        dtype = block.attn1.to_q.weight.dtype
        table = (block.scale_shift_table.float() + modulation)[0]
        shift1, scale1, gate1, shift3, scale3, gate3 = table.unbind(0)
        own, cross = block.attn1, block.attn2
        self.heads: int = own.heads
        self.eps: float = block.norm1.eps
        self.norm1 = _norm(1 + scale1, shift1, dtype)
        self.qkv = _stack([own.to_q, own.to_k, own.to_v])
        self.norm_q, self.norm_k = own.norm_q, own.norm_k
        self.out = _gated(own.to_out[0], gate1)
        self.norm2 = (
            _norm(block.norm2.weight, block.norm2.bias, dtype) if isinstance(block.norm2, nn.LayerNorm) else None
        )
        self.cross_q, self.cross_norm_q = cross.to_q, cross.norm_q
        values = self._split(cross.to_v(text)[None])[0].float()  # (heads, n, d)
        out = cross.to_out[0].weight.detach().float().unflatten(1, (self.heads, -1))  # (D, heads, d)
        projected = torch.einsum("chd,hnd->chn", out, values).flatten(1).to(dtype)
        self.register_buffer("prompt_k", self._split(cross.norm_k(cross.to_k(text))[None]), persistent=False)
        self.register_buffer("prompt_bias", log_counts[None, None, None], persistent=False)
        self.register_buffer("prompt_out", projected, persistent=False)
        self.register_buffer("prompt_out_bias", cross.to_out[0].bias.detach(), persistent=False)
        self.norm3 = _norm(1 + scale3, shift3, dtype)
        self.ffn_in = block.ffn.net[0].proj
        self.ffn_out = _gated(block.ffn.net[2], gate3)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _layer_norm(self, x: torch.Tensor, weight_bias: nn.ParameterList) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weight_bias[0], weight_bias[1], self.eps)

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], videos: Sequence[int] = ()
    ) -> torch.Tensor:
        """videos: tokens of each, where x holds several that do not see each other."""
        return self.extend(x, rotation, None, videos)[0]

    def extend(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor] | None,
        videos: Sequence[int] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x (B, N, D) that also sees the keys and values of `past`; and the keys and values of both, past first."""
        q, k, v = self.qkv(self._layer_norm(x, self.norm1)).chunk(3, dim=-1)
        q = _rotate(self.norm_q(q).unflatten(-1, (self.heads, -1)), *rotation).transpose(1, 2)
        k = _rotate(self.norm_k(k).unflatten(-1, (self.heads, -1)), *rotation).transpose(1, 2)
        v = self._split(v)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        x = x + self.out(_attended(q, k, v, videos).transpose(1, 2).flatten(2))

        q = self._split(self.cross_norm_q(self.cross_q(x if self.norm2 is None else self._layer_norm(x, self.norm2))))
        # Written out: with one or two keys the fused kernels cost more than they save.
        # In float32, because bf16 has no log(511) to better than a hundredth.
        scores = (q @ self.prompt_k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + self.prompt_bias
        shares = scores.softmax(-1).to(x.dtype).transpose(1, 2).flatten(2)
        x = x + F.linear(shares, self.prompt_out, self.prompt_out_bias)

        return x + self.ffn_out(F.gelu(self.ffn_in(self._layer_norm(x, self.norm3)), approximate="tanh")), k, v


class FoldedHead(nn.Module):
    """Final norm and projection back to latents, at the trunk's timestep."""

    def __init__(self, model: WanTransformer3DModel, temb: torch.Tensor):
        super().__init__()
        shift, scale = (model.scale_shift_table.float() + temb.float()[:, None])[0].unbind(0)
        self.norm = _norm(1 + scale, shift, model.proj_out.weight.dtype)
        self.eps: float = model.norm_out.eps
        self.proj_out = model.proj_out
        self.patch_size: tuple[int, int, int] = tuple(model.config.patch_size)

    def forward(self, x: torch.Tensor, latent_shape: torch.Size) -> torch.Tensor:
        x = self.proj_out(F.layer_norm(x, x.shape[-1:], self.norm[0], self.norm[1], self.eps))
        batch, _, *sizes = latent_shape
        grid = [size // patch for size, patch in zip(sizes, self.patch_size, strict=True)]
        x = x.reshape(batch, *grid, *self.patch_size, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(batch, -1, *sizes)


def _attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, videos: Sequence[int]) -> torch.Tensor:
    """Attention of (B, heads, N, d), within each of the videos alone."""
    if not videos:
        return F.scaled_dot_product_attention(q, k, v)
    parts = zip(*(whole.split(list(videos), dim=2) for whole in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs of the last axis of (B, N, heads, d) by the angles of their tokens."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def _distinct_rows(prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt's rows and, if it is padded, one zero row; log of how often each is attended to (float32)."""
    if prompt.ndim != 2 or not 1 <= len(prompt) <= PROMPT_ROWS:
        raise VegaError(
            f"The prompt embedding has shape {tuple(prompt.shape)}: give (1 to {PROMPT_ROWS} rows, text width)."
        )
    counts = [1.0] * len(prompt)
    if padding := PROMPT_ROWS - len(prompt):
        prompt = torch.cat([prompt, prompt.new_zeros(1, prompt.shape[1])])
        counts.append(float(padding))
    return prompt, torch.tensor([math.log(count) for count in counts], device=prompt.device)


def _norm(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(weight.detach().to(dtype)), nn.Parameter(bias.detach().to(dtype))])


def _stack(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer that gives the outputs of several, one after another."""
    merged = nn.Linear(1, 1, device="meta")
    merged.in_features, merged.out_features = layers[0].in_features, sum(layer.out_features for layer in layers)
    assign(merged, "weight", torch.cat([layer.weight.detach() for layer in layers]))
    assign(merged, "bias", torch.cat([layer.bias.detach() for layer in layers]))
    return merged


def _gated(layer: nn.Linear, gate: torch.Tensor) -> nn.Linear:
    """`layer` with its outputs multiplied by `gate` (D,), in place."""
    dtype = layer.weight.dtype
    assign(layer, "weight", (layer.weight.detach().float() * gate[:, None]).to(dtype))
    assign(layer, "bias", (layer.bias.detach().float() * gate).to(dtype))
    return layer


_BLOCK = re.compile(r"blocks\.(\d+)\.")
_KNOWN = re.compile(r"blocks\.\d+\.|proj_out\.|scale_shift_table$")  # what a cut may leave out
_ROOTS = ("model.diffusion_model.", "diffusion_model.", "transformer.")  # in front of everything in other programs


def open_transformer(folder: Path) -> TensorSource:
    """A Wan transformer's tensors under diffusers' names, in that layout or in Wan's own."""
    return open_weights(folder, _diffusers_names)


def _diffusers_names(names: Iterable[str]) -> Mapping[str, str]:
    bare = {}
    for name in names:
        root = next((root for root in _ROOTS if name.startswith(root)), "")
        bare[name.removeprefix(root)] = name
    if not any(".self_attn." in name for name in bare):
        return {stored: name for name, stored in bare.items()}
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return {stored: new for new, stored in convert_wan_transformer_to_diffusers(bare).items()}


def load_transformer(folder: Path, tap: int | None, device: torch.device, dtype: torch.dtype) -> WanTransformer3DModel:
    """A diffusers Wan transformer from its folder, blocks 0..tap only (None: all), streamed to `device` in `dtype`.

    Raises VegaError for an incomplete folder, a tap behind the last block, or too little memory.
    """
    config = component_config(
        folder, WanTransformer3DModel, "give a Wan folder in diffusers layout (Wan-AI/Wan2.1-T2V-1.3B-Diffusers)"
    )
    channels = [config.get(name, 16) for name in ("in_channels", "out_channels")]
    if config.get("image_dim") is not None or channels[0] != channels[1]:
        raise VegaError(
            f"'{folder}' is an image-to-video model ({channels[0]} channels in, {channels[1]} out), which needs more "
            "than noise: use a text-to-video one."
        )
    source = open_transformer(folder)
    blocks = config.get("num_layers")
    if not isinstance(blocks, int):
        raise VegaError(f"File '{folder / 'config.json'}' gives no number of layers: download it again.")
    count = blocks if tap is None else tap + 1
    if not 1 <= count <= blocks:
        raise VegaError(f"Block {tap} is not among the {blocks} blocks (0 to {blocks - 1}) of '{folder}': choose one.")
    model = build_component(WanTransformer3DModel, config | {"num_layers": count}, folder)
    if tap is not None:
        # The head behind the last block is of no use behind the tap.
        del model.proj_out, model.norm_out, model.scale_shift_table
    check_memory([model], device, dtype, f"World simulator '{folder}'")
    fill(model, source, lambda name: (name, None), device, dtype)
    kept = set(source.names() if tap is None else kept_names(source, tap))
    refuse_unread(source, lambda name: name not in kept and _KNOWN.match(name) is not None)
    return model


def kept_names(source: TensorSource, tap: int) -> list[str]:
    """Tensors of a transformer that are needed to read block `tap`: not the later blocks, nor the head behind them."""
    head = ("proj_out.", "scale_shift_table")
    return [
        name
        for name in source.names()
        if (int(match.group(1)) <= tap if (match := _BLOCK.match(name)) else not name.startswith(head))
    ]


def save_transformer(config: Mapping[str, Any], source: TensorSource, tap: int, folder: Path) -> None:
    """Write a transformer's config and the tensors of its blocks 0..tap, as `load_transformer` reads them."""
    changed = {"_class_name": "WanTransformer3DModel", "num_layers": tap + 1}
    write_component(dict(config) | changed, source, kept_names(source, tap), folder)
