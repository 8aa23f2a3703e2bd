"""A scene in which given things stand, filmed: what `sim/ask.py` shows a model and knows the truth of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from policies.types import VegaError
from sim.space.arrange import lay_out
from sim.space.assets import SCENES, Asset
from sim.space.film import Camera, Shot, camera_path
from sim.space.filming import facts_of
from sim.space.stage import Stage
from sim.space.truth.facts import SceneFacts

KINDS, COPIES = 7, 3
ATTEMPTS = 30


@dataclass(frozen=True, eq=False)
class Shown:
    """A film and what is true of it."""

    facts: SceneFacts
    shots: tuple[Shot, ...]


def show(names: Sequence[str], several: bool, seed: int, frames: int = 8, height: int = 240, width: int = 320) -> Shown:
    """A film in which every thing of `names` is clearly seen, each alone unless `several`; others stand about.

    The same seed gives the same film.  Raises VegaError for a thing that stands in no scene.
    """
    rng = np.random.default_rng([seed, len(SCENES)])
    scenes = {scene: pool for scene, pool in SCENES["layouts"].items() if set(names) <= {asset.name for asset in pool}}
    if not scenes:
        raise VegaError(f"{' and '.join(names)} stand in no scene together: ask about other things.")
    scene = sorted(scenes)[seed % len(scenes)]
    wanted = [_named(scenes[scene], name) for name in dict.fromkeys(names)]
    # What is fixed stays as it is: two of them leave no room.
    others = [asset for asset in scenes[scene] if asset not in wanted and not (asset.fixed and len(wanted) > 1)]
    others = [others[i] for i in rng.permutation(len(others))][: max(KINDS - len(wanted), 0)]
    copies = COPIES if several else 1
    assets = [(asset, 1 if asset.fixed else copies) for asset in wanted]
    stage = Stage(scene, [*assets, *((asset, 1) for asset in others)], rng)
    camera = Camera(stage, height, width)
    try:
        for _ in range(ATTEMPTS):
            things = lay_out(stage, rng)
            if things is None or not set(names) <= {thing.said for thing in things}:
                continue
            shots = tuple(camera.film(camera_path(rng, frames)))
            facts = facts_of(stage, things, list(shots), "asked")
            if set(names) <= set(facts.kinds if several else facts.single):
                return Shown(facts, shots)
    finally:
        camera.close()
    raise VegaError("No layout showed everything that was asked for: give another --seed.")


def _named(pool: Sequence[Asset], name: str) -> Asset:
    return replace(next(asset for asset in pool if asset.name == name))
