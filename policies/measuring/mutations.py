"""Does `check_parity` notice one wrong tensor?  Every tensor of a golden folder's checkpoint is changed, one at a time.

As wrong conversions leave them: a weight becomes 1.02 times itself or a bias zero ("scaled"), a square matrix its
transpose ("transposed"), or a tensor changes places with the next one of its shape in the file ("swapped").  What the
network never runs (the towers' last blocks, the language model's own head, the VAE's decoder) is left out, and so are
exchanges under which the network stays the same.
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
    """A tensor of a file of a golden folder (relative), to be changed; partner: with which it changes places."""

    file: str
    tensor: str
    kind: str = "scaled"
    partner: str = ""

    def of(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that it leaves other than they are in `weights`."""
        value = weights[self.tensor]
        if self.kind == "swapped":
            return {self.tensor: weights[self.partner].clone(), self.partner: value.clone()}
        if self.kind == "transposed":
            return {self.tensor: value.transpose(0, 1).contiguous()}
        zeroed = self.tensor.endswith("bias")
        return {self.tensor: torch.zeros_like(value) if zeroed else (value * FACTOR).to(value.dtype)}


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
        used = {
            name: tensor
            for name, tensor in weights.items()
            if tensor.is_floating_point() and not unneeded(name, depths, film=False) and bool(tensor.any())
        }
        file = str(path.relative_to(folder))
        found += [Mutation(file, name) for name in used]
        square = (n for n, w in used.items() if w.ndim > 1 and w.shape[0] == w.shape[1])
        found += [Mutation(file, n, "transposed") for n in square if not torch.equal(used[n], used[n].transpose(0, 1))]
        found += [Mutation(file, *pair) for pair in _alike(used)]
    if not found:
        raise VegaError(f"'{folder}' holds no weights: give a golden folder.")
    return found


def _alike(weights: dict[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Pairs that may change places: a tensor and the next of its shape."""
    last: dict[tuple[int, ...], str] = {}
    for name, tensor in weights.items():
        before = last.get(tuple(tensor.shape))
        if before is not None and not torch.equal(tensor, weights[before]) and not _same(before, name):
            yield before, "swapped", name
        last[tuple(tensor.shape)] = name


# Ends of names that can change places in a network that stays the same: norms that multiply each other, number by
# number, without a rotation between them; biases that are added to the same sum.
_EQUAL = (("attn2.norm_q.weight", "attn2.norm_k.weight"), ("conv2.bias", "conv_shortcut.bias"))


def _same(one: str, other: str) -> bool:
    return any(
        one.endswith(a) and other.endswith(b) and one.removesuffix(a) == other.removesuffix(b)
        for pair in _EQUAL
        for a, b in (pair, pair[::-1])
    )


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
        _write(path, weights | mutation.of(weights))
        if _first_failure(copy) is None:
            missed.append(mutation)
            told(f"not noticed: {mutation.tensor} of {mutation.file}, {mutation.kind} {mutation.partner}".rstrip())
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
