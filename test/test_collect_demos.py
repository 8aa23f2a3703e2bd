"""Demonstrations of the expert: what is written of them, and what a user can get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from policies.training.wordings import libero_sentence
from sim.demonstrations import collect_demos, try_layouts
from sim.demonstrations.collect_demos import main

pq = pytest.importorskip("pyarrow.parquet")


def test_a_block_and_its_dataset_hold_the_same_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_demos, "load_suite", lambda suite: SimpleNamespace(n_tasks=1))
    arguments = [
        "--blocks",
        "1",
        "--episodes",
        "1",
        "--every",
        "8",
        "--processes",
        "1",
        "--output",
        str(tmp_path / "d"),
    ]
    assert main([*arguments, "--record", str(tmp_path / "set")]) == 0
    with np.load(tmp_path / "d" / "libero_object_task0_seed7_block0.npz") as block:
        rows = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pydict()
        np.testing.assert_allclose(rows["action"], block["actions"], atol=1e-6)
        np.testing.assert_allclose(np.array(rows["observation.state"])[:, 6], block["gripper"][:, 0], atol=1e-6)
        assert rows["next.success"][-1] and len(block["frame_step"]) <= len(rows["index"]) / 8 + 1
        (task,) = pq.read_table(tmp_path / "set/meta/tasks.parquet").to_pydict()["task"]
        assert task == libero_sentence(str(block["target"][0]))
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["total_frames"] == len(rows["index"])
    # Nothing is left to do; a block without its tape is not passed over in silence.
    assert main(arguments) == 0
    next((tmp_path / "d" / "tapes").rglob("*.npz")).unlink()
    assert main([*arguments, "--record", str(tmp_path / "set")]) == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--output", "/proc/nowhere"], "cannot be written"),
        (["--suite", "libero_objekt"], "libero_object"),
        (["--episodes", "0"], "from 1 on"),
        (["--record", "/proc"], "exists already"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and part in said


def test_scenes_without_a_basket_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert try_layouts.main(["--suite", "libero_goal", "--policy", "vega-nano"]) == 2
    assert "has no basket" in capsys.readouterr().err
