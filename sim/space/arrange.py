"""Random layouts: which things stand where, clear of each other and of the arm."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from policies.types import FloatArray
from sim.space.assets import Asset
from sim.space.stage import Stage, Thing

REACH = (np.array([-0.26, -0.38]), np.array([0.30, 0.38]))  # corners of the area, from the middle of the surface, m
FIXED_AT = (0.20, 0.30)  # distance from the arm's axis within which what is fixed stands, m
MIN_GAP = 0.05  # of the boxes around two things, m
FEWEST, MOST = 5, 9
REPEATED = 0.35  # share of kinds of which a scene has several
COPIES = 4
TILT_DEG, SLID = 8.0, 0.04  # most that a thing may move while it settles
ATTEMPTS, TRIES = 25, 150


def choose_assets(pool: Sequence[Asset], rng: np.random.Generator, kinds: int = 10) -> list[tuple[Asset, int]]:
    """What one scene may hold: kinds of the pool, at most two of them fixed, some several times."""
    fixed = [asset for asset in pool if asset.fixed]
    loose = [asset for asset in pool if not asset.fixed]
    some = [fixed[i] for i in rng.permutation(len(fixed))[: int(rng.integers(len(fixed) + 1))]]
    some += [loose[i] for i in rng.permutation(len(loose))[: kinds - len(some)]]
    return [(a, COPIES if not a.fixed and rng.random() < REPEATED else 1) for a in some]


def lay_out(stage: Stage, rng: np.random.Generator) -> list[Thing] | None:
    """Put some of the stage's things at new places and the others away; what stands there now.

    None where nothing held: what fell or slid is tried again with others first.
    """
    for _ in range(ATTEMPTS):
        chosen = _choose(stage, rng)
        for thing in stage.things:
            stage.put_away(thing)
        if not _scatter(stage, chosen, rng):
            continue
        before = {thing.name: stage.pose(thing) for thing in chosen}
        stage.let_settle()
        if all(_stayed(stage, thing, *before[thing.name]) for thing in chosen):
            return chosen
    return None


def _choose(stage: Stage, rng: np.random.Generator) -> list[Thing]:
    """A few kinds, and of a kind with copies any number of them."""
    kinds: dict[str, list[Thing]] = {}
    for thing in stage.things:
        kinds.setdefault(thing.said, []).append(thing)
    most = int(rng.integers(FEWEST, MOST + 1))
    chosen: list[Thing] = []
    names = list(kinds)
    for index in rng.permutation(len(names)):
        copies = kinds[names[index]]
        chosen += copies[: int(rng.integers(1, len(copies) + 1))]
        if len(chosen) >= most:
            break
    # The largest first: they find no room later.
    return sorted(chosen[:most], key=lambda thing: -float(np.ptp(thing.points[:, :2], axis=0).max()))


def _scatter(stage: Stage, things: Sequence[Thing], rng: np.random.Generator) -> bool:
    taken: list[tuple[FloatArray, FloatArray]] = []
    for thing in things:
        for _ in range(TRIES):
            xy = stage.top[:2] + rng.uniform(*REACH)
            if thing.joint is None:
                side = float(rng.choice([-1.0, 1.0]))
                xy = stage.top[:2] + np.array([rng.uniform(-0.15, 0.1), side * rng.uniform(*FIXED_AT)])
                yaw = side * np.pi / 2 + np.pi / 2 + rng.uniform(-0.3, 0.3)  # its front to the middle
            else:
                yaw = float(rng.uniform(-np.pi, np.pi))
            stage.place(thing, xy, yaw)
            mujoco.mj_kinematics(stage.model, stage.data)
            points = stage.world_points(thing)[:, :2]
            low, high = points.min(axis=0), points.max(axis=0)
            if all(np.any(low > most + MIN_GAP) or np.any(high < least - MIN_GAP) for least, most in taken):
                taken.append((low, high))
                break
        else:
            return False
    mujoco.mj_forward(stage.model, stage.data)
    return True


def _stayed(stage: Stage, thing: Thing, position: FloatArray, rotation: FloatArray) -> bool:
    now, turned = stage.pose(thing)
    cosine = np.clip((np.trace(turned @ rotation.T) - 1) / 2, -1.0, 1.0)
    return bool(np.rad2deg(np.arccos(cosine)) < TILT_DEG and np.linalg.norm(now - position) < SLID)
