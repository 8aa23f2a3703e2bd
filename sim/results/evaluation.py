"""What an evaluation writes: one line per finished episode, and a summary that is valid at any moment."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import numpy as np

from policies.types import VegaError
from sim.results.result_files import ResultFiles
from sim.worlds.environment import views_of

PROTOCOL = "openvla-oft"


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode; an `error` says nothing about the policy and is not counted in the success rate.

    perturbed: what was drawn of a perturbed view.  wall_s and latency_ms (one number for each decision) are
    measurements: all else is the same on every machine with the same versions, whatever the number of workers.
    """

    task: int
    trial: int
    success: bool
    steps: int
    seed: int
    error: str
    wall_s: float
    actions_sha256: str
    states_sha256: str
    latency_ms: tuple[float, ...] = ()
    perturbed: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int]:
        return self.task, self.trial


def wilson_95(successes: float, trials: int) -> tuple[float, float]:
    """Wilson score interval (Wilson 1927) at 95 %, as rates; (0, 1) without trials.

    Successes may be in part: scores from 0 to 1 spread no more than successes and failures of the same mean.
    """
    if trials == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    # Without a success (or a failure) the bound is exact; rounding would put it past the rate itself.
    return (max(centre - half, 0.0) if successes else 0.0), (min(centre + half, 1.0) if successes < trials else 1.0)


def percent(won: int, count: int) -> str:
    """Such as 97.5 %."""
    return f"{100 * won / count:.1f} %" if count else "no episodes"


def interval(won: int, count: int) -> str:
    """The Wilson interval as text."""
    low, high = wilson_95(won, count)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


class _Joined(argparse.Action):
    """Several words as one text with commas between."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, ",".join(values))


def add_tasks(parser: argparse.ArgumentParser, described: str, default: str | None = None) -> None:
    """--tasks as a text for `parse_tasks`, however it is written: 0-9, 0,3 or 0 3."""
    parser.add_argument("--tasks", nargs="+", action=_Joined, default=default, help=described)


def parse_tasks(text: str, count: int) -> list[int]:
    """'0-3,7' -> [0, 1, 2, 3, 7]; VegaError on anything that is not a task of a suite with `count` tasks."""
    tasks: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not numbers:
                raise VegaError(f"The tasks '{text}' count backwards: write {last}-{first} in place of {part}.")
            tasks.extend(numbers)
    except ValueError as error:
        raise VegaError(f"The tasks '{text}' cannot be read: write them as 0-9, 0,3,5 or 0 3 5.") from error
    if not tasks or min(tasks) < 0 or max(tasks) >= count:
        raise VegaError(f"The tasks '{text}' do not all exist: the suite has tasks 0 to {count - 1}.")
    return list(dict.fromkeys(tasks))


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of installed packages; those that are missing are left out."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class ResultWriter(ResultFiles[EpisodeRecord]):
    """Keeps `episodes.jsonl` and `summary.json` of an evaluation."""

    def read_record(self, fields: dict[str, Any]) -> EpisodeRecord:
        return EpisodeRecord(**{**fields, "latency_ms": tuple(fields.get("latency_ms", ()))})

    def header_now(self, found: dict[str, Any]) -> dict[str, Any]:
        found = super().header_now(found)
        now, then = self.header.get("dimensions"), found.get("dimensions")
        if isinstance(now, dict) and isinstance(then, dict):  # of the tasks that are asked for: others may be, too
            joined = {name: sorted({*then.get(name, ()), *now.get(name, ())}) for name in {**then, **now}}
            self.header, found = ({**fields, "dimensions": joined} for fields in (self.header, found))
        views = views_of(found)
        return found if views is None else {**found, "views": views}

    def figures(self) -> dict[str, Any]:
        counted = [r for r in self.records if not r.error]
        successes = sum(r.success for r in counted)
        return {
            "success_rate": successes / len(counted) if counted else None,
            "wilson_95": list(wilson_95(successes, len(counted))),
            "errors": len(self.records) - len(counted),
            "wall_s": self.wall_s,
            "latency_ms": latency_percentiles(self.records),
            "episodes": [_without_latency(r) for r in sorted(self.records, key=lambda r: r.key)],
        }


def _without_latency(record: EpisodeRecord) -> dict[str, Any]:
    fields = asdict(record)
    del fields["latency_ms"]
    if not record.perturbed:
        del fields["perturbed"]
    return fields


def latency_percentiles(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Of one decision of the policy, over all episodes: p50, p95, p99 (ms) and count; empty without decisions."""
    values = np.array([value for record in records for value in record.latency_ms])
    if not values.size:
        return {}
    low, middle, high = (round(float(value), 2) for value in np.percentile(values, (50, 95, 99)))
    return {"p50": low, "p95": middle, "p99": high, "count": values.size}


def per_task(records: Sequence[EpisodeRecord]) -> dict[int, tuple[int, int]]:
    """task -> (successes, episodes without error)."""
    table: dict[int, tuple[int, int]] = {}
    for record in records:
        if not record.error:
            won, total = table.get(record.task, (0, 0))
            table[record.task] = won + record.success, total + 1
    return table
