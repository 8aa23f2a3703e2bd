"""Random table layouts for demonstrations: many places per object, so that a policy has to look.

Never uses the official initial states; those are the test set.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.types import FloatArray, VegaError
from sim.demonstrations.scripted_expert import BASKET, object_geometry
from sim.worlds.libero_env import LiberoEnvironment

KINDS = {"suite": 0.2, "permuted": 0.4, "random": 0.4}
TABLE_LOW, TABLE_HIGH = np.array([-0.25, -0.30]), np.array([0.19, 0.13])  # where random objects stand, world x y, m
MIN_GAP = 0.03


def things(environment: LiberoEnvironment) -> list[str]:
    """The objects of a scene that can be put into its basket.  Raises VegaError where there is no basket."""
    objects = environment.env.objects_dict
    if BASKET not in objects:
        raise VegaError(f"Task {environment.task} of {environment.suite} has no basket: give --suite libero_object.")
    return [name for name in objects if name != BASKET]


def place_randomly(environment: LiberoEnvironment, rng: np.random.Generator) -> str | None:
    """Reset and lay the scene out anew; the kind of layout, or None where something did not stay where it was put.

    suite: the task's own regions.  permuted: the same places, objects exchanged.  random: anywhere on the table, the
    basket moved too.  The arm is left at its settled home.
    """
    names = things(environment)
    environment.seed_random(int(rng.integers(2**31)))
    environment.random_reset()
    env = environment.env
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    places = {name: _xy(env, name) for name in names}
    if kind == "permuted":
        order = rng.permutation(len(names))
        places = {name: places[names[i]] for name, i in zip(names, order, strict=True)}
        _move(env, BASKET, _xy(env, BASKET) + rng.uniform(-0.02, 0.02, 2))
    elif kind == "random":
        sampled = _scatter(env, names, rng)
        if sampled is None:
            return None
        places = sampled
    for name, xy in places.items():
        _move(env, name, xy)
    before = {name: np.array(env.sim.data.get_body_xmat(env.objects_dict[name].root_body)) for name in names}
    environment.settle()
    for name in names:
        fell = env.sim.data.get_body_xmat(env.objects_dict[name].root_body)
        if np.trace(fell @ before[name].T) < 2.9 or np.linalg.norm(_xy(env, name) - places[name]) > 0.02:
            return None
    return kind


def _scatter(env: Any, names: list[str], rng: np.random.Generator) -> dict[str, FloatArray] | None:
    basket = np.array([rng.uniform(-0.08, 0.08), rng.uniform(0.20, 0.29)])
    if rng.random() < 0.15:  # the basket elsewhere, objects on both sides of it
        basket = np.array([rng.uniform(-0.15, 0.10), rng.uniform(-0.25, 0.29)])
    _move(env, BASKET, basket)
    boxes = [(basket - 0.10, basket + 0.10)]
    places = {}
    for name in names:
        geometry = object_geometry(env, name)
        for _ in range(200):
            xy = rng.uniform(TABLE_LOW, TABLE_HIGH)
            low, high = xy + geometry.low[:2] - MIN_GAP, xy + geometry.high[:2] + MIN_GAP
            if all(np.any(low > b_high) or np.any(high < b_low) for b_low, b_high in boxes):
                break
        else:
            return None
        boxes.append((low, high))
        places[name] = xy
    return places


def _joint(env: Any, name: str) -> str:
    return str(env.objects_dict[name].joints[0])


def _xy(env: Any, name: str) -> FloatArray:
    return np.array(env.sim.data.get_joint_qpos(_joint(env, name))[:2])


def _move(env: Any, name: str, xy: FloatArray) -> None:
    pose = np.array(env.sim.data.get_joint_qpos(_joint(env, name)))
    pose[:2] = xy
    env.sim.data.set_joint_qpos(_joint(env, name), pose)
    env.sim.forward()
