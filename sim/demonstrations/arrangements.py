"""Random layouts for demonstrations: many places per object, so that a policy has to look.

Never uses the official initial states; those are the test set.  Works on any suite: what stands on the table by itself
is moved, with whatever stands on it, and what is inside or on a fixture moves with the fixture.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.types import FloatArray
from sim.demonstrations.skills.scene import Box, Scene
from sim.worlds.libero_env import LiberoEnvironment

KINDS = {"suite": 0.2, "shifted": 0.3, "permuted": 0.2, "random": 0.3}
SHIFT = 0.06  # of each thing about the place that the suite gives it, m
FIXTURE_SHIFT = 0.02  # m
MIN_GAP = 0.03
FALL = 0.05  # m
REACH = (0.32, 0.78)  # horizontal distance from the arm's base at which things are within reach, m
SIDEWAYS = 0.33
ATTEMPTS = 20
WIDE = 0.18  # diagonal from which a thing (a basket, a caddy) stays in its half of the table, m


def lay_out(environment: LiberoEnvironment, rng: np.random.Generator) -> str:
    """Reset and lay the scene out anew; the kind of layout.

    suite: the task's own regions.  shifted: up to 6 cm about them, fixtures 2 cm.  permuted: things of like size
    exchanged, then shifted a little.  random: anywhere within reach.  What fell or slid is laid out again.
    The arm is left at its settled home.
    """
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    for attempt in range(ATTEMPTS):
        environment.seed_random(int(rng.integers(2**31)))
        environment.random_reset()
        scene = Scene(environment)
        if kind != "suite":
            _move_fixtures(scene, rng)
        if not _rearrange(scene, kind, rng, wide=attempt < ATTEMPTS // 2):
            continue
        before = {name: scene.pose(name) for name in scene.movable}
        environment.settle()
        if all(_stayed(scene, name, before[name]) for name in scene.movable) and not environment.env._check_success():
            return kind
    environment.seed_random(int(rng.integers(2**31)))
    environment.random_reset()
    environment.settle()
    return "suite"


def _stayed(scene: Scene, name: str, before: Any) -> bool:
    now = scene.pose(name)
    upright = np.trace(now.rotation @ before.rotation.T) > 2.9
    moved = now.position - before.position
    return bool(upright and np.linalg.norm(moved[:2]) < 0.025 and moved[2] > -FALL)


def _move_fixtures(scene: Scene, rng: np.random.Generator) -> None:
    """Shift each fixture a little, with what is on it or in it."""
    for name in scene.env.fixtures_dict:
        if name not in scene.names:
            continue
        shift = rng.uniform(-FIXTURE_SHIFT, FIXTURE_SHIFT, 2)
        box = scene.box(name)
        for other in scene.movable:
            at = scene.pose(other).position[:2]
            if np.all(at > box.low[:2]) and np.all(at < box.high[:2]):
                _shift(scene, other, shift)
        body = scene.env.sim.model.body_name2id(scene.env.fixtures_dict[name].root_body)
        scene.env.sim.model.body_pos[body][:2] += shift
        scene.env.sim.forward()


def _piles(scene: Scene) -> list[list[str]]:
    """Movable things that stand on the table, each with what stands on it; not those on or in fixtures."""
    ground = min(float(scene.box(name).low[2]) for name in scene.movable)
    bottoms = [n for n in scene.movable if scene.box(n).low[2] < ground + 0.012]
    fixed = [scene.box(n) for n in scene.names if n not in scene.movable]
    piles = []
    for name in bottoms:
        at = scene.pose(name).position[:2]
        if any(np.all(at > box.low[:2]) and np.all(at < box.high[:2]) for box in fixed):
            continue
        box = scene.box(name)
        pile = [name]
        for other in scene.movable:
            if other not in bottoms:
                spot = scene.pose(other).position[:2]
                if np.all(spot > box.low[:2]) and np.all(spot < box.high[:2]):
                    pile.append(other)
        piles.append(pile)
    return piles


def _rearrange(scene: Scene, kind: str, rng: np.random.Generator, wide: bool) -> bool:
    """Give every pile a new place; False where there was no room."""
    if kind == "suite":
        return True
    piles = _piles(scene)
    boxes = {pile[0]: _hull([scene.box(name) for name in pile]) for pile in piles}
    small = [p for p in piles if np.linalg.norm((boxes[p[0]].high - boxes[p[0]].low)[:2]) < WIDE]
    places = {pile[0]: scene.pose(pile[0]).position[:2].copy() for pile in piles}
    if kind == "permuted":
        order = rng.permutation(len(small))
        places |= {pile[0]: places[small[i][0]].copy() for pile, i in zip(small, order, strict=True)}
    taken = [scene.box(name) for name in scene.names if name not in scene.movable]
    stays = {name for pile in piles for name in pile}
    taken += [scene.box(name) for name in scene.movable if name not in stays]
    base = np.array(scene.env.robots[0].base_pos[:2])
    spread = {"shifted": SHIFT, "permuted": 0.02, "random": np.inf}[kind]
    region = np.array([[-0.30, -0.30], [0.22, 0.30]]) if wide else np.array([[-0.2, -0.25], [0.15, 0.25]])
    centre = np.array(scene.env.workspace_offset[:2])
    moves = {}
    for pile in sorted(piles, key=lambda p: -float(np.prod((boxes[p[0]].high - boxes[p[0]].low)[:2]))):
        name = pile[0]
        own = scene.pose(name).position[:2]
        low, high = boxes[name].low[:2] - own, boxes[name].high[:2] - own
        local = min(spread, SHIFT) if pile not in small else spread
        for _ in range(200):
            at = places[name] + rng.uniform(-local, local, 2) if np.isfinite(local) else centre + rng.uniform(*region)
            far = float(np.linalg.norm(at - base))
            clear = all(
                np.any(at + low - MIN_GAP > box.high[:2]) or np.any(at + high + MIN_GAP < box.low[:2]) for box in taken
            )
            near_enough = kind != "random" or (REACH[0] < far < REACH[1] and abs(at[1] - base[1]) < SIDEWAYS)
            if clear and near_enough:
                break
        else:
            return False
        taken.append(Box(np.array([*(at + low), 0.0]), np.array([*(at + high), 9.0])))
        moves[name] = at - own
    for pile in piles:
        for name in pile:
            _shift(scene, name, moves[pile[0]])
    return True


def _hull(boxes: list[Box]) -> Box:
    return Box(np.min([b.low for b in boxes], axis=0), np.max([b.high for b in boxes], axis=0))


def _shift(scene: Scene, name: str, by: FloatArray) -> None:
    joint = str(scene.env.objects_dict[name].joints[-1])
    pose = np.array(scene.env.sim.data.get_joint_qpos(joint))
    pose[:2] += by
    scene.env.sim.data.set_joint_qpos(joint, pose)
    scene.env.sim.forward()
