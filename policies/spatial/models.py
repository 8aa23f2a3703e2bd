"""What answers questions about scenes, by name: a published checkpoint, a plain Qwen2.5-VL, or a class of one's own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from policies.spatial.reasoner import FrameTokens, SpatialReasoner, load_reasoner
from policies.types import FloatArray, Image, VegaError


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


class ReasonerModel:
    """Qwen2.5-VL, with or without the world simulator's tokens."""

    def __init__(self, reasoner: SpatialReasoner) -> None:
        self.reasoner = reasoner
        self._seen: list[FrameTokens] = []

    def watch(self, frames: Sequence[Image]) -> None:
        self.reasoner.forget()
        self._seen = [self.reasoner.see(frame) for frame in frames]

    def answer(self, prompt: str, max_tokens: int) -> str:
        return self.reasoner.ask(self._seen, prompt, max_tokens)


def load_spatial_model(name: str, device: str = "cpu", threads: int = 1) -> SpatialModel:
    """name: a checkpoint folder or hub id `owner/name`, or `module:Class` (called with no arguments).

    Raises VegaError.
    """
    torch.set_num_threads(threads)
    module, colon, kind = name.partition(":")
    if not colon:
        return ReasonerModel(load_reasoner(name, device))
    try:
        model: Any = getattr(importlib.import_module(module), kind)()
    except (ImportError, AttributeError) as error:
        raise VegaError(
            f"The model '{name}' cannot be imported ({error}) from {os.getcwd()}: check module, class and PYTHONPATH."
        ) from error
    if not isinstance(model, SpatialModel):
        raise VegaError(f"The class '{name}' is no model: it needs watch(frames) and answer(prompt, max_tokens).")
    return model
