"""Where the map lies in the world, if the cameras' poses are known there.  NumPy only.

The frames alone say roughly where the surface lies; then the poses say exactly where the cameras are over it, and the
map is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.spatial.nano.bundle import positions
from policies.spatial.nano.scene_map import DIRECTIONS, Found, SceneMap, map_of
from policies.spatial.nano.sightings import Sightings
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


def told_cameras(world: World, poses: Sequence[FloatArray | None]) -> FloatArray:
    """(T, 5) cameras in the map of a world where their poses are known, NaN where not."""
    cameras = np.full((len(poses), 5), np.nan)
    for i, pose in enumerate(poses):
        if pose is not None:
            true = np.asarray(pose, dtype=np.float64)
            heading = np.arctan2(true[1, 2], true[0, 2])
            ahead, right = (np.array([np.cos(a), np.sin(a)]) for a in (heading, heading - np.pi / 2))
            to_middle = world.origin - true[:3, 3]
            pitch = np.arcsin(np.clip(true[2, 2], -1.0, 1.0))
            cameras[i] = to_middle[:2] @ right, to_middle[:2] @ ahead, -to_middle[2], heading - world.yaw, pitch
    return cameras


def placed_map(frames: Sequence[Sightings], poses: Sequence[FloatArray | None], focal: float) -> World:
    """The map of these frames where it lies; poses as for `world_of`."""
    world = world_of(map_of(frames, focal), poses)
    if all(pose is None for pose in poses):
        return world
    return world_of(map_of(frames, focal, told_cameras(world, poses)), poses)
