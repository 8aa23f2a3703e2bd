"""A MuJoCo model of one scene: an arena of LIBERO or robosuite, the Panda at its home, and things to put in it.

Built from the libraries' own arenas, robots and objects, without their environments: nothing is controlled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from policies.types import FloatArray, VegaError
from sim.space.assets import Asset
from sim.space.truth.shapes import level_area, surface_points
from sim.worlds.libero_env import building

HOME = np.array([0.0, -0.161037389, 0.0, -2.44459747, 0.0, 2.2267522, np.pi / 4])
UNDRAWN = 5  # a group of geoms that MuJoCo's renderer leaves out
VISUAL = 1  # robosuite's group of what is drawn
STANDING, LYING = np.array([1.0, 0.0, 0.0, 0.0]), np.array([np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0])
AWAY = np.array([0.0, 0.0, 60.0])
SCALES = (0.5, 1.5)  # of each thing: who knows only what it is called does not know how large it is
FLOORS = ("light-gray", "white-marble", "wood-plank", "brown-ceramic", "gray-ceramic", "rustic", "dark")
WALLS = ("light-gray-plaster", "gray-plaster", "light-blue", "white", "yellow-linen", "dark-green", "dark-blue")


@dataclass(frozen=True)
class Arena:
    """An empty scene.  top: (3,) middle of the surface on which things stand, m.  base: (3,) of the robot."""

    model: Any
    robot: Any
    top: FloatArray
    base: FloatArray


@dataclass(frozen=True, eq=False)
class Thing:
    """name: its body's; said: what questions call it; points: (N, 3) of its surface in its body's frame, m.

    upright: (4,) wxyz, in which it stands.  geoms: all of it.  joint: address of its free joint in qpos, None
    of what is fixed.
    """

    name: str
    said: str
    body: int
    geoms: Any
    points: FloatArray
    upright: FloatArray
    joint: int | None


class Stage:
    """One scene with all its things; each can be placed, or put away where no camera sees it."""

    def __init__(self, scene: str, assets: Sequence[tuple[Asset, int]], rng: np.random.Generator) -> None:
        """assets: what may stand there, and how many of each.  Raises VegaError for a scene or an asset unknown."""
        with building():
            arena = _arena(scene, rng)
            made = [
                (asset, _scaled(_make(asset, f"thing{i}_{k}"), float(rng.uniform(*SCALES))))
                for i, (asset, count) in enumerate(assets)
                for k in range(count)
            ]
            self.model = _compile(arena, [thing for _, thing in made])
        self.scene = scene
        self.data = mujoco.MjData(self.model)
        self.arm = np.arange(7)
        self.data.qpos[self.arm] = HOME
        fields = ("geom_contype", "geom_conaffinity", "geom_group")
        self._as_built = [getattr(self.model, field).copy() for field in fields]
        mujoco.mj_forward(self.model, self.data)
        self.things = tuple(self._thing(asset, made_of) for asset, made_of in made)
        self.owner = np.full(self.model.ngeom, -1)
        for index, thing in enumerate(self.things):
            self.owner[thing.geoms] = index
            self.put_away(thing)
        mujoco.mj_forward(self.model, self.data)
        self.top = self._surface(arena.top)
        self.table_area = self._table_area()

    def pose(self, thing: Thing) -> tuple[FloatArray, FloatArray]:
        """Of its body: position (3,), rotation (3, 3)."""
        return self.data.xpos[thing.body].copy(), self.data.xmat[thing.body].reshape(3, 3).copy()

    def world_points(self, thing: Thing) -> FloatArray:
        position, rotation = self.pose(thing)
        return np.asarray(position + thing.points @ rotation.T)

    def place(self, thing: Thing, xy: FloatArray, yaw: float) -> None:
        """Stand it upright, its lowest point just above the surface."""
        quaternion = np.empty(4)
        mujoco.mju_mulQuat(quaternion, np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]), thing.upright)
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, quaternion)
        lowest = float((thing.points @ rotation.reshape(3, 3).T)[:, 2].min())
        self._put(thing, np.array([*xy, self.top[2] - lowest + 0.002]), quaternion, there=True)

    def put_away(self, thing: Thing) -> None:
        self._put(thing, AWAY * (1 + 0.1 * self.things.index(thing)), thing.upright, there=False)

    def let_settle(self, seconds: float = 0.4) -> None:
        """Physics, the arm held at its home."""
        for _ in range(round(seconds / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)
            self.data.qpos[self.arm], self.data.qvel[: len(self.arm)] = HOME, 0.0
        self.data.qvel[:] = 0.0
        mujoco.mj_forward(self.model, self.data)

    def _put(self, thing: Thing, position: FloatArray, quaternion: FloatArray, there: bool) -> None:
        model, data = self.model, self.data
        if thing.joint is None:
            model.body_pos[thing.body], model.body_quat[thing.body] = position, quaternion
        else:
            data.qpos[thing.joint : thing.joint + 7] = np.concatenate([position, quaternion])
        contype, conaffinity, group = self._as_built
        model.geom_contype[thing.geoms] = contype[thing.geoms] * there
        model.geom_conaffinity[thing.geoms] = conaffinity[thing.geoms] * there
        model.geom_group[thing.geoms] = np.where(there, group[thing.geoms], UNDRAWN)

    def _thing(self, asset: Asset, made: Any) -> Thing:
        model = self.model
        body = model.body(made.root_body).id
        inside = np.zeros(model.nbody, bool)
        inside[body] = True
        for child in range(body + 1, model.nbody):
            inside[child] = inside[child] or inside[model.body_parentid[child]]
        geoms = np.flatnonzero(inside[model.geom_bodyid])
        seen = [g for g in geoms if model.geom_group[g] == VISUAL and model.geom_rgba[g, 3] > 0]
        clouds = [_geom_surface(model, self.data, int(g)) for g in seen]
        points = np.concatenate([surface_points(vertices, faces) for vertices, faces in clouds])
        own = points - self.data.xpos[body]
        joint = None if asset.fixed else int(model.joint(made.joints[0]).qposadr[0])
        own = own @ self.data.xmat[body].reshape(3, 3)
        return Thing(made.root_body, asset.name, body, geoms, own, LYING if asset.lies else STANDING, joint)

    def _surface(self, middle: FloatArray) -> FloatArray:
        """`middle` at the height where something dropped there lands."""
        groups, hit = np.array([1, 0, 0, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
        above = np.array([middle[0], middle[1], middle[2] + 0.3])
        down = mujoco.mj_ray(self.model, self.data, above, np.array([0.0, 0.0, -1.0]), groups, 1, -1, hit)
        return middle if down < 0 else np.array([middle[0], middle[1], above[2] - down])

    def _table_area(self) -> float | None:
        """m^2 of the surface on which things stand; None where that is the floor."""
        found = []
        for geom in np.flatnonzero((self.owner < 0) & (self.model.geom_group == VISUAL)):
            solid = self.model.geom_type[geom] in (mujoco.mjtGeom.mjGEOM_MESH, mujoco.mjtGeom.mjGEOM_BOX)
            if solid and "table" in self.model.body(self.model.geom_bodyid[geom]).name:
                found.append(level_area(*_geom_surface(self.model, self.data, int(geom)), float(self.top[2])))
        return max(found, default=None)


def _geom_surface(model: Any, data: Any, geom: int) -> tuple[FloatArray, Any]:
    """Vertices (V, 3) in the world and triangles (F, 3) of a mesh or of what stands for a primitive."""
    kind, size = model.geom_type[geom], model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        face, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        vertices, triangles = model.mesh_vert[first : first + count], model.mesh_face[face : face + faces]
    elif kind == mujoco.mjtGeom.mjGEOM_BOX:
        vertices, triangles = _block(size, 4)
    elif kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
        # A capsule's round ends are taken for the half length and radius of a longer cylinder.
        half = size[1] + (size[0] if kind == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0)
        vertices, triangles = _block(np.array([size[0], size[0], half]), 48)
    elif kind in (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_ELLIPSOID):
        radii = np.array([size[0]] * 3) if kind == mujoco.mjtGeom.mjGEOM_SPHERE else size
        vertices, triangles = _globe(radii)
    else:
        raise VegaError(f"A geom of type {kind} has no surface here: leave its asset out of sim/space/assets.py.")
    rotation = data.geom_xmat[geom].reshape(3, 3)
    return np.asarray(data.geom_xpos[geom] + vertices.astype(np.float64) @ rotation.T), triangles


def _block(half: FloatArray, sides: int) -> tuple[FloatArray, Any]:
    """A box (4 sides) or cylinder along z with these half sizes."""
    angles = np.arange(sides) * 2 * np.pi / sides + (np.pi / 4 if sides == 4 else 0.0)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (np.sqrt(2) if sides == 4 else 1.0)
    ends = [np.column_stack([ring * half[:2], np.full(sides, z * half[2])]) for z in (-1, 1)]
    vertices = np.concatenate([*ends, [[0, 0, -half[2]], [0, 0, half[2]]]])
    here, there = np.arange(sides), (np.arange(sides) + 1) % sides
    side = [np.stack([here, there, sides + here], 1), np.stack([there, sides + there, sides + here], 1)]
    low, high = np.full(sides, 2 * sides), np.full(sides, 2 * sides + 1)
    caps = [np.stack([there, here, low], 1), np.stack([sides + here, sides + there, high], 1)]
    return vertices, np.concatenate([*side, *caps])


def _globe(radii: FloatArray, count: int = 24) -> tuple[FloatArray, Any]:
    across, down = np.meshgrid(np.arange(2 * count) * np.pi / count, np.linspace(0, np.pi, count + 1))
    unit = np.stack([np.sin(down) * np.cos(across), np.sin(down) * np.sin(across), np.cos(down)], axis=-1)
    rows, columns = np.meshgrid(np.arange(count), np.arange(2 * count), indexing="ij")
    here, there = rows * 2 * count + columns, rows * 2 * count + (columns + 1) % (2 * count)
    below, beyond = here + 2 * count, there + 2 * count
    faces = [np.stack([here, below, beyond], -1), np.stack([here, beyond, there], -1)]
    return (unit * radii).reshape(-1, 3), np.concatenate([f.reshape(-1, 3) for f in faces])


def _arena(scene: str, rng: np.random.Generator) -> Arena:
    """With the sizes and offsets that LIBERO's problems and robosuite's tasks give them; box tables vary in size."""
    # Not at the top, as in libero_env.py: robosuite fails to import where OpenGL is missing.
    from libero.libero import get_libero_path
    from libero.libero.envs import arenas
    from libero.libero.envs.robots import MountedPanda, OnTheGroundPanda
    from robosuite.models.arenas import PegsArena
    from robosuite.models.arenas import TableArena as PlainTable
    from robosuite.models.robots import Panda

    style = {"floor_style": str(rng.choice(FLOORS)), "wall_style": str(rng.choice(WALLS))}
    size = (float(rng.uniform(0.85, 1.15)), float(rng.uniform(0.9, 1.5)), 0.05)

    def xml(name: str) -> str:
        return f"{get_libero_path('assets')}/scenes/libero_{name}_base_style.xml"

    if scene == "libero_kitchen":
        top = (0.0, 0.0, 0.90)
        found = arenas.KitchenTableArena(
            table_full_size=size, table_offset=top, xml=xml("kitchen_tabletop"), **style
        )
        robot, base = MountedPanda(), ("kitchen_table", size[0])
    elif scene == "libero_tabletop":
        top = (0.0, 0.0, 0.90)
        found = arenas.TableArena(table_full_size=size, table_offset=top, xml=xml("tabletop"), **style)
        robot, base = MountedPanda(), ("table", size[0])
    elif scene == "libero_living_room":
        top, robot, base = (0.0, 0.0, 0.41), OnTheGroundPanda(), ("living_room_table", 0.7)
        found = arenas.LivingRoomTableArena(xml=xml("living_room_tabletop"), **style)
    elif scene == "libero_coffee_table":
        top, robot, base = (0.0, 0.0, 0.424), OnTheGroundPanda(), ("coffee_table", 0.7)
        found = arenas.CoffeeTableArena(xml=xml("coffee_table"), **style)
    elif scene == "libero_study":
        top, robot, base = (-0.2, 0.0, 0.867), MountedPanda(), ("study_table", 1.0)
        found = arenas.StudyTableArena(xml=xml("study"), **style)
    elif scene == "libero_floor":
        top, robot, base = (0.0, 0.0, 0.0), OnTheGroundPanda(), ("empty", 0.0)
        found = arenas.EmptyArena(xml=xml("floor"), **style)
    elif scene == "robosuite_table":
        top, robot, base = (0.0, 0.0, 0.80), Panda(), ("table", size[0])
        found = PlainTable(table_full_size=size, table_offset=top)
    elif scene == "robosuite_pegs":
        size = (0.8, 0.8, 0.05)
        top, robot, base = (0.0, 0.0, 0.82), Panda(), ("table", size[0])
        found = PegsArena(table_full_size=size, table_offset=top)
    else:
        raise VegaError(f"There is no scene '{scene}': choose one of sim/space/assets.py.")
    found.set_origin([0, 0, 0])
    offset = robot.base_xpos_offset[base[0]]
    return Arena(found, robot, np.array(top), np.array(offset(base[1]) if callable(offset) else offset))


def _compile(arena: Arena, things: Sequence[Any]) -> Any:
    from robosuite.models.grippers import gripper_factory
    from robosuite.models.mounts import mount_factory
    from robosuite.models.tasks import ManipulationTask

    robot = arena.robot
    robot.add_mount(mount_factory(robot.default_mount))
    robot.add_gripper(gripper_factory(robot.default_gripper))
    robot.set_base_xpos(arena.base)
    return ManipulationTask(arena.model, [robot], list(things)).get_model()


def _make(wanted: Asset, name: str) -> Any:
    """The library's own object.  Raises VegaError for a name it does not know."""
    from libero.libero.envs.objects import OBJECTS_DICT
    from robosuite.models import objects
    from robosuite.utils.mjcf_utils import CustomMaterial

    asset = wanted.asset
    library, _, kind = asset.rpartition(":")
    if library == "robosuite":
        if kind.endswith(" cube"):
            colour = kind.split()[0]
            texture = {"red": "WoodRed", "green": "WoodGreen"}[colour]
            material = CustomMaterial(
                texture=texture, tex_name=f"{colour}wood", mat_name=f"{colour}wood_mat",
                tex_attrib={"type": "cube"}, mat_attrib={"texrepeat": "1 1", "specular": "0.4", "shininess": "0.1"},
            )  # fmt: skip
            return objects.BoxObject(name, size=[0.025] * 3, rgba=[1, 1, 1, 1], material=material)
        return getattr(objects, kind.title().replace(" ", "") + "Object")(name=name)
    if asset not in OBJECTS_DICT:
        raise VegaError(f"LIBERO has no object '{asset}': correct sim/space/assets.py.")
    made = OBJECTS_DICT[asset]
    try:
        return made(name=name, joints=None) if wanted.fixed else made(name=name)
    except (OSError, FileNotFoundError) as error:
        raise VegaError(f"LIBERO's object '{asset}' lacks its files ({error}): install the package again.") from error


def _scaled(made: Any, factor: float) -> Any:
    """The object, all its lengths multiplied, before it is compiled."""

    def scale(element: Any, attribute: str) -> None:
        if element.get(attribute) is not None:
            element.set(attribute, " ".join(f"{float(x) * factor:.6g}" for x in element.get(attribute).split()))

    for mesh in made.asset.iter("mesh"):
        mesh.set("scale", mesh.get("scale", "1 1 1"))
        scale(mesh, "scale")
    body = made.get_obj()
    for element in body.iter():
        if element.tag in ("body", "geom", "joint", "site", "inertial") and element is not body:
            scale(element, "pos")
        if element.tag in ("geom", "site"):
            scale(element, "size")
        if element.tag == "joint" and element.get("type") == "slide":
            scale(element, "range")
    return made
