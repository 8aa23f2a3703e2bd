"""The rows of `closed_loop --all`, `benchmarks.evaluation` and `benchmarks.simulation` say what they promise."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import closed_loop
from benchmarks.evaluation import __main__ as evaluation
from benchmarks.rows import Rows
from benchmarks.simulation.suites import all_suites
from policies.checkpoints import check_instructions, checkpoint_sha256
from policies.types import VegaError
from sim.evaluation import direct_episodes
from sim.results.evaluation import parse_tasks, wilson_95
from sim.worlds.suites import initial_states, list_tasks, load_suite

ROOT = Path(__file__).resolve().parents[1]


def summary(
    suite: str, trials: int, solved: int = 10**6, broken: str = "", tasks: Sequence[int] = range(10)
) -> dict[str, Any]:
    """As run_libero writes it: so many trials of each task solved, the others lost or broken."""
    episodes = [
        {"task": task, "trial": trial, "success": trial < solved, "error": "" if trial < solved else broken}
        for task in tasks for trial in range(trials)
    ]  # fmt: skip
    counted = [episode["success"] for episode in episodes if not episode["error"]]
    return {
        "suite": suite, "transport": "direct", "command": "eef", "protocol": "openvla-oft", "versions": {},
        "success_rate": sum(counted) / len(counted) if counted else None,
        "wilson_95": wilson_95(sum(counted), len(counted)), "errors": len(episodes) - len(counted),
        "checkpoint_sha256": checkpoint_sha256("vega-nano"), "episodes": episodes,
    }  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_an_episode_with_an_error_is_not_solved(capsys: pytest.CaptureFixture[str]) -> None:
    all_suites(Rows(), lambda suite, trials, *_: summary(suite, trials, 8, "it broke"), 10, 10, "vega-nano")
    assert printed(capsys)["success_libero_object_percent_of_100"] == ["80", ">=98", "FAIL"]
    all_suites(Rows(), lambda suite, trials, *_: summary(suite, trials, 0, "it broke"), 10, 10, "vega-nano")
    assert printed(capsys)["success_libero_object_percent_of_100"] == ["0", ">=98", "FAIL"]


def test_of_a_run_with_more_trials_those_asked_for_are_judged(capsys: pytest.CaptureFixture[str]) -> None:
    all_suites(Rows(), lambda suite, trials, *_: summary(suite, 20, 10), 10, 10, "vega-nano")
    assert printed(capsys)["success_libero_object_percent_of_100"] == ["100", ">=98", "ok"]


def test_a_suite_that_the_policy_refuses_is_none_solved_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """vega-nano knows the things of libero_object only; the farthest shift has no states of one task."""
    ran = []

    def run(words: list[str]) -> int:
        said = dict(itertools.pairwise(words))
        tasks, benchmark = parse_tasks(said.get("--tasks", "0-9"), 10), load_suite(said["--suite"])
        try:
            check_instructions(said["--policy"], list_tasks(said["--suite"]))
            for task in tasks:
                initial_states(said["--suite"], benchmark, task)
        except VegaError:
            return 2
        ran.append(said["--suite"])
        folder = Path(said["--output"])
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary(said["--suite"], int(said["--trials"]), tasks=tasks)))
        return 0

    monkeypatch.setattr(closed_loop.run_libero, "main", run)
    words = ["--all", "--policy", "vega-nano", "--trials", "1", "--all-trials", "2", "--output", str(tmp_path / "runs")]
    assert closed_loop.main([*words, "--record", str(tmp_path / "results.json")]) == 1
    rows, results = printed(capsys), json.loads((tmp_path / "results.json").read_text())
    assert "libero_object" in ran and "libero_goal" not in ran
    assert rows["success_libero_object_percent_of_20"] == ["100", ">=98", "ok"]
    assert rows["success_libero_object_temp_y0.5_percent_of_9"] == ["100", ">=80", "ok"]
    assert rows["success_libero_goal_percent_of_20"] == ["0", ">=90", "FAIL"]
    assert rows["success_libero_goal_swap_percent_of_10"] == ["0", ">=80", "FAIL"]
    assert rows["points_lost_by_other_words_libero_goal"][0] == "missing"
    assert rows["points_lost_by_other_words_libero_object"] == ["0", "<=3", "ok"]
    assert results["libero_goal"]["episodes"] == results["libero_goal"]["errors"] == 20
    assert "instructions are refused" in results["libero_goal"]["refused"]
    assert results["libero_goal"]["success_rate"] == 0.0 and results["libero_object"]["success_rate"] == 1.0


def test_what_is_no_refusal_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_loop.run_libero, "main", lambda words: 2)
    assert closed_loop.main(["--all", "--output", str(tmp_path)]) == 2


def test_a_suite_that_is_not_there_is_no_refusal_of_the_policys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(suite: str) -> list[str]:
        raise VegaError(f"There is no suite '{suite}'.")

    monkeypatch.setattr(closed_loop, "list_tasks", missing)
    assert closed_loop.main(["--all", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "There is no suite 'libero_object'" in said.err and "refuses" not in said.out


def test_the_record_counts_the_episodes_that_it_names() -> None:
    kept = closed_loop.measured(summary("libero_object", 10, 8, "it broke"))
    assert (kept["episodes"], kept["errors"], kept["success_rate"]) == (100, 20, 0.8)
    assert kept["wilson_95"] == list(wilson_95(80, 100))
    whole = closed_loop.measured(summary("libero_object", 10, 8))
    assert (whole["episodes"], whole["success_rate"]) == (100, 0.8) and "errors" not in whole


class Clock:
    """Time passes as work is done: a control step takes 1, robosuite's own 2, a reset 10, the harness 0.02 a step."""

    def __init__(self) -> None:
        self.now = 0.0

    def spend(self, cost: float) -> None:
        self.now += cost

    def episodes(self, *_: object) -> Any:
        environment = SimpleNamespace(
            reset=lambda trial: self.spend(10.0), _control_step=lambda action: self.spend(1.0),
            env=SimpleNamespace(step=lambda action: self.spend(2.0), _check_success=lambda: False),
        )  # fmt: skip
        return SimpleNamespace(
            run=lambda task, trial: self.spend(10.0 + 280 * 1.02),
            close=lambda: None,
            _for_task=lambda task: environment,
        )


def test_the_overhead_is_over_the_steps_that_the_harness_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(direct_episodes, "DirectEpisodes", clock.episodes)
    evaluation.overhead(Rows(), tmp_path)
    assert printed(capsys) == {"harness_overhead_percent": ["2", "<=5", "ok"]}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "argv", ["worker.py", str(ROOT)])
    return importlib.import_module("benchmarks.simulation.worker")


def test_a_demonstration_costs_what_its_video_costs_too(worker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass"

    def collect_episode(*_: object) -> bool:
        subprocess.run([sys.executable, "-c", burn], check=True)
        return True

    modules = SimpleNamespace(
        __name__="sim.demonstrations.collect_skills", collect_episode=collect_episode,
        Views=lambda environment: None, Dyes=lambda environment: None,
    )  # fmt: skip
    monkeypatch.setattr(worker, "load", lambda *names: modules)
    monkeypatch.setattr(worker.Worker, "_environment", lambda *_, **__: None)
    found = worker.Worker().demonstration("libero_object", 0, 0)
    assert found["kept"] and found["cpu_s"] >= 0.5
