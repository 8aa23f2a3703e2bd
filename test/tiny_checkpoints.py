"""Small checkpoints in the published layouts: OpenVLA-OFT from the golden folder, Wan with random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers

from policies.compose import main as compose
from policies.types import Observation, RobotState
from policies.world_simulator.simulator import WorldSimulatorConfig, save_world_simulator

GOLDEN = Path(__file__).parent / "golden" / "openvla_oft_tiny"
HEAD, PROPRIO = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"
MILK = "pick up the milk"
WIDTH = 32  # of the golden checkpoint's language model
TEXT = 12  # width of the small Wan's prompt
WORDS = ("In:", "Out:", "What", "action", "should", "the", "robot", "take", "to", "pick", "up", "milk?", "soup?")


def openvla_folder(path: Path) -> Path:
    """The golden checkpoint with a tokenizer of a few words."""
    aside = shutil.ignore_patterns("*.npz", "*.py", "prompts.json", "state_dict_shapes.json")
    shutil.copytree(GOLDEN, path, ignore=aside)
    tokenizer = Tokenizer(
        models.WordLevel({"<unk>": 0, "<s>": 1} | {word: 100 + i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def make_joint_space(folder: Path) -> None:
    """Turn a copy of the golden checkpoint into one of the 14-D kind: head, proprio projector and statistics."""
    generator = torch.Generator().manual_seed(0)
    head = {k.removeprefix("module."): v for k, v in torch.load(folder / HEAD, weights_only=True).items()}
    head |= {
        "model.layer_norm1.weight": torch.ones(14 * WIDTH),
        "model.layer_norm1.bias": torch.zeros(14 * WIDTH),
        "model.fc1.weight": torch.randn(WIDTH, 14 * WIDTH, generator=generator),
        "model.fc2.weight": torch.randn(14, WIDTH, generator=generator),
        "model.fc2.bias": torch.zeros(14),
    }
    torch.save(head, folder / HEAD)
    proprio = torch.load(folder / PROPRIO, weights_only=True)
    torch.save(proprio | {"module.fc1.weight": torch.randn(WIDTH, 14, generator=generator)}, folder / PROPRIO)


def wan_folder(path: Path, tap: int = 1) -> Path:
    """A Wan of three blocks with random weights, as LatentWorldSimulator loads it; width 48."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(base_dim=8, z_dim=16).eval()
        transformer = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, ffn_dim=64, num_layers=3, text_dim=TEXT, freq_dim=32
        ).eval()
        prompt = torch.randn(1, TEXT)
    save_world_simulator(path, vae, transformer, prompt, WorldSimulatorConfig(tap=tap))
    return path


def composed(folder: Path, checkpoint: Path, wan: Path | None = None, world: dict | None = None, **changes) -> Path:
    """A policy's folder in float32, its config changed by hand as a user would."""
    arguments = ["--openvla", str(checkpoint), "--output", str(folder), "--dtype", "float32", "--name", "tiny"]
    assert compose(arguments + ([] if wan is None else ["--world-simulator", str(wan)])) == 0
    config = json.loads((folder / "config.json").read_text()) | changes
    if wan is not None:
        config["world_simulator"] |= {"tap": 1, "canvas": [64, 64]} | (world or {})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def robot_state(joints: int = 7) -> RobotState:
    hand = np.array([-0.999, -0.001, 0.038, 0.006])
    return RobotState(
        5,
        tuple(f"joint{i}" for i in range(joints)),
        np.linspace(-1, 1, joints),
        np.zeros(joints),
        np.array([0.03, 0.02]),
        np.array([0.45, 0.02, 0.26]),
        hand / np.linalg.norm(hand),
    )


def observation(seed: int = 0, window: int = 1, cameras=("agentview", "wrist"), **changes) -> Observation:
    """Smooth random pictures, as cameras give them; noise would drown in the JPEG round trip."""
    rng = np.random.default_rng(seed)
    images = {}
    for camera in cameras:
        coarse = rng.integers(0, 255, (window, 16, 16, 3)).repeat(16, 1).repeat(16, 2)
        images[camera] = coarse.astype(np.uint8)
    return replace(Observation(images, robot_state(), MILK, 5, np.array([-0.66, 0.0, 0.912])), **changes)
