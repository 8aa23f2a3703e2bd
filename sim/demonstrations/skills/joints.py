"""Drawers, doors and knobs: handles pulled along the arc of their joint, faces pushed, knobs turned."""

from __future__ import annotations

import numpy as np

from policies.types import FloatArray
from sim.demonstrations.skills.motion import (
    CLOSE,
    DOWN,
    OPEN,
    errors,
    funnel,
    hand_rotation,
    nearer_half_turn,
    reachable_down,
    towards,
    travel_height,
)
from sim.demonstrations.skills.scene import Joint, Pose, Scene

AHEAD = 0.018  # how far ahead of a handle the hand is led: faster, and the pads slip, m
DEEPER = 0.005  # the middle of the pads lies above the TCP, m
SETTLE = 8
BEYOND = 8  # steps for which a drawer is pulled or pushed on, towards the end of its way
PUSH_TILT = 0.55  # rad from straight down
PATIENCE = 150
HELD, HELD_TURNED = 0.03, 0.5  # from a hand that has a handle or knob to where it would take it, m and rad
OUT_ON_DOOR = 0.6  # of the way from a door's middle to its free edge


class _Joined:
    """What skills on one joint share: direction, the predicate, where the hand goes, and the way out."""

    _grip: Pose  # of the hand in the frame of the body that the joint moves

    def __init__(self, scene: Scene, joint: Joint, predicate: list[str], sign: float) -> None:
        self.scene, self.joint, self.predicate, self.sign = scene, joint, predicate, sign
        self.finished = False
        self._phase, self._waited = "reach", 0
        self._hold = scene.hand
        self._beyond = 0

    @property
    def attention(self) -> FloatArray:
        return self._goal().position

    def _goal(self) -> Pose:
        """Where the hand takes hold or pushes, as the joint stands now."""
        pose = self.joint.pose @ self._grip
        return Pose(pose.position, nearer_half_turn(pose.rotation, self.scene.hand.rotation))

    def _has_it(self) -> bool:
        """Whether the hand has taken hold already, as where another was at the wheel: then it does not let go first."""
        distance, angle = errors(self.scene, self._goal())
        return all(self.scene.touches_body(self.joint.body)) and distance < HELD and angle < HELD_TURNED

    def _enter(self, phase: str) -> None:
        self._phase, self._waited = phase, 0
        self._hold = self.scene.hand

    def _leave(self) -> FloatArray:
        """Open, and back along the approach axis."""
        scene = self.scene
        if self._waited < 4:
            return towards(scene, self._hold, OPEN)
        back = self._hold.position - self._hold.rotation[:, 2] * 0.09
        if self._waited > 6 and (np.linalg.norm(scene.tcp - back) < 0.03 or self._waited > 25):
            self.finished = True
        return towards(scene, Pose(back, self._hold.rotation), OPEN)

    def _travel(self, goal: Pose) -> float:
        return travel_height(self.scene, self.scene.tcp, goal.position, 0.02)


class Pull(_Joined):
    """Take the handle of a drawer or door and lead it along its joint until the predicate holds."""

    def __init__(self, scene: Scene, joint: Joint, predicate: list[str], sign: float) -> None:
        super().__init__(scene, joint, predicate, sign)
        low, high = scene.body_boxes(joint.body)
        self._out = _way(joint, (low.min(axis=0) + high.max(axis=0)) / 2, sign)
        handle = int(np.argmax(np.maximum(low @ self._out, high @ self._out)))
        centre, size = (low[handle] + high[handle]) / 2, high[handle] - low[handle]
        long = np.eye(3)[int(np.argmax(size))]
        frame = joint.pose
        tilt = np.deg2rad(80.0)  # from straight down towards straight in
        approach = -np.sin(tilt) * self._out + np.cos(tilt) * DOWN
        rotation = hand_rotation(approach, np.cross(long, approach))
        self._grip = frame.inverse @ Pose(centre + DEEPER * approach, rotation)
        if self._has_it():
            self._enter("close")

    def action(self) -> FloatArray:
        scene = self.scene
        self._waited += 1
        goal = self._goal()
        distance, angle = errors(scene, goal)
        if self._phase == "reach":
            if distance < 0.009 and angle < 0.15:
                self._enter("close")
                return towards(scene, goal, CLOSE)
            return towards(scene, funnel(scene, goal, self._travel(goal)), OPEN)
        if self._phase == "close":
            if self._waited >= SETTLE:
                self._enter("pull")
            return towards(scene, self._hold, CLOSE)
        if self._phase == "pull":
            self._beyond = self._beyond + 1 if scene.holds(self.predicate) else 0
            if self._beyond > BEYOND:
                self._enter("leave")
                return towards(scene, self._hold, OPEN)
            if distance > 0.05 or self._waited > PATIENCE:
                self._enter("reach")
                return towards(scene, self._hold, OPEN)
            lead = self.joint.moved(goal.position, self.sign * 0.03) - goal.position
            lead = lead / np.linalg.norm(lead) * AHEAD
            return towards(scene, Pose(goal.position + lead, goal.rotation), CLOSE)
        return self._leave()


class Push(_Joined):
    """Push the face of a drawer or door along its joint with closed fingers, a little beyond the predicate."""

    def __init__(self, scene: Scene, joint: Joint, predicate: list[str], sign: float) -> None:
        super().__init__(scene, joint, predicate, sign)
        low, high = scene.body_boxes(joint.body)
        middle = (low.min(axis=0) + high.max(axis=0)) / 2
        out = _way(joint, middle, -sign)
        self._outward = joint.pose.rotation.T @ out
        front = int(np.argmax(np.maximum(low @ out, high @ out)))
        centre = (low[front] + high[front]) / 2
        if not joint.slides:  # near the free edge, where it moves easily
            arm = middle - joint.anchor
            arm -= joint.axis * (arm @ joint.axis)
            centre = middle + OUT_ON_DOOR * arm
            centre[2] = high[:, 2].max() - 0.02  # so that the palm stays above it
        contact = centre + out * (scene.extent(joint.body, out) - centre @ out + 0.012)
        if joint.slides:
            # The wrist stays clear of what is above.
            approach = np.cos(PUSH_TILT) * DOWN - np.sin(PUSH_TILT) * out
        else:
            approach = reachable_down(scene, contact)
        self._grip = joint.pose.inverse @ Pose(contact, hand_rotation(approach, np.cross(out, DOWN)))
        if self._at_it():
            self._enter("push")

    def _at_it(self) -> bool:
        """Whether the hand is at the face already, as where another was at the wheel."""
        goal, out = self._goal(), self._out
        off = self.scene.tcp - goal.position
        beside = float(np.linalg.norm(off - out * (off @ out)))
        return beside < HELD and abs(float(off @ out)) < HELD and errors(self.scene, goal)[1] < HELD_TURNED

    @property
    def _out(self) -> FloatArray:
        """(3,) away from the face that is pushed; of a door it turns with it."""
        return self.joint.pose.rotation @ self._outward

    def action(self) -> FloatArray:
        scene = self.scene
        self._waited += 1
        goal = self._goal()
        angle = errors(scene, goal)[1]
        if self._phase == "reach":
            ready = Pose(goal.position + 0.03 * self._out, goal.rotation)
            if errors(scene, ready)[0] < 0.015 and angle < 0.2:
                self._enter("push")
            height = max(travel_height(scene, scene.tcp, ready.position, 0.02), ready.position[2] + 0.05)
            return towards(scene, funnel(scene, ready, height), CLOSE)
        if self._phase == "push":
            self._beyond = self._beyond + 1 if scene.holds(self.predicate) else 0
            if self._beyond > BEYOND:
                self._enter("leave")
                return towards(scene, self._hold, CLOSE)
            lead = self.joint.moved(goal.position, self.sign * 0.05) - goal.position
            off, out = scene.tcp - goal.position, self._out
            if np.linalg.norm(off - out * (off @ out)) > 0.06 or self._waited > PATIENCE:
                self._enter("reach")
            return towards(scene, Pose(goal.position + lead / np.linalg.norm(lead) * 0.06, goal.rotation), CLOSE)
        return self._leave()


def _way(joint: Joint, point: FloatArray, sign: float) -> FloatArray:
    """(3,) unit vector along which a point of a moved part goes; not its origin, which a door has on its hinge."""
    moved = joint.moved(point, sign * 1e-3) - point
    return np.asarray(moved / np.linalg.norm(moved))


class Turn(_Joined):
    """Take the ridge of a knob from above and turn it about its joint until the predicate holds."""

    def __init__(self, scene: Scene, joint: Joint, predicate: list[str], sign: float) -> None:
        super().__init__(scene, joint, predicate, sign)
        low, high = scene.body_boxes(joint.body)
        ridge = int(np.argmax(high[:, 2]))
        size = high[ridge] - low[ridge]
        top = np.array([*joint.anchor[:2], high[ridge, 2] - 0.012])
        across = np.eye(3)[int(np.argmin(size[:2]))]
        self._grip = joint.pose.inverse @ Pose(top, hand_rotation(reachable_down(scene, top), across))
        if self._has_it():
            self._enter("close")

    def action(self) -> FloatArray:
        scene = self.scene
        self._waited += 1
        goal = self._goal()
        distance, angle = errors(scene, goal)
        if self._phase == "reach":
            if distance < 0.008 and angle < 0.12:
                self._enter("close")
                return towards(scene, goal, CLOSE)
            height = max(self._travel(goal), goal.position[2] + 0.05)
            return towards(scene, funnel(scene, goal, height), OPEN)
        if self._phase == "close":
            if self._waited >= SETTLE:
                self._enter("turn")
            return towards(scene, self._hold, CLOSE)
        if self._phase == "turn":
            if scene.holds(self.predicate):
                self._enter("leave")
                return towards(scene, self._hold, OPEN)
            if distance > 0.05 or self._waited > PATIENCE:
                self._enter("reach")
                return towards(scene, self._hold, OPEN)
            ahead = self.joint.moved(goal.position + goal.rotation[:, 0], self.sign * 0.9) - self.joint.moved(
                goal.position, self.sign * 0.9
            )
            rotation = hand_rotation(goal.rotation[:, 2], np.cross(goal.rotation[:, 2], ahead))
            return towards(
                scene, Pose(goal.position, nearer_half_turn(rotation, scene.hand.rotation)), CLOSE, turning=0.4
            )
        return self._leave()


def along_joint(scene: Scene, predicate: list[str]) -> Pull | Push | Turn:
    """The skill that moves a joint until `open`, `close`, `turnon` or `turnoff` holds."""
    kind, name = predicate
    joint = scene.joint(scene.joints_of(name)[0])
    properties = scene.env.get_object(scene.parent(name) or name).object_properties["articulation"]
    wanted = float(np.mean(properties[f"default_{kind}_ranges"]))
    sign = float(np.sign(wanted - joint.value)) or 1.0
    if kind in ("turnon", "turnoff"):
        return Turn(scene, joint, predicate, sign)
    return Pull(scene, joint, predicate, sign) if kind == "open" else Push(scene, joint, predicate, sign)
