"""Named tensors in files and in memory, and which of them somebody has read.

What lies in a file and is not used is as suspect as what is missing: scales of quantised weights, adapters, parts of
another model.  So every source remembers what was read, and `refuse_unread` names the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from policies.files.json_config import read_config, read_json
from policies.files.paths import refuse_pointer
from policies.types import VegaError

ADAPTER_WEIGHTS = "adapter_model"  # stem of the files in which PEFT keeps an adapter
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
PLAIN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what weights are that are no codes


class TensorSource(Protocol):
    """Named tensors somewhere."""

    name: str

    def names(self) -> Iterable[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def dtype(self, key: str) -> torch.dtype | None:
        """As it is stored; None for a kind that torch or this package does not know."""
        ...

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or these rows of it, on the CPU in the file's dtype; KeyError without it."""
        ...

    def unread(self) -> list[str]:
        """Names of what is stored and nobody has read."""
        ...


@dataclass(frozen=True)
class _Index:
    """Of a model in several files: tensor -> file."""

    weight_map: dict[str, str] = field(default_factory=dict)


class SafetensorsSource:
    """All `*.safetensors` of a folder as one, adapters aside; an index file, where there is one, says which must be.

    pattern: of a folder that holds more than one model, which files are this one's.
    """

    def __init__(self, folder: Path, pattern: str = "*.safetensors"):
        self.name = str(folder)
        shards = {file.name for file in folder.glob(pattern) if not file.stem.startswith(ADAPTER_WEIGHTS)}
        index = find_component(folder, f"{pattern}.index.json", "shard index")
        if index is not None:
            wanted = set(read_config(_Index, read_json(index), index, foreign=True).weight_map.values())
            missing = sorted(wanted - shards)
            if missing:
                raise VegaError(f"Folder '{folder}' lacks shard '{missing[0]}': download that file again.")
            if stray := sorted(shards - wanted):
                raise VegaError(
                    f"File '{folder / stray[0]}' is not in '{index.name}', so nobody would read it: move it away."
                )
        if not shards and (pickles := sorted(folder.glob("pytorch_model*.bin"))):
            raise VegaError(
                f"Folder '{folder}' holds its weights as '{pickles[0].name}': load them with transformers and save "
                "them again with save_pretrained, which writes *.safetensors."
            )
        if not shards:
            raise VegaError(f"Folder '{folder}' holds no {pattern} file: give a complete checkpoint folder.")
        self._files = {}
        self._where: dict[str, str] = {}
        self._read: set[str] = set()
        for shard in sorted(shards):
            try:
                self._files[shard] = safe_open(folder / shard, "pt")
            except (SafetensorError, OSError) as error:
                refuse_pointer(folder / shard)
                raise VegaError(f"File '{folder / shard}' is damaged ({error}): download it again.") from None
            for key in self._files[shard].keys():  # noqa: SIM118 - it is no mapping
                if key in self._where:
                    raise VegaError(
                        f"Tensor '{key}' is in '{shard}' and in '{self._where[key]}' of '{folder}': keep one of them."
                    )
                self._where[key] = shard

    def names(self) -> Iterable[str]:
        return self._where.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._files[self._where[key]].get_slice(key).get_shape())

    def dtype(self, key: str) -> torch.dtype | None:
        return _DTYPES.get(self._files[self._where[key]].get_slice(key).get_dtype())

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        file = self._files[self._where[key]]
        self._read.add(key)
        return file.get_tensor(key) if rows is None else file.get_slice(key)[rows]

    def unread(self) -> list[str]:
        return [key for key in self._where if key not in self._read]


class DictSource:
    """Tensors that are in memory already."""

    def __init__(self, name: str, tensors: Mapping[str, torch.Tensor]):
        self.name = name
        self._tensors = dict(tensors)
        self._read: set[str] = set()

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype | None:
        return self._tensors[key].dtype

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        tensor = self._tensors[key]
        self._read.add(key)
        return tensor if rows is None else tensor[rows]

    def unread(self) -> list[str]:
        return [key for key in self._tensors if key not in self._read]


def read_torch_file(path: Path) -> DictSource:
    """A `.pt` or `.bin` state dict (`weights_only`)."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        refuse_pointer(path)
        raise VegaError(
            f"File '{path}' is not a plain torch state dict ({type(error).__name__}): download it again, or save it "
            "with torch.save(model.state_dict(), path)."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise VegaError(
            f"File '{path}' holds more than tensors by name: save it with torch.save(model.state_dict(), path)."
        )
    return DictSource(str(path), state)


def find_component(folder: Path, pattern: str, purpose: str) -> Path | None:
    """The one file in `folder` that matches the glob, None without one, VegaError with several."""
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise VegaError(f"Folder '{folder}' holds several files for the {purpose} ({names}): keep the one you mean.")
    return found[0] if found else None


def refuse_unread(source: TensorSource, unneeded: Callable[[str], bool]) -> None:
    """Raise VegaError that names a tensor which was not read, `unneeded` ones aside."""
    left = [name for name in source.unread() if not unneeded(name)]
    if left:
        others = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise VegaError(
            f"Tensor '{left[0]}'{others} in '{source.name}' is of no use to this model: give the checkpoint as it was "
            "published, or a file without it."
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity in it."""
    # Of all ways to tell, the only one that reads weights at the speed of memory.
    return not tensor.numel() or all(bool(torch.isfinite(bound)) for bound in tensor.aminmax())


def check_plain(tensor: torch.Tensor, name: str, where: str) -> None:
    """Raise VegaError for codes in the place of numbers."""
    if tensor.dtype not in PLAIN_DTYPES:
        raise VegaError(f"Tensor '{name}' in '{where}' is stored as {tensor.dtype}: give plain weights.")


def check_numbers(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise VegaError for a tensor of a file that holds anything but plain, finite numbers."""
    for name, tensor in tensors.items():
        check_plain(tensor, name, str(path))
        if not is_finite(tensor):
            raise VegaError(f"Tensor '{name}' in '{path}' holds NaN or infinity: get the folder again.")


def stored_count(source: TensorSource, names: Iterable[str]) -> int:
    """How many numbers the tensors `names` hold together, told without reading them."""
    return sum(math.prod(source.shape(name)) for name in names)


def depth(source: TensorSource, prefix: str) -> int:
    """How many numbered blocks there are under `prefix`, e.g. "blocks." -> 24."""
    numbers = [int(m.group(1)) for key in source.names() if (m := re.match(re.escape(prefix) + r"(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def shape_of(source: TensorSource, key: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor of `rank` dimensions, or VegaError that names it."""
    try:
        shape = source.shape(key)
    except KeyError:
        raise VegaError(f"'{source.name}' lacks tensor '{key}': the file is incomplete, download it again.") from None
    if len(shape) != rank or 0 in shape:
        raise misfit(source, key, shape, f"{rank} dimension{'s' if rank > 1 else ''}, none of them empty, are")
    return shape


def misfit(source: TensorSource, key: str, shape: tuple[int, ...], wanted: str) -> VegaError:
    """What to raise for a tensor of a shape that does not fit; wanted: what is needed, with its verb."""
    return VegaError(
        f"Tensor '{key}' in '{source.name}' has shape {shape} where {wanted} needed: this file belongs to another "
        "model, download the matching one."
    )
