"""Where the map lies in the world, if the cameras' poses are known there.  NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.spatial.nano.scene_map import DIRECTIONS, Found, SceneMap
from policies.types import FloatArray


@dataclass(frozen=True, eq=False)
class World:
    """yaw: of the map about the vertical, rad.  origin: (3,) m, of the map in the world, whose z points up too."""

    scene: SceneMap
    yaw: float
    origin: FloatArray

    def box(self, thing: Found) -> FloatArray:
        """(6,) centre and sides along the world's axes, m."""
        cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
        x, y, z = thing.centre
        centre = self.origin + np.array([cosine * x - sine * y, sine * x + cosine * y, z])
        along = [np.interp(np.mod(angle - self.yaw, 2 * np.pi), DIRECTIONS, thing.widths, period=2 * np.pi)
                 for angle in (0.0, np.pi / 2)]  # fmt: skip
        return np.concatenate([centre, along, [thing.height]])


def positions(cameras: FloatArray) -> FloatArray:
    """(T, 5) cameras of a map -> (T, 3) m, where they are in it."""
    right, forward, height, heading, _ = cameras.T
    cosine, sine = np.cos(heading), np.sin(heading)
    return np.stack([-(forward * cosine + right * sine), -(forward * sine - right * cosine), height], axis=-1)


def world_of(scene: SceneMap, poses: Sequence[FloatArray | None]) -> World:
    """poses: (4, 4) of the frames' optical frames in the world, or None; the map is laid where they agree best."""
    known = [i for i, pose in enumerate(poses) if pose is not None]
    if not known:
        return World(scene, 0.0, np.zeros(3))
    true = np.stack([np.asarray(poses[i], dtype=np.float64) for i in known])
    turned = np.arctan2(true[:, 1, 2], true[:, 0, 2]) - scene.cameras[known, 3]
    yaw = float(np.arctan2(np.sin(turned).mean(), np.cos(turned).mean()))
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    return World(scene, yaw, (true[:, :3, 3] - positions(scene.cameras[known]) @ turn.T).mean(axis=0))
