"""What an evaluation reports, and that finished episodes survive whatever comes after them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.types import VegaError
from sim.demonstrations import try_skills
from sim.evaluation.evaluate import add_options
from sim.results.evaluation import EpisodeRecord, ResultWriter, parse_tasks, per_task, wilson_95


def record(task: int, success: bool, error: str = "") -> EpisodeRecord:
    return EpisodeRecord(task, 0, success, 90, 0, error, 1.0, "a", "b")


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_mirrors(counts: tuple[int, int]) -> None:
    won, total = counts
    low, high = wilson_95(won, total)
    assert 0 <= low <= won / total <= high <= 1
    mirrored = wilson_95(total - won, total)
    assert low == pytest.approx(1 - mirrored[1], abs=1e-12)


def test_wilson_interval_of_a_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263.
    assert wilson_95(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("text", "tasks"), [("0-3,7", [0, 1, 2, 3, 7]), ("4", [4]), ("2,2,1", [2, 1])])
def test_tasks_are_read(text: str, tasks: list[int]) -> None:
    assert parse_tasks(text, 10) == tasks


def test_tasks_are_written_in_one_way_or_another_in_every_command() -> None:
    for add in (add_options, lambda parser: try_skills.add_options(parser, "libero_goal", 0, 1)):
        parser = argparse.ArgumentParser()
        add(parser)
        for words in (["0-1,3"], ["0,1,3"], ["0", "1", "3"], ["0-1", "3"]):
            assert parse_tasks(parser.parse_args(["--tasks", *words]).tasks, 10) == [0, 1, 3]
        assert parser.parse_args([]).tasks is None


def test_tasks_that_count_backwards_are_told() -> None:
    with pytest.raises(VegaError, match="The tasks '0,3-1' count backwards: write 1-3 in place of 3-1"):
        parse_tasks("0,3-1", 10)


@pytest.mark.parametrize("text", ["3-", "0-,3", "1,3-"])  # the last of these is what `--tasks 1 3-` says
def test_a_range_of_tasks_without_an_end_is_not_its_first_task_alone(text: str) -> None:
    with pytest.raises(VegaError, match=f"The tasks '{text}' cannot be read: write them as 0-9"):
        parse_tasks(text, 10)


@pytest.mark.parametrize("text", ["10", "a", "", "3-1", "-1", "0-99"])
def test_tasks_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(VegaError):
        parse_tasks(text, 10)


def test_an_error_is_not_a_failure_of_the_policy(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, {"suite": "s"})
    for entry in (record(0, True), record(0, False), record(1, False, "the renderer died")):
        writer.add(entry)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["success_rate"] == 0.5
    assert summary["errors"] == 1
    assert len(summary["episodes"]) == 3
    assert per_task(writer.records) == {0: (1, 2)}


def test_what_was_finished_is_on_disk_at_once_and_a_full_disk_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ResultWriter(tmp_path, {"suite": "s"})
    writer.add(record(0, True))

    def full(self: Path, text: str) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(VegaError, match="No space left"):
            writer.add(record(1, True))
    assert len(json.loads((tmp_path / "summary.json").read_text())["episodes"]) == 1
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("summary.json", "[]", "cannot be read"),
        ("summary.json", '{"suite": "s", "wall_s": null}', "cannot be read"),
        ("summary.json", None, "no summary.json"),
        ("episodes.jsonl", "{}\n", "cannot be read"),
        ("episodes.jsonl", None, "cannot be read"),
    ],
)
def test_a_run_that_cannot_be_gone_on_with_is_kept_as_it_is(
    name: str, text: str | None, part: str, tmp_path: Path
) -> None:
    writer = ResultWriter(tmp_path, {"suite": "s"})
    writer.add(record(0, True))
    writer.close()
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    kept = {path: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(VegaError, match=part):
        ResultWriter(tmp_path, {"suite": "s"}, resume=True)
    assert {path: path.read_text() for path in tmp_path.iterdir()} == kept


def test_a_run_that_does_not_go_on_with_an_earlier_one_leaves_it_as_it_is(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, {"suite": "s"})
    writer.close()
    writer = ResultWriter(tmp_path, {"suite": "s"})  # nothing was finished: nothing is lost
    for task in range(2):
        writer.add(record(task, True))
    writer.close()
    kept = {path: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(VegaError, match="holds 2 episodes of an earlier run: add --resume to go on with it, or give"):
        ResultWriter(tmp_path, {"suite": "s"})
    assert {path: path.read_text() for path in tmp_path.iterdir()} == kept
    ResultWriter(tmp_path, {"suite": "s"}, resume=True).close()  # the refused one has let go of the folder
    ResultWriter.remove(tmp_path)
    ResultWriter(tmp_path, {"suite": "other"}).close()
    assert json.loads((tmp_path / "summary.json").read_text())["episodes"] == []


def test_what_a_run_is_writing_now_is_not_removed(tmp_path: Path) -> None:
    ResultWriter.remove(tmp_path / "nothing")
    writer = ResultWriter(tmp_path, {"suite": "s"})
    writer.add(record(0, True))
    with pytest.raises(VegaError, match="is being written by another run"):
        ResultWriter.remove(tmp_path)
    writer.add(record(1, True))
    writer.close()
    again = ResultWriter(tmp_path, {"suite": "s"}, resume=True)
    assert [found.task for found in again.records] == [0, 1]
    again.close()
