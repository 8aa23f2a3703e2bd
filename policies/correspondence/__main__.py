"""Score how alike encoders describe a place from several sides: `python -m policies.correspondence FOLDER`.

    python -m sim.render_views --output data/views
    python -m policies.correspondence data/views --output data/correspondence

FOLDER holds scenes with depth and poses, rendered or ScanNet's `posed_images`.  Prints a table: the paper's score (raw)
that of random pairs, matched minus random (gap) as they are and with the mean taken off, retrieval and its chance, in
percent, with 95 % intervals over places; writes it as JSON, and as a heat map of noise levels and blocks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from policies.correspondence.scenes import VOXEL_M, read_scenes
from policies.files.command_line import add_threads, command, command_parser, positive, results_folder
from policies.files.json_config import read_counts
from policies.types import VegaError

ENCODERS = ("position", "pixels", "imagenet", "semantic", "wan")
STEPS = 1000  # of the schedule
KS = (0, 100, 200, 300, 400, 500, 700, 1000)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m policies.correspondence", __doc__, paragraphs=3)
    parser.add_argument("folder", type=Path, help="folder of scenes")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS), help="what is scored")
    parser.add_argument("--policy", default="vega-nano", help="whose semantic encoder and Wan")
    parser.add_argument("--wan", nargs="+", type=Path, default=[], help="folders of other Wans, in diffusers layout")
    parser.add_argument("--k", nargs="+", type=int, default=list(KS), help="noise levels")
    parser.add_argument("--views", type=int, default=32, help="of each scene, at most")
    parser.add_argument("--grid", type=int, default=14, help="tokens along each side of a picture")
    parser.add_argument("--canvas", type=int, default=224, help="side of what pictures are placed on, px")
    parser.add_argument("--voxel", type=positive("--voxel"), default=VOXEL_M, help="side of a voxel, m")
    parser.add_argument("--apart", type=float, default=0.0, help="least angle between two views that are compared, deg")
    add_threads(parser, "of torch")
    parser.add_argument("--output", type=Path, default=Path("data/correspondence"), help="folder of table and picture")
    options = parser.parse_args(arguments)
    if not 0 <= options.apart <= 180:
        raise VegaError(f"--apart {options.apart:g} is no angle between two views: give degrees from 0 to 180.")
    if not 1 <= options.grid <= options.canvas or options.canvas % 32 or options.views < 2:
        raise VegaError(
            "--grid is positive, --views counts from 2, --canvas is a multiple of 32: give such numbers."
        )
    for k in options.k:
        if not 0 <= k <= STEPS:
            raise VegaError(f"--k {k} is outside Wan's schedule: give noise levels from 0 to {STEPS}.")
    options.k = list(dict.fromkeys(options.k))
    for wan in options.wan:  # before hours of other encoders
        read_counts(wan / "transformer" / "config.json", "num_layers")
    results_folder(options.output)
    scenes = list(read_scenes(options.folder, options.views))
    print(f"{len(scenes)} scenes, {sum(len(scene.poses) for scene in scenes)} views, voxels of {options.voxel} m")
    from policies.correspondence.heat_map import draw_heat_maps
    from policies.correspondence.table import print_table  # torch, which --help does without

    table = print_table(scenes, options)
    path = options.output / "correspondence.json"
    asked = {key: getattr(options, key) for key in ("voxel", "grid", "canvas", "apart")}
    path.write_text(json.dumps({**asked, "rows": table}, indent=1) + "\n")
    picture = draw_heat_maps(table, options.output / "correspondence.png")
    print(path, *([picture] if picture else []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
