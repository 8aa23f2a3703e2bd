"""Small NumPy scene models for the tests of scene_node; loaded by the name `tiny_scene:<Class>`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from policies.types import SceneAnswer, SceneObject, SceneView, VegaError


def is_red(image: np.ndarray) -> np.ndarray:
    """(H, W) bool."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return (red > 150) & (green < 80) & (blue < 80)


class RedScene:
    """Counts the red pixels of all frames, and points at what is red in the newest."""

    name = "red"
    grounds = True

    def __init__(self) -> None:
        self.timings_ms: Mapping[str, float] = {}

    def see(self, view: SceneView) -> SceneView:
        if min(view.image.shape[:2]) < 8:
            height, width = view.image.shape[:2]
            raise VegaError(f"A frame of {width}x{height} pixels is too small: send 8x8 or more.")
        self.timings_ms = {"looking": 0.5}
        return view

    def answer(self, seen: Sequence[SceneView], question: str) -> SceneAnswer:
        self.timings_ms = {"counting": 0.25}
        return SceneAnswer(str(sum(int(is_red(view.image).sum()) for view in seen)), 0.75)

    def ground(self, seen: Sequence[SceneView], expression: str) -> SceneObject | None:
        view = seen[-1]
        if view.depth is None or view.intrinsics is None or view.camera_to_world is None:
            raise VegaError("Objects are placed by depth, which the newest frame lacks: give a depth_topic.")
        rows, columns = np.nonzero(is_red(view.image))
        if not len(rows) or "red" not in expression:
            return None
        rays = np.linalg.inv(view.intrinsics) @ np.stack([columns, rows, np.ones_like(rows)])
        points = rays * view.depth[rows, columns]
        world = (view.camera_to_world[:3, :3] @ points).T + view.camera_to_world[:3, 3]
        low, high = np.nanmin(world, axis=0), np.nanmax(world, axis=0)
        return SceneObject((low + high) / 2, high - low, 0.5)

    def forget(self) -> None:
        self.timings_ms = {}


class HangingScene(RedScene):
    """Never answers."""

    def answer(self, seen: Sequence[SceneView], question: str) -> SceneAnswer:
        time.sleep(3600.0)
        raise VegaError("woke up")


class BreakingScene(RedScene):
    """Raises what no model should, at its first question."""

    def answer(self, seen: Sequence[SceneView], question: str) -> SceneAnswer:
        if not self.timings_ms.get("counting"):
            self.timings_ms = {"counting": 0.25}
            raise RuntimeError("CUDA error: device lost")
        return super().answer(seen, question)


class SlowScene(RedScene):
    """Takes its time for a question, so that others gather behind it."""

    def answer(self, seen: Sequence[SceneView], question: str) -> SceneAnswer:
        if question == "first":
            time.sleep(2.0)
        return super().answer(seen, question)
