"""Camera pose, light and colours of surfaces drawn for one episode, within bounds; the physics stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mujoco
import numpy as np

from policies.types import VegaError
from sim.demonstrations.skills.scene import turn
from sim.worlds.environment import VIEW_KINDS
from sim.worlds.libero_env import CAMERAS, LiberoEnvironment

MOVED, TURNED = 0.10, np.deg2rad(10.0)  # most that the fixed camera is moved and turned
BRIGHTNESS, SHIFTED = (0.6, 1.4), 0.5  # of the lights: factor, m
TINT = 0.25  # most that a colour of a surface is scaled by
# MuJoCo renders lights and colours above 1; only what is lit beyond white is cut, in each pixel.  So pictures get
# darker by more than they get brighter.


class Views:
    """Draws views of one environment; each `draw` starts from the views as they were built."""

    def __init__(self, environment: LiberoEnvironment) -> None:
        self._model = environment.env.sim.model._model
        self._data = environment.env.sim.data._data
        self._agentview = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERAS["agentview"])
        bodies = environment.env.obj_body_id
        self._fixtures = [bodies[name] for name in environment.env.fixtures_dict if name in bodies]
        fields = ("cam_pos", "cam_quat", "light_diffuse", "light_ambient", "light_pos", "mat_rgba")
        self._built = {name: getattr(self._model, name).copy() for name in fields}
        self._headlight = np.array(self._model.vis.headlight.diffuse)

    def draw(self, kinds: Iterable[str], rng: np.random.Generator) -> dict[str, Any]:
        """Change what `kinds` name, the rest as built; what was drawn.  Raises VegaError for a kind unknown."""
        wanted = list(kinds)
        for kind in wanted:
            if kind not in VIEW_KINDS:
                raise VegaError(f"Nothing about a view is called '{kind}': choose among {', '.join(VIEW_KINDS)}.")
        for name, values in self._built.items():
            getattr(self._model, name)[:] = values
        self._model.vis.headlight.diffuse[:] = self._headlight
        drawn = {kind: getattr(self, f"_{kind}")(rng) for kind in VIEW_KINDS if kind in wanted}
        mujoco.mj_camlight(self._model, self._data)
        return drawn

    def _camera(self, rng: np.random.Generator) -> dict[str, Any]:
        model, index = self._model, self._agentview
        shift, axis = _direction(rng) * rng.uniform(0.0, MOVED), _direction(rng)
        angle = float(rng.uniform(0.0, TURNED))
        rotation, quaternion = np.empty(9), np.empty(4)
        mujoco.mju_quat2Mat(rotation, model.cam_quat[index])
        mujoco.mju_mat2Quat(quaternion, (turn(axis, angle) @ rotation.reshape(3, 3)).ravel())
        model.cam_pos[index] += shift
        model.cam_quat[index] = quaternion
        return {"shift_m": shift.tolist(), "axis": axis.tolist(), "angle_rad": angle}

    def _light(self, rng: np.random.Generator) -> dict[str, Any]:
        model = self._model
        factor = rng.uniform(*BRIGHTNESS) * rng.uniform(0.9, 1.1, 3)
        shift = rng.uniform(-SHIFTED, SHIFTED, 3)
        model.light_diffuse[:] *= factor
        model.light_ambient[:] *= factor
        model.vis.headlight.diffuse[:] = self._headlight * factor
        model.light_pos[:] += shift
        return {"factor": factor.tolist(), "shift_m": shift.tolist()}

    def _texture(self, rng: np.random.Generator) -> dict[str, Any]:
        """Tints of the surroundings; things and fixtures keep their colours, which instructions name."""
        model = self._model
        fixed = model.body_weldid[model.geom_bodyid] == 0
        named = np.isin(model.body_rootid[model.geom_bodyid], self._fixtures)
        kept = {int(m) for m in model.geom_matid[~fixed | named]}
        materials = sorted({int(m) for m in model.geom_matid[fixed & ~named] if m >= 0} - kept)
        tints = rng.uniform(1.0 - TINT, 1.0 + TINT, (len(materials), 3))
        model.mat_rgba[materials, :3] *= tints
        return {"materials": materials, "tints": tints.tolist()}


def _direction(rng: np.random.Generator) -> Any:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)
