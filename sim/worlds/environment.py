"""The one interface through which evaluations, demonstrations and `sim_node` see a simulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from policies.types import FloatArray, Image, RobotState
from sim.worlds.camera_model import CameraModel

VIEW_KINDS = ("camera", "light", "texture")  # what of a view can be drawn anew for an episode
# How light and texture are drawn.  1, in no summary: what was drawn above the built values was cut, and fixtures were
# tinted too.  Cameras are drawn as ever.
VIEWS = 2


def views_of(summary: Mapping[str, Any]) -> int | None:
    """How the views of a run were drawn, None where nothing about them has changed since."""
    return int(summary.get("views", 1)) if {"light", "texture"} & {*(summary.get("perturb") or ())} else None


class Environment(Protocol):
    """A task on a simulated arm, stepped one control period at a time.  Single-threaded.

    Nothing is rendered unless `render` is called.
    """

    suite: str
    task: int
    instruction: str
    cameras: tuple[str, ...]
    max_steps: int
    control_period_s: float
    base_position: FloatArray
    base_quaternion: FloatArray

    def reset(self, trial: int) -> None:
        """Go to official initial state number `trial` and let it settle as the protocol says."""
        ...

    def state(self) -> RobotState:
        """The arm now; the TCP pose is the simulator's own."""
        ...

    def render(self, camera: str) -> Image:
        """(H, W, 3) uint8 RGB, upright."""
        ...

    def camera_model(self, camera: str) -> CameraModel:
        """How that camera sees, and where it is mounted."""
        ...

    def step_eef(self, action: FloatArray) -> bool:
        """Apply one (7,) eef_delta action for one control period; True once the task is solved."""
        ...

    def step_joints(self, positions: FloatArray, velocities: FloatArray, gripper: float) -> bool:
        """Move to (n,) rad at (n,) rad/s within one control period, as a joint driver would.

        gripper: > 0 closes, < 0 opens, 0 keeps.  True once the task is solved.
        """
        ...

    def close(self) -> None: ...
