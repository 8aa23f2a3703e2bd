"""Score how alike encoders describe a place from several sides: `python -m policies.correspondence FOLDER`.

    python -m sim.render_views --output data/views
    python -m policies.correspondence data/views --output data/correspondence

FOLDER holds scenes with depth and poses, rendered or ScanNet's `posed_images`.  Prints a table: the paper's score (raw)
that of random pairs, matched minus random (gap) as they are and with the mean taken off, retrieval and its chance, in
percent, with 95 % intervals over scenes; writes it as JSON, and as a heat map of noise levels and blocks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from policies.correspondence.encoders import Look, Reading, encoders
from policies.correspondence.heat_map import draw_heat_maps
from policies.correspondence.scenes import PosedViews, read_scenes
from policies.correspondence.score import (
    VOXEL_M,
    Evidence,
    Scores,
    compare,
    intervals,
    scores,
    token_places,
    view_pairs,
    voxel_ids,
)
from policies.files.command_line import command, command_parser, results_folder
from policies.types import VegaError

ENCODERS = ("position", "pixels", "imagenet", "semantic", "wan")
KS = (0, 100, 200, 300, 400, 500, 700, 1000)
COLUMNS = ("raw", "random", "gap", "centred", "centred_gap", "retrieval", "chance")


def label(reading: Reading) -> str:
    words = [reading.encoder]
    words += [f"k {reading.k}"] if reading.k is not None else []
    words += [f"block {reading.block}"] if reading.block is not None else []
    return ", ".join(words)


def gather(scenes: Sequence[PosedViews], options: argparse.Namespace) -> Iterator[tuple[Reading, list[Evidence]]]:
    """What every encoder says of every scene, one encoder after the other."""
    look = Look(options.canvas, (options.grid, options.grid))
    ids = [voxel_ids(token_places(scene, look.grid), options.voxel) for scene in scenes]
    pairs = [view_pairs(scene, options.apart) for scene in scenes]
    for read in encoders(options.encoders, look, options.policy, options.wan, options.k):
        found: dict[Reading, list[Evidence]] = {}
        for scene, voxels, chosen in zip(scenes, ids, pairs, strict=True):
            with torch.inference_mode():
                for reading, tokens in read(torch.from_numpy(scene.pictures)):
                    found.setdefault(reading, []).append(compare(tokens.numpy(), voxels, chosen))
        yield from found.items()


def row(reading: Reading, found: Scores, spread: dict[str, tuple[float, float]]) -> str:
    numbers = "".join(f"{getattr(found, column):>13.1f}" for column in COLUMNS)
    between = [f"  {name} {spread[name][0]:.1f} to {spread[name][1]:.1f}" for name in ("gap", "retrieval") if spread]
    return f"{label(reading):<48}{numbers}{''.join(between)}"


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
    parser.add_argument("--voxel", type=float, default=VOXEL_M, help="side of a voxel, m")
    parser.add_argument("--apart", type=float, default=0.0, help="least angle between two views that are compared, deg")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--output", type=Path, default=Path("data/correspondence"), help="folder of table and picture")
    options = parser.parse_args(arguments)
    if options.voxel <= 0 or not 1 <= options.grid <= options.canvas or options.canvas % 32 or options.views < 2:
        raise VegaError(
            "--voxel and --grid are positive, --views counts from 2, --canvas is a multiple of 32: give such numbers."
        )
    torch.set_num_threads(max(options.threads, 1))
    results_folder(options.output)
    scenes = list(read_scenes(options.folder, options.views))
    print(f"{len(scenes)} scenes, {sum(len(scene.poses) for scene in scenes)} views, voxels of {options.voxel} m")
    print(f"{'':<48}{''.join(f'{column:>13}' for column in COLUMNS)}  95 % over scenes", flush=True)
    table = []
    for reading, evidence in gather(scenes, options):
        found, spread = scores(evidence), intervals(evidence)
        print(row(reading, found, spread), flush=True)
        table.append({**reading._asdict(), **asdict(found), "interval_95": spread, "scenes": len(evidence)})
    path = options.output / "correspondence.json"
    asked = {key: getattr(options, key) for key in ("voxel", "grid", "canvas", "apart")}
    path.write_text(json.dumps({**asked, "rows": table}, indent=1) + "\n")
    picture = draw_heat_maps(table, options.output / "correspondence.png")
    print(path, *([picture] if picture else []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
