"""Where to take hold of an object: candidates from its collision boxes, and those that were tried in the simulator.

A candidate is a place of the TCP with the fingers pointing down: something lies between the pads, and nothing where
fingers and palm are.  Boxes, bottles, rims and handles all come out of this one search.  `measure_grasps.py` tries the
best of each asset once and keeps what held in grasps.json, in the frame of the object's body.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from policies.types import FloatArray, VegaError
from sim.demonstrations.skills.motion import (
    DOWN,
    hand_rotation,
    lean_from,
    nearer_half_turn,
    reachable_down,
    rotation_vector,
)
from sim.demonstrations.skills.scene import Pose, Scene, turn

TABLE = Path(__file__).with_name("grasps.json")
PAD_HALF = 0.008  # of the pads across, m; they reach from 12 mm above the TCP to 4 mm below it
FINGER_HALF = 0.011
TIP = 0.012  # of the fingers below the TCP
REACH = 0.036  # of the open pads from the TCP
THICK = 0.054  # outer side of the open fingers
PALM = 0.026  # of the palm above the TCP
PALM_HALF = np.array([0.032, 0.106])
FLANGE = 0.10  # from the palm's lower side to where the hand meets the round wrist
WRIST_HALF, WRIST = np.array([0.05, 0.05]), 0.26  # half width of the wrist, and how far it reaches above the TCP
LEANS = (0.0, 0.3, -0.3, 0.5, -0.5)  # of the hand about the axis along which it opens, rad
SHALLOWER = (0.0, 0.012)  # m
GRID = 0.008
YAWS = 12
HOME = hand_rotation(DOWN, np.array([0.0, -1.0, 0.0]))


@dataclass(frozen=True, eq=False)
class Grasp:
    """Pose of the hand in the frame of the object's body; slip (m) and tilt (rad) as measured, 0 before."""

    hand: Pose
    width: float
    slip: float = 0.0
    tilt: float = 0.0

    def in_world(self, scene: Scene, name: str) -> Pose:
        """Pose of the hand now, of the two half turns the one nearer to the hand's home."""
        pose = scene.pose(name) @ self.hand
        rotation = lean_from(DOWN, reachable_down(scene, pose.position)) @ nearer_half_turn(pose.rotation, HOME)
        return Pose(pose.position, rotation)

    def variants(self) -> list[Grasp]:
        """Less deep, and leaned about the axis on which the pads press, so that they press on the same spots."""
        axes, at = self.hand.rotation, self.hand.position
        return [
            replace(self, hand=Pose(at - back * axes[:, 2], turn(axes[:, 1], lean) @ axes))
            for back in SHALLOWER for lean in LEANS if back or lean
        ]  # fmt: skip


def candidates(scene: Scene, name: str) -> list[Grasp]:
    """All places for the hand about an object as it stands, best first."""
    points = scene.world_points(name)
    pose = scene.pose(name)
    low, high = points.min(axis=0), points.max(axis=0)
    middle = scene.data.xipos[scene.env.obj_body_id[name]].copy()
    levels = np.unique(np.clip(high[2] - np.array([0.010, 0.018, 0.024, 0.045, 0.07]), low[2] + TIP + 0.001, None))
    found: list[tuple[float, Grasp]] = []
    for yaw in np.arange(YAWS) * np.pi / YAWS:
        opening = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        rotation = hand_rotation(DOWN, opening)
        local = (points - middle) @ rotation
        spans = [np.arange(local[:, i].min() - GRID, local[:, i].max() + GRID, GRID) for i in (0, 1)]
        for level in levels:
            depth = middle[2] - level
            near = np.abs(local[:, 2] - depth)
            palm = local[local[:, 2] < depth - PALM]
            fingers = local[(local[:, 2] < depth + TIP) & (near < 0.045)]
            pads = local[(local[:, 2] < depth + 0.005) & (local[:, 2] > depth - 0.012)]
            for x in spans[0]:
                across = pads[np.abs(pads[:, 0] - x) < PAD_HALF + 0.002]
                shafts = fingers[np.abs(fingers[:, 0] - x) < FINGER_HALF][:, 1]
                above = palm[np.abs(palm[:, 0] - x) < PALM_HALF[0] + 0.003][:, 1]
                for y in spans[1]:
                    between = across[np.abs(across[:, 1] - y) < REACH][:, 1]
                    if len(between) < 4 or np.any(np.abs(above - y) < PALM_HALF[1]):
                        continue
                    centre, width = (between.min() + between.max()) / 2, float(np.ptp(between))
                    outside = np.abs(shafts - centre)
                    if abs(centre - y) > GRID or width > 2 * REACH - 0.006 or width < 0.002:
                        continue
                    if np.any((outside > REACH) & (outside < THICK)):
                        continue
                    tcp = middle + rotation @ np.array([x, centre, depth])
                    off = abs(float(x)) + 0.3 * abs(float(centre))  # it swings about the axis on which the pads press
                    filled = len(np.unique(np.round(across[np.abs(across[:, 1] - centre) < REACH][:, 0] / 0.004)))
                    cost = off + 0.3 * max(width - 0.045, 0) - 0.004 * filled + 0.15 * abs(level - (high[2] - 0.024))
                    found.append((cost, Grasp(pose.inverse @ Pose(tcp, rotation), width)))
    return [grasp for _, grasp in sorted(found, key=lambda pair: pair[0])]


def diverse(grasps: list[Grasp], count: int) -> list[Grasp]:
    """The first of each kind: places at least 15 mm or headings at least 25 degrees apart."""
    kept: list[Grasp] = []
    for grasp in grasps:
        if all(
            np.linalg.norm(grasp.hand.position - other.hand.position) > 0.015
            or np.linalg.norm(
                rotation_vector(nearer_half_turn(grasp.hand.rotation, other.hand.rotation) @ other.hand.rotation.T)
            )
            > 0.43
            for other in kept
        ):
            kept.append(grasp)
        if len(kept) == count:
            break
    return kept


@cache
def measured() -> dict[str, tuple[Grasp, ...]]:
    """Asset -> grasps that held, best first."""
    if not TABLE.is_file():
        return {}
    table = json.loads(TABLE.read_text())
    return {
        asset: tuple(
            Grasp(Pose(np.array(row["position"]), np.array(row["rotation"])), row["width"], row["slip"], row["tilt"])
            for row in rows
        )
        for asset, rows in table.items()
    }


def known_grasps(scene: Scene, name: str) -> tuple[Grasp, ...]:
    return measured().get(scene.category(name), ())


def grasps_of(scene: Scene, name: str) -> tuple[Grasp, ...]:
    """Measured grasps of an object.  Raises VegaError for an asset that was never tried."""
    found = known_grasps(scene, name)
    if not found:
        raise VegaError(
            f"No way of grasping '{scene.category(name)}' is known: try it with "
            "`python -m sim.demonstrations.skills.measure_grasps`."
        )
    return found


def palm_height(
    scene: Scene, hand: Pose, without: tuple[str, ...], fingers: bool = True, margin: float = 0.004
) -> float:
    """Least height of the TCP at which palm and open fingers at `hand` (pointing down) touch no collision box, m."""
    low, high = scene.boxes(without)
    across = np.abs(hand.rotation[:2, :2])
    lowest = -np.inf
    parts = [(PALM_HALF + margin, PALM)]
    if fingers:
        parts.append((np.array([FINGER_HALF, THICK]), -TIP))
    for half, above in parts:
        reach = across @ half
        centre = hand.position[:2]
        met = np.all((low[:, :2] < centre + reach) & (high[:, :2] > centre - reach), axis=1)
        # What the enclosing rectangle of a turned hand meets only with a corner is looked at in the hand's own frame.
        for i in np.flatnonzero(met):
            if _meets(low[i, :2], high[i, :2], hand, half):
                lowest = max(lowest, float(high[i, 2]) - above)
    return lowest


def hits(scene: Scene, hand: Pose, without: tuple[str, ...], margin: float = 0.0015) -> bool:
    """Whether fingers, palm or wrist of an open hand, however it leans, are inside a collision box."""
    parts = [(FINGER_HALF, THICK, -TIP, PALM), (*PALM_HALF, PALM, PALM + FLANGE), (*WRIST_HALF, PALM + FLANGE, WRIST)]
    for along, across, below, above in parts:
        middle = hand.position - hand.rotation[:, 2] * (below + above) / 2
        half = np.array([along, across, (above - below) / 2]) + margin
        if scene.meets(Pose(middle, hand.rotation), half, without):
            return True
    return False


def _meets(low: FloatArray, high: FloatArray, hand: Pose, half: FloatArray) -> bool:
    """Whether a rectangle of the world meets one along the hand's axes (separating axes)."""
    corners = np.array([[low[0], low[1]], [low[0], high[1]], [high[0], low[1]], [high[0], high[1]]])
    local = (corners - hand.position[:2]) @ hand.rotation[:2, :2]
    return bool(np.all(local.min(axis=0) < half) and np.all(local.max(axis=0) > -half))
