"""What a published OpenVLA-OFT folder says beside its weights: components, statistics, constants of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.files.weight_files import TensorSource, find_component, read_json, read_torch_file
from policies.openvla.preprocessing import DINOV2_MEAN_STD, SIGLIP_MEAN_STD
from policies.types import VegaError


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


def component(folder: Path, pattern: str, purpose: str) -> TensorSource | None:
    """The one component whose file matches `pattern`, None without one; VegaError with several."""
    path = find_component(folder, pattern, purpose)
    return None if path is None else read_torch_file(path)


def read_statistics(folder: Path) -> dict[str, Any]:
    """Data set -> statistics of a checkpoint: its dataset_statistics.json, else those in its config.

    The config's may be those of pretraining: the file overrides them.
    """
    path = folder / "dataset_statistics.json"
    statistics = read_json(path) if path.is_file() else read_json(folder / "config.json").get("norm_stats")
    if not isinstance(statistics, dict) or not all(isinstance(entry, dict) for entry in statistics.values()):
        raise VegaError(
            f"The statistics in '{folder}' are no object of objects: copy its dataset_statistics.json again."
        )
    return statistics


def image_mean_std(folder: Path) -> tuple[tuple[Sequence[float], Sequence[float]], ...]:
    """Per tower (mean, std) from preprocessor_config.json, or the published constants."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return DINOV2_MEAN_STD, SIGLIP_MEAN_STD
    params = read_json(path).get("tvf_normalize_params")
    if not isinstance(params, list) or len(params) != 2 or not all("mean" in p and "std" in p for p in params):
        raise VegaError(f"File '{path}' does not give 'tvf_normalize_params' of two towers: copy the published one.")
    return tuple((tuple(p["mean"]), tuple(p["std"])) for p in params)
