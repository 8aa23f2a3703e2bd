"""From a goal of the hand to eef_delta actions: smooth, and a function of the present state alone.

A move ends along an approach axis: far from it the goal stays back, the nearer it is the further it advances (a
funnel), so that a hand pushed aside comes back by itself, and a policy without memory can imitate it.
"""

from __future__ import annotations

import cv2
import numpy as np

from policies.types import ActionSpace, FloatArray
from sim.demonstrations.skills.scene import Pose, Scene, turn

SPACE = ActionSpace("eef_delta")
OPEN, CLOSE = -1.0, 1.0
DOWN = np.array([0.0, 0.0, -1.0])
GAIN = 1.6  # of the distance left; OSC_POSE reaches what it is told within about four steps
TURN_GAIN = 1.3
MAX_TURN = 0.6  # of the action space
FUNNEL = 0.012  # lateral error below which the goal itself is approached, m
SLOPE = 5.0  # metres kept back for each metre of lateral error
RADIUS = 0.06  # what counts as lateral error of one radian, m
CORRIDOR = 0.07  # half width of the way in which things are cleared, m
CLEARANCE = 0.03
LEAN_WITHIN, LEAN_BEYOND = 0.45, 0.74  # horizontal distances from the arm's base, m


def rotation_vector(rotation: FloatArray) -> FloatArray:
    """(3,) axis times angle of a rotation matrix."""
    return np.asarray(cv2.Rodrigues(rotation)[0], float).reshape(3)


def hand_rotation(approach: FloatArray, opening: FloatArray) -> FloatArray:
    """The hand's axes with the fingers along `approach`, opening along the part of `opening` across it."""
    z = approach / np.linalg.norm(approach)
    y = opening - z * (z @ opening)
    y = y / np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z], axis=1)


def reachable_down(scene: Scene, position: FloatArray) -> FloatArray:
    """Approach axis from above: leaning in where straight down would fold the elbow past its limit, out beyond it."""
    away = position[:2] - np.array(scene.env.robots[0].base_pos[:2])
    distance = float(np.linalg.norm(away))
    inwards = np.clip((LEAN_WITHIN - distance) * 3.0, 0.0, 0.45)
    outwards = np.clip((distance - LEAN_BEYOND) * 4.0, 0.0, 0.6)
    lean = float(inwards - outwards)
    return np.array([*(-away / distance * np.sin(lean)), -np.cos(lean)])


def lean_from(axis: FloatArray, other: FloatArray) -> FloatArray:
    """The smallest rotation that takes unit vector `axis` to `other`."""
    cross = np.cross(axis, other)
    sine = float(np.linalg.norm(cross))
    return np.eye(3) if sine < 1e-6 else turn(cross / sine, float(np.arctan2(sine, axis @ other)))


def nearer_half_turn(rotation: FloatArray, reference: FloatArray) -> FloatArray:
    """The fingers are alike: `rotation`, or the same turned by 180 degrees about the approach axis."""
    other = rotation * np.array([-1.0, -1.0, 1.0])
    # The angle between two rotations falls with the trace of one times the other's inverse.
    return rotation if np.sum(rotation * reference) >= np.sum(other * reference) else other


def towards(scene: Scene, goal: Pose, grip: float, speed: float = 1.0, turning: float = MAX_TURN) -> FloatArray:
    """(7,) action straight to `goal`; speed is the longest translation, in parts of the action space's unit."""
    hand = scene.hand
    delta = GAIN * (goal.position - hand.position) / SPACE.position_scale
    delta = delta / max(1.0, float(np.linalg.norm(delta)) / speed)
    angle = TURN_GAIN * rotation_vector(goal.rotation @ hand.rotation.T) / SPACE.rotation_scale
    angle = angle / max(1.0, float(np.linalg.norm(angle)) / turning)
    return np.concatenate([np.clip(delta, -1, 1), np.clip(angle, -1, 1), [grip]])


def errors(scene: Scene, goal: Pose) -> tuple[float, float]:
    """Distance (m) and angle (rad) from the hand to `goal`."""
    hand = scene.hand
    angle = np.linalg.norm(rotation_vector(goal.rotation @ hand.rotation.T))
    return float(np.linalg.norm(goal.position - hand.position)), float(angle)


def travel_height(
    scene: Scene, start: FloatArray, end: FloatArray, hang: float, without: tuple[str, ...] = ()
) -> float:
    """Height of the TCP that clears all collision boxes on the straight way, with something `hang` m below the TCP."""
    low, high = scene.boxes(without)
    corridor = CORRIDOR * (1.0 if scene.hand.rotation[2, 2] < -0.9 else 1.8)  # a hand that lies is longer than wide
    line = end[:2] - start[:2]
    length = float(np.linalg.norm(line))
    unit = line / length if length > 1e-6 else np.array([1.0, 0.0])
    across = np.array([-unit[1], unit[0]])
    corners = [np.stack([x, y], axis=-1) for x in (low[:, 0], high[:, 0]) for y in (low[:, 1], high[:, 1])]
    along = np.stack([(c - start[:2]) @ unit for c in corners])
    aside = np.stack([(c - start[:2]) @ across for c in corners])
    inside = np.minimum(start, end)[:2] - corridor, np.maximum(start, end)[:2] + corridor
    met = (
        np.all((low[:, :2] < inside[1]) & (high[:, :2] > inside[0]), axis=1)
        & (along.max(axis=0) > -corridor)
        & (along.min(axis=0) < length + corridor)
        & (aside.max(axis=0) > -corridor)
        & (aside.min(axis=0) < corridor)
    )
    top = float(high[met, 2].max()) if met.any() else scene.table
    return top + CLEARANCE + hang


def funnel(
    scene: Scene, goal: Pose, height: float, back: float = 0.09, without_turn: bool = False, mouth: float = FUNNEL
) -> Pose:
    """The pose to head for now on the way to `goal`, which is entered along the hand's z axis.

    height: of the TCP while it travels, m.  back: how far the hand is kept back on the approach axis, m.
    mouth: lateral error below which the goal itself is approached, m; the wider, the sooner the way down begins.
    """
    hand = scene.hand
    axis = goal.rotation[:, 2]
    offset = hand.position - goal.position
    along = float(-offset @ axis)  # metres still to go
    lateral = offset + along * axis
    turned = 0.0 if without_turn else RADIUS * float(np.linalg.norm(rotation_vector(goal.rotation @ hand.rotation.T)))
    error = float(np.linalg.norm(lateral)) + max(turned - 0.006, 0.0)
    vertical = axis @ DOWN > 0.85
    most = max(height - goal.position[2], 0.05) if vertical else back
    kept = float(np.clip((error - mouth) * SLOPE, 0.0, most))
    point = goal.position - axis * kept
    if vertical:
        missing = np.clip((point[2] - hand.position[2] - 0.005) / 0.05, 0.0, 1.0)
        return Pose(np.array([*(point[:2] * (1 - missing) + hand.position[:2] * missing), point[2]]), goal.rotation)
    if along < -0.02 or np.linalg.norm(lateral) > 0.04 + 0.5 * along:  # outside the cone: over things to its middle
        over = goal.position - axis * back
        gap = float(np.linalg.norm((hand.position - over)[:2]))
        level = over[2] + np.clip((gap - 0.03) * 3.0, 0.0, max(height - over[2], 0.0))
        missing = np.clip((level - hand.position[2] - 0.005) / 0.05, 0.0, 1.0)
        return Pose(np.array([*(over[:2] * (1 - missing) + hand.position[:2] * missing), level]), goal.rotation)
    return Pose(point, goal.rotation)
