"""A trained policy as a folder: OpenVLA-OFT merged in the published layout, and the policy composed with it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from torch import Tensor

from policies.files.json_config import read_json
from policies.fusion.fused_policy import CONFIG_FILE
from policies.openvla.checkpoint import open_checkpoint
from policies.openvla.loading import TOWER_PREFIXES
from policies.openvla.policy import VegaOpenVLA
from policies.openvla.vision import stored_place
from policies.types import VegaError

CHECKPOINT = "openvla"  # folder of the merged OpenVLA-OFT inside the policy's
SHARD = "5GB"
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja")


def publish(
    policy: VegaOpenVLA,
    state: Mapping[str, Tensor],
    fusion: Mapping[str, Tensor] | None,
    step: int,
    folder: Path,
) -> None:
    """Write a folder that `load_policy` loads; `folder`/openvla is one in the published layout, a policy by itself.

    state: the model's, merged.  fusion: the fusion's.  Its only statistics are those that the policy acts by: it has
    unlearned all other data sets'.  What is there goes when all is written.  Raises VegaError where there is no room.
    """
    partial, before = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "before"))
    try:
        _tidy(folder, partial, before)  # after a kill
        _write(policy, state, fusion, step, partial, folder.name)
        if folder.exists():
            folder.rename(before)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:120]
        raise VegaError(
            f"The policy {folder} cannot be written ({reason}): make room there and run the command again, which goes "
            "on from its last state."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _tidy(folder, partial, before)


def _tidy(folder: Path, partial: Path, before: Path) -> None:
    """Take away what is half written, and the policy before where there is a later one."""
    if before.exists() and not folder.exists():
        before.rename(folder)
    for left in (partial, before):
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def check_place(folder: Path, sources: Iterable[Path]) -> None:
    """Raise VegaError where publishing as `folder` would remove one of `sources`, or what no training has put there."""
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise VegaError(f"'{source}' lies where the trained policy is put ({folder}): give another --output.")
    if folder.exists() and not (folder / CHECKPOINT).is_dir():
        raise VegaError(f"In '{folder}' is something that no training has put there: give another --output.")


def _write(
    policy: VegaOpenVLA,
    state: Mapping[str, Tensor],
    fusion: Mapping[str, Tensor] | None,
    step: int,
    folder: Path,
    name: str,
) -> None:
    target = folder / CHECKPOINT
    target.mkdir(parents=True)
    entries = {policy.statistics_key: policy.statistics}
    source = Path(policy.model.info.folder)
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if ".safetensors.index" not in file.name and not file.name.startswith("adapter_"):
                shutil.copy(file, target / file.name)
    (target / "dataset_statistics.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    _tell(target / CONFIG_FILE, entries)
    stored = _stored(policy, state)
    save_torch_state_dict({k: v.cpu().contiguous() for k, v in stored.items()}, str(target), max_shard_size=SHARD)
    for part, prefix, stem in (
        ("head.", "module.model.", "action_head"),
        ("proprio_projector.", "module.", "proprio_projector"),
    ):
        tensors = {prefix + n.removeprefix(part): v.cpu() for n, v in state.items() if n.startswith(part)}
        if tensors:
            _save(tensors, target / f"{stem}--{step}_checkpoint.pt")
    config = replace(policy.config, openvla=CHECKPOINT, name=name, statistics_key=policy.statistics_key)
    policy.write(folder, config, fusion)


def _tell(path: Path, entries: Mapping[str, Any]) -> None:
    """Let a copied config.json say what is here: weights that are no codes any more, and these statistics alone.

    OpenVLA's own loader takes those of the config, where nobody gives it the file.
    """
    config = {name: value for name, value in read_json(path).items() if name != "quantization_config"}
    if "norm_stats" in config:
        config["norm_stats"] = dict(entries)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # what torch's own writer says of a full disk
        raise OSError(str(error)) from error


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
