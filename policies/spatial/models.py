"""What answers questions about scenes, by name: vega-nano-spatial, a published checkpoint, a plain Qwen2.5-VL, or a
class of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from policies.files.classes import call_class
from policies.files.command_line import possible
from policies.files.paths import is_folder
from policies.spatial.nano.config import is_spatial_nano
from policies.types import FloatArray, Image, VegaError

HERE = Path(__file__).parents[1]


@runtime_checkable
class SpatialModel(Protocol):
    """Watches one scene at a time and answers about it.  Used from one thread at a time."""

    def watch(self, frames: Sequence[Image]) -> None:
        """From now on answer about these (H, W, 3) uint8 RGB frames, oldest first; none: about a scene unseen."""
        ...

    def answer(self, prompt: str, max_tokens: int) -> str:
        """In words.  Raises VegaError for a prompt it cannot take."""
        ...


@runtime_checkable
class GroundingModel(SpatialModel, Protocol):
    """Points at things too."""

    def ground(self, prompt: str) -> tuple[FloatArray, FloatArray]:
        """Boxes (M, 6), centre and sides along the world's axes, m, and scores (M + 1,), "no such thing" last."""
        ...


@runtime_checkable
class PosedModel(SpatialModel, Protocol):
    """Can be told where the cameras are."""

    def watch_from(self, frames: Sequence[Image], poses: Sequence[FloatArray]) -> None:
        """As `watch`; poses: (4, 4) of each frame's optical frame (x right, y down, z ahead) in the world, m."""
        ...


def shipped_scene_models() -> dict[str, Path]:
    """Name -> folder of those in this package: `vega_nano_spatial/` is `vega-nano-spatial`."""
    folders = [config.parent for config in sorted(HERE.glob("*/config.json"))]
    return {folder.name.replace("_", "-"): folder for folder in folders if is_spatial_nano(folder)}


def nano_folder(name: str) -> Path | None:
    """Folder of a vega-nano-spatial by its name, path or hub id, None for a model of another kind.

    Raises VegaError for a hub id that cannot be had.
    """
    folder = shipped_scene_models().get(name)
    if folder is None and is_folder(name):
        folder = Path(name).expanduser()
    elif folder is None and "/" in name:
        from policies.files.weight_files import CHECKPOINT_FILES, is_hub_id, resolve_folder  # torch

        folder = resolve_folder(name, CHECKPOINT_FILES) if is_hub_id(name) else None
    return folder if folder is not None and is_spatial_nano(folder) else None


def load_spatial_model(name: str, device: str = "cpu", threads: int = 1, world_simulator: str = "on") -> SpatialModel:
    """name: a shipped model, a folder or hub id `owner/name`, or `module:Class` (called with no arguments).

    device, threads: of torch, for a checkpoint.  world_simulator: what stands in for a vega-nano-spatial's tokens, one
    of WORLD_CONTROLS; of others only "on".
    Raises VegaError.
    """
    folder = nano_folder(name)
    if folder is None and world_simulator != "on":
        raise VegaError(f"The model '{name}' keeps its world simulator: leave --world-simulator at on.")
    if folder is not None:
        import torch

        from policies.spatial.nano.model import NanoWatching, load_scene

        torch.set_num_threads(possible(threads))
        return NanoWatching(load_scene(folder, device, world_simulator))
    if ":" not in name:
        # Not at the top: transformers takes seconds, and a model of one's own may not need it.
        from policies.spatial.watching import load_watching

        return load_watching(name, device, threads)
    model = call_class(name, "model")
    if not isinstance(model, SpatialModel):
        raise VegaError(f"The class '{name}' is no model: it needs watch(frames) and answer(prompt, max_tokens).")
    return model
