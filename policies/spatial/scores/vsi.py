"""VSI-Bench: prompts, how an answer is read, and its score; as the reference scores, and corrected beside it.

Source: `lmms_eval/tasks/vsibench/utils.py` of VEGA-3D's branch spatial-reasoning (ca64583), which follows the
benchmark's own (arXiv 2412.14171).  The reference reads what stands before the first space, so that "About 2.5
meters." and "(C)" count as wrong, and fails on a ground truth of 0; `corrected_score` reads the first number or letter.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policies.types import FloatArray, VegaError

DIRECTIONS = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
CHOICES = (*DIRECTIONS, "object_rel_distance", "route_planning", "obj_appearance_order")
NUMBERS = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
ACCURACY, RELATIVE_ACCURACY = "accuracy", "MRA:.5:.95:.05"
THRESHOLDS = np.linspace(0.5, 0.95, 10)

PRE_PROMPT = "These are frames of a video."
POST_PROMPT_NUMBER = "Please answer the question using a single word or phrase."
POST_PROMPT_CHOICE = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Question:
    """A row of the benchmark; options: of the choices only, with their letters ("A. left")."""

    kind: str
    question: str
    ground_truth: str
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in CHOICES + NUMBERS:
            raise VegaError(
                f"Question type '{self.kind}' is none of VSI-Bench's: choose one of {sorted(CHOICES + NUMBERS)}."
            )

    @property
    def metric(self) -> str:
        return ACCURACY if self.kind in CHOICES else RELATIVE_ACCURACY

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        if self.kind in NUMBERS:
            return "\n".join([PRE_PROMPT, self.question, POST_PROMPT_NUMBER])
        return "\n".join([PRE_PROMPT, self.question, "Options:", *self.options, POST_PROMPT_CHOICE])


def parse(answer: str) -> str:
    """What the reference takes for the answer: the text before the first space, without trailing dots."""
    return answer.split(" ")[0].rstrip(".").strip()


def mean_relative_accuracy(answer: float, truth: float) -> float:
    """Share of the ten thresholds 0.5, 0.55, ..., 0.95 that |answer - truth| / truth is within: <= 1 - threshold.

    A truth of 0, at which the reference fails, is met by exactly 0.
    """
    return float(relative_accuracies(answer, np.array([truth]))[0])


def relative_accuracies(answer: float, truths: FloatArray) -> FloatArray:
    """(N,) the same of one answer to truths (N,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(answer - truths) / truths
    within = (apart[:, None] <= 1 - THRESHOLDS).mean(axis=1)
    return np.where(truths == 0, float(answer == 0), within)


def score(question: Question, answer: str) -> float:
    """The reference's score of an answer, in [0, 1]."""
    return _score(question, parse(answer), _strict_number)


def corrected_score(question: Question, answer: str) -> float:
    """The score of what a reader would take for the answer: the letter of an option, or the first number.

    Never below the reference's: what that takes for right, a reader does too.
    """
    if question.kind in NUMBERS:
        corrected = _score(question, answer, _first_number)
    else:
        corrected = _score(question, _letter(question, answer), _strict_number)
    return max(score(question, answer), corrected)


def _letter(question: Question, answer: str) -> str:
    """The letter at the beginning as options have it, else the first capital, else a last word; empty without any."""
    letters = "".join(sorted({option.strip()[:1].upper() for option in question.options})) or "A-Z"
    # A small letter may be an article, but none that ends an answer or has a dot behind it.
    found = re.match(rf"\W*([{letters}])[.):]", answer, flags=re.IGNORECASE)
    found = found or re.search(rf"(?<![A-Za-z])([{letters}])(?![A-Za-z])", answer)
    found = found or re.search(rf"(?<![\w'\u2019])([{letters}])\W*$", answer, flags=re.IGNORECASE)
    return found[1] if found else ""


def _score(question: Question, answer: str, number: Callable[[str], float | None]) -> float:
    if question.kind in CHOICES:
        return float(answer.lower() == question.ground_truth.lower())
    ours, truth = number(answer), _strict_number(question.ground_truth)
    return 0.0 if ours is None or truth is None else mean_relative_accuracy(ours, truth)


def _strict_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _first_number(text: str) -> float | None:
    found = re.search(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text.replace(",", ""))
    return None if found is None else float(found[0])


def aggregate(scored: Iterable[tuple[str, float]]) -> dict[str, float]:
    """(kind, score) of each answer -> mean per task, and "overall", the plain mean of the tasks; all in [0, 1].

    The three levels of relative direction count as one task, their plain mean.  What has no question is left out.
    """
    of_kind: dict[str, list[float]] = defaultdict(list)
    for kind, value in scored:
        of_kind[kind].append(value)
    means = {kind: float(np.mean(values)) for kind, values in sorted(of_kind.items())}
    tasks = {
        f"{kind}_{ACCURACY if kind in CHOICES else RELATIVE_ACCURACY}": mean
        for kind, mean in means.items()
        if kind not in DIRECTIONS
    }
    levels = [means[kind] for kind in DIRECTIONS if kind in means]
    if levels:
        tasks[f"object_rel_direction_{ACCURACY}"] = sum(levels) / len(levels)
    if tasks:
        tasks["overall"] = sum(tasks.values()) / len(tasks)
    return tasks


def question_of(row: Mapping[str, object]) -> Question:
    """A row in the benchmark's own fields.  Raises VegaError for one that is missing."""
    try:
        options = row["options"] or ()
        assert isinstance(options, Sequence)
        return Question(str(row["question_type"]), str(row["question"]), str(row["ground_truth"]), tuple(options))
    except KeyError as error:
        raise VegaError(f"A question lacks the field {error}: give rows in VSI-Bench's layout.") from None
