"""Wan in its authors' own layout (Wan-AI/Wan2.1-T2V-1.3B), as the parts that this room takes.

`config.json`, `*.safetensors` with the transformer under Wan's own names, and `Wan2.1_VAE.pth`.  Names are translated
by diffusers' own converters; sizes are read from the tensors, and from the config only what tensors do not show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from torch import nn

from policies.files.json_config import read_json
from policies.files.tensor_sources import DictSource, TensorSource, depth, read_torch_file, refuse_unread, shape_of
from policies.files.weight_files import build_component, fill
from policies.types import VegaError
from policies.world_simulator.prompt import PROMPT_FILE
from policies.world_simulator.vae import WanEncoder

VAE_FILE = "Wan2.1_VAE.pth"
# What is downloaded: no text encoder, and nothing from folders below.
ORIGINAL_PATTERNS = ("config.json", VAE_FILE, "diffusion_pytorch_model*", "adapter_*", PROMPT_FILE)
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def is_original(folder: Path) -> bool:
    """Whether a Wan folder is in this layout rather than diffusers'."""
    return (folder / VAE_FILE).is_file()


def original_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> WanEncoder:
    """The encoder half of the VAE, in `dtype` on `device`.

    Raises VegaError for a file that is no Wan 2.1 VAE, or holds what no part of its encoder reads.
    """
    source = read_torch_file(folder / VAE_FILE)
    state = {name: source.read(name) for name in source.names() if not name.startswith(("decoder.", "conv2."))}
    latent = shape_of(source, "conv2.weight", 5)[0]
    config = {"base_dim": shape_of(source, "encoder.conv1.weight", 5)[0], "z_dim": latent}
    vae = build_component(AutoencoderKLWan, config, folder)
    if len(vae.config.latents_mean) != latent:
        raise VegaError(f"File '{source.name}' has {latent} latent channels and not 16: give the VAE of Wan 2.1.")
    del vae.decoder, vae.post_quant_conv
    _fill_wholly(vae, DictSource(source.name, convert_wan_vae_to_diffusers(state)), device, dtype)
    return WanEncoder(vae)


def original_config(folder: Path, source: TensorSource) -> dict[str, Any]:
    """diffusers' settings of the transformer in `source`; heads and epsilon are the folder's own config's."""
    config = read_json(folder / "config.json")
    heads, eps = config.get("num_heads"), config.get("eps", 1e-6)
    dim, channels, *patch = shape_of(source, "patch_embedding.weight", 5)
    if config.get("model_type", "t2v") != "t2v":
        raise VegaError(f"'{folder}' is no text-to-video Wan ({config['model_type']}): give Wan2.1-T2V-1.3B.")
    if not isinstance(heads, int) or not 0 < heads <= dim or dim % heads:
        raise VegaError(f"File '{folder / 'config.json'}' gives {heads!r} heads for a width of {dim}: copy it again.")
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": shape_of(source, "text_embedding.0.weight", 2)[1],
        "freq_dim": shape_of(source, "time_embedding.0.weight", 2)[1],
        "ffn_dim": shape_of(source, "blocks.0.ffn.0.weight", 2)[0],
        "num_layers": depth(source, "blocks."),
        "eps": eps,
    }


def original_transformer(
    source: TensorSource, config: Mapping[str, Any], tap: int, device: torch.device, dtype: torch.dtype
) -> WanTransformer3DModel:
    """Blocks 0..tap of a transformer under Wan's own names, in `dtype` on `device`.

    Raises VegaError for what is missing, does not fit, or is read by no part of them.
    """
    blocks = config["num_layers"]
    if not 0 <= tap < blocks:
        raise VegaError(f"Block {tap} is not among the {blocks} blocks of '{source.name}': choose 0 to {blocks - 1}.")
    model = build_component(WanTransformer3DModel, dict(config) | {"num_layers": tap + 1}, Path(source.name))
    del model.proj_out, model.norm_out, model.scale_shift_table
    state = {name: source.read(name) for name in names_up_to(source.names(), tap)}
    translated = DictSource(source.name, convert_wan_transformer_to_diffusers(state))
    _fill_wholly(model, translated, device, dtype)
    return model


def _fill_wholly(module: nn.Module, source: TensorSource, device: torch.device, dtype: torch.dtype) -> None:
    """`fill`, and VegaError for a tensor that was not needed."""
    fill(module, source, lambda name: (name, None), device, dtype)
    refuse_unread(source, lambda name: False)


def names_up_to(names: Iterable[str], tap: int) -> list[str]:
    """Tensors that are needed to read block `tap`: not the later blocks, nor the head behind them."""
    return [
        name
        for name in names
        if (int(match.group(1)) <= tap if (match := _BLOCK.match(name)) else not name.startswith("head."))
    ]
