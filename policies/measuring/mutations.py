"""Does `check_parity` notice one wrong tensor?  Every tensor of a golden folder's checkpoint is changed, one at a time.

A weight becomes 1.02 times itself and a bias zero, as a wrong conversion leaves them; what the network never runs
(the towers' last blocks, the language model's own head, the VAE's decoder) is left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.openvla.checkpoint import unneeded
from policies.parity.check import checked
from policies.types import VegaError

FACTOR = 1.02


@dataclass(frozen=True)
class Mutation:
    """A tensor of a file of a golden folder (relative), to be changed."""

    file: str
    tensor: str


def mutations(folder: Path) -> list[Mutation]:
    """All of a golden folder that change something and matter."""
    found = []
    for path in _files(folder):
        weights = _read(path)
        depths = {
            prefix: 1 + max((int(n.removeprefix(prefix).split(".")[1]) for n in weights if n.startswith(f"{prefix}b")),
                            default=-1)
            for prefix in ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
        }  # fmt: skip
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not unneeded(name, depths, film=False) and bool(tensor.any()):
                found.append(Mutation(str(path.relative_to(folder)), name))
    if not found:
        raise VegaError(f"'{folder}' holds no weights: give a golden folder.")
    return found


def undetected(
    folder: Path, room: Path, limit: int | None = None, told: Callable[[str], None] = print
) -> tuple[int, list[Mutation]]:
    """(how many mutations were tried, those that no line of `check_parity` noticed).

    room: an empty folder to work in.  limit: of a golden folder with more tensors so many are tried, spread over all.
    told: gets a sentence for each that went unnoticed.
    """
    copy = room / folder.name
    shutil.copytree(folder, copy)
    if (failed := _first_failure(copy)) is not None:
        raise VegaError(f"'{folder}' does not agree as it is ({failed}): mend that first.")
    chosen = mutations(folder)
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, limit).round().astype(int)]
    missed = []
    for mutation in chosen:
        path = copy / mutation.file
        before = path.read_bytes()
        weights = _read(path)
        value = weights[mutation.tensor]
        changed = torch.zeros_like(value) if mutation.tensor.endswith("bias") else (value * FACTOR).to(value.dtype)
        _write(path, weights | {mutation.tensor: changed})
        if _first_failure(copy) is None:
            missed.append(mutation)
            told(f"not noticed: {mutation.tensor} of {mutation.file}")
        path.write_bytes(before)
    return len(chosen), missed


def _first_failure(folder: Path) -> str | None:
    return next((quantity for quantity, error, tolerance in checked(folder) if not error <= tolerance), None)


def _files(folder: Path) -> Iterator[Path]:
    for pattern in ("*.safetensors", "*_checkpoint.pt", "transformer/*.safetensors", "vae/*.safetensors"):
        yield from sorted(folder.glob(pattern))


def _read(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def _write(path: Path, weights: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata={"format": "pt"})
    else:
        torch.save(weights, path)
