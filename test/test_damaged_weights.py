"""Weights of our own without numbers, or a folder where a file belongs: one sentence that names tensor and file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import composed, observation

from policies.checkpoints import find_checkpoint, load_policy
from policies.fusion.distilled import DistilledConfig, DistilledEncoder
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator
from policies.world_simulator.unet import load_unet, save_unet, small_unet

WEIGHTS, PROMPT = "model.safetensors", "prompt_embedding.safetensors"


def nano(folder: Path) -> Callable[[], object]:
    shutil.copytree(find_checkpoint("vega-nano"), folder)
    return lambda: load_policy(str(folder))


def full_size(folder: Path) -> Callable[[], object]:
    openvla, wan = tiny.openvla_folder(folder.parent / "openvla"), tiny.wan_folder(folder.parent / "wan")
    composed(folder, openvla, wan)
    return lambda: load_policy(str(folder))


def distilled(folder: Path) -> Callable[[], object]:
    DistilledEncoder(DistilledConfig(8, width=16)).save_pretrained(folder)
    return lambda: DistilledEncoder.from_pretrained(folder)


def wan(folder: Path) -> Callable[[], object]:
    tiny.wan_folder(folder)
    return lambda: LatentWorldSimulator.from_pretrained(folder)


def unet(folder: Path) -> Callable[[], object]:
    save_unet(folder, small_unet(16, 8), torch.ones(1, 8))
    return lambda: load_unet(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("make", "file", "tensor"),
    [
        (nano, WEIGHTS, "world.fusion.gate.bias"),
        (nano, WEIGHTS, "head.mlp.0.weight"),
        (full_size, WEIGHTS, "residual"),
        (distilled, WEIGHTS, "std"),
        (wan, PROMPT, "prompt_embedding"),
        (unet, "unet/diffusion_pytorch_model.safetensors", "conv_in.weight"),
        (unet, "unet/prompt.safetensors", "prompt"),
    ],
)
def test_a_tensor_without_numbers_is_named_with_its_file(
    make: Callable[[Path], Callable[[], object]], file: str, tensor: str, value: float, tmp_path: Path
) -> None:
    load, path = make(tmp_path / "it"), tmp_path / "it" / file
    load()
    weights = load_file(path)
    weights[tensor] = torch.full_like(weights[tensor], value)
    save_file(weights, path)
    with pytest.raises(VegaError, match=rf"^Tensor '{tensor}' in '{path}' holds NaN or infinity: .*\.$"):
        load()


@pytest.mark.parametrize(("make", "file"), [(nano, WEIGHTS), (full_size, WEIGHTS), (distilled, WEIGHTS), (wan, PROMPT)])
def test_a_folder_where_weights_belong_is_one_sentence(
    make: Callable[[Path], Callable[[], object]], file: str, tmp_path: Path
) -> None:
    load, path = make(tmp_path / "it"), tmp_path / "it" / file
    path.unlink()
    path.mkdir()
    with pytest.raises(VegaError, match=r"^[^\n]*\.$"):
        load()


def test_a_prompt_of_codes_is_no_prompt(tmp_path: Path) -> None:
    load = wan(tmp_path / "it")
    save_file({"prompt_embedding": torch.ones(1, tiny.TEXT, dtype=torch.int8)}, tmp_path / "it" / PROMPT)
    with pytest.raises(VegaError, match=rf"'prompt_embedding' in .*{PROMPT}' is stored as torch\.int8"):
        load()


@pytest.mark.parametrize("where", ["eef_position", "gripper_positions"])
def test_a_state_without_numbers_gives_no_actions(where: str, tmp_path: Path) -> None:
    seen = observation(instruction="pick up the milk and place it in the basket")
    state = replace(seen.state, **{where: np.full_like(getattr(seen.state, where), np.nan)})
    for policy in (load_policy("vega-nano"), full_size(tmp_path / "it")()):
        with pytest.raises(VegaError, match=r"^[^\n]*finite[^\n]*\.$"):
            policy.act(replace(seen, state=state))  # type: ignore[attr-defined]


def test_actions_that_are_none_are_refused(tmp_path: Path) -> None:
    """Whatever led to them: weights that are finite may overflow."""
    policy = nano(tmp_path / "it")()
    with torch.no_grad():
        policy.head.mlp[0].weight.fill_(3e38)  # type: ignore[attr-defined]
    with pytest.raises(VegaError, match=r"^Policy vega-nano gives actions that are not finite: .*\.$"):
        policy.act(observation(instruction="pick up the milk"))  # type: ignore[attr-defined]
