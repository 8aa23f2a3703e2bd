"""What the skills see of a LIBERO scene: poses, collision boxes, joints and contacts.  World frame, metres, radians.

The hand's frame: z points out of the fingers, y is the axis along which they open; the TCP lies between the pads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from policies.types import FloatArray
from sim.worlds.libero_env import LiberoEnvironment

HAND = "robot0_right_hand"
PADS = ("gripper0_finger1_pad_collision", "gripper0_finger2_pad_collision")
SPACING = 0.006  # of the points that stand for a collision box, m
CORNERS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)


@dataclass(frozen=True)
class Pose:
    """position (3,) m, rotation (3, 3)."""

    position: FloatArray
    rotation: FloatArray

    def __matmul__(self, other: Pose) -> Pose:
        return Pose(self.position + self.rotation @ other.position, self.rotation @ other.rotation)

    @property
    def inverse(self) -> Pose:
        return Pose(-self.rotation.T @ self.position, self.rotation.T)


@dataclass(frozen=True)
class Box:
    """Axis-aligned in the world: low and high corner, m."""

    low: FloatArray
    high: FloatArray

    @property
    def centre(self) -> FloatArray:
        return (self.low + self.high) / 2

    def grown(self, margin: float) -> Box:
        return Box(self.low - margin, self.high + margin)


class Scene:
    """Views into one environment's simulator; valid after every step, and for one loaded model."""

    def __init__(self, environment: LiberoEnvironment) -> None:
        self.environment = environment
        self.env = environment.env
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        robot = self.env.robots[0]
        self._site = robot.eef_site_id
        self._fingers = robot._ref_gripper_joint_pos_indexes
        self.arm_joints = np.array(robot._ref_joint_pos_indexes)
        self._hand = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, HAND)
        self._pads = [mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in PADS]
        self.movable = tuple(self.env.objects_dict)
        self.names = tuple(self.env.obj_body_id)
        self._geoms = {name: self._collision_geoms(self.env.obj_body_id[name]) for name in self.names}
        self._boxed = np.concatenate([np.zeros(0, int), *self._geoms.values()])
        self._owner = np.concatenate([[], *(np.full(len(g), i) for i, g in enumerate(self._geoms.values()))])
        self._points: dict[str, FloatArray] = {}
        self._grids: dict[str, list[tuple[int, FloatArray]]] = {}

    @property
    def tcp(self) -> FloatArray:
        return np.array(self.data.site_xpos[self._site])

    @property
    def hand(self) -> Pose:
        """TCP and the hand's axes."""
        return Pose(self.tcp, self.data.xmat[self._hand].reshape(3, 3).copy())

    @property
    def opening(self) -> float:
        """Mean distance of the pads from the TCP, m."""
        return float(np.abs(self.data.qpos[self._fingers]).mean())

    @property
    def table(self) -> float:
        """Height of the surface on which things stand, m."""
        return float(self.env.workspace_offset[2])

    def category(self, name: str) -> str:
        """Asset of an object: `plate` of `plate_2`."""
        return name.rsplit("_", 1)[0]

    def pose(self, name: str) -> Pose:
        body = self.env.obj_body_id[name]
        return Pose(np.array(self.data.xpos[body]), self.data.xmat[body].reshape(3, 3).copy())

    def site(self, name: str) -> Pose:
        index = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, name)
        return Pose(np.array(self.data.site_xpos[index]), self.data.site_xmat[index].reshape(3, 3).copy())

    def site_half(self, name: str) -> FloatArray:
        """(3,) half sizes of a site along the world's axes as LIBERO's `in_box` (site_object.py) counts them, m."""
        size = np.asarray(self.env.object_sites_dict[name].size, float)
        return np.asarray(np.abs(self.site(name).rotation @ size))

    def boxes(self, without: tuple[str, ...] = ()) -> tuple[FloatArray, FloatArray]:
        """Low and high corners (n, 3) of the collision boxes of all objects and fixtures but `without`."""
        return self._corners(self._all_but(without))

    def meets(self, middle: Pose, half: FloatArray, without: tuple[str, ...]) -> bool:
        """Whether a box with these half sizes (3,) m meets a collision box of anything but `without`.

        Both as they are turned: separating axes (Gottschalk et al. 1996), their faces' and the products of their edges.
        """
        turned, centres, halves = self._turned(self._all_but(without))
        between = middle.rotation.T @ turned
        size = np.abs(between) + 1e-9
        away = (centres - middle.position) @ middle.rotation
        apart = (np.abs(away) > half + np.einsum("nij,nj->ni", size, halves)).any(axis=1)
        theirs = np.abs(np.einsum("ni,nij->nj", away, between))
        apart |= (theirs > halves + np.einsum("i,nij->nj", half, size)).any(axis=1)
        for i in range(3):
            ahead, behind = (i + 1) % 3, (i + 2) % 3
            for j in range(3):
                left, right = (j + 1) % 3, (j + 2) % 3
                distance = np.abs(away[:, behind] * between[:, ahead, j] - away[:, ahead] * between[:, behind, j])
                reach = half[ahead] * size[:, behind, j] + half[behind] * size[:, ahead, j]
                reach = reach + halves[:, left] * size[:, i, right] + halves[:, right] * size[:, i, left]
                apart |= distance > reach
        return bool((~apart).any())

    def extent(self, body: int, direction: FloatArray) -> float:
        """How far one body and what is fixed to it reach along a unit vector (3,), m from the world's origin."""
        turned, centres, halves = self._turned(self._collision_geoms(body))
        return float((centres @ direction + np.einsum("ni,ni->n", np.abs(direction @ turned), halves)).max())

    def box(self, name: str) -> Box:
        low, high = self._corners(self._geoms[name])
        return Box(low.min(axis=0), high.max(axis=0))

    def body_boxes(self, body: int) -> tuple[FloatArray, FloatArray]:
        """The same for the geoms of one body and what is fixed to it, such as a drawer."""
        return self._corners(self._collision_geoms(body))

    def points(self, name: str) -> FloatArray:
        """(n, 3) points that fill the collision boxes of an object, in its body's frame."""
        if name not in self._points:
            pose = self.pose(name)
            self._points[name] = (self.points_now(name) - pose.position) @ pose.rotation
        return self._points[name]

    def world_points(self, name: str) -> FloatArray:
        pose = self.pose(name)
        return pose.position + self.points(name) @ pose.rotation.T

    def points_now(self, name: str) -> FloatArray:
        """The same for something whose parts move, such as a cabinet: in the world, found anew."""
        data = self.data
        parts = [
            data.geom_xpos[geom] + grid @ data.geom_xmat[geom].reshape(3, 3).T for geom, grid in self._grids_of(name)
        ]
        return np.concatenate(parts)

    def _grids_of(self, name: str) -> list[tuple[int, FloatArray]]:
        """Of every geom of an object: points that fill its box, in its own frame."""
        if name not in self._grids:
            self._grids[name] = []
            for geom in self._geoms[name]:
                half, centre = self.model.geom_aabb[geom][3:], self.model.geom_aabb[geom][:3]
                axes = [np.linspace(-h, h, max(int(np.ceil(2 * h / SPACING)) + 1, 2)) for h in half]
                grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3) + centre
                self._grids[name].append((int(geom), grid))
        return self._grids[name]

    def touches(self, name: str) -> tuple[bool, bool]:
        """Whether each finger's pad touches the object."""
        return self._pads_on(self._geoms[name])

    def touches_body(self, body: int) -> tuple[bool, bool]:
        """The same for one body and what is fixed to it, such as a drawer."""
        return self._pads_on(self._collision_geoms(body))

    def rests_on(self, name: str) -> bool:
        """Whether the object touches anything but the robot."""
        geoms = set(self._geoms[name].tolist())
        for contact in self.data.contact[: self.data.ncon]:
            ours = {contact.geom1, contact.geom2} & geoms
            others = {contact.geom1, contact.geom2} - geoms
            if ours and others:
                body = mujoco.mj_id2name(
                    self.model, mujoco.mjtObj.mjOBJ_BODY, int(self.model.geom_bodyid[next(iter(others))])
                )
                if not (body or "").startswith(("robot0", "gripper0")):
                    return True
        return False

    def holds(self, predicate: Any) -> bool:
        """Whether a goal predicate such as ["on", "bowl_1", "plate_1"] holds now."""
        return bool(self.env._eval_predicate(list(predicate)))

    def joint(self, name: str) -> Joint:
        return Joint(self, name)

    def joints_of(self, name: str) -> list[str]:
        """Hinges and slides of a fixture, or of the drawer that a site belongs to."""
        thing = self.env.object_sites_dict.get(name) or self.env.get_object(name)
        return [] if thing is None else list(thing.joints or [])

    def parent(self, name: str) -> str | None:
        """The object or fixture that a site belongs to; None for places on the table and for things themselves."""
        site = self.env.object_sites_dict.get(name)
        return None if site is None else site.parent_name

    def _pads_on(self, geoms: Any) -> tuple[bool, bool]:
        pairs = self.data.contact.geom[: self.data.ncon]
        touched = pairs[np.isin(pairs, geoms).any(axis=1)]
        first, second = (bool((touched == pad).any()) for pad in self._pads)
        return first, second

    def _collision_geoms(self, body: int) -> Any:
        inside = np.zeros(self.model.nbody, bool)
        inside[body] = True
        for child in range(body + 1, self.model.nbody):
            inside[child] = inside[child] or inside[self.model.body_parentid[child]]
        return np.flatnonzero(
            inside[self.model.geom_bodyid] & ((self.model.geom_contype | self.model.geom_conaffinity) != 0)
        )

    def _all_but(self, without: tuple[str, ...]) -> Any:
        """Collision geoms of all objects and fixtures but these."""
        skip = [self.names.index(name) for name in without if name in self.names]
        return self._boxed[~np.isin(self._owner, skip)]

    def _turned(self, geoms: Any) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Of the boxes of geoms: rotations (n, 3, 3), middles (n, 3) m, half sizes (n, 3) m."""
        turned = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        middles = self.data.geom_xpos[geoms] + np.einsum("nij,nj->ni", turned, self.model.geom_aabb[geoms][:, :3])
        return turned, middles, self.model.geom_aabb[geoms][:, 3:]

    def _corners(self, geoms: Any) -> tuple[FloatArray, FloatArray]:
        turned, middles, halves = self._turned(geoms)
        half = np.einsum("nij,nj->ni", np.abs(turned), halves)
        return middles - half, middles + half


class Joint:
    """A hinge or slide of a fixture."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name = scene, name
        self._index = mujoco.mj_name2id(scene.model, mujoco.mjtObj.mjOBJ_JOINT, name)
        self.body = int(scene.model.jnt_bodyid[self._index])
        self.range = scene.model.jnt_range[self._index].copy()
        self.slides = scene.model.jnt_type[self._index] == mujoco.mjtJoint.mjJNT_SLIDE
        self.turns = scene.model.jnt_type[self._index] == mujoco.mjtJoint.mjJNT_HINGE

    @property
    def value(self) -> float:
        return float(self.scene.data.qpos[self.scene.model.jnt_qposadr[self._index]])

    @property
    def axis(self) -> FloatArray:
        return np.array(self.scene.data.xaxis[self._index])

    @property
    def anchor(self) -> FloatArray:
        return np.array(self.scene.data.xanchor[self._index])

    @property
    def pose(self) -> Pose:
        """Of the body that the joint moves."""
        data = self.scene.data
        return Pose(np.array(data.xpos[self.body]), data.xmat[self.body].reshape(3, 3).copy())

    def moved(self, point: FloatArray, by: float) -> FloatArray:
        """Where a point of the body goes when the joint moves by `by`."""
        if self.slides:
            return point + self.axis * by
        return self.anchor + turn(self.axis, by) @ (point - self.anchor)


def turn(axis: FloatArray, angle: float) -> FloatArray:
    """Rotation matrix about a unit axis (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
