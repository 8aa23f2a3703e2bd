"""Slide something flat over the table, with closed fingers inside its rim."""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray
from sim.demonstrations.skills.motion import (
    CLOSE,
    DOWN,
    errors,
    funnel,
    hand_rotation,
    nearer_half_turn,
    towards,
    travel_height,
)
from sim.demonstrations.skills.places import Place
from sim.demonstrations.skills.scene import Pose, Scene

INSIDE = 0.62  # where the fingers press, in parts of the radius
PRESS = 0.010  # height of the TCP above the lowest point of the thing, m
AHEAD = 0.035  # m
ARRIVED = 0.012


class Slide:
    """Fingers press on the inner side of the rim that leads: so the thing follows and does not turn away."""

    def __init__(self, scene: Scene, name: str, place: Place, predicate: list[str]) -> None:
        self.scene, self.name, self.place, self.predicate = scene, name, place, predicate
        self.finished = False
        self._pushing = False
        box = scene.box(name)
        self._radius = float((box.high - box.low)[:2].min()) / 2

    @property
    def attention(self) -> FloatArray:
        return self._contact().position

    def _contact(self) -> Pose:
        scene = self.scene
        box = scene.box(self.name)
        way = (self.place.target().position - box.centre)[:2]
        way = way / max(float(np.linalg.norm(way)), 1e-6)
        at = np.array([*(box.centre[:2] + INSIDE * self._radius * way), box.low[2] + PRESS])
        rotation = hand_rotation(DOWN, np.array([-way[1], way[0], 0.0]))
        return Pose(at, nearer_half_turn(rotation, scene.hand.rotation))

    def action(self) -> FloatArray:
        scene = self.scene
        way = (self.place.target().position - scene.box(self.name).centre)[:2]
        left = float(np.linalg.norm(way))
        if self.finished or (left < ARRIVED and scene.holds(self.predicate)):
            self.finished = True
            return towards(scene, Pose(scene.tcp - 0.1 * DOWN, scene.hand.rotation), CLOSE)
        goal = self._contact()
        distance = errors(scene, goal)[0]
        aside = float(np.linalg.norm((scene.tcp - goal.position)[:2]))
        self._pushing = aside < 0.04 and scene.tcp[2] < goal.position[2] + 0.012 if self._pushing else distance < 0.01
        if not self._pushing:
            height = max(travel_height(scene, scene.tcp, goal.position, 0.01), goal.position[2] + 0.05)
            return towards(scene, funnel(scene, goal, height, without_turn=True), CLOSE, speed=0.7)
        lead = np.array([*(way / left * min(AHEAD, left + 0.01)), -0.004])
        return towards(scene, Pose(goal.position + lead, goal.rotation), CLOSE, speed=0.7)
