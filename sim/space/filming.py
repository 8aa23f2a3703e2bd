"""One stage of libero_space: its layouts, their films, and what is true of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.space.arrange import choose_assets, lay_out
from sim.space.assets import SCENES, SPLITS, scene_of
from sim.space.film import Camera, Shot, camera_path, intrinsics
from sim.space.layout import film_name, scene_file, write_film
from sim.space.stage import Stage
from sim.space.stage import Thing as Placed
from sim.space.truth.facts import SceneFacts, Thing
from sim.space.truth.questions import questions
from sim.space.truth.referring import descriptions, groups
from sim.space.truth.shapes import Cloud, aligned_box, upright_box

ATTEMPTS = 6
FEWEST_KINDS = 3  # visible, each alone: fewer leave little to ask


def facts_of(stage: Stage, things: list[Placed], shots: list[Shot], scene: str) -> SceneFacts:
    """What is true of a layout that was filmed."""
    clouds, found = [], []
    for thing in things:
        points = stage.world_points(thing) - stage.top
        clouds.append(Cloud(points))
        box = upright_box(points)
        number = stage.things.index(thing)
        seen = np.array([shot.pixels[number] / shot.picture[..., 0].size for shot in shots])
        found.append(Thing(thing.name, thing.said, box.centre, box.corners, box.size, aligned_box(points), seen))
    gaps = np.zeros((len(things), len(things)))
    for i in range(len(things)):
        for j in range(i):
            gaps[i, j] = gaps[j, i] = clouds[i].gap(clouds[j])
    return SceneFacts(stage.scene, scene, tuple(found), gaps, stage.table_area)


def make_film(stage: Stage, camera: Camera, rng: np.random.Generator, scene: str, args: Any) -> dict[str, Any] | None:
    """Film one layout; what its JSON file holds.  None where no layout held or showed enough."""
    for _ in range(ATTEMPTS):
        things = lay_out(stage, rng)
        if things is None:
            continue
        shots = list(camera.film(camera_path(rng, args.frames, args.path), args.depth))
        facts = facts_of(stage, things, shots, scene)
        if len(facts.single) >= FEWEST_KINDS:
            known = sorted({asset.name for asset in SCENES[args.split][stage.scene]})
            return write_film(
                args.output, facts, shots, intrinsics(args.height, args.width), questions(facts, rng),
                descriptions(facts, rng), groups(facts, known, rng),
            )  # fmt: skip
    return None


def collect_stage(args: Any, number: int) -> tuple[int, int, int]:
    """Make what is missing of one stage: (stage, films made, films that could not be)."""
    scene = scene_of(args.split, number)
    names = [film_name(args.split, number, film) for film in range(args.films)]
    missing = [i for i, name in enumerate(names) if not scene_file(args.output, scene, name).is_file()]
    made = failed = 0
    if missing:
        seed = [args.seed, SPLITS.index(args.split), number]
        rng = np.random.default_rng(seed)
        stage = Stage(scene, choose_assets(SCENES[args.split][scene], rng), rng)
        camera = Camera(stage, args.height, args.width)
        for film in missing:
            done = make_film(stage, camera, np.random.default_rng([*seed, film]), names[film], args)
            made, failed = made + (done is not None), failed + (done is None)
        camera.close()
    return number, made, failed
