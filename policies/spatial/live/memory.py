"""What a model has seen of a scene lately, and questions about it.

    view ─► SceneModel.see ─► kept, the newest `capacity` ─► SceneModel.answer, SceneModel.ground
"""

from __future__ import annotations

from collections import deque
from typing import Any

from policies.types import SceneModel, SceneReply, SceneView, VegaError, check_question


class SceneMemory:
    """Frames are encoded when they come, so that a question costs no encoding.  Used from one thread at a time."""

    def __init__(self, model: SceneModel, capacity: int = 8) -> None:
        if capacity < 1:
            raise VegaError(f"{capacity} frames cannot be kept: give 1 or more.")
        self.model = model
        self._seen: deque[tuple[tuple[str, int], Any]] = deque(maxlen=capacity)

    def see(self, view: SceneView) -> SceneReply:
        """Keep a frame, and forget the oldest beyond the capacity.  Raises VegaError for one the model cannot take."""
        self._seen.append(((view.camera, view.stamp_ns), self.model.see(view)))
        return self._reply(None)

    def answer(self, question: str) -> SceneReply:
        """Raises VegaError for a question that cannot be asked, and where no frame has come."""
        question = check_question(question)
        return self._reply(self.model.answer(self._tokens(), question))

    def ground(self, expression: str) -> SceneReply:
        """Where the object is that an expression means; the reply's value is None where there is none."""
        expression = check_question(expression)
        return self._reply(self.model.ground(self._tokens(), expression))

    def forget(self) -> None:
        """Drop every frame."""
        self._seen.clear()
        self.model.forget()

    def _tokens(self) -> list[Any]:
        if not self._seen:
            raise VegaError("There is no frame to look at yet: wait for the camera.")
        return [tokens for _, tokens in self._seen]

    def _reply(self, value: Any) -> SceneReply:
        return SceneReply(value, tuple(frame for frame, _ in self._seen), dict(self.model.timings_ms))
