"""Low-rank adapters added into the weights they adapt, as PEFT merges them: w + scale * B A.

Three places: a folder's `adapter_model.safetensors` beside the weights, with `adapter_config.json`; among the weights
themselves, under PEFT's names or those of kohya's and diffusers' trainers; and, in OpenVLA-OFT's FiLM components, with
a scale that its training fixes.  Sources: PEFT's `lora/layer.py` and `lora/dora.py`, formulas restated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from policies.files.json_config import read_json
from policies.files.paths import refuse_pointer
from policies.files.tensor_sources import ADAPTER_WEIGHTS, DictSource, TensorSource, is_finite, read_torch_file
from policies.types import VegaError

ADAPTER_CONFIG = "adapter_config.json"
# Settings of PEFT that are followed here, or that change nothing in what is merged.  Whatever else is set is refused.
_FOLLOWED = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias",
    "modules_to_save", "init_lora_weights", "peft_type", "peft_version", "base_model_name_or_path", "revision",
    "task_type", "auto_mapping", "inference_mode", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size", "runtime_config",
}  # fmt: skip
# PiSSA, OLoRA, CorDA and LoftQ change the base weights too, which then are not the published ones.
_INITIAL = (None, True, False, "gaussian", "orthogonal", "eva")
_LORA = re.compile(
    r"^(?P<stem>.+)\.(?:lora_(?P<peft>A|B)(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?\.(?P<leaf>weight|bias)"
    r"|lora_embedding_(?P<embedding>A|B)(?:\.(?P<of>[^.]+))?"
    r"|lora_magnitude_vector(?:\.(?!weight$)(?P<dora>[^.]+))?(?:\.weight)?"
    r"|lora(?:_|\.)(?P<other>down|up)\.weight)$"
)
_SAVED = re.compile(r"\.modules_to_save\.[^.]+\.")


@dataclass(frozen=True)
class Settings:
    """What an `adapter_config.json` says about scales.

    scale_of: (module, rank, alpha in the file or None) -> what B A is multiplied by.  dora: rows have learned lengths.
    """

    scale_of: Callable[[str, int, float | None], float]
    dora: bool = False


@dataclass
class _Parts:
    """Keys of one module's adapter: a and b are the two factors, read from `source`."""

    source: TensorSource
    a: str = ""
    b: str = ""
    magnitude: str = ""
    bias: str = ""
    alpha: str = ""
    embedding: bool = False
    names: set[str] = field(default_factory=set)


class Merged:
    """A source with the adapters in it, and in `adapter` if one is given, merged into their weights in float32.

    stored: name of an adapter's tensor -> that in its file, on which PEFT's patterns for modules are written.
    """

    def __init__(
        self,
        source: TensorSource,
        settings: Settings | None,
        adapter: TensorSource | None = None,
        stored: Callable[[str], str] = str,
    ):
        self.name = source.name
        self._settings, self._stored = settings, stored
        self._sources = [source] if adapter is None else [source, adapter]
        self._parts: dict[str, _Parts] = {}
        self._where: dict[str, tuple[TensorSource, str]] = {}
        for part in self._sources:
            self._sort(part)
        self._check()

    def _sort(self, source: TensorSource) -> None:
        adapters, alphas = set(), {}
        for name in source.names():
            if match := _LORA.match(name):
                adapters.add(match["adapter"] or match["of"] or match["dora"] or "default")
                self._note(source, name, match)
            elif name.endswith(".alpha"):
                alphas[name.removesuffix(".alpha")] = name
            elif "lora_" in name.rpartition(".")[0].rpartition(".")[2]:
                raise VegaError(
                    f"Tensor '{name}' in '{source.name}' belongs to an adapter of a kind that this package does not "
                    "merge: merge it with the program that made it."
                )
            elif ".original_module." in name:
                source.read(name, slice(0, 0))  # what `modules_to_save` has taken the place of
            else:
                self._place(_SAVED.sub(".", name.replace(".base_layer.", ".")), source, name)
        if len(adapters) > 1:
            raise VegaError(f"'{source.name}' holds several adapters {sorted(adapters)}: keep the one you mean.")
        for stem, name in alphas.items():
            if stem in self._parts:
                self._parts[stem].alpha = name
            else:
                self._where[name] = (source, name)

    def _place(self, plain: str, source: TensorSource, name: str) -> None:
        """What `plain` is read from; an adapter may take the place of whole tensors, but bring none of its own."""
        before = self._where.get(plain)
        if source is self._sources[0]:
            if before is not None:
                raise VegaError(f"'{source.name}' holds '{plain}' as '{before[1]}' and '{name}': keep one of them.")
        elif before is None or before[0].shape(before[1]) != source.shape(name):
            raise VegaError(
                f"Tensor '{name}' in '{source.name}' adapts nothing that the weights hold: this adapter belongs to "
                "another model."
            )
        else:
            before[0].read(before[1], slice(0, 0))
        self._where[plain] = (source, name)

    def _note(self, source: TensorSource, name: str, match: re.Match[str]) -> None:
        parts = self._parts.setdefault(match["stem"], _Parts(source))
        if parts.source is not source:
            raise VegaError(f"Both '{parts.source.name}' and '{source.name}' adapt '{match['stem']}': keep one.")
        if match["leaf"] == "bias":
            parts.bias = name
        elif kind := match["peft"] or match["embedding"] or match["other"]:
            setattr(parts, {"A": "a", "down": "a", "B": "b", "up": "b"}[kind], name)
            parts.embedding = match["embedding"] is not None
        else:
            parts.magnitude = name
        parts.names.add(name)

    def _check(self) -> None:
        """Every adapter is whole and has a weight, before any is read."""
        for stem, parts in self._parts.items():
            one = next(iter(parts.names))
            if not (parts.a and parts.b):
                raise VegaError(f"The adapter '{one}' in '{parts.source.name}' lacks its other half: get it again.")
            if f"{stem}.weight" not in self._where or (parts.bias and f"{stem}.bias" not in self._where):
                raise VegaError(
                    f"Tensor '{one}' in '{parts.source.name}' adapts nothing that the weights hold: this adapter "
                    "belongs to another model."
                )
            a, b = parts.source.shape(parts.a), parts.source.shape(parts.b)
            if len(a) < 2 or len(b) < 2 or 0 in a:
                raise VegaError(
                    f"The adapter '{one}' in '{parts.source.name}' has halves of shapes {a} and {b}, which are no "
                    "matrices: get it again."
                )
            if parts.alpha and math.prod(parts.source.shape(parts.alpha)) != 1:
                raise VegaError(f"Tensor '{parts.alpha}' in '{parts.source.name}' is no single number: get it again.")
            made = (b[0], *a[1:]) if not parts.embedding else (a[1], b[0])
            if a[0] != b[1] or made != self.shape(f"{stem}.weight"):
                raise VegaError(
                    f"The adapter '{one}' in '{parts.source.name}' is of size {made}, its weight of "
                    f"{self.shape(f'{stem}.weight')}: it belongs to another model."
                )
            if parts.magnitude and (parts.embedding or len(made) != 2):
                raise VegaError(f"'{parts.magnitude}' in '{parts.source.name}' is a DoRA of no linear layer: merge it.")
            if self._settings is not None and self._settings.dora and not parts.magnitude:
                raise VegaError(
                    f"The adapter '{one}' in '{parts.source.name}' is of a DoRA and lacks its magnitudes: get it again."
                )
            if self._settings is None and not parts.alpha:
                raise VegaError(
                    f"'{parts.source.name}' holds an adapter ('{one}') whose scale it does not tell: put the "
                    f"{ADAPTER_CONFIG} that came with it beside it, or merge it with `peft`."
                )

    def names(self) -> Iterable[str]:
        return self._where.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        source, name = self._where[key]
        return source.shape(name)

    def dtype(self, key: str) -> torch.dtype | None:
        source, name = self._where[key]
        return source.dtype(name)

    def read(self, key: str, rows: slice | None = None) -> torch.Tensor:
        source, name = self._where[key]
        value = source.read(name, rows)
        stem, _, leaf = key.rpartition(".")
        parts = self._parts.get(stem)
        if parts is None or leaf not in ("weight", "bias") or (leaf == "bias" and not parts.bias):
            return value
        scale = self._scale(stem, parts)
        if leaf == "bias":
            added = parts.source.read(parts.bias).float() * scale
            merged = value.float() + (added if rows is None else added[rows])
        else:
            merged = self._merged(value.float(), parts, scale, rows)
        if not is_finite(merged) and is_finite(value):  # else the weights are to blame
            raise VegaError(
                f"The adapter of '{stem}' in '{parts.source.name}' holds NaN or infinity, or numbers too large to "
                "merge: get it again."
            )
        return merged.to(value.dtype)

    def _scale(self, stem: str, parts: _Parts) -> float:
        alpha = float(parts.source.read(parts.alpha)) if parts.alpha else None
        rank = parts.source.shape(parts.a)[0]
        if self._settings is None:
            assert alpha is not None  # _check has seen to it
            return alpha / rank
        stored = _LORA.match(self._stored(parts.a))
        return self._settings.scale_of(stem if stored is None else stored["stem"], rank, alpha)

    @staticmethod
    def _merged(weight: torch.Tensor, parts: _Parts, scale: float, rows: slice | None) -> torch.Tensor:
        a, b = parts.source.read(parts.a).float(), parts.source.read(parts.b).float()
        if parts.embedding:
            delta = (b @ a).T  # (vocabulary, width)
            return weight + scale * (delta if rows is None else delta[rows])
        b = b.flatten(1) if rows is None else b.flatten(1)[rows]
        weight = weight + scale * (b @ a.flatten(1)).reshape(len(b), *a.shape[1:])
        if not parts.magnitude:
            return weight
        magnitude = parts.source.read(parts.magnitude).float().flatten()
        if rows is not None:
            magnitude = magnitude[rows]
        return weight * (magnitude / weight.norm(dim=1))[:, None]  # DoRA: rows keep a learned length

    def unread(self) -> list[str]:
        return [name for source in self._sources for name in source.unread()]


def read_settings(path: Path) -> Settings:
    """An `adapter_config.json` of PEFT's LoRA (rslora, DoRA and patterns too); VegaError for anything not done here."""
    config = read_json(path)
    kind = config.get("peft_type")
    if kind not in (None, "LORA"):
        raise VegaError(f"File '{path}' describes an adapter of kind {kind}: merge it with `peft` first.")
    for name, value in config.items():
        if (value and name not in _FOLLOWED) or (name == "init_lora_weights" and value not in _INITIAL):
            raise VegaError(f"File '{path}' sets '{name}', which is not merged here: merge it with `peft` first.")
    for name in ("use_rslora", "use_dora", "lora_bias"):
        if config.get(name) not in (None, True, False):
            raise VegaError(f"Setting '{name}' in '{path}' is {config[name]!r} and must be true or false: correct it.")
    general, rank = config.get("lora_alpha"), config.get("r")
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    numbers = [general, rank, *(ranks.values() if isinstance(ranks, dict) else [None]),
               *(alphas.values() if isinstance(alphas, dict) else [None])]  # fmt: skip
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise VegaError(f"File '{path}' gives no finite numbers for 'r' and 'lora_alpha': copy it again.")

    for key in (*ranks, *alphas):
        try:
            re.compile(_ending(key))
        except re.error as error:
            raise VegaError(f"Pattern '{key}' in '{path}' is no regular expression ({error}): copy it again.") from None

    def scale_of(module: str, found: int, alpha: float | None) -> float:
        wanted = _by_pattern(ranks, module, rank)
        if wanted != found:
            raise VegaError(
                f"The adapter of '{module}' has rank {found} where '{path}' says {wanted}: they are of two adapters."
            )
        return _by_pattern(alphas, module, general) / (math.sqrt(found) if config.get("use_rslora") else found)

    return Settings(scale_of, bool(config.get("use_dora")))


def _ending(pattern: str) -> str:
    """PEFT's rule: a key is a regular expression for the end of a module's path."""
    return rf"(.*\.)?({pattern})$"


def _by_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    for key, value in patterns.items():
        if re.match(_ending(key), module):
            return value
    return otherwise


def holds_adapter(source: TensorSource) -> bool:
    """Whether there are tensors of an adapter among the weights."""
    return any(_LORA.match(name) for name in source.names())


def find_settings(folder: Path) -> Settings | None:
    """What is said about an adapter among the weights of `folder`, None where nothing is."""
    for path in (folder / ADAPTER_CONFIG, folder / "lora_adapter" / ADAPTER_CONFIG):
        if path.is_file():
            return read_settings(path)
    return None


def read_adapter(folder: Path) -> tuple[TensorSource, Settings] | None:
    """The adapter that PEFT saved into `folder`, None without one; VegaError for one half of it."""
    files = sorted(folder.glob(f"{ADAPTER_WEIGHTS}*"))
    config = folder / ADAPTER_CONFIG
    if not files and not config.is_file():
        return None
    if len(files) != 1 or not config.is_file():
        found = ", ".join(file.name for file in files) or config.name
        raise VegaError(
            f"Folder '{folder}' holds '{found}', but an adapter is one {ADAPTER_WEIGHTS}.safetensors and its "
            f"{ADAPTER_CONFIG}: copy both, or neither if the weights have it merged."
        )
    settings = read_settings(config)
    if files[0].suffix != ".safetensors":
        return read_torch_file(files[0]), settings
    try:
        return DictSource(str(files[0]), load_file(files[0])), settings
    except (SafetensorError, OSError) as error:
        refuse_pointer(files[0])
        raise VegaError(f"File '{files[0]}' is damaged ({error}): download it again.") from None


def refuse_adapters_elsewhere(folder: Path, parts: Collection[Path] = ()) -> None:
    """Raise VegaError for an adapter in a folder below, but for OpenVLA-OFT's, which is merged, those that training
    left on its way, and those of `parts`, which are opened by themselves: nothing says whether the weights have it."""
    for config in sorted(folder.glob(f"*/{ADAPTER_CONFIG}")):
        name = config.parent.name
        if config.parent not in parts and name != "lora_adapter" and not re.fullmatch(r"checkpoint-\d+", name):
            raise VegaError(
                f"Folder '{folder}' holds an adapter in '{name}/': move its files beside the weights if it is to be "
                "merged into them, or the folder away if it is not."
            )


def refuse_adapter_alone(folder: Path) -> None:
    """Raise VegaError, which says where the weights are, if `folder` holds an adapter and no weights."""
    if any(not file.stem.startswith(ADAPTER_WEIGHTS) for file in folder.glob("*.safetensors")):
        return
    configs = [path for path in (folder / ADAPTER_CONFIG, folder / "lora_adapter" / ADAPTER_CONFIG) if path.is_file()]
    if configs:
        base = read_json(configs[0]).get("base_model_name_or_path")
        raise VegaError(
            f"Folder '{folder}' holds an adapter only, its base weights are elsewhere: '{configs[0]}' says that they "
            f"are those of '{base}', copy their *.safetensors and the adapter's two files together into '{folder}', "
            "or merge them with `peft`."
        )
