"""What a spatial-reasoning checkpoint's config.json adds to Qwen2.5-VL's: the generative branch.

Source: `src/qwen_vl/train/argument.py` and `modeling_qwen2_5_vl.py` of VEGA-3D's branch spatial-reasoning (ca64583),
whose field names these are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.files.json_config import read_json
from policies.types import VegaError

PREFIX = "generative_"
TOWER = "wan_t2v_online"
# Written by the reference and read by nobody: the width is the tower's own.
UNUSED = ("encoder_feature_dim", "encoder_freeze", "vision_tower_task", "vision_tower_dtype")


@dataclass(frozen=True)
class BranchConfig:
    """The generative branch.

    path: of Wan, as written (the reference reads it relative to where it was started).  prompt: file of the prompt's
    embedding, likewise, or None.  canvas: (rows, columns) px.  tap: block, 0-based; -1 the last.
    """

    path: str
    prompt: str | None = None
    canvas: tuple[int, int] = (480, 832)
    noise_index: int = 300
    shift: float = 5.0
    tap: int = -1
    fusion: str = "token_gated_residual"
    layers: int = 1
    heads: int = 8
    dropout: float = 0.1
    merger: str = "mlp"
    merger_hidden: int = 4096


def read_branch(folder: Path) -> BranchConfig | None:
    """The branch that a checkpoint's config.json describes; None for a plain Qwen2.5-VL.

    Raises VegaError with the file for what this package does not run, or a value of another kind.
    """
    path = folder / "config.json"
    values = read_json(path)
    if values.get("model_type") != "qwen2_5_vl":
        raise VegaError(f"File '{path}' describes a {values.get('model_type')!r}: give a Qwen2.5-VL checkpoint.")
    if not values.get("use_generative_encoder"):
        return None
    fields = {key.removeprefix(PREFIX): value for key, value in values.items() if key.startswith(PREFIX)}
    if fields.pop("encoder_tower_type", TOWER) != TOWER:
        raise VegaError(
            f"File '{path}' asks for the tower '{values[PREFIX + 'encoder_tower_type']}', which this package does not "
            f"run: choose a checkpoint with {TOWER}."
        )
    for name in UNUSED:
        fields.pop(name, None)
    size = _pop(fields, path, "vision_tower_size", "832*480")
    found = re.fullmatch(r"(\d+)\*(\d+)", size)
    if found is None:
        raise VegaError(f"Setting '{PREFIX}vision_tower_size' in '{path}' is {size!r}: give WIDTH*HEIGHT, as 832*480.")
    config = BranchConfig(
        path=_pop(fields, path, "encoder_path", ""),
        prompt=_pop(fields, path, "vision_tower_prompt_emb_path", "") or None,
        canvas=(int(found[2]), int(found[1])),
        noise_index=_pop(fields, path, "vision_tower_timestep", 300),
        shift=_pop(fields, path, "vision_tower_shift", 5.0),
        tap=_pop(fields, path, "vision_tower_feat_block_idx", -1),
        fusion=_pop(fields, path, "fusion_method", "token_gated_residual"),
        layers=_pop(fields, path, "fusion_num_layers", 1),
        heads=_pop(fields, path, "fusion_attention_heads", 8),
        dropout=_pop(fields, path, "fusion_dropout", 0.1),
        merger=_pop(fields, path, "merger_type", "mlp"),
        merger_hidden=_pop(fields, path, "merger_hidden_dim", 4096),
    )
    if fields:
        raise VegaError(f"Setting '{PREFIX}{min(fields)}' in '{path}' is unknown: remove it, or use another one.")
    return config


def _pop(fields: dict[str, Any], path: Path, name: str, default: Any) -> Any:
    value = fields.pop(name, None)
    if value is None:
        return default
    kinds: Mapping[type, tuple[type, ...]] = {float: (int, float)}
    if type(value) not in kinds.get(type(default), (type(default),)):
        raise VegaError(f"Setting '{PREFIX}{name}' in '{path}' is {value!r}: give a {type(default).__name__}.")
    return value
