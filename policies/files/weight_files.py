"""Reading weights from published folders: which file holds what, and how it reaches the device.

Tensors go one by one from the file to their place on the device in the dtype they are used in, so a
model never exists twice in memory.  Pickles are read with torch's `weights_only` and nothing else.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from policies.types import VegaError

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.pt", "tokenizer.model")  # what is downloaded of a policy


def is_hub_id(path_or_id: str | os.PathLike[str]) -> bool:
    """Whether this names a repository on the hub, `owner/name`, and nothing that exists here."""
    text = str(path_or_id)
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".") and not Path(text).exists()


def resolve_folder(path_or_id: str | os.PathLike[str], patterns: Iterable[str] | None = None) -> Path:
    """A local folder: `path_or_id` itself, or the files of that hub id that match `patterns`, downloaded once."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    text = str(path_or_id)
    if not is_hub_id(text):
        raise VegaError(f"There is no checkpoint folder '{text}': give a folder that exists or a hub id 'owner/name'.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=list(patterns) if patterns else None))
    except Exception as error:
        raise VegaError(
            f"Checkpoint '{text}' is neither a folder here nor could it be downloaded ({type(error).__name__}): "
            "check the name and the network, or give a local folder."
        ) from error


def read_json(path: Path) -> dict:
    """The object in a JSON file, or VegaError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VegaError(f"File '{path}' is missing: copy or download the whole checkpoint folder.") from None
    except (OSError, ValueError) as error:
        raise VegaError(f"File '{path}' is not readable JSON ({error}): copy or download it again.") from None
    if not isinstance(value, dict):
        raise VegaError(f"File '{path}' holds no JSON object: copy or download it again.")
    return value


def find_component(folder: Path, pattern: str, purpose: str) -> Path | None:
    """The one file in `folder` that matches the glob, None without one, VegaError with several."""
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise VegaError(f"Folder '{folder}' holds several files for the {purpose} ({names}): keep the one you mean.")
    return found[0] if found else None


class TensorSource(Protocol):
    """Named tensors somewhere."""

    name: str

    def names(self) -> Iterable[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or these rows of it, on the CPU in the file's dtype; KeyError without it."""
        ...


class SafetensorsSource:
    """All `*.safetensors` of a folder as one; an index file, where there is one, says which must be there."""

    def __init__(self, folder: Path):
        self.name = str(folder)
        shards = {file.name for file in folder.glob("*.safetensors")}
        index = find_component(folder, "*.safetensors.index.json", "shard index")
        if index is not None:
            wanted = set(read_json(index).get("weight_map", {}).values())
            missing = sorted(wanted - shards)
            if missing:
                raise VegaError(f"Folder '{folder}' lacks shard '{missing[0]}': download that file again.")
            shards = wanted
        if not shards:
            raise VegaError(f"Folder '{folder}' holds no *.safetensors file: give a complete checkpoint folder.")
        self._files = {}
        self._where: dict[str, str] = {}
        for shard in sorted(shards):
            try:
                self._files[shard] = safe_open(folder / shard, "pt")
            except (SafetensorError, OSError) as error:
                raise VegaError(f"File '{folder / shard}' is damaged ({error}): download it again.") from None
            self._where.update(dict.fromkeys(self._files[shard].keys(), shard))

    def names(self) -> Iterable[str]:
        return self._where.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._files[self._where[key]].get_slice(key).get_shape())

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        file = self._files[self._where[key]]
        return file.get_tensor(key) if rows is None else file.get_slice(key)[rows]


class DictSource:
    """Tensors that are in memory already."""

    def __init__(self, name: str, tensors: Mapping[str, torch.Tensor]):
        self.name = name
        self._tensors = dict(tensors)

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        tensor = self._tensors[key]
        return tensor if rows is None else tensor[rows]


def stored_count(source: TensorSource, names: Iterable[str]) -> int:
    """How many numbers the tensors `names` hold together, told without reading them."""
    return sum(math.prod(source.shape(name)) for name in names)


def read_torch_file(path: Path) -> DictSource:
    """A `.pt` state dict (`weights_only`), without the `module.` that distributed training leaves on every key."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise VegaError(
            f"File '{path}' is not a plain torch state dict ({type(error).__name__}): download it again, or save it "
            "with torch.save(model.state_dict(), path)."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise VegaError(f"File '{path}' holds more than tensors: save it with torch.save(model.state_dict(), path).")
    return DictSource(str(path), {key.removeprefix("module."): value for key, value in state.items()})


def depth(source: TensorSource, prefix: str) -> int:
    """How many numbered blocks there are under `prefix`, e.g. "blocks." -> 24."""
    numbers = [int(m.group(1)) for key in source.names() if (m := re.match(re.escape(prefix) + r"(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def shape_of(source: TensorSource, key: str) -> tuple[int, ...]:
    """Shape of a tensor, or VegaError that names it."""
    try:
        return source.shape(key)
    except KeyError:
        raise VegaError(f"'{source.name}' lacks tensor '{key}': the file is incomplete, download it again.") from None


def assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put `tensor` in the place of the parameter `name` (frozen)."""
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


Reader = Callable[[str], torch.Tensor]


def fill(
    module: nn.Module,
    source: TensorSource,
    where: Callable[[str], tuple[str, slice | None]],
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Fill every parameter of `module` (built on the meta device) from `source`.

    where: parameter name -> (key in the source, rows of it or None for all).
    Raises VegaError for a key that is missing or a tensor of another size.
    """
    for name, parameter in list(module.named_parameters()):
        key, rows = where(name)
        try:
            tensor = source.read(key, rows)
        except KeyError:
            raise VegaError(
                f"'{source.name}' lacks tensor '{key}': the file is incomplete, download it again."
            ) from None
        if tensor.numel() != parameter.numel() or tensor.squeeze().shape != parameter.squeeze().shape:
            raise VegaError(
                f"Tensor '{key}' in '{source.name}' has shape {tuple(tensor.shape)} where {tuple(parameter.shape)} is "
                "needed: this file belongs to another model, download the matching one."
            )
        assign(module, name, tensor.reshape(parameter.shape).to(device=device, dtype=dtype, copy=True))


M = TypeVar("M", bound=nn.Module)


def component_config(folder: Path, kind: type[nn.Module], hint: str) -> dict[str, Any]:
    """config.json of a diffusers component; VegaError, with `hint` for a remedy, if it is not of class `kind`."""
    path = folder / "config.json"
    config = read_json(path)
    if config.get("_class_name") != kind.__name__:
        raise VegaError(f"File '{path}' describes a {config.get('_class_name')}: {hint}.")
    return config


def build_component(kind: type[M], config: Mapping[str, Any], folder: Path) -> M:
    """A diffusers model as its config says, on the meta device."""
    path = folder / "config.json"
    for name, parameter in inspect.signature(kind).parameters.items():
        value = config.get(name)
        # What is built with a text for a number fails when it runs, not now.
        if isinstance(parameter.default, int | float) and not isinstance(value, int | float | None):
            raise VegaError(f"Setting '{name}' in '{path}' is {value!r} and must be a number: download it again.")
    try:
        with torch.device("meta"):
            return kind(**{key: value for key, value in config.items() if not key.startswith("_")})
    except Exception as error:  # whatever a value of the wrong kind leads to inside
        reason = str(error).split("\n")[0]
        raise VegaError(
            f"File '{path}' describes no {kind.__name__} that works ({reason}): download it again."
        ) from error


def write_component(config: Mapping[str, Any], source: TensorSource, names: Iterable[str], folder: Path) -> None:
    """Write a diffusers component: config.json and the tensors `names` of `source` in one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
    write_tensors({name: source.read(name) for name in names}, folder / "diffusion_pytorch_model.safetensors")


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file that whoever may read its folder can read."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private, which would not survive an installation


def available_bytes(device: torch.device) -> int | None:
    """Memory free on `device` in bytes; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(match.group(1)) * 1024 if match else None


def check_memory(modules: Iterable[nn.Module], device: torch.device, dtype: torch.dtype, what: str) -> None:
    """Raise VegaError, before anything is loaded, if the weights of `modules` do not fit on `device`."""
    check_free(sum(p.numel() for module in modules for p in module.parameters()) * dtype.itemsize, device, what)


def check_free(needed: int, device: torch.device, what: str) -> None:
    """Raise VegaError if `device` is not there or has less than `needed` bytes free."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise VegaError(f"{what} cannot go to '{device}', there is no CUDA device here: use device 'cpu'.")
    free = available_bytes(device)
    if free is not None and needed > free:
        raise VegaError(
            f"{what} needs {needed / 1e9:.1f} GB on {device} but {free / 1e9:.1f} GB are free: free memory, use "
            "bfloat16, or choose another device."
        )
