"""Episodes of a study's checkpoints on the same initial states, run once and read after that."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.closed_loop import ALL_TASKS, covers, kept, run_folder, summary
from policies.checkpoints import checkpoint_sha256
from policies.files.json_config import read_json
from policies.types import VegaError

STUDY_FILE = "study.json"
Episodes = list[dict[str, Any]]


@dataclass(frozen=True)
class Condition:
    """A suite, and what is perturbed about its views."""

    suite: str
    perturbed: str = ""

    @classmethod
    def read(cls, text: str) -> Condition:
        """libero_object, or libero_object:camera."""
        suite, _, perturbed = text.partition(":")
        return cls(suite, perturbed)

    @property
    def name(self) -> str:
        return f"{self.suite}_{self.perturbed.replace(',', '_')}" if self.perturbed else self.suite

    @property
    def words(self) -> tuple[str, ...]:
        """Of `sim/run_libero.py`."""
        return ("--perturb", self.perturbed) if self.perturbed else ()


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run of a study.  folder: its checkpoint.

    recorded: (condition, control) -> its episodes, where a record tells of them and the checkpoint need not be here.
    """

    arm: str
    seed: int
    folder: Path
    record: Mapping[str, Any]
    recorded: Mapping[tuple[str, str], Episodes] | None = None

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def unchanged(self) -> bool:
        """Whether the checkpoint is the one that the study has told of; of a record there is no telling."""
        if self.recorded is not None:
            return True
        return self.folder.is_dir() and checkpoint_sha256(str(self.folder)) == self.record["checkpoint_sha256"]


Found = Mapping[Trained, Mapping[Condition, Episodes]]


def read_study(folder: Path) -> list[Trained]:
    """The finished runs.  Raises VegaError where there is no study."""
    if not (folder / STUDY_FILE).is_file():
        raise VegaError(f"There is no study in {folder}: make one with `python -m policies.training.study`.")
    return [
        Trained(run["arm"], run["seed"], folder / "runs" / f"{run['arm']}-{run['seed']}", run)
        for run in said(folder / STUDY_FILE, "runs")
    ]


def said(path: Path, what: str) -> Any:
    """What a JSON file says of something.  Raises VegaError where it says nothing."""
    found = read_json(path)
    if what not in found:
        raise VegaError(f"File '{path}' says nothing of {what}: give the folder that its command has written.")
    return found[what]


def simulator_settings(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint's world simulator is set to; None without one."""
    path = folder / "world_simulator" / "world_simulator.json"
    return read_json(path) if path.is_file() else None


class Evaluations:
    """trials: initial states per task.  run: whether missing episodes are run now, by `workers` processes."""

    def __init__(self, output: Path, trials: int, workers: int, run: bool) -> None:
        self.output, self.trials, self.run = output, trials, run
        self._options = argparse.Namespace(output=output, workers=workers, fresh=False)

    def episodes(self, run: Trained, condition: Condition, control: str = "on") -> Episodes | None:
        """The first `trials` of every task; None where they are missing and not to be run."""
        if run.recorded is None and self.run:
            summary(
                self._options, condition.suite, "direct", "eef", self.trials, str(run.folder), control, ALL_TASKS,
                condition.words,
            )  # fmt: skip
        return self.kept(run, condition, control)

    def kept(self, run: Trained, condition: Condition, control: str = "on") -> Episodes | None:
        """The same of what is there already."""
        if run.recorded is not None:
            found: Episodes | None = run.recorded.get((condition.name, control))
        else:
            policy = str(run.folder)
            folder = run_folder(self.output, policy, condition.suite, control=control, further=condition.words)
            told = kept(folder, policy)
            found = None if told is None else told["episodes"]
        if found is None or not covers({"episodes": found}, ALL_TASKS, self.trials):
            return None
        return [episode for episode in found if episode["trial"] < self.trials]


def of_arm(found: Found, arm: str, condition: Condition) -> dict[int, Episodes]:
    """seed -> episodes."""
    return {run.seed: parts[condition] for run, parts in found.items() if run.arm == arm and condition in parts}


def whole(parts: Mapping[Condition, Episodes]) -> Episodes:
    """The episodes of several conditions as of one, their states told apart; a task is the same in all of them."""
    return [episode | {"trial": f"{c.name} {episode['trial']}"} for c, found in parts.items() for episode in found]


def of_all(found: Found, arm: str, conditions: Sequence[Condition]) -> dict[int, Episodes]:
    """seed -> episodes of all conditions, of runs that have them all."""
    own = {run.seed: parts for run, parts in found.items() if run.arm == arm}
    return {seed: whole(parts) for seed, parts in own.items() if all(condition in parts for condition in conditions)}


def percent(runs: Sequence[Episodes]) -> float:
    """Solved, of all episodes of some runs that ended without an error."""
    outcomes = [bool(episode["success"]) for run in runs for episode in run if not episode["error"]]
    return 100.0 * sum(outcomes) / len(outcomes) if outcomes else 0.0
