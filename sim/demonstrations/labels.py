"""What a dataset of demonstrations says besides of each row: the teacher's view, for losses that help a policy to see.

teacher.point: what the hand is heading for, world frame, m; teacher.pixel.CAMERA: its (row, column) in that camera's
picture, px, the centre of the first pixel being (0, 0), -1 where outside.  teacher.progress: share of the steps towards
the goal that are done.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.types import FloatArray
from sim.demonstrations.skills.expert import SkillExpert
from sim.worlds.libero_env import CAMERAS, LiberoEnvironment

OUTSIDE = np.full(2, -1.0)
COLUMNS = {
    "teacher.point": ("x", "y", "z"),
    "teacher.progress": ("done",),
    **{f"teacher.pixel.{camera}": ("row", "column") for camera in CAMERAS},
}


def labels(environment: LiberoEnvironment, expert: SkillExpert) -> dict[str, FloatArray]:
    """The values of COLUMNS now."""
    point = np.asarray(expert.attention, dtype=float)
    seen = {
        f"teacher.pixel.{camera}": project(environment.env.sim, name, point, environment.image_size)
        for camera, name in CAMERAS.items()
    }
    return {"teacher.point": point, "teacher.progress": np.array([expert.progress]), **seen}


def project(sim: Any, camera: str, point: FloatArray, size: int) -> FloatArray:
    """(row, column) of a world point in a camera's upright (size, size) image as it is mounted now, or OUTSIDE.

    As `sim.worlds.camera_model` counts pixels; outside is what lies beyond the centres of the outermost.
    """
    index = sim.model.camera_name2id(camera)
    local = sim.data.cam_xmat[index].reshape(3, 3).T @ (point - sim.data.cam_xpos[index])
    if local[2] > -1e-3:
        return OUTSIDE
    focal = size / 2 / np.tan(np.deg2rad(sim.model.cam_fovy[index]) / 2)
    pixel = (size - 1) / 2 + focal * np.array([-local[1], local[0]]) / -local[2]
    return pixel if np.all((pixel >= 0) & (pixel <= size - 1)) else OUTSIDE
