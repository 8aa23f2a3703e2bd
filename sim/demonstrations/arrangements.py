"""Random layouts for demonstrations: many places per object, so that a policy has to look.

Never uses the official initial states; those are the test set.  Works on any suite: what stands on the table by itself
is moved, with whatever stands on it, and what is inside or on a fixture moves with the fixture.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.types import FloatArray, VegaError
from sim.demonstrations.skills.scene import Box, Scene
from sim.worlds.libero_env import LiberoEnvironment

KINDS = {"suite": 0.1, "shifted": 0.2, "permuted": 0.35, "random": 0.35}
INSTEAD = ("permuted", "random", "shifted", "suite")  # after the kind that is wanted, those behind it
SHIFT = 0.06  # of each thing about the place that the suite gives it, m
FIXTURE_SHIFT, FIXTURE_FAR = 0.02, 0.15  # m
EXCHANGED = 0.5  # of the permuted layouts, those in which fixtures stand in each other's places too
FAR = 0.5  # of the random layouts, those in which fixtures are shifted by up to FIXTURE_FAR
TOGETHER = 0.2  # of things that an instruction tells by their places among each other, m
BESIDE = 0.2  # from a thing to what an instruction may place it by ("next to the ramekin"), m
CENTRE = "table center"  # in an instruction: a place that does not move with things
MIN_GAP = 0.03
FALL = 0.05  # m
REACH = (0.28, 0.88)  # horizontal distance from the arm's base at which things are within reach, m
SIDEWAYS = 0.33
ATTEMPTS = 20
DRAWS = 200
WIDE = 0.22  # diagonal from which a thing (a basket, a caddy) stays in its half of the table, m


def lay_out(environment: LiberoEnvironment, rng: np.random.Generator, kind: str = "") -> str:
    """Reset and lay the scene out anew; the kind of layout, drawn unless it is given.

    suite: the task's own regions.  shifted: up to 6 cm about them, fixtures 2 cm.  permuted: things of like size
    exchanged, often fixtures too, then shifted a little.  random: anywhere within reach, and often fixtures up to 15 cm
    from where they are.  What fell or slid is laid out again, and after 20 attempts as the next of INSTEAD: not
    everything has room to be exchanged.  Where what the goal names has a twin, only its place tells them apart: it and
    what stands beside it are shifted as one, up to 20 cm (6 where the instruction says where on the table), and the
    twin keeps away.  The arm is left at its settled home.
    Raises VegaError where every layout solves the task already.
    """
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    for instead in INSTEAD[INSTEAD.index(kind) :]:
        for attempt in range(ATTEMPTS):
            if _laid_out(environment, rng, instead, wide=attempt < ATTEMPTS // 2):
                return instead
    for _ in range(ATTEMPTS):
        _reset(environment, rng)
        if not environment.env._check_success():
            return "suite"
    raise VegaError(
        f"Task {environment.task} of {environment.suite} is solved as it begins, in every layout tried: leave it out."
    )


def _reset(environment: LiberoEnvironment, rng: np.random.Generator) -> None:
    """A layout of the suite's own; a reset leaves things up to 16 cm above where they come to lie."""
    environment.seed_random(int(rng.integers(2**31)))
    environment.random_reset()
    environment.settle()


def _laid_out(environment: LiberoEnvironment, rng: np.random.Generator, kind: str, wide: bool) -> bool:
    """One attempt; False where there was no room, something fell or slid, or the task is solved already."""
    _reset(environment, rng)
    scene = Scene(environment)
    if kind == "permuted" and rng.random() < EXCHANGED and not _exchange_fixtures(scene, rng):
        return False
    far = kind == "random" and rng.random() < FAR
    if kind != "suite":
        _move_fixtures(scene, rng, FIXTURE_FAR if far else FIXTURE_SHIFT)
    if far and not _stand_apart(scene, _fixtures(scene)):
        return False
    if not _rearrange(scene, kind, rng, wide):
        return False
    before = {name: scene.pose(name) for name in scene.movable}
    environment.settle()
    still = all(_stayed(scene, name, before[name]) for name in scene.movable)
    return still and not environment.env._check_success()


def _stayed(scene: Scene, name: str, before: Any) -> bool:
    now = scene.pose(name)
    upright = np.trace(now.rotation @ before.rotation.T) > 2.9
    moved = now.position - before.position
    return bool(upright and np.linalg.norm(moved[:2]) < 0.025 and moved[2] > -FALL)


def _exchange_fixtures(scene: Scene, rng: np.random.Generator) -> bool:
    """Put the fixtures in each other's places, each with what is on it or in it; False where they would overlap."""
    names = _fixtures(scene)
    at = {name: scene.pose(name).position[:2].copy() for name in names}
    carried = {name: _carried(scene, name) for name in names}
    for name, other in zip(names, rng.permutation(len(names)), strict=True):
        _move_fixture(scene, name, carried[name], at[names[other]] - at[name])
    return _stand_apart(scene, names)


def _move_fixtures(scene: Scene, rng: np.random.Generator, most: float) -> None:
    """Shift each fixture by up to `most` m, with what is on it or in it."""
    for name in _fixtures(scene):
        _move_fixture(scene, name, _carried(scene, name), rng.uniform(-most, most, 2))


def _stand_apart(scene: Scene, names: list[str]) -> bool:
    boxes = [scene.box(name) for name in names]
    return not any(_overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def _fixtures(scene: Scene) -> list[str]:
    return [name for name in scene.env.fixtures_dict if name in scene.names]


def _carried(scene: Scene, fixture: str) -> list[str]:
    box = scene.box(fixture)
    return [name for name in scene.movable if _within(scene.pose(name).position, box)]


def _within(position: FloatArray, box: Box) -> bool:
    """As seen from above."""
    return bool(np.all(position[:2] > box.low[:2]) and np.all(position[:2] < box.high[:2]))


def _overlap(a: Box, b: Box) -> bool:
    """As seen from above."""
    return bool(np.all(a.low[:2] < b.high[:2]) and np.all(b.low[:2] < a.high[:2]))


def _move_fixture(scene: Scene, fixture: str, carried: list[str], by: FloatArray) -> None:
    for name in carried:
        _shift(scene, name, by)
    body = scene.env.sim.model.body_name2id(scene.env.fixtures_dict[fixture].root_body)
    scene.env.sim.model.body_pos[body][:2] += by
    scene.env.sim.forward()


def _piles(scene: Scene) -> list[list[str]]:
    """Movable things that stand on the table, each with what stands on it; not those on or in fixtures."""
    ground = min(float(scene.box(name).low[2]) for name in scene.movable)
    bottoms = [n for n in scene.movable if scene.box(n).low[2] < ground + 0.012]
    fixed = [scene.box(n) for n in scene.names if n not in scene.movable]
    piles = []
    for name in bottoms:
        if any(_within(scene.pose(name).position, box) for box in fixed):
            continue
        box = scene.box(name)
        piles.append([name, *(o for o in scene.movable if o not in bottoms and _within(scene.pose(o).position, box))])
    return piles


def _told_apart_by_place(scene: Scene, piles: list[list[str]]) -> tuple[set[str], set[str]]:
    """Of the piles' bottoms, those whose place an instruction needs, and the twins that must keep away from them."""
    predicates = scene.env.parsed_problem["goal_state"]
    goal = {word for predicate in predicates for word in predicate[1:]}
    named = [name for name in scene.movable if name in goal]
    twins = {o for name in named for o in scene.movable if o not in goal and scene.category(o) == scene.category(name)}
    wanted = [n for n in named if any(o != n and scene.category(o) == scene.category(n) for o in scene.movable)]
    at = {name: scene.pose(name).position[:2] for name in scene.movable}
    apart = twins | {p[1] for p in predicates if p[1] not in wanted}  # what is carried somewhere has a name of its own
    by_place = {
        pile[0] for pile in piles for name in wanted
        if name in pile or (not apart & {*pile} and np.linalg.norm(at[pile[0]] - at[name]) < BESIDE)
    }  # fmt: skip
    return by_place, twins


def _rearrange(scene: Scene, kind: str, rng: np.random.Generator, wide: bool) -> bool:
    """Give every pile a new place; False where there was no room."""
    if kind == "suite":
        return True
    piles = _piles(scene)
    by_place, twins = _told_apart_by_place(scene, piles)
    boxes = {pile[0]: _hull([scene.box(name) for name in pile]) for pile in piles}
    own = {pile[0]: scene.pose(pile[0]).position[:2].copy() for pile in piles}
    small = [name for name, box in boxes.items() if np.linalg.norm((box.high - box.low)[:2]) < WIDE]
    places = dict(own)
    if kind == "permuted":
        free = [name for name in small if name not in by_place]
        places |= {name: own[free[i]] for name, i in zip(free, rng.permutation(len(free)), strict=True)}
    fixed = [scene.box(name) for name in scene.names if name not in scene.movable]
    piled = {name for pile in piles for name in pile}
    taken = fixed + [scene.box(name) for name in scene.movable if name not in piled]
    region = np.array([[-0.33, -0.33], [0.26, 0.33]]) if wide else np.array([[-0.2, -0.25], [0.15, 0.25]])
    spread = {"shifted": SHIFT, "permuted": 0.02, "random": np.inf}[kind]
    base = np.array(scene.env.robots[0].base_pos[:2])
    moves: dict[str, FloatArray] = {}

    def drawn(name: str) -> FloatArray:
        if name in by_place:
            return places[name]
        local = spread if name in small else min(spread, SHIFT)
        if np.isfinite(local):
            return places[name] + rng.uniform(-local, local, 2)
        return np.array(scene.env.workspace_offset[:2]) + rng.uniform(*region)

    def fits(pile: list[str], at: FloatArray) -> bool:
        # What stays together stands as close as it did: only a fixture may be in the way.
        gap, others = (0.0, fixed) if pile[0] in by_place else (MIN_GAP, taken)
        if any(_overlap(_moved(boxes[pile[0]], at - own[pile[0]]).grown(gap), box) for box in others):
            return False
        reached = REACH[0] < np.linalg.norm(at - base) < REACH[1] and abs(at[1] - base[1]) < SIDEWAYS
        if not reached and (kind == "random" or pile[0] in by_place):
            return False
        confusing = kind != "shifted" and pile[0] not in by_place and twins & {*pile}
        return not confusing or all(np.linalg.norm(at - own[o] - moves[o]) > BESIDE for o in by_place)

    most = SHIFT if kind == "shifted" or CENTRE in scene.environment.instruction else TOGETHER
    shifts = rng.uniform(-most, most, (DRAWS, 2))
    together = next((by for by in shifts if all(fits(p, own[p[0]] + by) for p in piles if p[0] in by_place)), None)
    if together is None:
        return False
    places |= {name: own[name] + together for name in by_place}
    for pile in sorted(piles, key=lambda pile: (pile[0] not in by_place, -_area(boxes[pile[0]]))):
        name = pile[0]
        at = next((at for _ in range(DRAWS) if fits(pile, at := drawn(name))), None)
        if at is None:
            return False
        moves[name] = at - own[name]
        taken.append(_moved(boxes[name], moves[name]))
    for pile in piles:
        for name in pile:
            _shift(scene, name, moves[pile[0]])
    return True


def _moved(box: Box, by: FloatArray) -> Box:
    """In the plane of the table."""
    return Box(box.low + np.append(by, 0.0), box.high + np.append(by, 0.0))


def _area(box: Box) -> float:
    """As seen from above, m2."""
    return float(np.prod((box.high - box.low)[:2]))


def _hull(boxes: list[Box]) -> Box:
    return Box(np.min([b.low for b in boxes], axis=0), np.max([b.high for b in boxes], axis=0))


def _shift(scene: Scene, name: str, by: FloatArray) -> None:
    joint = str(scene.env.objects_dict[name].joints[-1])
    pose = np.array(scene.env.sim.data.get_joint_qpos(joint))
    pose[:2] += by
    scene.env.sim.data.set_joint_qpos(joint, pose)
    scene.env.sim.forward()
