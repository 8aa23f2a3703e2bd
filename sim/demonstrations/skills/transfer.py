"""Pick something up and put it where a predicate wants it."""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray
from sim.demonstrations.skills.grasps import Grasp, grasps_of, hits, palm_height
from sim.demonstrations.skills.motion import CLOSE, DOWN, OPEN, errors, funnel, rotation_vector, towards, travel_height
from sim.demonstrations.skills.places import Place, Target
from sim.demonstrations.skills.scene import Pose, Scene

EMPTY = 0.0008  # opening of fingers that hold nothing, m
NEAR, ALIGNED = 0.008, 0.09  # where fingers close, m and rad
UPRIGHT = 0.9  # cosine of the hand's lean up to which the palm is kept above things
PATIENCE = 90  # steps for one phase, after which another grasp is tried
SETTLE = 6
COVERED = 0.005  # of the pads above the TCP, at least, m: a rim; less of something flat slips
LOST = 4  # steps without touch after which something has slipped away


class Transfer:
    """One object to one place.  `action` is asked once a control step; `finished` once the hand is clear again."""

    def __init__(self, scene: Scene, name: str, place: Place) -> None:
        self.scene, self.name, self.place = scene, name, place
        self.finished = False
        self._refused: list[Grasp] = []
        self._variants: list[Grasp] = []
        touched, rests = scene.touches(name), scene.rests_on(name)
        if scene.opening > EMPTY and (all(touched) or (any(touched) and not rests)):
            self._go_on("close" if rests else "carry")
        else:
            self._start()

    @property
    def attention(self) -> FloatArray:
        """(3,) point that the hand is heading for."""
        if self._phase in ("reach", "close"):
            return self._grasp.in_world(self.scene, self.name).position
        return self.place.target().position

    def action(self) -> FloatArray:
        self._waited += 1
        if self._waited > PATIENCE:
            self._refused.append(self._grasp)
            self._start()
        return {"reach": self._reach, "close": self._close, "carry": self._carry, "release": self._release}[
            self._phase
        ]()

    def _start(self) -> None:
        self._enter("reach")
        self._grasp = self._best_grasp()

    def _go_on(self, phase: str) -> None:
        """The hand has it already, as where another was at the wheel: opening would drop it."""
        scene, own, hand = self.scene, self.scene.pose(self.name), self.scene.hand
        self._grasp = Grasp(own.inverse @ hand, 2 * scene.opening)
        self._hold, self._rotation = hand, self.place.upright(own.rotation) @ own.rotation.T @ hand.rotation
        self._enter(phase)

    def _enter(self, phase: str) -> None:
        self._phase, self._waited, self._untouched = phase, 0, 0

    def _reach(self) -> FloatArray:
        scene = self.scene
        goal = self._grasp.in_world(scene, self.name)
        distance, angle = errors(scene, goal)
        if distance < NEAR and angle < ALIGNED:
            self._enter("close")
            self._hold = Pose(scene.tcp, goal.rotation)
            return towards(scene, goal, CLOSE)
        height = max(travel_height(scene, scene.tcp, goal.position, 0.005), goal.position[2] + 0.05)
        near = float(np.linalg.norm((goal.position - scene.tcp)[:2])) < 0.02
        return towards(scene, funnel(scene, goal, height), OPEN, speed=0.6 if near else 1.0)

    def _close(self) -> FloatArray:
        scene = self.scene
        if self._waited >= SETTLE:
            if scene.opening < EMPTY:
                self._refused.append(self._grasp)
                self._start()
                return towards(scene, Pose(scene.tcp - 0.05 * DOWN, scene.hand.rotation), OPEN)
            if all(scene.touches(self.name)) or self._waited >= 2 * SETTLE:
                self._enter("carry")
                self._rotation = scene.hand.rotation
        return towards(scene, self._hold, CLOSE)

    def _goal(self, target: Target) -> Pose:
        """Of the hand, with the object where it belongs."""
        scene = self.scene
        own, hand = scene.pose(self.name), scene.hand
        rotation = self._grasp.in_world(scene, self.name).rotation if target.heading is None else None
        if rotation is None:
            assert target.heading is not None
            rotation = target.heading @ own.rotation.T @ hand.rotation
            position = target.position + rotation @ (hand.rotation.T @ (hand.position - own.position))
        else:
            rotation = self._rotation
            position = hand.position + target.position - own.position
        if -rotation[2, 2] < UPRIGHT:
            return Pose(position, rotation)
        floor = palm_height(scene, Pose(position, rotation), (self.name,), fingers=False)
        return Pose(np.array([*position[:2], max(position[2], floor)]), rotation)

    def _carry(self) -> FloatArray:
        scene = self.scene
        target = self.place.target()
        self._untouched = 0 if any(scene.touches(self.name)) else self._untouched + 1
        if scene.opening < EMPTY or self._untouched > LOST:
            self._refused.append(self._grasp)
            self._start()
            return towards(scene, Pose(scene.tcp - 0.05 * DOWN, scene.hand.rotation), OPEN)
        goal = self._goal(target)
        hang = max(float(scene.tcp[2]) - float(scene.box(self.name).low[2]), 0.01)
        height = max(travel_height(scene, scene.tcp, goal.position, hang, (self.name,)), goal.position[2])
        distance, angle = errors(scene, goal)
        aside = float(np.linalg.norm((goal.position - scene.tcp)[:2]))
        low = scene.tcp[2] - goal.position[2]
        down = low < 0.006 or (low < 0.02 and scene.rests_on(self.name))
        if -goal.rotation[2, 2] < UPRIGHT:
            down = scene.rests_on(self.name) and distance < 0.03
        if aside < target.tolerance and angle < (0.12 if target.heading is None else 0.2) and down:
            self._enter("release")
            self._hold = scene.hand
            return towards(scene, self._hold, OPEN)
        speed = 0.45 if aside < 0.03 and low < 0.05 else 1.0
        return towards(scene, funnel(scene, goal, height, mouth=target.mouth), CLOSE, speed=speed)

    def _release(self) -> FloatArray:
        scene = self.scene
        if self._waited < 4:
            return towards(scene, self._hold, OPEN)
        up = self._hold.position - self._hold.rotation[:, 2] * 0.10
        if self._waited > 6 and np.linalg.norm(scene.tcp - up) < 0.04:
            self.finished = True
        return towards(scene, Pose(up, self._hold.rotation), OPEN)

    def _best_grasp(self) -> Grasp:
        """Nearest to the hand's present turn, clear of neighbours here and there, and well tried."""
        scene = self.scene
        target = self.place.target()
        own, middle = scene.pose(self.name), scene.data.xipos[scene.env.obj_body_id[self.name]].copy()
        options = [grasp for grasp in grasps_of(scene, self.name) if grasp not in self._refused]
        if not options:
            self._refused.clear()
            options = list(grasps_of(scene, self.name))

        def blocked(grasp: Grasp, hand: Pose) -> float:
            if grasp in variants:
                shallow = scene.box(self.name).high[2] < hand.position[2] + COVERED
                return 0.1 if shallow or hits(scene, hand, (self.name,)) else 0.01
            return min(max(palm_height(scene, hand, (self.name,), margin=0.015) - hand.position[2], 0.0), 0.1)

        def cost(grasp: Grasp) -> float:
            hand = grasp.in_world(scene, self.name)
            turned = float(np.linalg.norm(rotation_vector(hand.rotation @ scene.hand.rotation.T)))
            from_home = abs(float(np.arctan2(hand.rotation[0, 1], -hand.rotation[1, 1])))
            rotation, there = hand.rotation, hand.position + target.position - own.position
            if target.heading is not None:
                rotation = target.heading @ own.rotation.T @ hand.rotation
                there = target.position + target.heading @ own.rotation.T @ (hand.position - own.position)
            raised = 0.0
            if grasp in variants:
                raised = 0.05 if hits(scene, Pose(there, rotation), (self.name,)) else 0.0
            elif -rotation[2, 2] > UPRIGHT:
                raised = max(palm_height(scene, Pose(there, rotation), (self.name,), fingers=False) - there[2], 0.0)
            tilted = float(np.arccos(np.clip(-hand.rotation[2, 2], -1, 1))) * (2.0 if grasp in variants else 1.0)
            off = float(np.linalg.norm((hand.position - middle)[:2]))  # a corner is missed by a little
            reach = float(np.linalg.norm(hand.position[:2] - scene.env.robots[0].base_pos[:2]))
            return (
                30.0 * blocked(grasp, hand) + 10.0 * min(raised, 0.3) + 0.10 * turned + 0.08 * from_home
                + 10 * grasp.slip + 0.6 * grasp.tilt + 60.0 * max(grasp.width - 0.056, 0.0) + tilted + 0.3 * reach
                + 6.0 * off
            )  # fmt: skip

        variants: list[Grasp] = []
        best = min(options, key=cost)
        if blocked(best, best.in_world(scene, self.name)) > 0:
            # Beside what is higher, such as a cabinet over its open drawer, the hand has room where it leans away.
            if not self._variants:
                self._variants = [v for grasp in grasps_of(scene, self.name) for v in grasp.variants()]
            variants = [grasp for grasp in self._variants if grasp not in self._refused]
            best = min([best, *variants], key=cost)
        return best
