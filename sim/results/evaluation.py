"""What an evaluation writes: one line per finished episode, and a summary that is valid at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from policies.types import VegaError

PROTOCOL = "openvla-oft"
SUMMARY_FILE = "summary.json"
EPISODES_FILE = "episodes.jsonl"


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


def wilson_95(successes: int, trials: int) -> tuple[float, float]:
    """Wilson score interval (Wilson 1927) at 95 %, as rates; (0, 1) without trials."""
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


def parse_tasks(text: str, count: int) -> list[int]:
    """'0-3,7' -> [0, 1, 2, 3, 7]; VegaError on anything that is not a task of a suite with `count` tasks."""
    tasks: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            tasks.extend(range(int(first), int(last or first) + 1))
    except ValueError as error:
        raise VegaError(f"The tasks '{text}' cannot be read: write them as 0-9 or 0,3,5.") from error
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


class ResultWriter:
    """Keeps `episodes.jsonl` and `summary.json` in `folder`; raises VegaError when they cannot be written.

    header: the summary's own fields (suite, policy, transport, command, protocol, versions, ...).
    resume: keep the episodes that an earlier run with the same header has put there, except those with an error, which
        are to be repeated; what an older version did not write into its header is not compared.
    One writer a folder, as long as it lives.
    """

    def __init__(self, folder: Path, header: dict[str, Any], *, resume: bool = False) -> None:
        self.folder, self.header = folder, header
        self.records: list[EpisodeRecord] = []
        self._lock = self._claim()
        self._earlier_s = 0.0
        self._start = time.monotonic()
        if resume:
            self._read_back()
        self._write(folder / EPISODES_FILE, "".join(json.dumps(asdict(r)) + "\n" for r in self.records))
        self.write_summary()

    def add(self, record: EpisodeRecord) -> None:
        """Put a finished episode on disk."""
        self.records.append(record)
        try:
            with (self.folder / EPISODES_FILE).open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failure(error) from error
        self.write_summary()

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds; episodes by task and trial, in whatever order they were run."""
        counted = [r for r in self.records if not r.error]
        successes = sum(r.success for r in counted)
        return {
            **self.header,
            "success_rate": successes / len(counted) if counted else None,
            "wilson_95": list(wilson_95(successes, len(counted))),
            "errors": len(self.records) - len(counted),
            "wall_s": round(self._earlier_s + time.monotonic() - self._start, 2),
            "latency_ms": latency_percentiles(self.records),
            "episodes": [_without_latency(r) for r in sorted(self.records, key=lambda r: r.key)],
        }

    def close(self) -> None:
        """Let others write to the folder."""
        os.close(self._lock)

    def _claim(self) -> int:
        lock = -1
        try:
            lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if lock >= 0:
                os.close(lock)
            raise VegaError(
                f"The folder {self.folder} is being written by another run: wait for it or give another --output."
            ) from error
        return lock

    def _read_back(self) -> None:
        path = self.folder / SUMMARY_FILE
        if not path.is_file():
            return
        try:
            found = json.loads(path.read_text())
            lines = (self.folder / EPISODES_FILE).read_text().splitlines(keepends=True)
            # A line without its end was cut off by the kill: that episode is repeated.
            fields = [json.loads(line) for line in lines if line.endswith("\n")]
            records = [EpisodeRecord(**{**f, "latency_ms": tuple(f.get("latency_ms", ()))}) for f in fields]
        except (OSError, ValueError, TypeError) as error:
            raise VegaError(f"The run in {self.folder} cannot be read ({error}): give another --output.") from error
        for name, value in self.header.items():
            if found.get(name, value) != value:
                raise VegaError(
                    f"The run in {self.folder} has {name} {found.get(name)}, this one {value}: "
                    "give another --output, or the options of that run."
                )
        self.records = list({r.key: r for r in records if not r.error}.values())
        self._earlier_s = float(found.get("wall_s", 0.0))

    def write_summary(self) -> None:
        self._write(self.folder / SUMMARY_FILE, json.dumps(self.summary(), indent=1) + "\n")

    def _write(self, path: Path, text: str) -> None:
        # Written beside and renamed: a full disk or a kill leaves the last valid file.
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(text)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> VegaError:
        return VegaError(
            f"Results cannot be written to {self.folder} ({error.strerror}): make room there; "
            f"the {max(len(self.records) - 1, 0)} episodes before are kept."
        )


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
