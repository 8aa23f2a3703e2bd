"""Put a thing with a handle into a place behind a door, from its open side, such as a mug into a microwave."""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray
from sim.demonstrations.skills import motion
from sim.demonstrations.skills.motion import CLOSE, DOWN, OPEN, errors, hand_rotation, towards
from sim.demonstrations.skills.scene import Pose, Scene, turn

TILT = np.deg2rad(60.0)  # of the approach from straight down: the wrist stays clear of the table
SETTLE = 8
EMPTY = 0.0008  # opening of fingers that hold nothing, m
LOST = 12  # steps without touch after which it has slipped away
ABOVE = 0.012  # of the thing over the floor on its way in, m
IN_FRONT = 0.13  # of the thing's middle from the opening while it comes to its height, m
DEEP = 0.055  # of the thing's middle behind the opening once it is in, m
PATIENCE = 150
HANDLE, HANDLE_TURNED = 0.02, 0.4  # from a hand that has it by its handle to where it would take it, m and rad


class Insert:
    """`action` is asked once a control step; `finished` once the hand is outside again."""

    def __init__(self, scene: Scene, name: str, where: str) -> None:
        self.scene, self.name, self.where = scene, name, where
        self.finished = False
        self._into = _way_in(scene, where)
        self._grip, self._axis, self._floor = _by_its_handle(scene, name), _axis(scene, name), _floor(scene, where)
        self._enter("reach")
        distance, angle = errors(scene, self._hand())
        if all(scene.touches(name)) and distance < HANDLE and angle < HANDLE_TURNED:  # opening would drop it
            self._enter("close" if scene.rests_on(name) else "carry")

    @property
    def attention(self) -> FloatArray:
        """(3,) point that the hand is heading for."""
        if self._phase in ("reach", "close"):
            return self._hand().position
        return self.scene.site(self.where).position

    def action(self) -> FloatArray:
        self._waited += 1
        if self._waited > PATIENCE and self._phase != "leave":
            self._enter("reach")
        return {"reach": self._reach, "close": self._close, "carry": self._carry, "leave": self._leave}[self._phase]()

    def _enter(self, phase: str) -> None:
        self._phase, self._waited, self._untouched, self._inside = phase, 0, 0, 0
        self._hold = self.scene.hand

    def _hand(self) -> Pose:
        pose = self.scene.pose(self.name) @ self._grip
        return Pose(pose.position, motion.nearer_half_turn(pose.rotation, self.scene.hand.rotation))

    def _reach(self) -> FloatArray:
        scene, goal = self.scene, self._hand()
        distance, angle = errors(scene, goal)
        if distance < 0.008 and angle < 0.12:
            self._enter("close")
            return towards(scene, goal, CLOSE)
        height = max(motion.travel_height(scene, scene.tcp, goal.position, 0.02), goal.position[2] + 0.05)
        return towards(scene, motion.funnel(scene, goal, height), OPEN)

    def _close(self) -> FloatArray:
        held = all(self.scene.touches(self.name))
        if self._waited >= (SETTLE if held else 2 * SETTLE):
            self._enter("carry" if held else "reach")
        return towards(self.scene, self._hold, CLOSE)

    def _carry(self) -> FloatArray:
        scene = self.scene
        self._untouched = 0 if any(scene.touches(self.name)) else self._untouched + 1
        if scene.opening < EMPTY or self._untouched > LOST:
            self._enter("reach")
            return towards(scene, Pose(scene.tcp - 0.05 * DOWN, scene.hand.rotation), OPEN)
        box, floor, thing = scene.box(self.name), self._floor, scene.pose(self.name)
        site = scene.site(self.where).position
        opening = site - self._into * (scene.site_half(self.where) @ np.abs(self._into))
        axis = thing.position + thing.rotation @ self._axis
        # In front of the opening first, at its height and in its middle; then in.
        aside = np.cross(self._into, DOWN)
        off = (site - axis) @ aside
        rise = floor + ABOVE - box.low[2]
        deep = (axis - opening) @ self._into
        straight = hand_rotation(np.cos(TILT) * DOWN + np.sin(TILT) * self._into, aside)
        rotation = motion.nearer_half_turn(straight, scene.hand.rotation)
        turned = errors(scene, Pose(scene.tcp, rotation))[1]
        wrong = max(abs(off) - 0.012, 0.0) + max(rise - 0.004, 0.0) + 0.1 * max(turned - 0.15, 0.0)
        wanted = float(np.clip(DEEP - 6.0 * wrong, -IN_FRONT, DEEP))
        if deep > DEEP - 0.01 and abs(off) < 0.02:
            self._inside += 1
            if (scene.rests_on(self.name) and box.low[2] < floor + 0.006) or self._inside > 2 * SETTLE:
                self._enter("leave")
                return towards(scene, self._hold, OPEN)
            rise = floor - 0.004 - box.low[2]
        move = (wanted - deep) * self._into + off * aside + np.array([0.0, 0.0, rise])
        return towards(scene, Pose(scene.tcp + move, rotation), CLOSE, speed=0.6, turning=0.4)

    def _leave(self) -> FloatArray:
        scene = self.scene
        if self._waited < 4:
            return towards(scene, self._hold, OPEN)
        back = self._hold.position - 0.14 * self._into + np.array([0.0, 0.0, 0.06])
        if self._waited > 6 and (np.linalg.norm(scene.tcp - back) < 0.04 or self._waited > 30):
            self.finished = True
        return towards(scene, Pose(back, self._hold.rotation), OPEN)


def behind_a_door(scene: Scene, where: str) -> bool:
    """Whether a place belongs to something with a door on hinges: it is entered from the side."""
    fixture = scene.parent(where)
    return fixture is not None and any(scene.joint(name).turns for name in scene.joints_of(fixture))


def _way_in(scene: Scene, where: str) -> FloatArray:
    """(3,) horizontal unit vector into a place, from its open side."""
    site = scene.site(where)
    parent = scene.parent(where) or where
    points = scene.points_now(parent)
    level = points[np.abs(points[:, 2] - site.position[2]) < 0.03][:, :2] - site.position[:2]
    ways = [site.rotation[:, i] * sign for i in (0, 1) for sign in (1.0, -1.0)]

    def blocked(way: FloatArray) -> int:
        along = level @ way[:2]
        across = level @ np.array([-way[1], way[0]])
        return int(((along < 0) & (along > -0.2) & (np.abs(across) < 0.05)).sum())

    return min(ways, key=blocked)


def _floor(scene: Scene, where: str) -> float:
    """Height on which a thing will stand there."""
    site = scene.site(where).position
    points = scene.points_now(scene.parent(where) or where)
    below = points[(points[:, 2] < site[2]) & np.all(np.abs(points[:, :2] - site[:2]) < 0.03, axis=1)]
    return float(below[:, 2].max())


def _axis(scene: Scene, name: str) -> FloatArray:
    """(3,) middle of the rim in the body's frame, with no height."""
    points = scene.points(name)
    rim = points[points[:, 2] > points[:, 2].max() - 0.01][:, :2]
    return np.array([*((rim.min(axis=0) + rim.max(axis=0)) / 2), 0.0])


def _by_its_handle(scene: Scene, name: str) -> Pose:
    """Pose of the hand about the outer part of the handle, in the frame of the thing's body."""
    points = scene.points(name)
    away = points[:, :2] - _axis(scene, name)[:2]
    radius = np.linalg.norm(away, axis=1)
    outer = radius > radius.max() - 0.012
    place, towards_it = points[outer].mean(axis=0), away[outer].mean(axis=0)
    out = np.array([*(towards_it / np.linalg.norm(towards_it)), 0.0])
    up = scene.pose(name).rotation.T @ -DOWN
    approach = -np.cos(TILT) * up - np.sin(TILT) * out
    return Pose(place, hand_rotation(approach, turn(up, np.pi / 2) @ out))
