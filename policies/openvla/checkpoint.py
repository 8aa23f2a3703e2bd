"""What a published OpenVLA-OFT folder holds: weights in whichever layout, components, constants of its images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from policies.files.adapters import Merged, Settings, find_settings
from policies.files.json_config import POSITIVE, read_json
from policies.files.quantised import Dequantised
from policies.files.tensor_names import Layout, Renamed, by_prefix
from policies.files.tensor_sources import TensorSource, find_component, read_torch_file
from policies.files.weight_files import as_published, open_weights
from policies.openvla.preprocessing import DINOV2_MEAN_STD, SIGLIP_MEAN_STD
from policies.types import VegaError

VISION = "vision_backbone."
_STEP = re.compile(r"--(\d+)_checkpoint\.pt$")
_TOWERS = ("vit_large_patch14_reg4_dinov2", "vit_so400m_patch14_siglip")
# Settings that are nowhere in the tensors -> whether their value is that of the published checkpoints.
_OURS: dict[str, Callable[[Any], bool]] = {
    "image_resize_strategy": lambda value: value == "resize-naive",
    "use_fused_vision_backbone": lambda value: value is True,
    "timm_model_ids": lambda value: (
        isinstance(value, list)
        and len(value) == len(_TOWERS)
        and all(isinstance(name, str) and name.startswith(tower) for name, tower in zip(value, _TOWERS, strict=True))
    ),
    "timm_override_act_layers": lambda value: isinstance(value, list) and not any(value),
}
_ROOTS = ("language_model", "vision_backbone", "projector", "lm_head")


@dataclass(frozen=True)
class LanguageSettings:
    """What a published config.json says of its Llama; the rest is read from the tensors.

    The defaults are those of transformers, which published configs leave out, and never Llama-2's own.
    """

    num_attention_heads: int = field(default=32, metadata=POSITIVE)
    rms_norm_eps: float = field(default=1e-6, metadata=POSITIVE)
    max_position_embeddings: int = field(default=2048, metadata=POSITIVE)
    hidden_act: str = "silu"
    rope_theta: float = field(default=10000.0, metadata=POSITIVE)
    rope_scaling: Any = None
    rope_parameters: Any = None  # both of them since transformers 5

    def rotary_theta(self, name: str) -> float:
        """Base of the rotary frequencies, read as transformers reads it.

        Raises VegaError, with the checkpoint's name, for positions that are scaled or turn only a part of a head.
        """
        scaling = [parameters for parameters in (self.rope_scaling, self.rope_parameters) if parameters]
        thetas = [self.rope_theta]
        for parameters in scaling:
            if not isinstance(parameters, dict) or not _is_plain(parameters):
                raise VegaError(f"'{name}' scales its rotary positions, which is not supported: use its own config.")
            thetas.append(parameters.get("rope_theta", self.rope_theta))
        for theta in thetas:
            if type(theta) not in (int, float) or not 0 < theta < math.inf:
                raise VegaError(f"'{name}' has 'rope_theta' {theta!r}, which is no base: use its own config.json.")
        # What stands inside counts before what stands beside it, and the older name before the newer.
        return float(thetas[min(1, len(scaling))])


def _is_plain(parameters: Mapping[str, Any]) -> bool:
    """Whether rotary parameters describe plain rotary positions: every pair of numbers turned, nothing stretched."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    others = {k: v for k, v in parameters.items() if k not in ("rope_type", "type", "rope_theta") and v is not None}
    return kind == "default" and others in ({}, {"partial_rotary_factor": 1.0})


@dataclass(frozen=True)
class PublishedSettings:
    """What is followed of a published config.json; chunk_length and normalization are in few of them."""

    text_config: LanguageSettings = LanguageSettings()
    image_sizes: tuple[int, ...] = field(default=(224,), metadata=POSITIVE)
    chunk_length: int | None = field(default=None, metadata=POSITIVE)
    normalization: str | None = None


@dataclass(frozen=True)
class OpenVLAOFTInfo:
    """What a loaded checkpoint says about itself.

    chunk_length, action_dim: shape of a chunk.  proprio_dim: 0 where it takes no robot state.
    patches: tokens of one image, row-major.  normalization: "bounds_q99" or "bounds".
    image_mean_std: per tower (mean, std) over RGB in [0, 1].
    statistics: data set -> its action and proprio statistics.
    """

    folder: str
    chunk_length: int
    action_dim: int
    proprio_dim: int
    image_size: int
    patches: int
    normalization: str
    image_mean_std: tuple[tuple[Sequence[float], Sequence[float]], ...]
    statistics: Mapping[str, Any]


def check_components(folder: Path) -> None:
    """Raise VegaError for a component this package does not run: ignoring it would change the policy silently."""
    for file in sorted(folder.glob("*--*_checkpoint.pt")):
        kind = file.name.partition("--")[0]
        if kind == "noisy_action_projector":
            raise VegaError(
                f"'{file}' belongs to a diffusion action head, which this package does not run: choose a checkpoint "
                "with an L1 head."
            )
        if kind not in ("action_head", "proprio_projector", "vision_backbone"):
            raise VegaError(
                f"'{file}' is a component this package does not know: move it away if the policy needs none."
            )
    _check_steps(folder)


def _check_steps(folder: Path) -> None:
    """Raise VegaError for components of different steps of a training, which know nothing of each other."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*--*_checkpoint.pt")):
        found.setdefault(file.name.partition("--")[0], []).append(file.name)
    # Of several files of one component it is said elsewhere that one must go.
    alone = [names[0] for names in found.values() if len(names) == 1]
    of_step = {int(step[1]): name for name in alone if (step := _STEP.search(name))}
    if len(of_step) > 1:
        first, second, *_ = of_step.values()
        raise VegaError(
            f"Folder '{folder}' holds '{first}' and '{second}', which are of different steps of a training: give the "
            "files of one step."
        )


def check_published(values: Mapping[str, Any], path: Path) -> None:
    """Raise VegaError for a setting of a published config.json whose value means another computation than ours.

    What the tensors show is read from them; the rest of the file changes nothing here.
    """
    for name, means_ours in _OURS.items():
        if (value := values.get(name)) is not None and not means_ours(value):
            raise VegaError(
                f"Setting '{name}' in '{path}' is {value!r}, which this package does not run: choose a checkpoint as "
                "OpenVLA-OFT's authors publish them."
            )


def component(folder: Path, pattern: str, purpose: str, layout: Layout = as_published) -> TensorSource | None:
    """The one component whose file matches `pattern`, None without one; VegaError with several."""
    path = find_component(folder, pattern, purpose)
    return None if path is None else Dequantised(Renamed(read_torch_file(path), layout))


def film_backbone(folder: Path) -> TensorSource | None:
    """A FiLM checkpoint's own vision towers under timm's names, their adapters merged; None without them.

    Published ones wrap every block (`.block.`) and keep LoRA apart; its scale is that of `lora_adapter/`, or else
    OpenVLA-OFT's training rule, alpha = min(rank, 16).
    """
    source = component(folder, "vision_backbone--*_checkpoint.pt", "FiLM vision backbone", by_prefix(_timm_name))
    if source is None:
        return None
    return Merged(source, find_settings(folder) or Settings(lambda module, rank, alpha: min(rank, 16) / rank))


def _timm_name(name: str) -> str:
    found = re.search(r"(?:^|\.)((?:fused_)?featurizer\..*)$", name.replace(".block.", "."))
    return f"{VISION}{found.group(1)}" if found else name


def open_checkpoint(folder: Path) -> TensorSource:
    """A checkpoint's own weights under the published names, in whichever layout they were saved."""
    return open_weights(folder, _published_names)


def _published_names(names: Iterable[str]) -> Mapping[str, str]:
    """Of a model inside another, such as `policy.vla.`, without what stands in front of every name."""
    names = list(names)
    parts = [name.split(".") for name in names]
    known = [next((i for i, part in enumerate(path) if part in _ROOTS), None) for path in parts]
    roots = [path[:i] for path, i in zip(parts, known, strict=True) if i is not None]
    common = takewhile(lambda level: len(set(level)) == 1, zip(*roots, strict=False))
    root = "".join(f"{level[0]}." for level in common)
    return {name: _published_name(name.removeprefix(root)) for name in names}


def _published_name(name: str) -> str:
    """`model.language_model.layers.0...`, as newer transformers have it, -> `language_model.model.layers.0...`."""
    parts = ("language_model.", VISION, "projector.", "lm_head.")
    if name.removeprefix("model.").startswith(parts):
        name = name.removeprefix("model.")
    if name.startswith("lm_head."):
        name = f"language_model.{name}"
    rest = name.removeprefix("language_model.")
    if rest != name and not rest.startswith(("model.", "lm_head.")):
        name = f"language_model.model.{rest}"
    return re.sub(r"\.(ls[12])\.gamma$", r".\1.scale_factor", name)  # timm's own name, which transformers cannot load


def unneeded(name: str, vision_blocks: Mapping[str, int], film: bool) -> bool:
    """Whether a published checkpoint holds a tensor that this network has no use for.

    vision_blocks: prefix of a tower -> how many blocks it has, of which the last is never run.
    """
    if name.startswith("language_model.lm_head.") or name.endswith(".rotary_emb.inv_freq"):
        return True
    if film and name.startswith(VISION):
        return True
    return any(
        name.startswith(tuple(prefix + part for part in (f"blocks.{count - 1}.", "norm.", "attn_pool.")))
        for prefix, count in vision_blocks.items()
    )


def image_mean_std(folder: Path) -> tuple[tuple[Sequence[float], Sequence[float]], ...]:
    """Per tower (mean, std) from preprocessor_config.json, or the published constants."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return DINOV2_MEAN_STD, SIGLIP_MEAN_STD
    params = read_json(path).get("tvf_normalize_params")
    if not isinstance(params, list) or len(params) != 2 or not all(map(_is_tower, params)):
        raise VegaError(
            f"File '{path}' does not give 'tvf_normalize_params' of two towers, each with three numbers as 'mean' and "
            "three above 0 as 'std': copy the published one."
        )
    return tuple((tuple(p["mean"]), tuple(p["std"])) for p in params)


def _is_tower(value: Any) -> bool:
    return isinstance(value, dict) and _is_colour(value.get("mean")) and _is_colour(value.get("std"), above=0.0)


def _is_colour(value: Any, above: float = -math.inf) -> bool:
    """Whether this is a finite number for each of red, green and blue."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(number) in (int, float) and above < number < math.inf for number in value)
    )
