"""Answers on disk, and what they amount to: per task and overall, with intervals over scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from policies.spatial.scores.answers import caption_scores, scan2cap_text, scanqa_text
from policies.spatial.scores.vsi import DIRECTIONS
from policies.types import FloatArray, VegaError
from sim.results.paired import drawn_again, percentiles
from sim.results.result_files import ResultFiles
from sim.results.spatial.items import Item, Scores, header_now, nothing

CAPTIONED = ("scanqa", "scan2cap")


@dataclass(frozen=True)
class AnswerRecord:
    """One answer; `boxes` are those it points at, m.  wall_s and latency_ms are measurements."""

    task: int
    trial: int
    kind: str
    answer: str
    boxes: tuple[tuple[float, ...], ...] = ()
    scores: Scores = field(default_factory=dict)
    corrected: Scores = field(default_factory=dict)
    error: str = ""
    wall_s: float = 0.0
    latency_ms: float = 0.0

    @property
    def key(self) -> tuple[int, int]:
        return self.task, self.trial


class AnswerWriter(ResultFiles[AnswerRecord]):
    """Keeps `answers.jsonl` and `summary.json` of a run over `items`."""

    records_file = "answers.jsonl"
    unit = "question"

    def __init__(
        self, folder: Path, header: dict[str, Any], items: Sequence[Item], blind: Mapping[str, Any], resume: bool
    ) -> None:
        """blind: what is reached without looking, by the name of the baseline."""
        self.items = {item.key: item for item in items}
        self._blind = dict(blind)
        self._whole = False
        super().__init__(folder, header, resume=resume)

    def read_record(self, fields: dict[str, Any]) -> AnswerRecord:
        return AnswerRecord(**{**fields, "boxes": tuple(map(tuple, fields.get("boxes", ())))})

    def _read_back(self) -> None:
        super()._read_back()
        for record in self.records:  # older summaries do not say what was asked
            asked = self.items.get(record.key)
            if asked is None or asked.kind != record.kind:
                raise VegaError(
                    f"The run in {self.folder} has an answer to question {record.trial} of scene {record.task} "
                    f"({record.kind}), which is another or none now: give another --output, or the data of that run."
                )

    def header_now(self, found: dict[str, Any]) -> dict[str, Any]:
        return header_now(super().header_now(found))

    def finish(self) -> None:
        """Write what needs all answers: captions' scores, intervals."""
        self._whole = True
        self.write_summary()

    def figures(self) -> dict[str, Any]:
        answered = [r for r in self.records if not r.error]
        slow = [r.latency_ms for r in answered]
        found: dict[str, Any] = {"answered": len(answered), "errors": len(self.records) - len(answered)}
        found["wall_s"] = self.wall_s
        if slow:
            found["latency_ms"] = {f"p{p}": round(float(np.percentile(slow, p)), 2) for p in (50, 95, 99)}
        if self._whole:
            found["scores"] = figures(self.items, answered, "scores")
            found["corrected"] = figures(self.items, answered, "corrected")
            found["interval_95"] = intervals(answered, "scores")
            wrong = [replace(r, scores=nothing(self.items[r.key])) if r.error else r for r in self.records]
            found["refused_as_wrong"] = figures(self.items, wrong, "scores")
            found["blind"] = self._blind
            found["answers"] = [_stable(r) for r in sorted(self.records, key=lambda r: r.key)]
        return found


def _stable(record: AnswerRecord) -> dict[str, Any]:
    fields = asdict(record)
    del fields["wall_s"], fields["latency_ms"]
    return fields


def figures(items: Mapping[tuple[int, int], Item], records: Sequence[AnswerRecord], which: str) -> dict[str, float]:
    """Per cent by name; which: "scores", the reference's, or "corrected"."""
    sums, counts, names = by_scene(records, which)
    if not names:
        means: dict[str, FloatArray] = {}
    else:
        means = tasks(sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True), names)
    found = {name: round(100.0 * float(value[0]), 4) for name, value in means.items()}
    return found | {name: round(value, 4) for name, value in _captions(items, records).items()}


def intervals(records: Sequence[AnswerRecord], which: str) -> dict[str, tuple[float, float]]:
    """95 % by name, per cent: percentiles over scenes drawn again with replacement, whose answers go together.

    None of what one scene alone tells.
    """
    sums, counts, names = by_scene(records, which)
    if not names:
        return {}
    draws, told = drawn_again(np.random.default_rng(0), len(sums)), of_several(counts, names)
    found = tasks(draws @ sums, draws @ counts, names)
    return {name: percentiles(values) for name, values in found.items() if name in told}


def of_several(counts: FloatArray, names: Sequence[tuple[str, str]]) -> set[str]:
    """Of what `tasks` gives, that which no scene of counts (scenes, names) alone tells: it has a spread over scenes."""
    without = counts.sum(axis=0) - counts
    return {name for name, values in tasks(without, without, names).items() if np.isfinite(values).all()}


def by_scene(records: Sequence[AnswerRecord], which: str) -> tuple[FloatArray, FloatArray, list[tuple[str, str]]]:
    """Sums and counts (scenes, names) of the scores; a name is a kind and a measure."""
    rows = [(r.task, (r.kind, m), v) for r in records for m, v in getattr(r, which).items()]
    scenes = {task: i for i, task in enumerate(sorted({task for task, _, _ in rows}))}
    names = sorted({name for _, name, _ in rows})
    place = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros((2, len(scenes), len(names)))
    for task, name, value in rows:
        sums[scenes[task], place[name]] += value
        counts[scenes[task], place[name]] += 1
    return sums, counts, names


def tasks(sums: FloatArray, counts: FloatArray, names: Sequence[tuple[str, str]]) -> dict[str, FloatArray]:
    """(samples,) mean scores of sums and counts (samples, names).

    VSI-Bench's way: the levels of direction are one task, the overall is the plain mean of the tasks.
    """
    means = _means(sums, counts, names)
    found = {name: value for name, value in means.items() if name not in DIRECTIONS}
    levels = [means[name] for name in DIRECTIONS if name in means]
    if levels:
        found["object_rel_direction"] = np.mean(levels, axis=0)
        found |= {name: means[name] for name in DIRECTIONS if name in means}
    plain = [v for name, v in found.items() if "@" not in name and not name.startswith("EM") and name not in DIRECTIONS]
    return ({"overall": np.mean(plain, axis=0)} if plain else {}) | found


def _means(sums: FloatArray, counts: FloatArray, names: Sequence[tuple[str, str]]) -> dict[str, FloatArray]:
    """(samples,) for "measure kind", and for "measure" over all questions that have it."""
    found: dict[str, FloatArray] = {}
    with np.errstate(invalid="ignore"):
        for measure in dict.fromkeys(measure for _, measure in names):
            columns = [i for i, name in enumerate(names) if name[1] == measure]
            if measure != "score":
                found[measure] = sums[:, columns].sum(axis=1) / counts[:, columns].sum(axis=1)
            for i in columns:
                label = names[i][0] if measure == "score" else f"{measure} {names[i][0]}"
                found[label] = sums[:, i] / counts[:, i]
    return found


def _captions(items: Mapping[tuple[int, int], Item], records: Sequence[AnswerRecord]) -> dict[str, float]:
    """CIDEr, BLEU, ROUGE-L over all captions or answers, per cent."""
    chosen = [r for r in records if items[r.key].benchmark in CAPTIONED]
    if not chosen:
        return {}
    captions = items[chosen[0].key].part == "caption"
    text = scan2cap_text if captions else scanqa_text
    ours = {str(r.key): text(r.answer) for r in chosen}
    references = {
        str(r.key): [scan2cap_text(t) if captions else t for t in items[r.key].references] for r in chosen
    }
    found = caption_scores(ours, references)
    return {"CIDEr": found["cider"][0], "BLEU-4": found["bleu"][3], "ROUGE-L": found["rouge"][0]}
