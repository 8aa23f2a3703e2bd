"""Film scenes of LIBERO and robosuite and write questions about them: the benchmark libero_space.

    python -m sim.space.collect --split test --stages 9 --films 12 --output data/libero_space

A stage is a scene with its things, built once; each of its films has a layout and a path of the camera of its own.
Films that exist are not made again, so an interrupted run goes on; what is written depends on --seed and on how films
are asked for alone, and a folder keeps to that for each split.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from policies.files.command_line import add_seed, command, command_parser, results_folder
from policies.files.made_once import made_with
from policies.files.processes import each_in_its_process
from policies.types import VegaError
from sim.space.assets import SPLITS, scene_of
from sim.space.layout import assemble

SETTINGS = ("seed", "frames", "height", "width", "path", "depth")  # options that decide what a film is


def _work(*job: Any) -> tuple[int, int, int]:
    # Not at the top: who only asks for --help needs no simulator.
    from sim.space.filming import collect_stage

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
    parser.add_argument(
        "--path", choices=("around", "near"), help="of every camera: near sees things one by one (default: either)"
    )
    parser.add_argument("--depth", action="store_true", help="write depth and poses besides, as ScanNet does (slower)")
    add_seed(parser, 7, "of scenes, layouts and paths")
    parser.add_argument("--processes", type=int, default=2, help="that film at once")
    parser.add_argument("--output", type=Path, default=Path("data/libero_space"), help="folder of the benchmark")
    args = parser.parse_args(argv)
    if min(args.stages, args.films, args.processes) < 1 or args.frames < 2:
        raise VegaError("--stages, --films and --processes count from 1, --frames from 2: give such numbers.")
    if args.height % 2 or args.width % 2 or min(args.height, args.width) < 64:
        raise VegaError(f"Frames of {args.width}x{args.height} cannot be filmed: give even sides from 64 px on.")
    results_folder(args.output)
    made_with(args.output / f"settings_{args.split}.json", {name: getattr(args, name) for name in SETTINGS})
    jobs = [(args, number) for number in range(args.stages)]
    start, films, failures = time.monotonic(), 0, 0

    def news() -> str:
        return f"{films} films made of stages that are through, and the next are filmed,"

    for done, (_, (number, made, failed)) in enumerate(each_in_its_process(_work, jobs, args.processes, news), 1):
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
