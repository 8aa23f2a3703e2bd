"""Runs of `sim/run_spatial.py` that go on: after a kill, of older versions, and not as what they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run_spatial import POINTING, SEEING, data, models, scenes, summary_of, vsi_rows, write_vsi  # noqa: F401
from tiny_reasoner import write_tiny_reasoner

from sim.run_spatial import main


def test_workers_deaths_and_resuming_change_no_number(data: Path, tmp_path: Path) -> None:  # noqa: F811
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING]
    assert main([*run, "--output", str(tmp_path / "one")]) == 0
    calm = summary_of(tmp_path / "one")
    (tmp_path / "deadly").touch()
    assert main([*run, "--output", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert not (tmp_path / "deadly").exists() and summary_of(tmp_path / "two") == calm
    lines = (tmp_path / "two" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "two" / "answers.jsonl").write_text("".join(lines[:5]) + lines[5][:20])  # as a kill leaves it
    assert main([*run, "--output", str(tmp_path / "two"), "--resume"]) == 0
    assert summary_of(tmp_path / "two") == calm
    assert main([*run[:-1], POINTING, "--output", str(tmp_path / "two"), "--resume"]) == 2


def test_a_run_goes_on_only_with_the_same_questions_truths_and_weights(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    folder, rows = write_tiny_reasoner(tmp_path / "checkpoint"), vsi_rows()[:2]
    write_vsi(data, rows)
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", str(folder), "--frames", "1"]
    run += ["--output", str(tmp_path / "o")]
    assert main(run) == 0
    before = (tmp_path / "o" / "summary.json").read_text()
    assert main([*run, "--resume", "--split", "test"]) == 0, "the split that was taken without being named"
    for field, value in (("ground_truth", "B"), ("question", "Which one?"), ("options", ["A. 20", "B. 99"])):
        write_vsi(data, [{**rows[0], field: value}, rows[1]])
        assert main([*run, "--resume"]) == 2
        assert "has questions_sha256 " in capsys.readouterr().err
    write_vsi(data, rows)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main([*run, "--resume"]) == 2
    assert "has checkpoint_sha256 " in capsys.readouterr().err
    assert summary_of(tmp_path / "o")["answers"] == json.loads(before)["answers"]


def test_a_run_on_one_kind_of_device_does_not_go_on_on_another(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING, "--output", str(tmp_path / "o")]
    assert main([*run, "--device", "cuda:0"]) == 0  # a class of one's own takes no device: nothing is loaded there
    assert main([*run, "--device", "cuda:1", "--resume"]) == 0
    assert main([*run, "--resume"]) == 2
    assert "has device cuda, this one cpu" in capsys.readouterr().err
    assert main([*run, "--device", "cuda:0", "--threads", "2", "--resume"]) == 2
    assert "has threads 1, this one 2" in capsys.readouterr().err


def test_a_run_of_an_older_version_goes_on(data: Path, tmp_path: Path) -> None:  # noqa: F811
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING, "--output", str(tmp_path / "o")]
    assert main(run) == 0
    now = summary_of(tmp_path / "o")
    older = {**json.loads((tmp_path / "o" / "summary.json").read_text()), "split": ""}  # as it was where none was given
    for name in ("checkpoint_sha256", "questions_sha256", "device", "threads"):
        del older[name]
    (tmp_path / "o" / "summary.json").write_text(json.dumps(older))
    assert main([*run, "--resume"]) == 0
    assert summary_of(tmp_path / "o") == now
    (tmp_path / "o" / "summary.json").write_text(json.dumps(older))
    write_vsi(data, vsi_rows(), "val")
    assert main([*run, "--resume", "--split", "val"]) == 2


@pytest.mark.parametrize(
    "changed", [{"task": 77}, {"trial": 77}, {"kind": "object_size_estimation"}, {"task": "0"}, {"kind": None}]
)
def test_answers_to_other_questions_of_an_older_version_are_one_sentence(
    changed: dict[str, object], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """Whose summary does not say what was asked."""
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING, "--output", str(tmp_path / "o")]
    assert main(run) == 0
    summary, answers = tmp_path / "o" / "summary.json", tmp_path / "o" / "answers.jsonl"
    older = json.loads(summary.read_text())
    del older["questions_sha256"]
    summary.write_text(json.dumps(older))
    first, *rest = answers.read_text().splitlines(keepends=True)
    kept = json.dumps({name: v for name, v in {**json.loads(first), **changed}.items() if v is not None}) + "\n"
    answers.write_text(kept + "".join(rest))
    assert main([*run, "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The run in") and error.count("\n") == 1 and "give another --output" in error
    assert answers.read_text().startswith(kept), "it is left as it was"
