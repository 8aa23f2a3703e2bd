"""What an evaluation writes: one line per finished episode, and a summary that is valid at any moment."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policies.types import VegaError

PROTOCOL = "openvla-oft"
SUMMARY_FILE = "summary.json"
EPISODES_FILE = "episodes.jsonl"


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode; an `error` says nothing about the policy and is not counted in the success rate."""

    task: int
    trial: int
    success: bool
    steps: int
    seed: int
    error: str
    wall_s: float
    actions_sha256: str
    states_sha256: str


def wilson_95(successes: int, trials: int) -> tuple[float, float]:
    """Wilson score interval (Wilson 1927) at 95 %, as rates; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(centre - half, 0.0), min(centre + half, 1.0)


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


class ResultWriter:
    """Keeps `episodes.jsonl` and `summary.json` in `folder`; raises VegaError when they cannot be written.

    header: the summary's own fields (suite, policy, transport, command, protocol, versions, ...).
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder, self.header = folder, header
        self.records: list[EpisodeRecord] = []
        self._start = time.monotonic()
        self._write(folder / EPISODES_FILE, "")
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
        counted = [r for r in self.records if not r.error]
        successes = sum(r.success for r in counted)
        return {
            **self.header,
            "success_rate": successes / len(counted) if counted else None,
            "wilson_95": list(wilson_95(successes, len(counted))),
            "errors": len(self.records) - len(counted),
            "wall_s": round(time.monotonic() - self._start, 2),
            "episodes": [asdict(r) for r in self.records],
        }

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


def per_task(records: Sequence[EpisodeRecord]) -> dict[int, tuple[int, int]]:
    """task -> (successes, episodes without error)."""
    table: dict[int, tuple[int, int]] = {}
    for record in records:
        if not record.error:
            won, total = table.get(record.task, (0, 0))
            table[record.task] = won + record.success, total + 1
    return table
