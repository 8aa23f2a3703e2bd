"""What a model has seen of a scene, and its answers, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from policies.spatial.live.memory import SceneMemory
from policies.types import SceneReply, SceneView, VegaError
from vega3d_ros.inference.separate import SeparateModel, serve

BEGIN = "from vega3d_ros.inference.separate_scene import serve_scene; serve_scene()"
# ("see", a view), ("answer" or "ground", a sentence), ("forget", None)
Question = tuple[str, SceneView | str | None]


class SeparateScene(SeparateModel):
    """A `SceneMemory` whose process is another; see `SeparateModel`.

    name, device, threads, framing, max_tokens: as for `policies.checkpoints.load_scene_model`.  frames: that are kept.
    about: a sentence on the model.  grounds: whether it places objects.
    """

    def __init__(self, name: str, device: str, threads: int, framing: str, max_tokens: int, frames: int) -> None:
        words = (name, device, str(threads), framing, str(max_tokens), str(frames))
        super().__init__(BEGIN, words, "scene model", "scene_node")
        self.about, self.grounds = cast("tuple[str, bool]", self.greeting)

    def see(self, view: SceneView) -> SceneReply:
        return cast(SceneReply, self._ask(("see", view)))

    def answer(self, question: str) -> SceneReply:
        return cast(SceneReply, self._ask(("answer", question)))

    def ground(self, expression: str) -> SceneReply:
        return cast(SceneReply, self._ask(("ground", expression)))

    def forget(self) -> None:
        self._ask(("forget", None))


def serve_scene() -> None:
    """The life of the model's process."""

    def load(words: list[str]) -> tuple[tuple[str, bool], Callable[[Question], SceneReply | None]]:
        from policies.checkpoints import load_scene_model  # torch is imported in this process only

        name, device, threads, framing, max_tokens, frames = words
        model = load_scene_model(name, device, int(threads), framing, int(max_tokens))
        memory = SceneMemory(model, int(frames))

        def answer(question: Question) -> SceneReply | None:
            what, about = question
            return cast("SceneReply | None", getattr(memory, what)(*([] if about is None else [about])))

        about = f"{model.name} is loaded. {getattr(model, 'about', '')}".strip()
        return (about, model.grounds), answer

    serve(load, _failed)


def _failed(error: Exception) -> VegaError:
    """What no model should raise, in one sentence."""
    what = f"{type(error).__name__}: {str(error)[:200]}"
    return VegaError(f"The scene model failed ({what}): see the log, then ask again.")
