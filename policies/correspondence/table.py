"""Every encoder on every scene, printed row by row."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from policies.correspondence.encoders import Look, Reading, encoders
from policies.correspondence.scenes import PosedViews
from policies.correspondence.score import (
    Evidence,
    Scores,
    compare,
    intervals,
    of_places,
    scores,
    token_places,
    view_pairs,
    voxel_ids,
)

COLUMNS = ("raw", "random", "gap", "centred", "centred_gap", "retrieval", "chance")


def print_table(scenes: Sequence[PosedViews], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prints as it goes; the rows as they are written to JSON.  options: of `python -m policies.correspondence`."""
    torch.set_num_threads(options.threads)
    print(f"{'':<48}{''.join(f'{column:>13}' for column in COLUMNS)}  95 % over places", flush=True)
    table = []
    for reading, evidence in gather(scenes, options):
        places = of_places(evidence, [scene.name for scene in scenes])
        found, spread = scores(evidence), intervals(places)
        print(row(reading, found, spread), flush=True)
        counts = {"scenes": len(evidence), "places": len(places)}
        table.append({**reading._asdict(), **asdict(found), "interval_95": spread, **counts})
    return table


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
