"""A `SpatialReasoner` as `run_spatial` asks it: it watches one scene, then answers about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from policies.files.command_line import possible
from policies.spatial.reasoner import FrameTokens, SpatialReasoner, load_reasoner
from policies.types import Image


class WatchingReasoner:
    """A `policies.spatial.models.SpatialModel`: Qwen2.5-VL, with or without the world simulator's tokens."""

    def __init__(self, reasoner: SpatialReasoner) -> None:
        self.reasoner = reasoner
        self._seen: list[FrameTokens] = []

    def watch(self, frames: Sequence[Image]) -> None:
        self.reasoner.forget()
        self._seen = [self.reasoner.see(frame) for frame in frames]

    def answer(self, prompt: str, max_tokens: int) -> str:
        return self.reasoner.answer(self._seen, prompt, max_tokens).text


def load_watching(name: str, device: str, threads: int) -> WatchingReasoner:
    """From a checkpoint folder or hub id.  Raises VegaError."""
    torch.set_num_threads(possible(threads))
    return WatchingReasoner(load_reasoner(name, device))
