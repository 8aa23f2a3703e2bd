"""A simulated camera as a calibration would describe it: intrinsics, and where its optical frame is mounted.

The optical frame is that of REP-103: x to the right, y down, z into the picture.  MuJoCo's looks along -z with y up.
The centre of the first pixel has the coordinates (0, 0), as in OpenCV and ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pinocchio as pin

from policies.types import FloatArray

TO_OPTICAL = np.diag([1.0, -1.0, -1.0])  # MuJoCo's camera axes to optical ones


@dataclass(frozen=True)
class CameraModel:
    """An ideal pinhole: no distortion, square pixels.

    width, height px; focal px; centre (2,) px; parent: the link (or `world`) that it is fixed to; position (3,) m and
    rotation (3, 3) of the optical frame in the parent.
    """

    width: int
    height: int
    focal: float
    centre: tuple[float, float]
    parent: str
    position: FloatArray
    rotation: FloatArray

    @property
    def matrix(self) -> FloatArray:
        """(3, 3): point in the optical frame, m -> homogeneous pixel."""
        (u, v), f = self.centre, self.focal
        return np.array([[f, 0.0, u], [0.0, f, v], [0.0, 0.0, 1.0]])

    @property
    def quaternion(self) -> FloatArray:
        """(4,) xyzw of `rotation`."""
        return np.asarray(pin.Quaternion(self.rotation).coeffs())

    def project(self, point: FloatArray) -> FloatArray:
        """Pixel (2,) of a point (3,) m in the parent's frame."""
        pixel = self.matrix @ self.rotation.T @ (np.asarray(point, dtype=np.float64) - self.position)
        return np.asarray(pixel[:2] / pixel[2])


def camera_model(model: Any, camera: str, width: int, height: int, links: dict[str, str]) -> CameraModel:
    """Of a camera of a MuJoCo model (mujoco.MjModel); links: body -> link of the robot's description.

    A camera on any other body is taken for fixed in the world, as it is where that body does not move.
    """
    index = model.camera(camera).id
    body = model.body(int(model.cam_bodyid[index])).name
    focal = 0.5 * height / float(np.tan(0.5 * np.deg2rad(model.cam_fovy[index])))
    w, x, y, z = model.cam_quat[index]
    rotation = np.asarray(pin.Quaternion(w, x, y, z).matrix()) @ TO_OPTICAL
    centre = 0.5 * (width - 1), 0.5 * (height - 1)
    position = np.array(model.cam_pos[index], dtype=np.float64)
    return CameraModel(width, height, focal, centre, links.get(body, "world"), position, rotation)
