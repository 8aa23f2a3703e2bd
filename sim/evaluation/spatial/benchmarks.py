"""The benchmarks' questions as they lie in their folders, in the layouts in which VEGA-3D's authors read them.

    vsi_bench     <split>.jsonl, or all <split>*.parquet (its `test` lies in test_debiased and test_pruned.parquet, and
                  `test_debiased` is the half that goes by that name); <dataset>/<scene_name>.mp4
    scanrefer, multi3drefer, scan2cap, scanqa, sqa3d
                  <name>_<split>_llava_style.json, in the folder or its `processed`; posed_images/<scene>/*.jpg
    libero_space  what `python -m sim.space.collect` writes: VSI-Bench's rows, scanrefer_ and multi3drefer_<split>.json
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from policies.spatial.scores import vsi
from policies.types import VegaError
from sim.results.spatial.items import Item, split_of

BENCHMARKS = ("vsi_bench", "scanrefer", "multi3drefer", "scan2cap", "scanqa", "sqa3d", "libero_space")
PARTS = {"scanrefer": "one_box", "multi3drefer": "boxes", "scan2cap": "caption", "scanqa": "words", "sqa3d": "words"}
GROUNDED = ("one_box", "boxes")
REFERENCE_NAMES = {"scanrefer": "scanrefer_vg"}
VSI_FIELDS = ("dataset", "scene_name", "question_type", "question", "ground_truth", "options")


class NoSplit(VegaError):
    """A folder has no file of a split."""


def read_items(benchmark: str, data: Path, split: str | None = None, grounding: bool = True) -> list[Item]:
    """All questions of a split, scene by scene.  grounding: with those that ask for boxes.  Raises VegaError."""
    if not data.is_dir():
        raise VegaError(f"There is no folder '{data}': give the folder of the benchmark's data as --data.")
    split = split_of(benchmark, split)
    if not re.fullmatch(r"\w[\w.-]*", split):  # it becomes part of files' names, and of a pattern of them
        raise VegaError(f"The split '{split}' is no name: give letters, figures, '_', '-' and '.', as test_debiased.")
    if benchmark in ("vsi_bench", "libero_space"):
        items = [_vsi_item(row, benchmark, where) for where, row in _vsi_rows(data, split)]
    else:
        items = [_reference_item(row, benchmark, benchmark) for row in _json_rows(data, benchmark, split)]
    if benchmark == "libero_space" and grounding:
        for name in ("scanrefer", "multi3drefer"):
            items += [_reference_item(row, name, benchmark) for row in _json_rows(data, name, split)]
    return numbered(item for item in items if grounding or item.part not in GROUNDED)


def has_training(benchmark: str, data: Path, grounding: bool = True) -> bool:
    """Whether a training split lies beside, from which the blind baselines learn.  Raises VegaError for a damaged one.

    grounding: with questions that ask for boxes.
    """
    try:
        return bool(read_items(benchmark, data, "train", grounding))
    except NoSplit:
        return False


def numbered(items: Iterable[Item]) -> list[Item]:
    """With the numbers of their scenes, in the order of their names, and of themselves about that scene."""
    of_scene: dict[str, list[Item]] = {}
    for item in items:
        of_scene.setdefault(item.scene, []).append(item)
    return [
        replace(item, task=task, trial=trial)
        for task, scene in enumerate(sorted(of_scene))
        for trial, item in enumerate(of_scene[scene])
    ]


def _vsi_rows(data: Path, split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Rows, each with its place as it is told."""
    lines = data / f"{split}.jsonl"
    if lines.is_file():
        found = {lines: _parsed(lines, lambda text: [json.loads(line) for line in text.split("\n") if line.strip()])}
        return _placed(found)
    tables = sorted(data.glob(f"{split}*.parquet"))
    if not tables:
        raise NoSplit(f"Folder '{data}' has neither {split}.jsonl nor {split}*.parquet: give the benchmark's folder.")
    return _placed({path: _table(path) for path in tables})


def _table(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise VegaError(f"File '{path}' cannot be read ({str(error).splitlines()[0]}): get it again.") from error
    return rows


def _placed(files: Mapping[Path, Sequence[Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of all files, without those that an earlier file holds: people keep an older copy beside newer parts."""
    placed, known = [], set[str]()
    for path, rows in files.items():
        names = [_identity(row) for row in rows]
        placed += [
            (f"Row {n} of '{path}'", row)
            for n, (row, name) in enumerate(zip(rows, names, strict=True), 1) if name not in known
        ]  # fmt: skip
        known.update(names)
    return placed


def _identity(row: Mapping[str, Any]) -> str:
    """Which question of the benchmark a row is: files that number their rows anew share ids."""
    return repr([row.get(name) for name in ("id", "dataset", "scene_name", "question_type", "question")])


def _json_rows(data: Path, benchmark: str, split: str) -> list[dict[str, Any]]:
    name = REFERENCE_NAMES.get(benchmark, benchmark)
    tried = [
        data / f"{benchmark}_{split}.json",
        *(folder / f"{name}_{split}_llava_style.json" for folder in (data, data / "processed")),
    ]
    for path in tried:
        if path.is_file():
            return _parsed(path, json.loads)
    raise NoSplit(f"Folder '{data}' has no {tried[1].name}: make it with Video-3D-LLM's preprocessing.")


def _parsed(path: Path, parse: Any) -> list[dict[str, Any]]:
    try:
        rows = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VegaError(f"File '{path}' cannot be read ({error}): get it again.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise VegaError(f"File '{path}' holds no list of questions: get it again.")
    return rows


def _vsi_item(row: Mapping[str, Any], benchmark: str, where: str) -> Item:
    """where: the row's place, for who reads that it cannot be scored."""
    missing = [name for name in VSI_FIELDS if name not in row]
    if missing:
        raise VegaError(f"{where} lacks the field '{missing[0]}': give rows in VSI-Bench's layout.")
    kind, truth, options = str(row["question_type"]), str(row["ground_truth"]), row["options"]
    if kind in vsi.NUMBERS and not _is_number(truth):
        raise VegaError(f"{where} has the ground_truth '{truth}', where a number is needed: correct it.")
    if (kind in vsi.CHOICES or options) and not (
        isinstance(options, list) and options and all(isinstance(option, str) and option for option in options)
    ):
        raise VegaError(f"{where} has the options {options!r}: give some as ['A. left', 'B. right'].")
    try:
        question = vsi.question_of(row)
    except VegaError as error:
        raise VegaError(f"{where} cannot be asked: {error}") from None
    scene = f"{row['dataset']}/{row['scene_name']}"
    return Item(0, 0, "question", question.kind, scene, question.question, question.prompt, benchmark, question)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _reference_item(row: Mapping[str, Any], rules: str, benchmark: str) -> Item:
    """rules: the benchmark whose layout and scores these are."""
    try:
        said, answer = row["conversations"][0]["value"], row["conversations"][1]["value"]
        metadata, prompt = row["metadata"], str(said).replace("<image>", "").strip()
        part, references = PARTS[rules], [str(answer)]
        boxes: tuple[tuple[float, ...], ...] = ()
        if part == "one_box":
            boxes = _boxes([row["box"]])
        elif part == "boxes":
            boxes = _boxes(row["box"])
        elif rules == "scanqa":
            references = [str(text) for text in metadata["answers"]]
        elif part == "caption":
            references = [str(text) for text in row.get("annotations", references)]
            prompt = _located(prompt, row["box_input"])
        kind, scene = str(metadata["question_type"]), str(row["video"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise VegaError(
            f"A question of {rules} is not in the layout of VEGA-3D ({type(error).__name__}: {error}): make its file "
            "with Video-3D-LLM's preprocessing."
        ) from error
    kind = f"{rules} {kind}" if rules != benchmark else kind
    text = prompt.splitlines()[-1] if prompt else ""
    return Item(0, 0, part, kind, scene, text, prompt, rules, None, boxes, tuple(references))


def _boxes(values: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
    boxes = tuple(tuple(float(number) for number in box) for box in values)
    if any(len(box) != 6 for box in boxes):
        raise ValueError("a box is six numbers")
    return boxes


def _located(prompt: str, box: Sequence[float] | None) -> str:
    """The place of the thing to describe in words, as no model here takes it in any other way; empty without a box.

    The reference adds the centre's position embedding to the token <coord>; and where no proposal overlaps the thing by
    half its caption stays empty.
    """
    if box is None:
        return ""
    x, y, z = (f"{float(value):.2f}" for value in box[:3])
    return prompt.replace("<coord>", f"({x}, {y}, {z})")
