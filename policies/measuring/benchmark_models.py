"""What `policies.benchmark` measures: the models with random weights, and the reference schedule of VEGA-3D.

Speed does not depend on the weights' values, so nobody needs the published files to measure it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import LlamaModel

from policies.files.tensor_sources import DictSource
from policies.files.weight_files import assign
from policies.fusion.gated_fusion import build_fusion
from policies.openvla.checkpoint import LanguageSettings, OpenVLAOFTInfo
from policies.openvla.heads import (
    ImageProjector,
    L1ActionHead,
    ProprioProjector,
    build_action_head,
    build_projector,
    build_proprio_projector,
)
from policies.openvla.loading import build_llama
from policies.openvla.model import OpenVLAOFT
from policies.openvla.policy import SEMANTIC_VIEW
from policies.openvla.preprocessing import DINOV2_MEAN_STD, SIGLIP_MEAN_STD
from policies.openvla.vision import VisionTower, build_dinov2, build_siglip
from policies.world_simulator.prompt import PROMPT_ROWS
from policies.world_simulator.simulator import LatentWorldSimulator, WorldSimulatorConfig, add_noise, noise_level
from policies.world_simulator.vae import WanEncoder


@dataclass(frozen=True)
class Sizes:
    """Widths and depths: vision = (width, blocks, MLP) of DINOv2 and SigLIP; llama = (width, layers, MLP, heads)."""

    dinov2: tuple[int, int, int] = (1024, 24, 4096)
    siglip: tuple[int, int, int] = (1152, 27, 4304)
    llama: tuple[int, int, int, int] = (4096, 32, 11008, 32)
    wan_heads: int = 12
    wan_head_dim: int = 128
    wan_ffn: int = 8960
    wan_blocks: int = 30
    tap: int = 20
    text_dim: int = 4096
    vae_dim: int = 96
    canvas: int = 480
    window: int = 33


FULL = Sizes()
# About an eighth of the widths and a quarter of the canvas's sides; blocks of the world simulator, prompt rows, window,
# patches and chunk as in the full size.
REDUCED = Sizes(
    dinov2=(128, 8, 512),
    siglip=(144, 8, 538),
    llama=(512, 8, 1376, 4),
    wan_head_dim=16,
    wan_ffn=1120,
    text_dim=512,
    vae_dim=8,
    canvas=128,
)
# Likewise, and so large a canvas, so few layers that the shares of the stages in a query's operations are those of the
# full size, per frame and on windows (`--rows counted` prints both).
PROPORTIONED = replace(
    REDUCED, dinov2=(128, 4, 512), siglip=(144, 4, 538), llama=(512, 4, 1376, 4), vae_dim=12, canvas=192
)


def fill_randomly(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter of a module on the meta device small random values, cheaply (one block, repeated)."""
    block = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).to(device, dtype) * 0.02
    for name, parameter in list(module.named_parameters()):
        count = parameter.numel()
        values = block.repeat(-(-count // len(block)))[:count].reshape(parameter.shape)
        assign(module, name, values.clone())


@dataclass(frozen=True)
class OpenVLAParts:
    """OpenVLA-OFT's parts for two images and 8-D proprio, on the meta device."""

    towers: tuple[VisionTower, VisionTower]
    projector: ImageProjector
    llama: LlamaModel
    head: L1ActionHead
    proprio: ProprioProjector

    @property
    def all(self) -> tuple[nn.Module, ...]:
        return (*self.towers, self.projector, self.llama, self.head, self.proprio)


def openvla_parts(sizes: Sizes, attention: str) -> OpenVLAParts:
    """The parts as a checkpoint of these sizes would be built before it is filled."""
    width, layers, mlp, heads = sizes.llama
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (32064, width),
        **{f"language_model.model.layers.{i}.mlp.gate_proj.weight": (mlp, width) for i in range(layers)},
        "language_model.model.layers.0.self_attn.k_proj.weight": (width, width),
        "projector.fc1.weight": (4 * (sizes.dinov2[0] + sizes.siglip[0]), sizes.dinov2[0] + sizes.siglip[0]),
        "projector.fc3.weight": (width, width),
        "model.fc1.weight": (width, 7 * width),
        "model.fc2.weight": (7, width),
        **{f"model.mlp_resnet_blocks.{i}.ffn.1.weight": (width, width) for i in range(2)},
        "fc1.weight": (width, 8),
    }
    for prefix, (dim, blocks, hidden) in (("d.", sizes.dinov2), ("s.", sizes.siglip)):
        shapes[f"{prefix}patch_embed.proj.weight"] = (dim, 3, 14, 14)
        shapes[f"{prefix}pos_embed"] = (1, 256, dim)
        shapes[f"{prefix}reg_token"] = (1, 4, dim)
        shapes |= {f"{prefix}blocks.{i}.mlp.fc1.weight": (hidden, dim) for i in range(blocks)}
    source = DictSource("random weights", {k: torch.empty(shape, device="meta") for k, shape in shapes.items()})
    return OpenVLAParts(
        (build_dinov2(source, "d."), build_siglip(source, "s.")),
        build_projector(source),
        build_llama(LanguageSettings(heads), source, attention),
        build_action_head(source, width),
        build_proprio_projector(source, width),
    )


def fill_with_zeros(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter zeros that nobody writes: on Linux such memory is read without being taken."""
    for name, parameter in list(module.named_parameters()):
        untouched = np.zeros(parameter.numel() * dtype.itemsize, dtype=np.uint8)  # torch.zeros would write them
        assign(module, name, torch.from_numpy(untouched).view(dtype).reshape(parameter.shape).to(device))


Filler = Callable[[nn.Module, torch.device, torch.dtype], None]


def random_openvla(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, attention: str, fill: Filler = fill_randomly
) -> OpenVLAOFT:
    """OpenVLA-OFT for two images and 8-D proprio, with random weights."""
    parts = openvla_parts(sizes, attention)
    for part in parts.all:
        fill(part, device, dtype)
    parts.towers[1].embeddings.position_ids = torch.arange(256, device=device)[None]
    info = OpenVLAOFTInfo("random", 8, 7, 8, 224, 256, "bounds_q99", (DINOV2_MEAN_STD, SIGLIP_MEAN_STD), {})
    model = OpenVLAOFT(info, parts.towers, parts.projector, parts.llama, parts.head, parts.proprio).eval()
    model.rotary.to(device)
    return model


def wan_on_meta(sizes: Sizes, blocks: int) -> tuple[AutoencoderKLWan, WanTransformer3DModel]:
    """A Wan VAE without decoder and a transformer of so many blocks, on the meta device."""
    with torch.device("meta"):
        vae = AutoencoderKLWan(base_dim=sizes.vae_dim)
        transformer = WanTransformer3DModel(
            num_attention_heads=sizes.wan_heads,
            attention_head_dim=sizes.wan_head_dim,
            ffn_dim=sizes.wan_ffn,
            num_layers=blocks,
            text_dim=sizes.text_dim,
        )
    del vae.decoder, vae.post_quant_conv
    return vae, transformer


def random_simulator(
    sizes: Sizes, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, device: torch.device
) -> LatentWorldSimulator:
    """A world simulator per frame of filled parts, which are used up; random prompt."""
    prompt = torch.randn(1, sizes.text_dim, generator=torch.Generator().manual_seed(0)).to(device)
    config = WorldSimulatorConfig(
        tap=sizes.tap, canvas=(sizes.canvas, sizes.canvas), window=sizes.window, grid=(16, 16), view=SEMANTIC_VIEW
    )
    return LatentWorldSimulator(WanEncoder(vae), transformer, prompt, config).eval()


def windowed(simulator: LatentWorldSimulator) -> LatentWorldSimulator:
    """The same weights looking at windows."""
    other = copy.copy(simulator)
    other.config = replace(simulator.config, mode="window")
    return other


def full_size_weights_gb(sizes: Sizes = FULL) -> float:
    """GB of all weights of the policy in bf16 as they are read, counted without building them."""
    vae, transformer = wan_on_meta(sizes, sizes.tap + 1)
    del transformer.proj_out, transformer.norm_out, transformer.scale_shift_table
    with torch.device("meta"):
        fusion = build_fusion("token_gate", sizes.llama[0], sizes.wan_heads * sizes.wan_head_dim, unchanged=True)
    modules = (*openvla_parts(sizes, "sdpa").all, vae, transformer, fusion)
    return sum(p.numel() for module in modules for p in module.parameters()) * 2 / 1e9


class WanModels:
    """A plain Wan VAE and transformer with random weights (float32), and simulators made of copies of them."""

    def __init__(self, sizes: Sizes, device: torch.device):
        self.sizes, self.device = sizes, device
        self.vae, self.transformer = wan_on_meta(sizes, sizes.wan_blocks)
        for model in (self.vae, self.transformer):
            fill_randomly(model, device, torch.float32)
            model.eval()
        # Rotary tables are buffers, which were left on the meta device.
        self.transformer.rope = type(self.transformer.rope)(
            sizes.wan_head_dim, self.transformer.config.patch_size, self.transformer.config.rope_max_seq_len
        ).to(device)

    def simulator(self, dtype: torch.dtype) -> LatentWorldSimulator:
        """A world simulator per frame of this package with these weights."""
        blocks = self.transformer.blocks
        self.transformer.blocks = blocks[: self.sizes.tap + 1]  # the others are not copied
        transformer, vae = copy.deepcopy(self.transformer), copy.deepcopy(self.vae)
        self.transformer.blocks = blocks
        for model in (vae, transformer):
            nn.Module.to(model, dtype)  # diffusers' own `to` warns of every cast
        return random_simulator(self.sizes, vae, transformer, self.device)


class ReferenceSchedule:
    """What the official VEGA-3D code runs for a frame, on the same canvas and weights.

    Every frame alone through the 3-D VAE; all blocks, though one in the middle is read by a hook; the
    prompt padded to 512 rows, its keys and values computed anew; weights in float32, cast by autocast
    at every call where there is a GPU.
    """

    def __init__(self, models: WanModels, like: LatentWorldSimulator):
        self.vae, self.transformer, self.like = models.vae, models.transformer, like
        self.timestep, self.sigma = noise_level(like.config.noise_index, like.config.shift)
        self.prompt = torch.zeros(1, PROMPT_ROWS, models.sizes.text_dim, device=models.device)
        self.prompt[:, : len(like.prompt)] = like.prompt

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """f_gen (B, cells, D) of frames (B, 1, H, W, 3) uint8 RGB."""
        like, device = self.like, self.like.device
        video = like.to_canvas(frames)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            means = torch.cat([self.vae.encode(frame[None]).latent_dist.mode() for frame in video])
            latents = (means.float() - like.encoder.mean) / like.encoder.std
            noisy = add_noise(latents, like.noise(latents), self.sigma)
            found: list[torch.Tensor] = []
            block = self.transformer.blocks[like.config.tap]
            hook = block.register_forward_hook(lambda module, inputs, output: found.append(output))
            try:
                steps = torch.full((len(noisy),), self.timestep, device=device)
                self.transformer(noisy, steps, self.prompt.expand(len(noisy), -1, -1))
            finally:
                hook.remove()
        rows = latents.shape[3] // 2
        tokens = found[0].float().unflatten(1, (1, rows, -1))
        return like.pool(tokens, frames.shape[2:4])[:, 0]
