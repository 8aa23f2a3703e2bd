"""Film scenes of LIBERO and robosuite and write questions about them: the benchmark libero_space.

    python -m sim.space.collect --split test --stages 9 --films 12 --output data/libero_space

A stage is a scene with its things, built once; each of its films has a layout and a path of the camera of its own.
Films that exist are not made again, so an interrupted run goes on; what is written depends on --seed alone.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from policies.files.command_line import command, command_parser, results_folder
from policies.types import VegaError
from sim.space.arrange import choose_assets, lay_out
from sim.space.assets import SCENES, SPLITS
from sim.space.facts import SceneFacts, Thing
from sim.space.film import Camera, Shot, camera_path, intrinsics
from sim.space.layout import assemble, film_name, scene_file, write_film
from sim.space.questions import questions
from sim.space.referring import descriptions, groups
from sim.space.shapes import Cloud, aligned_box, upright_box
from sim.space.stage import Stage
from sim.space.stage import Thing as Placed

ATTEMPTS = 6
FEWEST_KINDS = 3  # visible, each alone: fewer leave little to ask


def scene_of(split: str, stage: int) -> str:
    """The scenes of a split take turns."""
    names = list(SCENES[split])
    return names[stage % len(names)]


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
        shots = list(camera.film(camera_path(rng, args.frames), args.depth))
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


def _work(job: tuple[Any, int]) -> tuple[int, int, int]:
    return collect_stage(*job)


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.space.collect", __doc__, paragraphs=3)
    parser.add_argument(
        "--split", choices=SPLITS, default="train",
        help="train; layouts: its scenes and things at other places; test: other scenes and other things",
    )  # fmt: skip
    parser.add_argument("--stages", type=int, default=9, help="scenes to build; they take turns")
    parser.add_argument("--films", type=int, default=12, help="of each stage")
    parser.add_argument("--frames", type=int, default=32, help="of each film")
    parser.add_argument("--height", type=int, default=480, help="of the frames, px, even")
    parser.add_argument("--width", type=int, default=640, help="of the frames, px, even")
    parser.add_argument("--depth", action="store_true", help="write depth and poses besides, as ScanNet does (slower)")
    parser.add_argument("--seed", type=int, default=7, help="of scenes, layouts and paths")
    parser.add_argument("--processes", type=int, default=2, help="that film at once")
    parser.add_argument("--output", type=Path, default=Path("data/libero_space"), help="folder of the benchmark")
    args = parser.parse_args(argv)
    if min(args.stages, args.films, args.processes) < 1 or args.frames < 2:
        raise VegaError("--stages, --films and --processes count from 1, --frames from 2: give such numbers.")
    if args.height % 2 or args.width % 2 or min(args.height, args.width) < 64:
        raise VegaError(f"Frames of {args.width}x{args.height} cannot be filmed: give even sides from 64 px on.")
    results_folder(args.output)
    jobs = [(args, number) for number in range(args.stages)]
    start, films, failures = time.monotonic(), 0, 0
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for done, (number, made, failed) in enumerate(pool.imap_unordered(_work, jobs), 1):
            films, failures = films + made, failures + failed
            left = (time.monotonic() - start) / done * (len(jobs) - done) / 60
            print(
                f"{done}/{len(jobs)} stage {number} ({scene_of(args.split, number)}): {made} films made"
                + (f", {failed} could not be" if failed else "") + f", {left:.1f} min left",
                flush=True,
            )  # fmt: skip
    counts = assemble(args.output, args.split)
    for kind, count in counts.items():
        print(f"{count:6d} {kind}")
    print(f"{films} films made, {failures} failed: {args.output / (args.split + '.jsonl')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
