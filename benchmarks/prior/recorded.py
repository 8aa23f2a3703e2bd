"""What a study's runs have solved as a file to keep, so that studies can be joined whose checkpoints are gone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.prior.evaluations import Condition, Episodes, Evaluations, Trained, said, simulator_settings
from policies.files.made_once import write_whole
from policies.types import VegaError

CONTROLS = ("on", "noise")
KEPT = ("arm", "seed", "checkpoint_sha256", "data_sha256", "parameters", "steps", "held_out")
SOLVED, FAILED, ERROR = "1", "0", "x"


def record(path: Path, trained: Sequence[Trained], conditions: Sequence[Condition], runs: Evaluations) -> None:
    """Write what `recorded` reads: of each run who it is, and of each suite a letter an episode, a string a task."""
    told = []
    for run in trained:
        if not run.unchanged:
            continue
        episodes = {
            control: {
                condition.name: letters(found)
                for condition in conditions
                if (found := runs.kept(run, condition, control)) is not None
            }
            for control in CONTROLS
        }
        told.append(
            {name: run.record[name] for name in KEPT if name in run.record}
            | {"world_simulator": simulator_settings(run.folder), "episodes": episodes}
        )
    write_whole(path, json.dumps({"recorded": told}, indent=1) + "\n")


def recorded(path: Path) -> list[Trained]:
    """The runs of a file of `record`.  Raises VegaError for another file."""
    try:
        found = [
            Trained(run["arm"], run["seed"], Path(f"{run['arm']}-{run['seed']}"), run, _episodes(run["episodes"]))
            for run in said(path, "recorded")
        ]
        # Twice, a run would count twice; of another kind, it would be another's.
        if any(type(run.seed) is not int for run in found) or len({run.name for run in found}) < len(found):
            raise ValueError(path)
        return found
    except (KeyError, TypeError, AttributeError, ValueError):
        raise VegaError(f"The file '{path}' is no record of a study: give one that --record wrote.") from None


def joined(studies: Sequence[tuple[Path, Sequence[Trained]]]) -> list[Trained]:
    """The runs of several studies as of one.  Raises VegaError where two of them have the same arm and seed."""
    found: dict[tuple[str, int], Path] = {}
    for path, trained in studies:
        for run in trained:
            before = found.setdefault((run.arm, run.seed), path)
            if before != path:
                raise VegaError(
                    f"Both {before} and {path} have seed {run.seed} of {run.arm}: give studies of different --seeds."
                )
    return [run for _, trained in studies for run in trained]


def letters(episodes: Episodes) -> list[str]:
    """A string for each task, a letter for each of its initial states, from the first."""
    tasks: dict[int, dict[int, str]] = {}
    for episode in episodes:
        letter = ERROR if episode["error"] else SOLVED if episode["success"] else FAILED
        tasks.setdefault(episode["task"], {})[episode["trial"]] = letter
    rows = [sorted(tasks.get(task, {}).items()) for task in range(max(tasks, default=-1) + 1)]
    return ["".join(letter for _, letter in row) for row in rows]


def _episodes(told: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[tuple[str, str], Episodes]:
    """(condition, control) -> episodes."""

    def listed(rows: Sequence[str]) -> Sequence[str]:
        if not isinstance(rows, list):  # the letters of a string would be tasks
            raise TypeError(rows)
        return rows

    def one(task: int, trial: int, letter: str) -> dict[str, Any]:
        if letter not in (SOLVED, FAILED, ERROR):
            raise ValueError(letter)
        return {"task": task, "trial": trial, "success": letter == SOLVED, "error": "x" if letter == ERROR else ""}

    return {
        (condition, control): [
            one(task, trial, letter) for task, row in enumerate(listed(rows)) for trial, letter in enumerate(row)
        ]
        for control, conditions in told.items()
        for condition, rows in conditions.items()
    }
