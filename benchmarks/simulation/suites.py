"""What one policy reaches on all suites: four of LIBERO, LIBERO-PRO's changes of them, shifted places, drawn views.

A run on its official initial states is judged as a whole; episodes that a policy refuses or that end in an error count
as not solved.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import Rows
from policies.checkpoints import find_checkpoint
from policies.types import VegaError

Run = Callable[..., dict[str, Any]]
OFFICIAL = {"libero_object": 98.0, "libero_spatial": 95.0, "libero_goal": 90.0, "libero_10": 70.0}
SWAPPED, CHANGED, SHIFTED, SEEN_OTHERWISE = 80.0, 60.0, 80.0, 85.0
POINTS_LOST_BY_WORDS, CHECKPOINT_MB = 3.0, 25.0
GRADES = [f"libero_object_temp_{axis}0.{grade}" for axis in "xy" for grade in range(1, 6)]
VIEWS = "camera,light,texture"
TASKS = 10  # of each suite


class Refused(VegaError):
    """A policy takes none of a suite's episodes."""


def all_suites(rows: Rows, run: Run, trials: int, further_trials: int, policy: str) -> dict[str, dict[str, Any]]:
    """The rows, and the summary of every suite.

    run: (suite, trials, further words) -> the summary; it raises Refused where the policy takes none of the episodes.
    """
    told: dict[str, dict[str, Any]] = {}
    size = sum(path.stat().st_size for path in Path(find_checkpoint(policy)).rglob("*") if path.is_file())

    def tried(suite: str, number: int, *words: str) -> dict[str, Any]:
        try:
            return run(suite, number, *words)
        except Refused as error:
            print(f"# {suite}: none is solved, as the policy refuses it: {error}", flush=True)
            return refused(suite, number, str(error))

    def judge(suite: str, number: int, least: float, *words: str, name: str = "") -> None:
        found = told[name or suite] = tried(suite, number, *words)
        row = f"success_{name or suite}_percent_of_{len(outcomes(found, number))}"
        rows.at_least(row, solved(found, number), least)

    for suite, least in OFFICIAL.items():
        judge(suite, trials, least)
    for suite in OFFICIAL:
        judge(f"{suite}_swap", further_trials, SWAPPED)
        judge(f"{suite}_object", further_trials, CHANGED)
        other = told[f"{suite}_lan"] = tried(f"{suite}_lan", further_trials)
        row = f"points_lost_by_other_words_{suite}"
        if "refused" in told[suite] or "refused" in other:
            rows.missing(row, "the policy refuses the suite")
            continue
        lost = solved(told[suite], further_trials) - solved(other, further_trials)
        rows.at_most(row, lost, POINTS_LOST_BY_WORDS)
    for suite in GRADES:
        judge(suite, further_trials, SHIFTED)
    judge("libero_object", further_trials, SEEN_OTHERWISE, "--perturb", VIEWS, name="libero_object_seen_otherwise")
    rows.at_most("checkpoint_mb", size / 1e6, CHECKPOINT_MB)
    return told


def refused(suite: str, trials: int, why: str) -> dict[str, Any]:
    """What is known of a suite that the policy does not take: so many episodes, and none solved."""
    episodes = [
        {"task": task, "trial": trial, "success": False, "error": why}
        for task in range(TASKS) for trial in range(trials)
    ]  # fmt: skip
    return {"suite": suite, "refused": why, "episodes": episodes}


def outcomes(run: dict[str, Any], trials: int | None = None) -> list[bool]:
    """Whether each episode was solved, of all or of the first so many trials of each task; errors are not."""
    first = [episode for episode in run["episodes"] if trials is None or episode["trial"] < trials]
    return [bool(episode["success"]) and not episode["error"] for episode in first]


def solved(run: dict[str, Any], trials: int | None = None) -> float:
    """Percent of these solved."""
    found = outcomes(run, trials)
    return 100.0 * sum(found) / len(found)
