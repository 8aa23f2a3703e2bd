"""The tiny spatial-reasoning checkpoint of the golden vectors, with a tokenizer of its own, and frames for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

CHECKPOINT = Path(__file__).parent / "golden" / "spatial" / "qwen_vega_tiny"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|pad|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]


def write_tiny_reasoner(target: Path) -> Path:
    """A copy of the checkpoint in `target`; a word is an id below 245."""
    shutil.copytree(CHECKPOINT, target)
    config = json.loads((target / "config.json").read_text())
    words = {f"w{i}": i for i in range(245)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(target / "tokenizer.json"))
    assert config["image_token_id"] == tokenizer.token_to_id("<|image_pad|>")
    return target


def make_plain(folder: Path) -> None:
    """A Qwen2.5-VL without the generative branch."""
    config = json.loads((folder / "config.json").read_text())
    plain = {key: value for key, value in config.items() if "generative" not in key}
    (folder / "config.json").write_text(json.dumps(plain))
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "generative" not in k}, path, metadata={"format": "pt"})


def frame(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
