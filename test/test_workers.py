"""Episodes in several processes: the same results whatever their number and whatever happens to them."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.types import VegaError
from sim.evaluation.evaluate import evaluate
from sim.evaluation.settings import EpisodeSettings
from sim.evaluation.workers import make_shards, run_in_workers
from sim.results.evaluation import EpisodeRecord
from sim.worlds.episode import EpisodeResult

HERE = Path(__file__).parent


class Pretended:
    """Episodes whose outcome follows from task and trial; `trouble` names files that make a trial fatal."""

    def __init__(self, trouble: Path, pause_s: float, folder: Path | None = None) -> None:
        self.latencies_ms: list[float] = []
        self._trouble, self._pause_s, self._folder = trouble, pause_s, folder

    def run(self, task: int, trial: int) -> EpisodeResult:
        time.sleep(self._pause_s)
        for name, lasting in (("once", False), ("always", True)):
            mark = self._trouble / f"{name}_{task}_{trial}"
            if mark.exists():
                if not lasting:
                    mark.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        if (self._trouble / f"full_{task}_{trial}").exists():
            raise VegaError("Pictures cannot be written: make room.")
        if self._folder is not None:
            (self._folder / "pictures").mkdir(parents=True, exist_ok=True)
            (self._folder / "pictures" / f"{task}_{trial}.txt").write_text(f"{task} {trial}")
        digest = hashlib.sha256(f"{task} {trial}".encode()).hexdigest()
        self.latencies_ms.append(time.monotonic() % 1)
        return EpisodeResult(int(digest, 16) % 3 > 0, 10 + trial, "", digest, digest)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class PretendedSettings(EpisodeSettings):
    trouble: Path = Path()
    pause_s: float = 0.0

    def build(self) -> Pretended:
        if (self.trouble / "no_policy").exists():
            raise VegaError("There is no such policy: choose another.")
        if (self.trouble / "no_memory").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return Pretended(self.trouble, self.pause_s, self.folder)


def run(folder: Path, workers: int = 1, resume: bool = False, pause_s: float = 0.0) -> dict[str, Any]:
    """The summary of 3 tasks x 4 trials, without what was measured."""
    folder.mkdir(exist_ok=True)
    args = argparse.Namespace(
        suite="s",
        trials=4,
        workers=workers,
        ray=None,
        record=None,
        share_policy=None,
        resume=resume,
        output=folder / "run",
    )
    settings = PretendedSettings("s", "a:B", trouble=folder, pause_s=pause_s)
    evaluate(args, settings, "p", [0, 1, 2])
    return comparable(folder / "run")


def comparable(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    del summary["wall_s"], summary["latency_ms"]
    for episode in summary["episodes"]:
        del episode["wall_s"]
    return summary


@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 9), st.data())
def test_shards_hold_every_trial_that_is_left_once(tasks: int, trials: int, workers: int, data: st.DataObject) -> None:
    every = [(task, trial) for task in range(tasks) for trial in range(trials)]
    done = data.draw(st.sets(st.sampled_from(every)))
    shards = make_shards(range(tasks), trials, workers, done)
    found = [(shard.task, trial) for shard in shards for trial in shard.trials]
    assert sorted(found) == sorted(set(every) - done)
    if len(every) - len(done) >= 3 * workers and not done:
        assert len(shards) >= workers


def test_one_two_and_four_workers_find_the_same(tmp_path: Path) -> None:
    summaries = [run(tmp_path / str(workers), workers) for workers in (1, 2, 4)]
    assert summaries[0] == summaries[1] == summaries[2]
    assert [(e["task"], e["trial"]) for e in summaries[0]["episodes"]] == [(a, b) for a in range(3) for b in range(4)]


def test_a_worker_that_dies_is_replaced_and_a_deadly_episode_is_an_error(tmp_path: Path) -> None:
    calm = run(tmp_path / "calm")
    for name in ("once_0_1", "once_2_0", "always_1_2"):
        (tmp_path / name).touch()
    stormy = run(tmp_path, workers=2)
    assert stormy["errors"] == 1
    for expected, found in zip(calm["episodes"], stormy["episodes"], strict=True):
        if (found["task"], found["trial"]) == (1, 2):
            assert "died in this episode" in found["error"]
        else:
            assert found == expected
    (tmp_path / "always_1_2").unlink()
    assert run(tmp_path, resume=True) == calm


def test_a_policy_that_cannot_be_loaded_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "no_policy").touch()
    with pytest.raises(VegaError, match="choose another"):
        run(tmp_path, workers=2)
    (tmp_path / "no_policy").unlink()
    (tmp_path / "no_memory").touch()
    with pytest.raises(VegaError, match="fewer --workers"):
        run(tmp_path, workers=2)


def test_a_full_disk_stops_the_workers(tmp_path: Path) -> None:
    pids: list[int] = []

    def full(record: EpisodeRecord) -> None:
        raise VegaError("no room")

    shards = make_shards([0, 1], 3, 2)
    with pytest.raises(VegaError, match="no room"):
        run_in_workers(PretendedSettings("s", "a:B", trouble=tmp_path), shards, 2, full, pids.append)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_episode_that_cannot_be_kept_ends_the_run_with_its_sentence(
    tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a full disk does where pictures or tapes are written."""
    (tmp_path / "full_1_2").touch()
    with pytest.raises(VegaError, match=r"^Pictures cannot be written: make room\.$"):
        run(tmp_path, workers=workers)
    assert "Traceback" not in capfd.readouterr().err
    found = comparable(tmp_path / "run")
    assert found["errors"] == 0 and (1, 2) not in [(e["task"], e["trial"]) for e in found["episodes"]]
    (tmp_path / "full_1_2").unlink()
    assert run(tmp_path, workers=workers, resume=True)["errors"] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_and_resumed_it_ends_as_if_undisturbed(tmp_path: Path, workers: int) -> None:
    calm = run(tmp_path / "calm")
    folder = tmp_path / "killed"
    code = f"import test_workers as t; t.run(t.Path({str(folder)!r}), {workers}, True, 0.02)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    for wanted in (1, 5, 9):
        with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while finished(folder / "run") < wanted and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.kill()
        comparable(folder / "run")  # a valid summary at any moment
    with (folder / "run" / "episodes.jsonl").open("a") as file:
        file.write('{"task": 2, "tri')  # what a kill within a write leaves
    assert run(folder, workers, resume=True) == calm


def finished(folder: Path) -> int:
    path = folder / "episodes.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def test_two_runs_do_not_write_to_one_folder_nor_does_a_different_one_resume(tmp_path: Path) -> None:
    from sim.results.evaluation import ResultWriter

    first = ResultWriter(tmp_path, {"suite": "s"})
    with pytest.raises(VegaError, match="another run"):
        ResultWriter(tmp_path, {"suite": "s"})
    first.close()
    with pytest.raises(VegaError, match="suite s, this one other"):
        ResultWriter(tmp_path, {"suite": "other"}, resume=True)
