"""Two arms of an experiment with a model for every seed, asked the same questions: what the one has over the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.files.json_config import read_json
from policies.files.paths import check_named_once
from policies.types import FloatArray, VegaError
from sim.results.paired import drawn_again, percentiles
from sim.results.result_files import SUMMARY_FILE
from sim.results.spatial.answers import AnswerRecord, by_scene, of_several, tasks
from sim.results.spatial.items import header_now

# What runs must have alike, and what is said where they do not; what an older version did not write is not compared.
ASKED = {
    **{name: f"another {name}" for name in ("benchmark", "split")},
    **{name: f"other {name}" for name in ("frames", "poses", "questions", "scenes", "kinds")},
    "questions_sha256": "other questions or answers",
}


@dataclass(frozen=True)
class Difference:
    """Of one task, per cent.  first, second: the arms' means over their models.  seeds: second less first of each."""

    first: float
    second: float
    interval_95: tuple[float, float]
    seeds: tuple[float, ...]

    @property
    def difference(self) -> float:
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Of two arms, by task, on the questions that all runs answered.

    asked, answered: questions, and those of them that all runs answered.  refused: of each arm's, those that at least
    one of its runs refused.
    """

    tasks: Mapping[str, Difference]
    asked: int
    answered: int
    refused: tuple[int, int]


def read_answers(folder: Path) -> tuple[Mapping[str, Any], list[AnswerRecord]]:
    """Summary and answers of a run of `run_spatial`, refused ones too.  Raises VegaError."""
    path = folder / SUMMARY_FILE
    if not path.is_file() or "answers" not in (summary := read_json(path)):
        raise VegaError(f"Folder '{folder}' has no finished run of run_spatial: let one end there.")
    try:
        answers = [AnswerRecord(**{**answer, "error": answer["error"]}) for answer in summary["answers"]]
    except (KeyError, TypeError) as error:
        raise VegaError(f"The answers in '{path}' cannot be read ({error}): give a run of run_spatial.") from error
    return header_now(summary), answers


def _check_alike(summaries: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise VegaError where not all of these runs, by their folders, were asked the same."""
    for name, unlike in ASKED.items():
        told = {folder: summary[name] for folder, summary in summaries.items() if name in summary}
        for folder, value in told.items():
            if value != next(iter(told.values())):
                raise VegaError(f"Run '{folder}' has {unlike} than '{next(iter(told))}': ask both the same.")


def _answered_by_all(answers: Sequence[Sequence[AnswerRecord]]) -> tuple[list[list[AnswerRecord]], list[set[Any]]]:
    """Of each run the answers to questions that no run refused, and the keys of those that it refused.

    What an arm refuses is seldom its easiest: on what is left to each, the one that refuses more would seem to gain.
    """
    asked = [{record.key: record.kind for record in run} for run in answers]
    if any(other != asked[0] for other in asked):
        raise VegaError("Not all runs were asked the same questions: let each end, with the same --limit.")
    refused = [{record.key for record in run if record.error} for run in answers]
    lost = set[Any]().union(*refused)
    if asked[0] and len(lost) == len(asked[0]):
        raise VegaError(f"There is no question that all runs answered: read the errors in their {SUMMARY_FILE}.")
    return [[record for record in run if record.key not in lost] for run in answers], refused


def compare(first: Sequence[Path], second: Sequence[Path], which: str = "scores") -> Comparison:
    """first, second: folders of runs, in the order of their seeds.  Raises VegaError for unlike runs.

    The interval: percentiles over films and seeds, both drawn again with replacement; an arm's answers to a film, and
    the arms of a seed, go together.  Of what one film alone tells nothing is known of others: -100 to 100.
    """
    if len(first) != len(second) or not first:
        raise VegaError(f"There are {len(first)} runs of one arm and {len(second)} of the other: give as many of each.")
    for arm in (first, second):
        check_named_once(arm)
    summaries, answers = zip(*(read_answers(folder) for folder in (*first, *second)), strict=True)
    _check_alike(dict(zip((*first, *second), summaries, strict=True)))
    common, refused = _answered_by_all(answers)
    found = [by_scene(records, which) for records in common]
    names = found[0][2]
    if not names:
        raise VegaError(f"Run '{first[0]}' has no answer with a score: read the errors in its {SUMMARY_FILE}.")
    if any(other[2] != names or other[0].shape != found[0][0].shape for other in found):
        raise VegaError("Not all runs score the same questions: repeat them with one version of this package.")
    # (arms, seeds, films, names)
    sums, counts = (np.stack([table[i] for table in found]).reshape(2, len(first), *found[0][0].shape) for i in (0, 1))
    rng = np.random.default_rng(0)
    films, seeds = drawn_again(rng, sums.shape[2]), drawn_again(rng, len(first))

    def drawn(values: FloatArray, arm: int) -> FloatArray:
        return np.asarray(np.einsum("kr,kf,rfn->kn", seeds, films, values[arm], optimize=True))

    samples = [tasks(drawn(sums, arm), drawn(counts, arm), names) for arm in (0, 1)]
    means = [tasks(sums[arm].sum(axis=(0, 1))[None], counts[arm].sum(axis=(0, 1))[None], names) for arm in (0, 1)]
    told = of_several(counts[0].sum(axis=0), names)
    each = [tasks(sums[arm].sum(axis=1), counts[arm].sum(axis=1), names) for arm in (0, 1)]
    gains = {
        name: Difference(
            100 * float(means[0][name][0]), 100 * float(means[1][name][0]),
            percentiles(samples[1][name] - samples[0][name]) if name in told else (-100.0, 100.0),
            tuple(100 * float(value) for value in each[1][name] - each[0][name]),
        )
        for name in means[0]
    }  # fmt: skip
    by_first, by_second = (set[Any]().union(*runs) for runs in (refused[: len(first)], refused[len(first) :]))
    return Comparison(gains, len(answers[0]), len(common[0]), (len(by_first), len(by_second)))
