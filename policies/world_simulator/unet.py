"""A UNet in the place of Wan's transformer, trained on the same latents: to be scored beside it, never fused.

VEGA-3D holds that video transformers know more of space than video UNets (section 4).  diffusers' UNet3DConditionModel
stands for the latter, in a size of a small Wan's transformer; it lies in `unet/` of that Wan's folder and shares its
VAE, its noise and its objective.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from policies.files.json_config import read_json
from policies.files.paths import refuse_pointer
from policies.files.tensor_sources import check_numbers
from policies.files.weight_files import write_tensors
from policies.types import VegaError

FOLDER = "unet"
CONFIG_FILE, WEIGHTS_FILE, PROMPT_FILE = "config.json", "diffusion_pytorch_model.safetensors", "prompt.safetensors"
PROMPT = "prompt"


def small_unet(channels: int, text_dim: int) -> UNet3DConditionModel:
    """Two resolutions, 32 and 64 channels wide, attention within and between frames at each but the coarser's inlet.

    channels: of the latents.  1.59 M parameters with 16 of them, where `small_transformer` has 1.56 M.
    """
    return UNet3DConditionModel(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_dim,
        attention_head_dim=16,
    )


def save_unet(folder: Path, unet: UNet3DConditionModel, prompt: Tensor) -> None:
    """Into the folder of the world simulator whose latents it knows.  prompt: (n, text width)."""
    target = folder / FOLDER
    unet.save_config(target)
    write_tensors(unet.state_dict(), target / WEIGHTS_FILE)
    write_tensors({PROMPT: prompt}, target / PROMPT_FILE)


def load_unet(folder: Path) -> tuple[UNet3DConditionModel, Tensor]:
    """The UNet in a world simulator's folder, and its prompt (n, text width).  Raises VegaError for a broken one."""
    source = folder / FOLDER
    unet = UNet3DConditionModel.from_config(read_json(source / CONFIG_FILE))
    try:
        weights, prompt = load_file(source / WEIGHTS_FILE), load_file(source / PROMPT_FILE)[PROMPT]
        check_numbers(weights, source / WEIGHTS_FILE)
        check_numbers({PROMPT: prompt}, source / PROMPT_FILE)
        unet.load_state_dict(weights)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        for file in (WEIGHTS_FILE, PROMPT_FILE):
            refuse_pointer(source / file)
        reason = str(error).splitlines()[0]
        raise VegaError(f"The UNet in '{source}' is none ({reason}): train it again, or remove that folder.") from None
    return unet.eval().requires_grad_(False), prompt


def block_maps(unet: UNet3DConditionModel, noisy: Tensor, timestep: float, prompt: Tensor) -> list[Tensor]:
    """What every block gives, downwards, in the middle, upwards: (B, rows, columns, C) each.

    noisy: (B, channels, 1, h, w).  prompt: (n, text width).
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        maps = output[0] if isinstance(output, tuple) else output
        seen.append(maps.permute(0, 2, 3, 1))

    blocks: list[nn.Module] = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        unet(noisy, torch.full((len(noisy),), float(timestep)), prompt.expand(len(noisy), -1, -1))
    finally:
        for hook in hooks:
            hook.remove()
    return seen
