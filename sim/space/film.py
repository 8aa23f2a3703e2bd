"""A camera that moves through a scene: where it is, what it sees, and which thing each pixel shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from scipy.interpolate import PchipInterpolator

from policies.types import FloatArray, Image
from sim.space.stage import Stage
from sim.worlds.libero_env import building

FOVY_DEG = 55.0
# Of the two ways to look around: distance and height angle of the camera, the arc about the scene, and how far the
# point it looks at wanders from the middle (m, deg).  "near" sees a part at a time, so that things come one by one.
PATHS = {
    "around": {"distance": (0.9, 1.4), "elevation": (-55.0, -25.0), "arc": (50.0, 150.0), "aside": (0.05, 0.10)},
    "near": {"distance": (0.4, 0.6), "elevation": (-50.0, -25.0), "arc": (10.0, 60.0), "aside": (0.40, 0.55)},
}
FRONT_DEG = 180.0  # azimuth of the view towards the robot
WIDEST_DEG = 100.0  # from it, to either side: beyond stands the robot


@dataclass(frozen=True)
class Shot:
    """One frame.

    pixels: (things,) how many show each.  pose: (4, 4) of the optical frame, seen from the middle of the surface.
    depth_mm: (H, W) uint16, where it was asked for.
    """

    picture: Image
    pixels: Any
    pose: FloatArray
    depth_mm: Any = None


def camera_path(rng: np.random.Generator, frames: int, way: str | None = None) -> FloatArray:
    """(frames, 6): point looked at from the middle of the surface (3,) m, distance m, azimuth, elevation deg.

    way: one of PATHS, None for either.
    """
    drawn = str(rng.choice(list(PATHS)))
    kind = PATHS[way or drawn]
    arc = rng.uniform(*kind["arc"])
    start = rng.uniform(-WIDEST_DEG, WIDEST_DEG - arc) + FRONT_DEG
    azimuth = np.array([start, start + arc / 2, start + arc])
    aside = rng.uniform(*kind["aside"])
    along = np.array([-aside, rng.uniform(-0.3, 0.3) * aside, aside])
    if rng.random() < 0.5:
        azimuth, along = azimuth[::-1], along[::-1]
    across = rng.uniform(-0.5, 0.5, 3) * min(aside, 0.2)
    keys = np.stack(
        [across, along, rng.uniform(0.0, 0.06, 3), rng.uniform(*kind["distance"], 3), azimuth,
         rng.uniform(*kind["elevation"], 3)], axis=1,
    )  # fmt: skip
    return np.asarray(PchipInterpolator([0.0, 0.5, 1.0], keys)(np.linspace(0.0, 1.0, frames)))


def intrinsics(height: int, width: int) -> FloatArray:
    """(3, 3) of the camera; the first pixel's centre is (0, 0)."""
    focal = 0.5 * height / np.tan(0.5 * np.deg2rad(FOVY_DEG))
    return np.array([[focal, 0.0, 0.5 * (width - 1)], [0.0, focal, 0.5 * (height - 1)], [0.0, 0.0, 1.0]])


class Camera:
    """Films one stage; must be closed.  Single-threaded.  Raises VegaError where no OpenGL library is found."""

    def __init__(self, stage: Stage, height: int, width: int) -> None:
        self.stage = stage
        stage.model.vis.global_.fovy = FOVY_DEG
        stage.model.vis.global_.offheight, stage.model.vis.global_.offwidth = height, width
        with building():
            self._renderer = mujoco.Renderer(stage.model, height, width)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [0, 1, 1, 0, 0, 0]
        self._option.sitegroup[:] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE

    def film(self, path: FloatArray, depth: bool = False) -> Iterator[Shot]:
        """One shot for each row of a `camera_path`."""
        renderer, camera = self._renderer, self._camera
        for row in path:
            camera.lookat[:] = self.stage.top + row[:3]
            camera.distance, camera.azimuth, camera.elevation = row[3:]
            renderer.update_scene(self.stage.data, camera, self._option)
            picture = renderer.render().copy()
            distances = self._distances() if depth else None
            renderer.enable_segmentation_rendering()
            ids = renderer.render()
            renderer.disable_segmentation_rendering()
            yield Shot(picture, self._count(ids), camera_pose(row), distances)

    def close(self) -> None:
        self._renderer.close()

    def _count(self, ids: Any) -> Any:
        """ids: (H, W, 2) number and kind of what a pixel shows."""
        geoms = ids[..., 0][ids[..., 1] == mujoco.mjtObj.mjOBJ_GEOM]
        owners = self.stage.owner[geoms]
        return np.bincount(owners[owners >= 0], minlength=len(self.stage.things))

    def _distances(self) -> Any:
        """(H, W) uint16 mm along the optical axis; 0 beyond 65 m."""
        self._renderer.enable_depth_rendering()
        metres = self._renderer.render()
        self._renderer.disable_depth_rendering()
        return np.where(metres < 65.0, metres * 1000.0, 0.0).round().astype(np.uint16)


def camera_pose(row: FloatArray) -> FloatArray:
    """(4, 4) of the optical frame (x right, y down, z ahead) for a row of `camera_path`."""
    azimuth, elevation = np.deg2rad(row[4:])
    ahead = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(ahead, right), ahead], axis=1)
    pose[:3, 3] = row[:3] - row[3] * ahead
    return pose
