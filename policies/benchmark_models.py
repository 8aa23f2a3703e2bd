"""What `policies.benchmark` measures: the models with random weights, and the reference schedule of VEGA-3D.

Speed does not depend on the weights' values, so nobody needs the published files to measure it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn

from policies.openvla_heads import build_action_head, build_projector, build_proprio_projector
from policies.openvla_loading import build_llama
from policies.openvla_oft import OpenVLAOFT, OpenVLAOFTInfo
from policies.openvla_vision import build_dinov2, build_siglip
from policies.preprocessing import DINOV2_MEAN_STD, SIGLIP_MEAN_STD
from policies.wan_prompt import PROMPT_ROWS
from policies.wan_vae import WanEncoder
from policies.weight_files import DictSource, assign
from policies.world_simulator import LatentWorldSimulator, WorldSimulatorConfig, add_noise, noise_level


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
# About an eighth of the widths and a quarter of the canvas's sides; blocks of the world simulator, prompt rows,
# window, patches and chunk as in the full size, so that the shares of the stages stay alike.
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


def fill_randomly(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter of a module on the meta device small random values, cheaply (one block, repeated)."""
    block = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).to(device, dtype) * 0.02
    for name, parameter in list(module.named_parameters()):
        count = parameter.numel()
        values = block.repeat(-(-count // len(block)))[:count].reshape(parameter.shape)
        assign(module, name, values.clone())


def random_openvla(sizes: Sizes, device: torch.device, dtype: torch.dtype, attention: str) -> OpenVLAOFT:
    """OpenVLA-OFT for two images and 8-D proprio, with random weights."""
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
    llama = build_llama({"num_attention_heads": heads}, source, attention)
    towers = [build_dinov2(source, "d."), build_siglip(source, "s.")]
    head, projector = build_action_head(source, width), build_projector(source)
    proprio = build_proprio_projector(source, width)
    for part in (llama, *towers, head, projector, proprio):
        fill_randomly(part, device, dtype)
    towers[1].embeddings.position_ids = torch.arange(256, device=device)[None]
    info = OpenVLAOFTInfo("random", 8, 7, 8, 224, 256, "bounds_q99", (DINOV2_MEAN_STD, SIGLIP_MEAN_STD), {})
    model = OpenVLAOFT(info, towers, projector, llama, head, proprio).eval()
    model.rotary.to(device)
    return model


class WanModels:
    """A plain Wan VAE and transformer with random weights (float32), and simulators made of copies of them."""

    def __init__(self, sizes: Sizes, device: torch.device):
        self.sizes, self.device = sizes, device
        with torch.device("meta"):
            self.vae = AutoencoderKLWan(base_dim=sizes.vae_dim)
            self.transformer = WanTransformer3DModel(
                num_attention_heads=sizes.wan_heads,
                attention_head_dim=sizes.wan_head_dim,
                ffn_dim=sizes.wan_ffn,
                num_layers=sizes.wan_blocks,
                text_dim=sizes.text_dim,
            )
        del self.vae.decoder, self.vae.post_quant_conv
        for model in (self.vae, self.transformer):
            fill_randomly(model, device, torch.float32)
            model.eval()
        # Rotary tables are buffers, which were left on the meta device.
        self.transformer.rope = type(self.transformer.rope)(
            sizes.wan_head_dim, self.transformer.config.patch_size, self.transformer.config.rope_max_seq_len
        ).to(device)
        self.prompt = torch.randn(1, sizes.text_dim, generator=torch.Generator().manual_seed(0)).to(device)

    def simulator(self, mode: str, dtype: torch.dtype) -> LatentWorldSimulator:
        """A world simulator of this package with these weights."""
        sizes = self.sizes
        config = WorldSimulatorConfig(
            tap=sizes.tap, canvas=(sizes.canvas, sizes.canvas), mode=mode, window=sizes.window, grid=(16, 16)
        )
        transformer = copy.deepcopy(self.transformer)
        transformer.blocks = transformer.blocks[: sizes.tap + 1]
        vae = copy.deepcopy(self.vae)
        for model in (vae, transformer):
            nn.Module.to(model, dtype)  # diffusers' own `to` warns of every cast
        return LatentWorldSimulator(WanEncoder(vae), transformer, self.prompt, config).eval()


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
        self.prompt[:, : len(models.prompt)] = models.prompt

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
