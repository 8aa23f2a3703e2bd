"""`SpatialReasoner` as a `policies.types.SceneModel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from policies.spatial.reasoner import FrameTokens, SpatialReasoner
from policies.types import SceneAnswer, SceneView, VegaError


class ReasonerScene:
    """Answers in words, from the pictures alone; depth and pose are not looked at.  name: of the checkpoint."""

    grounds = False

    def __init__(self, reasoner: SpatialReasoner, name: str, max_tokens: int = 16) -> None:
        self.name = name
        self._reasoner, self._max_tokens = reasoner, max_tokens

    @property
    def timings_ms(self) -> Mapping[str, float]:
        return self._reasoner.timings_ms

    @property
    def about(self) -> str:
        """Whose video transformer it looks through."""
        branch = self._reasoner.branch
        return "It is a plain Qwen2.5-VL." if branch is None else branch.origin

    def see(self, view: SceneView) -> FrameTokens:
        return self._reasoner.see(view.image)

    def answer(self, seen: Sequence[FrameTokens], question: str) -> SceneAnswer:
        said = self._reasoner.answer(seen, question, self._max_tokens)
        return replace(said, text=said.text.strip())

    def ground(self, seen: Sequence[FrameTokens], expression: str) -> None:
        raise VegaError(f"The model '{self.name}' answers in words and points at nothing: choose one that grounds.")

    def forget(self) -> None:
        self._reasoner.forget()
