"""Where an object has to go so that a goal predicate holds: on something, in something, on a place of the table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.types import FloatArray, VegaError
from sim.demonstrations.skills.motion import DOWN, FUNNEL, lean_from
from sim.demonstrations.skills.scene import Pose, Scene, turn

ABOVE = 0.006  # of an object's bottom over what it is set down on, m
MOST_LEAN = 0.7  # rad
BESIDE_POST = 0.05  # of what leans from the middle of its place, m
WIDE = 0.03  # m: a hand that waits over a slope to be better aligned teaches a policy to wait
STEEP = 0.8  # cosine of the slope from which a thing is laid along it instead of standing


@dataclass(frozen=True)
class Target:
    """position (3,) of the origin of an object's body; heading: its rotation (3, 3), or None where any will do.

    tolerance: lateral error with which it is let go, m.  mouth: as `funnel` has it.
    """

    position: FloatArray
    heading: FloatArray | None = None
    tolerance: float = 0.012
    mouth: float = FUNNEL


class Place:
    """The place that a predicate asks for, followed as what it belongs to moves."""

    def __init__(self, scene: Scene, name: str, predicate: list[str]) -> None:
        self.scene, self.name = scene, name
        self.inside, self.where = predicate[0] == "in", predicate[2]
        self.is_site = self.where in scene.env.object_sites_dict
        if not self.is_site and self.where not in scene.names:
            raise VegaError(f"Nothing in this scene is called '{self.where}': no skill can put something there.")
        self.under = scene.parent(self.where) if self.is_site else self.where
        self._standing = self.upright(scene.pose(name).rotation)
        self._side = 1.0 if self.is_site and scene.site(self.where).rotation[0, 0] > 0 else -1.0
        self.offset = self._free_spot() if self.is_site else np.zeros(2)

    def target(self) -> Target:
        """Of the object's body, now."""
        scene, name = self.scene, self.name
        frame = scene.site(self.where) if self.is_site else scene.pose(self.where)
        if self.is_site and abs(frame.rotation[2, 2]) < STEEP and not self.inside:
            return self._leaning(frame)
        own, points = scene.pose(name), scene.world_points(name)
        bottom = own.position[2] - scene.box(name).low[2]
        xy = frame.position[:2] + self.offset
        floor = self._floor(xy, frame, own, points)
        return Target(np.array([*xy, floor + bottom + ABOVE]), self._heading(own, points))

    @staticmethod
    def upright(rotation: FloatArray) -> FloatArray:
        """The same (3, 3) with the axis of the body that is nearest to the vertical on it, as when the thing stands."""
        axis = rotation[:, int(np.argmax(np.abs(rotation[2])))]
        return lean_from(axis * np.sign(axis[2]), -DOWN) @ rotation

    def _floor(self, xy: FloatArray, frame: Pose, own: Pose, points: FloatArray) -> float:
        """Height of what the object, now at `own` and filling `points`, will stand on."""
        scene = self.scene
        if self.under is None:
            return float(frame.position[2]) - 0.007 if self.is_site else scene.table
        base = points[points[:, 2] < points[:, 2].min() + 0.012]
        radius = float(np.abs(base[:, :2] - own.position[:2]).max())
        support = scene.points_now(self.under)
        if self.inside:
            support = support[support[:, 2] < frame.position[2]]
            radius = 0.02
        near = support[np.all(np.abs(support[:, :2] - xy) < min(radius, 0.045), axis=1)]
        return float(near[:, 2].max()) if len(near) else float(frame.position[2])

    def _heading(self, own: Pose, points: FloatArray) -> FloatArray | None:
        """A thing much longer than the place is wide is turned so that it fits, about the vertical."""
        if not self.inside:
            return None
        half = self.scene.site_half(self.where)[:2]
        flat = points[:, :2] - own.position[:2]
        if np.all(np.ptp(flat, axis=0).max() < 2 * half - 0.005):
            return None
        best = None
        for angle in np.linspace(-np.pi / 2, np.pi / 2, 73):
            rotation = turn(-DOWN, float(angle))
            extent = np.ptp(flat @ rotation[:2, :2].T, axis=0)
            cost = (
                float(np.maximum(extent - 2 * half, 0).sum())
                + 0.002 * abs(angle)
                + 0.05 * float(extent[np.argmin(half)])
            )
            if best is None or cost < best[0]:
                best = (cost, rotation @ own.rotation)
        assert best is not None
        return best[1]

    def _free_spot(self) -> FloatArray:
        """Where in a region the object stands clear of others: the middle if that is free."""
        scene = self.scene
        frame = scene.site(self.where)
        half = self.scene.site_half(self.where)[:2]
        points = scene.world_points(self.name)
        own = scene.pose(self.name).position[:2]
        low, high = points[:, :2].min(axis=0) - own, points[:, :2].max(axis=0) - own
        room = np.maximum(half - 0.015, 0.0)
        if self.inside:
            room = np.maximum(half - (high - low) / 2, 0.0) * 0.6
            for name in scene.joints_of(self.where)[:1]:  # in a drawer: to the front, where the hand has room
                joint = scene.joint(name)
                return np.asarray((joint.axis * np.sign(joint.value))[:2] * room / 0.6)
        others = []
        lowest = frame.position[2] - abs(frame.rotation[2]) @ np.asarray(scene.env.object_sites_dict[self.where].size)
        for other in scene.movable:
            if other not in (self.name, self.under):
                box = scene.box(other)
                if (
                    box.high[2] > lowest
                    and np.all(box.low[:2] < frame.position[:2] + half + 0.1)
                    and np.all(box.high[:2] > frame.position[:2] - half - 0.1)
                ):
                    others.append(box)
        shared = not self.inside and self._still_to_come()
        across = int(np.argmax(room / (high - low)))  # where two of its kind stand beside each other most easily
        best, spot = -np.inf, np.zeros(2)
        for x in np.linspace(room[0], -room[0], 7):
            for y in np.linspace(-room[1], room[1], 7):
                at = frame.position[:2] + np.array([x, y])
                gaps = [np.maximum(box.low[:2] - (at + high), at + low - box.high[:2]).max() for box in others]
                free = min([*gaps, 0.02])
                if shared:
                    value = free + 0.2 * abs((x, y)[across]) - 0.05 * abs((x, y)[1 - across])
                else:
                    value = free - 0.05 * np.hypot(x, y)
                if value > best:
                    best, spot = value, np.array([x, y])
        return spot

    def _still_to_come(self) -> bool:
        """Whether the task wants something else in the same place, which is not there yet."""
        goal = self.scene.env.parsed_problem["goal_state"]
        return any(
            p[0] in ("on", "in") and p[1] != self.name and p[2] == self.where and not self.scene.holds(p) for p in goal
        )

    def _leaning(self, frame: Pose) -> Target:
        """Leaning up a slope, as far as the wrist gets, its foot at the lower end."""
        along, out = frame.rotation[:, 2], frame.rotation[:, 1]
        along, out = along * (1.0 if along[2] > 0 else -1.0), out * (1.0 if out[2] > 0 else -1.0)
        axis = np.cross(-DOWN, along)
        lean = min(float(np.arccos(np.clip(along[2], -1, 1))), MOST_LEAN)
        rotation = turn(axis / np.linalg.norm(axis), lean) @ self._standing
        aside = frame.rotation[:, 0] * BESIDE_POST * self._side
        return Target(frame.position + 0.015 * along + 0.008 * out + aside, rotation, 0.02, WIDE)
