"""Reading weights from published folders: which file holds what, and how it reaches the device.

Tensors go one by one from the file to their place on the device in the dtype they are used in, so a
model never exists twice in memory.  Pickles are read with torch's `weights_only` and nothing else.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from policies.files.adapters import (
    Merged,
    find_settings,
    holds_adapter,
    read_adapter,
    refuse_adapter_alone,
    refuse_adapters_elsewhere,
)
from policies.files.json_config import read_json
from policies.files.made_once import replacing
from policies.files.paths import is_folder, refuse_file, refuse_pointer
from policies.files.quantised import Dequantised
from policies.files.tensor_names import Layout, Renamed
from policies.files.tensor_sources import SafetensorsSource, TensorSource, check_plain, is_finite, misfit
from policies.types import VegaError

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.pt", "tokenizer.model")  # what is downloaded of a policy


def is_hub_id(path_or_id: str | os.PathLike[str]) -> bool:
    """Whether this names a repository on the hub, `owner/name`, and nothing that exists here."""
    text = str(path_or_id)
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", text):
        return False
    return not text.startswith(".") and not Path(text).exists()


def resolve_folder(path_or_id: str | os.PathLike[str], patterns: Iterable[str] | None = None) -> Path:
    """A local folder: `path_or_id` itself, or the files of that hub id that match `patterns`, downloaded once."""
    text = str(path_or_id)
    if is_folder(text):
        return Path(text).expanduser()
    refuse_file(text)
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


def read_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a checkpoint; a prompt has as many ids as its words make.  Raises VegaError.

    `save_pretrained` stores the padding and truncation of whatever was tokenised last; transformers heeds neither.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise VegaError(f"File '{path}' is missing: copy the tokenizer that came with the checkpoint there.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        refuse_pointer(path)
        raise VegaError(f"File '{path}' is no tokenizer ({error}): copy the checkpoint's own again.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def as_published(names: Iterable[str]) -> Mapping[str, str]:
    """The layout of a file whose names are those that this package reads."""
    return {name: name for name in names}


def open_weights(folder: Path, layout: Layout = as_published, parts: Collection[Path] = ()) -> TensorSource:
    """The `*.safetensors` of a folder as plain weights: wrappers' names stripped, codes as numbers, adapters merged.

    parts: folders below with weights of their own, which whoever asks opens too.
    Raises VegaError for an adapter without its weights, and for whatever is stored in no documented way.
    """
    refuse_adapter_alone(folder)
    refuse_adapters_elsewhere(folder, parts)
    renamed = Renamed(SafetensorsSource(folder), layout)
    source = Dequantised(renamed)
    if holds_adapter(source):
        return Merged(source, find_settings(folder), stored=renamed.stored)
    if (beside := read_adapter(folder)) is None:
        return Merged(source, None)
    adapter = Renamed(beside[0], layout)
    return Merged(source, beside[1], Dequantised(adapter), adapter.stored)


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
    Raises VegaError for a key that is missing, and for a tensor of another size or of no plain, finite numbers.
    """
    for name, parameter in list(module.named_parameters()):
        key, rows = where(name)
        assign(module, name, read_as(source, key, rows, tuple(parameter.shape), device, dtype))


def read_as(
    source: TensorSource,
    key: str,
    rows: slice | None,
    shape: tuple[int, ...],
    device: torch.device | str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """A copy of `rows` of a tensor (None: of all) in this shape; VegaError as `fill`, also for what is not finite."""
    try:
        stored = source.shape(key)
        if rows is not None and stored:
            stored = (len(range(*rows.indices(stored[0]))), *stored[1:])
        if _sides(stored) != _sides(shape):
            raise misfit(source, key, stored, f"{shape} is")
        tensor = source.read(key, rows)
    except KeyError:
        raise VegaError(f"'{source.name}' lacks tensor '{key}': the file is incomplete, download it again.") from None
    check_plain(tensor, key, source.name)
    tensor = tensor.reshape(shape).to(device=device, dtype=dtype, copy=True)
    if not is_finite(tensor):
        raise VegaError(
            f"Tensor '{key}' in '{source.name}' holds NaN or infinity, or is too large for {dtype}: download it again."
        )
    return tensor


def _sides(shape: tuple[int, ...]) -> list[int]:
    """Of a shape, those that are more than a 1."""
    return [side for side in shape if side != 1]


M = TypeVar("M", bound=nn.Module)


def component_config(folder: Path, kind: type[nn.Module], hint: str) -> dict[str, Any]:
    """config.json of a diffusers component; VegaError, with `hint` for a remedy, if it is not of class `kind`."""
    path = folder / "config.json"
    config = read_json(path)
    if config.get("_class_name") != kind.__name__:
        raise VegaError(f"File '{path}' describes a {config.get('_class_name')}: {hint}.")
    return config


def build_component(kind: type[M], config: Mapping[str, Any], folder: Path) -> M:
    """A diffusers model as its config says, on the meta device.

    Settings that the class does not know are those of another version of it (Wan2.2's VAE has `clip_output`): they may
    be there as long as they are off.
    """
    path, known = folder / "config.json", inspect.signature(kind).parameters
    config = {name: value for name, value in config.items() if not name.startswith("_") and (name in known or value)}
    for name, parameter in known.items():
        value = config.get(name)
        # What is built with a text for a number fails when it runs, not now.
        if isinstance(parameter.default, int | float) and not isinstance(value, int | float | None):
            raise VegaError(f"Setting '{name}' in '{path}' is {value!r} and must be a number: download it again.")
    try:
        with torch.device("meta"):
            return kind(**config)
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
    """Write a safetensors file that whoever may read its folder can read; whole or not at all, even where it is killed.

    Raises VegaError where there is no room for it.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with replacing(path, partial):
            save_file(kept, partial, metadata={"format": "pt"})
            partial.chmod(0o644)  # safetensors makes it private, which would not survive an installation
    except (OSError, SafetensorError) as error:
        raise VegaError(
            f"File '{path}' cannot be written ({' '.join(str(error).split())}): make room there; what it held is kept."
        ) from error


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
