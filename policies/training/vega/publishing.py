"""A trained policy as a folder: OpenVLA-OFT merged in the published layout, and the policy composed with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from policies.files.json_config import read_json
from policies.fusion.fused_policy import CONFIG_FILE
from policies.openvla.checkpoint import open_checkpoint
from policies.openvla.loading import TOWER_PREFIXES
from policies.openvla.policy import VegaOpenVLA
from policies.openvla.vision import stored_place
from policies.training.vega.demonstrations import Demonstration, statistics
from policies.types import VegaError

CHECKPOINT = "openvla"  # folder of the merged OpenVLA-OFT inside the policy's
SHARD = "5GB"
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja")


def publish(
    policy: VegaOpenVLA,
    state: Mapping[str, Tensor],
    fusion: Mapping[str, Tensor] | None,
    entries: Mapping[str, Any],
    step: int,
    folder: Path,
) -> None:
    """Write a folder that `load_policy` loads; `folder`/openvla is one in the published layout, a policy by itself.

    state: the model's, merged.  fusion: the fusion's.  entries: data set -> its statistics.
    """
    target = folder / CHECKPOINT
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # what a kill leaves from here on is no policy
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    source = Path(policy.model.info.folder)
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if ".safetensors.index" not in file.name and not file.name.startswith("adapter_"):
                shutil.copy(file, target / file.name)
    (target / "dataset_statistics.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    stored = _stored(policy, state)
    save_torch_state_dict({k: v.cpu().contiguous() for k, v in stored.items()}, str(target), max_shard_size=SHARD)
    for part, prefix, stem in (
        ("head.", "module.model.", "action_head"),
        ("proprio_projector.", "module.", "proprio_projector"),
    ):
        tensors = {prefix + n.removeprefix(part): v.cpu() for n, v in state.items() if n.startswith(part)}
        if tensors:
            torch.save(tensors, target / f"{stem}--{step}_checkpoint.pt")
    config = replace(policy.config, openvla=CHECKPOINT, name=folder.name, statistics_key=policy.statistics_key)
    policy.write(folder, config, fusion)


def _stored(policy: VegaOpenVLA, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of the checkpoint that was started from, under the published names, with those that were trained."""
    source = open_checkpoint(Path(policy.model.info.folder))
    found = {name: source.read(name).clone() for name in source.names()}
    for name, value in state.items():
        for key, rows in _places(policy, name):
            if key not in found:
                raise VegaError(f"Checkpoint '{source.name}' has no tensor '{key}': train from the published folder.")
            place = found[key] if rows is None else found[key][rows]
            place.copy_(value.reshape(place.shape))
    return found


def _places(policy: VegaOpenVLA, name: str) -> list[tuple[str, slice | None]]:
    """Where a parameter that may be trained is stored; nowhere for one that stays or lies in a file of its own."""
    if name.startswith("projector."):
        return [(name, None)]
    if name.startswith("layers."):
        return [(f"language_model.model.{name}", None)]
    for number, (tower, prefix) in enumerate(zip(policy.model.towers, TOWER_PREFIXES, strict=True)):
        if name.startswith(f"towers.{number}.blocks."):
            assert hasattr(tower, "prefix_tokens")
            return [stored_place(tower, prefix, name.removeprefix(f"towers.{number}.blocks."))]  # type: ignore[arg-type]
    return []


def started_statistics(policy: VegaOpenVLA) -> dict[str, Any]:
    """Data set -> statistics of the checkpoint that a policy was started from."""
    path = Path(policy.model.info.folder) / "dataset_statistics.json"
    return read_json(path) if path.is_file() else dict(policy.model.info.statistics)


def with_statistics(
    policy: VegaOpenVLA, key: str | None, demonstrations: Sequence[Demonstration]
) -> tuple[VegaOpenVLA, dict[str, Any]]:
    """The policy as it scales actions and state of data set `key`, and all statistics that its checkpoint is to have.

    A data set that the checkpoint does not know has the statistics of these demonstrations.
    """
    known = started_statistics(policy)
    if key is None or key in known:
        return policy, known
    known = known | {key: statistics(demonstrations)}
    policy.model.info = replace(policy.model.info, statistics=known)
    return VegaOpenVLA(replace(policy.config, statistics_key=key), policy.model, policy.world), known
