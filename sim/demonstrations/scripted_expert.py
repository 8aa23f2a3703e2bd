"""A pick-and-place expert for the libero_object scenes, on privileged simulator state.

Its action is a continuous function of the state wherever that is possible (heights follow from horizontal errors, the
carry follows from the height), with two latches only: fingers closing, and fingers opening over the basket.  A policy
without memory can imitate that.  Commands are eef_delta actions, see `policies.types.ActionSpace`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.types import ActionSpace, FloatArray
from sim.worlds.libero_env import LiberoEnvironment

SPACE = ActionSpace("eef_delta")
BASKET = "basket_1"
TRANSIT = 0.19  # TCP height that clears every object of the suite, m
FUNNEL = 0.012
ALIGNED = 0.009
BASKET_RIM = 0.146
PALM_ABOVE_TCP = 0.033
HAND_HALF = np.array([0.032, 0.105])  # footprint of the palm along x and y
CLEARANCE = 0.03
FINGERS_EMPTY = 0.004
GRASP_DEPTH = 0.025  # of the TCP below the top of an object, m


@dataclass(frozen=True)
class ObjectGeometry:
    """World-aligned box of an object about its body's origin, m."""

    low: FloatArray
    high: FloatArray


def object_geometry(env: Any, name: str) -> ObjectGeometry:
    """Box around the geoms of `name` (robosuite environment `env`) in its present orientation."""
    model, data = env.sim.model._model, env.sim.data._data
    body = env.obj_body_id[name]
    corners = []
    for geom in range(model.ngeom):
        if body not in _ancestors(model, model.geom_bodyid[geom]) or model.geom_contype[geom] == 0:
            continue
        centre, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)
        corners.append(data.geom_xpos[geom] + (centre + signs * half) @ data.geom_xmat[geom].reshape(3, 3).T)
    points = np.concatenate(corners) - data.xpos[body]
    return ObjectGeometry(points.min(axis=0), points.max(axis=0))


class ScriptedExpert:
    """Picks `target` and drops it into `basket`.  One instance per episode."""

    def __init__(self, environment: LiberoEnvironment, target: str, basket: str = BASKET) -> None:
        self.env = environment.env
        self.target, self.basket = target, basket
        self.geometry = object_geometry(self.env, target)
        # The palm touches what rises 33 mm above the TCP; flat things are held as low as the floor allows.
        self.grasp_height = max(float(self.geometry.high[2]) - GRASP_DEPTH, float(self.geometry.low[2]) + 0.010)
        self.grasp_offset = np.array(
            [(self.geometry.low[0] + self.geometry.high[0]) / 2, (self.geometry.low[1] + self.geometry.high[1]) / 2]
        )
        self.grasp_offset[0] += self._shift_from_neighbours()
        self.closing = 0
        self.opening = 0
        self._last_opening = 1.0
        self._grasp_z: float | None = None
        self._home_rotation = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]])

    @property
    def tcp(self) -> FloatArray:
        return np.array(self.env.sim.data.site_xpos[self.env.robots[0].eef_site_id])

    def position(self, name: str) -> FloatArray:
        return np.array(self.env.sim.data.body_xpos[self.env.obj_body_id[name]])

    @property
    def finger_opening(self) -> float:
        """Mean opening of the fingers, m."""
        robot = self.env.robots[0]
        return float(np.abs(self.env.sim.data.qpos[robot._ref_gripper_joint_pos_indexes]).mean())

    @property
    def grasp_point(self) -> FloatArray:
        """Where the TCP should close, world frame, m."""
        position = self.position(self.target)
        return np.array([*(position[:2] + self.grasp_offset), max(position[2] + self.grasp_height, 0.010)])

    @property
    def solved(self) -> bool:
        """The LIBERO predicate `(In target basket_contain_region)`."""
        return bool(self.env._eval_predicate(["in", self.target, f"{self.basket}_contain_region"]))

    def action(self) -> FloatArray:
        """(7,) eef_delta action for the present state."""
        opening = self.finger_opening
        if self.opening:
            goal, grip = self._release()
        elif self.closing:
            goal, grip = self._carry(opening)
        else:
            goal, grip = self._approach()
        self._last_opening = opening
        delta = np.clip((goal - self.tcp) / SPACE.position_scale, -1.0, 1.0)
        return np.concatenate([delta, self._level(), [grip]])

    def _shift_from_neighbours(self) -> float:
        """How far to grasp off centre along x so that the palm does not come down on a taller neighbour, m."""
        reach = max((float(self.geometry.high[0] - self.geometry.low[0]) - 0.04) / 2, 0.0)
        palm = self.position(self.target)[2] + self.grasp_height + PALM_ABOVE_TCP
        boxes = []
        for name in self.env.objects_dict:
            if name not in (self.target, self.basket):
                box, position = object_geometry(self.env, name), self.position(name)
                if position[2] + box.high[2] > palm:
                    boxes.append((position[:2] + box.low[:2], position[:2] + box.high[:2]))
        centre = self.position(self.target)[:2] + self.grasp_offset

        def clearance(shift: float) -> float:
            here = centre + np.array([shift, 0.0])
            gaps = [np.maximum(low - here - HAND_HALF, here - HAND_HALF - high).max() for low, high in boxes]
            return min([*gaps, 0.01])

        return max(
            (round(s, 3) for s in np.linspace(-reach, reach, 9)), key=lambda s: (round(clearance(s), 3), -abs(s))
        )

    def _approach(self) -> tuple[FloatArray, float]:
        goal = self.grasp_point
        error = float(np.linalg.norm(goal[:2] - self.tcp[:2]))
        height = goal[2] + np.clip((error - FUNNEL) * 5.0, 0.0, max(TRANSIT - goal[2], 0.06))
        # Lateral motion waits while the fingers are below the neighbours' tops and far from the target.
        below = np.clip((height - self.tcp[2]) / 0.05, 0.0, 1.0)
        goal = np.array([*(goal[:2] * (1 - below) + self.tcp[:2] * below), height])
        if error < ALIGNED and abs(self.tcp[2] - self.grasp_point[2]) < 0.008:
            self.closing = 1
            self._grasp_z = float(self.tcp[2])
            return self.grasp_point, 1.0
        return goal, -1.0

    def _carry(self, opening: float) -> tuple[FloatArray, float]:
        self.closing += 1
        if self.closing > 4 and opening < FINGERS_EMPTY:
            self.closing = 0
            return self.tcp + np.array([0.0, 0.0, 0.05]), -1.0
        if self.closing < 5 or (self.closing < 10 and self._last_opening - opening > 3e-4):
            return np.array([*self.tcp[:2], self._grasp_z]), 1.0
        hang = max(float(self.tcp[2]) - (float(self.position(self.target)[2]) + float(self.geometry.low[2])), 0.01)
        carry_z = BASKET_RIM + CLEARANCE + min(hang, 0.14)
        basket = self.position(self.basket)
        goal = np.array([*basket[:2], carry_z])
        distance = float(np.linalg.norm(goal[:2] - self.tcp[:2]))
        # Slip: the object was left behind.
        if np.linalg.norm(self.tcp[:2] - self.grasp_point[:2]) > 0.06 or self.tcp[2] - self.grasp_point[2] > 0.06:
            self.closing = 0
            return self.tcp + np.array([0.0, 0.0, 0.05]), -1.0
        missing = np.clip((carry_z - 0.02 - self.tcp[2]) / 0.06, 0.0, 1.0) if distance > 0.03 else 0.0
        goal[:2] = goal[:2] * (1 - missing) + self.tcp[:2] * missing
        if distance < 0.022 and self.tcp[2] > carry_z - 0.03:
            self.opening = 1
            return goal, -1.0
        return goal, 1.0

    def _release(self) -> tuple[FloatArray, float]:
        self.opening += 1
        basket = self.position(self.basket)
        goal = np.array([*basket[:2], self.tcp[2]])
        if self.opening > 12 and not self.solved and np.linalg.norm(self.grasp_point[:2] - basket[:2]) > 0.09:
            self.opening = self.closing = 0
            return self.tcp + np.array([0.0, 0.0, 0.05]), -1.0
        return goal, -1.0

    def _level(self) -> FloatArray:
        """Rotation part: back to fingers pointing down, opening along y."""
        from robosuite.utils.transform_utils import mat2quat, quat2axisangle

        current = self.env.sim.data.get_body_xmat("robot0_right_hand")
        error = quat2axisangle(mat2quat(self._home_rotation @ current.T))
        return np.clip(error / SPACE.rotation_scale, -0.5, 0.5)


def _ancestors(model: Any, body: int) -> set[int]:
    chain = set()
    while body:
        chain.add(int(body))
        body = model.body_parentid[body]
    return chain
