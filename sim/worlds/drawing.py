"""Pictures of a camera, the same pixel for pixel, without handing the renderer what the camera cannot see.

A software renderer spends its time on triangles, 308 000 of them in libero_object, wherever they are.  The wrist camera
has three quarters of the geoms outside its field of view.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from policies.types import FloatArray, Image

# A group that MuJoCo's renderer does not draw unless told to.
_UNDRAWN = 5
# Field of view and bounds are taken larger than they are by this, far above float32's rounding on the way to a pixel.
_WIDER, _MARGIN = 1.02, 1e-3


class Drawing:
    """Draws one MuJoCo model; a model that is built anew needs a new one."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._centres, self._halves = np.array(model.geom_aabb[:, :3]), np.array(model.geom_aabb[:, 3:])
        self._bounded = model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
        mirrors = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
        self._may_mirror = np.flatnonzero(mirrors & (model.geom_matid >= 0))

    def picture(self, sim: Any, camera: str, size: int) -> Image:
        """(size, size, 3) uint8 RGB, upright, of a robosuite simulator."""
        model = self.model
        drawn = sim._render_context_offscreen.vopt.geomgroup
        groups = model.geom_group.copy()
        model.geom_group[self.unseen(sim.data._data, model.camera(camera).id, drawn)] = _UNDRAWN
        # robosuite draws into whatever context is current, another simulator's too: pictures of a mixture of both.
        sim._render_context_offscreen.gl_ctx.make_current()
        try:
            pixels = sim.render(camera_name=camera, width=size, height=size)
        finally:
            model.geom_group[:] = groups
        return np.ascontiguousarray(pixels[::-1])

    def unseen(self, data: Any, camera: int, drawn: FloatArray) -> np.ndarray:
        """(geoms,) bool: what cannot change a pixel of this camera's square picture.

        drawn: (6,) which groups of geoms are drawn at all.
        """
        model = self.model
        if model.cam_orthographic[camera] or model.cam_sensorsize[camera].any() or model.light_castshadow.any():
            return np.zeros(model.ngeom, dtype=bool)
        position, sides = data.cam_xpos[camera], self._sides(data, camera)
        unseen = self._bounded & self._beyond(data, position, sides)
        for geom in self._may_mirror[~unseen[self._may_mirror]]:
            if model.mat_reflectance[model.geom_matid[geom]] > 0 and drawn[model.geom_group[geom]]:
                # The face towards +z mirrors; what the camera sees in it, its own mirror image sees directly.
                normal = data.geom_xmat[geom].reshape(3, 3)[:, 2]
                is_box = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX
                face = data.geom_xpos[geom] + normal * (model.geom_size[geom, 2] if is_box else 0.0)
                mirrored = position - 2 * np.dot(position - face, normal) * normal
                unseen &= self._beyond(data, mirrored, sides - 2 * np.outer(sides @ normal, normal))
        return unseen

    def _sides(self, data: Any, camera: int) -> FloatArray:
        """(5, 3) outward normals of the field of view, in the world's frame."""
        wide = np.tan(np.deg2rad(self.model.cam_fovy[camera]) / 2) * _WIDER
        # The camera looks along its -z: inside is where |x| < -wide * z.
        normals: FloatArray = np.array([[1, 0, wide], [-1, 0, wide], [0, 1, wide], [0, -1, wide], [0, 0, 1]])
        normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        return normals @ data.cam_xmat[camera].reshape(3, 3).T

    def _beyond(self, data: Any, position: FloatArray, sides: FloatArray) -> np.ndarray:
        """(geoms,) bool: the whole bounding box lies on the outer side of one plane through this position."""
        rotations = data.geom_xmat.reshape(-1, 3, 3)
        centres = data.geom_xpos + np.einsum("gij,gj->gi", rotations, self._centres) - position
        reach = np.einsum("gjp,gj->gp", np.abs(np.einsum("pi,gij->gjp", sides, rotations)), self._halves)
        return (centres @ sides.T - reach > _MARGIN).any(axis=1)
