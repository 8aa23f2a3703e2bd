"""One question of a benchmark, and how an answer to it scores: as the reference scores, and corrected beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.spatial.scores import answers, boxes, vsi
from policies.types import FloatArray, VegaError

PARTS = ("question", "one_box", "boxes", "words", "caption")
SPLITS = {"vsi_bench": "test", "sqa3d": "test", "libero_space": "test"}  # that are scored; of the others: val


def split_of(benchmark: str, split: str | None) -> str:
    """The split that is meant where none is given."""
    return split or SPLITS.get(benchmark, "val")


@dataclass(frozen=True)
class Item:
    """task, trial: number of its scene and of itself about that scene.  part: one of PARTS.  scene: path of its film.

    kind: question type.  text: the bare question.  prompt: what the model is asked.  question: of VSI-Bench's kinds.
    boxes: the true ones, m.  references: right answers, or captions.  benchmark: whose rules count.
    """

    task: int
    trial: int
    part: str
    kind: str
    scene: str
    text: str
    prompt: str
    benchmark: str
    question: vsi.Question | None = None
    boxes: tuple[tuple[float, ...], ...] = ()
    references: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[int, int]:
        return self.task, self.trial


def questions_sha256(items: Iterable[Item]) -> str:
    """Hash of what is asked about which scene, and of what is true; in whatever order."""
    asked = sorted(
        [
            i.task, i.trial, i.scene, i.part, i.kind, i.benchmark, i.prompt, i.question and i.question.ground_truth,
            i.boxes, i.references,
        ]
        for i in items
    )  # fmt: skip
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def header_now(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A run's summary in today's words: older versions left the split empty where none was given."""
    return {**summary, "split": split_of(str(summary.get("benchmark", "")), summary.get("split"))}


@dataclass(frozen=True)
class Grounding:
    """boxes (M, 6) centre and sides, m; scores (M + 1,), the last that of "no such thing"."""

    boxes: FloatArray
    scores: FloatArray


Answer = str | Grounding
Scores = dict[str, float]


def chosen(item: Item, answer: Grounding) -> list[FloatArray]:
    """The boxes that are meant: the best for ScanRefer, which always has one, any number for Multi3DRefer."""
    found = np.asarray(answer.boxes, dtype=np.float64).reshape(-1, 6)
    scores = np.asarray(answer.scores, dtype=np.float64)
    if scores.shape != (len(found) + 1,):
        raise VegaError(
            f"The model gave {len(found)} boxes and {scores.size} scores: one more score is needed, of no such thing."
        )
    if item.part == "one_box":
        return [found[int(scores[:-1].argmax())]] if len(found) else []
    return [found[i] for i in boxes.choose(scores)]


def score(item: Item, answer: Answer) -> tuple[Scores, Scores]:
    """The reference's scores and the corrected ones, in [0, 1]; of captions nothing, they are scored together.

    Raises VegaError for an answer of another sort than was asked for.
    """
    if item.part in ("one_box", "boxes"):
        if not isinstance(answer, Grounding):
            raise VegaError("The model answered with words where boxes were asked for: it cannot run this benchmark.")
        meant = chosen(item, answer)
        # The reference rounds boxes to bfloat16 on their way.
        return _box_scores(item, [boxes.as_bfloat16(box) for box in meant]), _box_scores(item, meant)
    if not isinstance(answer, str):
        raise VegaError("The model answered with boxes where words were asked for: it cannot run this benchmark.")
    if item.part == "question":
        assert item.question is not None
        return {"score": vsi.score(item.question, answer)}, {"score": vsi.corrected_score(item.question, answer)}
    if item.part == "words":
        clean = float(any(answers.sqa3d_match(answer, truth) for truth in item.references))
        strict = clean if item.benchmark == "sqa3d" else float(answers.scanqa_match(answer, item.references))
        return {"EM": strict}, {"EM": clean}
    return {}, {}


def nothing(item: Item) -> Scores:
    """The scores of no answer at all: none of them above 0."""
    if item.part in ("one_box", "boxes"):
        return dict.fromkeys(_box_scores(item, []), 0.0)
    return {"question": {"score": 0.0}, "words": {"EM": 0.0}}.get(item.part, {})


def _box_scores(item: Item, found: Sequence[FloatArray]) -> Scores:
    if item.part == "boxes":
        return {f"F1@{bound}": boxes.f1(found, item.boxes, bound) for bound in (0.25, 0.5)}
    overlap = boxes.overlap(found[0], item.boxes[0]) if found else 0.0
    return {f"Acc@{bound}": float(overlap >= bound) for bound in (0.25, 0.5)}
