"""Ask a model the questions of a spatial benchmark: VSI-Bench, five of ScanNet's, or libero_space.

    python sim/run_spatial.py --benchmark libero_space --data data/libero_space --model CHECKPOINT --output outputs/run

Scores are the reference's, with a corrected one beside each, and what is reached without looking: the most frequent
answer, and the question alone.  `--workers N` and `--resume` change no number.  A model is vega-nano-spatial, a
checkpoint folder or hub id (one trained here, published spatial reasoning, or a plain Qwen2.5-VL), or module:Class with
`watch`, `answer`, and `ground` for boxes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from policies.files.command_line import command, command_parser, results_folder
from policies.interrupts import stopped
from policies.types import WORLD_CONTROLS, VegaError
from sim.evaluation.running import Progress, add_run_options, carry_out, check_run_options, device_kind
from sim.evaluation.spatial.asking import SpatialSettings, model_sha256
from sim.evaluation.spatial.benchmarks import BENCHMARKS, has_training, read_items
from sim.evaluation.workers import Shard, run_here, run_in_workers
from sim.results.evaluation import package_versions, wilson_95
from sim.results.result_files import SUMMARY_FILE
from sim.results.spatial.answers import AnswerRecord, AnswerWriter
from sim.results.spatial.blind import baselines
from sim.results.spatial.items import Item, questions_sha256, split_of
from sim.results.spatial.page import REPORT_FILE, table_rows, write_page

PACKAGES = ("torch", "transformers", "diffusers", "mujoco")


class AnswerProgress(Progress[AnswerRecord]):
    preparing = "the model is being loaded"

    def describe(self, record: AnswerRecord) -> str:
        values = [next(iter(r.scores.values())) for r in self.writer.records if r.scores and not r.error]
        said = f"error: {record.error}" if record.error else repr(record.answer[:40]) if record.answer else "boxes"
        mean = float(np.mean(values)) if values else 0.0
        low, high = wilson_95(sum(values), len(values))  # of scores from 0 to 1 it is never too narrow
        return (
            f"{record.kind}: {said} | {100 * mean:.1f} % over {len(values)}, 95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f}"
        )


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m sim.run_spatial", __doc__, paragraphs=3)
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="libero_space", help="whose questions are asked")
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmark's data")
    parser.add_argument("--model", required=True, help="shipped name, checkpoint folder, hub id, or module:Class")
    parser.add_argument("--split", default=None, help="of the benchmark (default: the one that it is scored on)")
    parser.add_argument("--frames", type=int, default=32, help="of each scene at most, evenly")
    parser.add_argument("--limit", type=int, default=None, help="scenes at most, evenly (default: all)")
    parser.add_argument(
        "--grounding", action=argparse.BooleanOptionalAction, default=True,
        help="ask libero_space's questions for boxes too (default: --grounding)",
    )  # fmt: skip
    parser.add_argument("--poses", action="store_true", help="tell the model where libero_space's cameras were")
    parser.add_argument(
        "--world-simulator", choices=WORLD_CONTROLS, default="on",
        help="what stands in for the tokens of a vega-nano-spatial's world simulator, to see whether it uses them",
    )  # fmt: skip
    add_run_options(parser, "model", "outputs/<benchmark>_<time>")
    return parser.parse_args(argv)


def chosen_items(items: list[Item], limit: int | None) -> list[Item]:
    """Those of `limit` scenes, spread evenly over all."""
    scenes = sorted({item.task for item in items})
    if limit is not None and limit < len(scenes):
        scenes = [scenes[int(i)] for i in np.linspace(0, len(scenes) - 1, limit)]
    kept = set(scenes)
    return [item for item in items if item.task in kept]


def other_scenes(args: argparse.Namespace, items: list[Item]) -> list[Item]:
    """What the blind baselines learn from: the training split, if there is one, without the scenes asked about."""
    if not has_training(args.benchmark, args.data, args.grounding):
        return []
    asked = {item.scene for item in items}
    return [item for item in read_items(args.benchmark, args.data, "train", args.grounding) if item.scene not in asked]


def shards(items: list[Item], done: set[tuple[int, int]]) -> list[Shard]:
    """The questions left, a scene at a time: its frames are read once."""
    left: dict[int, list[int]] = {}
    for item in items:
        if item.key not in done:
            left.setdefault(item.task, []).append(item.trial)
    return [Shard(task, tuple(trials)) for task, trials in left.items()]


def header(args: argparse.Namespace, items: list[Item]) -> dict[str, Any]:
    return {
        "benchmark": args.benchmark,
        "split": split_of(args.benchmark, args.split),
        "questions_sha256": questions_sha256(items),
        "model": args.model,
        "checkpoint_sha256": model_sha256(args.model),
        "device": device_kind(args.device),
        "threads": args.threads,
        "frames": args.frames,
        "poses": args.poses,
        "world_simulator": args.world_simulator,
        "questions": len(items),
        "scenes": len({item.task for item in items}),
        "kinds": dict(sorted(Counter(item.kind for item in items).items())),
        "versions": package_versions(PACKAGES),
    }


@command
def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    check_run_options(args)
    if args.frames < 1 or (args.limit is not None and args.limit < 1):
        raise VegaError("--frames and --limit count from 1: give such numbers.")
    if args.split == "":
        raise VegaError("--split is empty: name a split, or leave it out for the one that is scored.")
    every = read_items(args.benchmark, args.data, args.split, args.grounding)
    items = chosen_items(every, args.limit)
    if not items:
        raise VegaError(f"There are no questions in '{args.data}': give the folder of a benchmark that has some.")
    print(f"{len(every)} questions about {len({item.scene for item in every})} scenes were read in '{args.data}'.")
    training = other_scenes(args, items)
    folder = results_folder(args.output or Path("outputs") / f"{args.benchmark}_{time.strftime('%Y%m%d_%H%M%S')}")
    settings = SpatialSettings(
        args.benchmark, args.data, args.model, args.split, args.frames, args.device, args.threads, args.grounding,
        args.poses, args.world_simulator,
    )  # fmt: skip
    blind = {} if args.benchmark == "scan2cap" else baselines(items, training, every)
    writer = AnswerWriter(folder, header(args, items), items, blind, args.resume)
    done = {record.key for record in writer.records}
    progress = AnswerProgress(writer, len(items), len(done))
    left = shards(items, done)

    def run() -> None:
        if args.workers == 1:
            run_here(settings, left, progress.add)
        else:
            run_in_workers(settings, left, args.workers, progress.add)

    def report() -> None:
        writer.finish()
        write_page(folder, args.data, writer.summary(), writer.items)

    if not carry_out(progress, run, report):
        return stopped()
    report()
    for row in table_rows(writer.summary()):
        print("  ".join(f"{cell:>12}" if i else f"{cell:32}" for i, cell in enumerate(row)))
    print(f"{folder / REPORT_FILE}\n{folder / SUMMARY_FILE}")
    return 1 if writer.summary()["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
