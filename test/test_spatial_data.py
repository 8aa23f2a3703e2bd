"""The benchmarks' files as people have them, and what is known of their answers without looking."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from policies.spatial.scores import vsi
from policies.types import FloatArray, Image, VegaError
from sim import ask
from sim.evaluation.spatial.asking import Asker, SpatialSettings
from sim.evaluation.spatial.benchmarks import has_training, read_items
from sim.results.spatial.blind import baselines
from sim.results.spatial.frames import read_poses
from sim.results.spatial.page import table_rows
from sim.run_spatial import chosen_items, main

SIZE, CHOICE = "object_size_estimation", "object_rel_distance"


def row(number: int, kind: str, truth: str, options: object = None, **more: object) -> dict[str, object]:
    return {
        "id": number, "dataset": "made", "scene_name": f"scene{number:02d}", "question_type": kind,
        "question": "Which?", "ground_truth": truth, "options": options, **more,
    }  # fmt: skip


def write(folder: Path, rows: list[dict[str, object]], split: str = "test") -> Path:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def without(row: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("spoilt", "part"),
    [
        (row(1, SIZE, "four"), "has the ground_truth 'four', where a number is needed"),
        (row(1, SIZE, "nan"), "has the ground_truth 'nan', where a number is needed"),
        (row(1, CHOICE, "A"), "give some as ['A. left', 'B. right']"),
        (row(1, CHOICE, "A", []), "give some as ['A. left', 'B. right']"),
        (row(1, CHOICE, "A", 5), "give some as ['A. left', 'B. right']"),
        (row(1, CHOICE, "A", ""), "give some as ['A. left', 'B. right']"),
        (row(1, CHOICE, "A", ["A. milk", ""]), "give some as ['A. left', 'B. right']"),
        (row(1, CHOICE, "A", ["A. milk", None]), "give some as ['A. left', 'B. right']"),
        (row(1, SIZE, "4", 5), "give some as ['A. left', 'B. right']"),
        (without(row(1, SIZE, "4"), "scene_name"), "lacks the field 'scene_name'"),
        (without(row(1, SIZE, "4"), "ground_truth"), "lacks the field 'ground_truth'"),
        (row(1, "weight", "4"), "Question type 'weight' is none of VSI-Bench's"),
    ],
)
def test_a_question_that_cannot_be_scored_is_one_sentence_with_its_file_and_row(
    spoilt: dict[str, object], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [row(0, SIZE, "4"), row(0, CHOICE, "A", ["A. milk", "B. can"])]
    write(tmp_path, [*good, spoilt])
    assert main(["--benchmark", "vsi_bench", "--data", str(tmp_path), "--model", "no:Model"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and part in error and f"Row 3 of '{tmp_path / 'test.jsonl'}'" in error


def test_a_damaged_training_split_is_told_and_a_missing_one_is_none(tmp_path: Path) -> None:
    write(tmp_path, [row(0, SIZE, "4")])
    assert not has_training("vsi_bench", tmp_path)
    write(tmp_path, [row(0, SIZE, "four")], "train")
    with pytest.raises(VegaError, match=r"Row 1 of .*train\.jsonl"):
        has_training("vsi_bench", tmp_path)


def test_without_grounding_its_files_are_not_asked_for(tmp_path: Path) -> None:
    write(tmp_path, [row(0, SIZE, "4")])
    with pytest.raises(VegaError, match="scanrefer"):
        read_items("libero_space", tmp_path)
    assert len(read_items("libero_space", tmp_path, grounding=False)) == 1
    write(tmp_path, [row(0, SIZE, "4")], "train")
    assert has_training("libero_space", tmp_path, grounding=False)


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_of_published_tables_every_question_is_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """VSI-Bench's test split lies in two files, and an older copy of it may lie beside them."""
    rows = [row(n, SIZE, "30") for n in range(5)]
    write_table(tmp_path / "test_debiased.parquet", rows[:2])
    write_table(tmp_path / "test_pruned.parquet", rows[2:])
    scenes = [item.scene for item in read_items("vsi_bench", tmp_path)]
    assert scenes == [f"made/scene{n:02d}" for n in range(5)]
    assert len(read_items("vsi_bench", tmp_path, "test_debiased")) == 2
    write_table(tmp_path / "test-00000-of-00001.parquet", rows)
    assert [item.scene for item in read_items("vsi_bench", tmp_path)] == scenes
    run = ["--benchmark", "vsi_bench", "--data", str(tmp_path), "--model", "no:Model", "--output", str(tmp_path / "o")]
    assert main(run) == 2
    assert "5 questions about 5 scenes were read" in capsys.readouterr().out
    write_table(tmp_path / "test-00000-of-00001.parquet", [row(n, SIZE, "40", question="How long?") for n in range(5)])
    assert len(read_items("vsi_bench", tmp_path)) == 10, "the same id of another question"


def test_published_numbers_are_shown_beside_the_split_that_they_are_of() -> None:
    summary = {"benchmark": "vsi_bench", "scores": {}, "interval_95": {}, "corrected": {}}
    assert all("GPT-4o" in table_rows({**summary, "split": split})[0] for split in ("test", ""))
    assert "GPT-4o" not in table_rows({**summary, "split": "test_debiased"})[0]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("broken", "broken.parquet' cannot be read"),
        ("/tmp/test", "The split '/tmp/test' is no name"),
        ("../test", "The split '../test' is no name"),
        ("*", "The split '*' is no name"),
        ("deep", "deep.jsonl' cannot be read"),
    ],
)
def test_tables_that_cannot_be_read_are_one_sentence(
    split: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "broken.parquet", [row(0, SIZE, "4")])
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "broken.parquet").read_bytes()[:60])
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    assert main(["--benchmark", "vsi_bench", "--data", str(tmp_path), "--model", "no:Model", "--split", split]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_a_line_of_questions_ends_only_where_json_lines_end(tmp_path: Path) -> None:
    line = json.dumps(row(0, SIZE, "4", question="How long\u2028is it?\x85"), ensure_ascii=False)
    (tmp_path / "test.jsonl").write_text(f"{line}\r\n\n{line}\n", encoding="utf-8")
    assert [item.text for item in read_items("vsi_bench", tmp_path)] == ["How long\u2028is it?\x85"] * 2


@pytest.mark.parametrize("missing", ["video", "metadata", "conversations", "box"])
def test_a_question_about_boxes_that_lacks_something_is_told(missing: str, tmp_path: Path) -> None:
    asked = {
        "video": "scannet/scene1", "box": [0, 0, 0, 1, 1, 1], "metadata": {"question_type": "unique"},
        "conversations": [{"value": "<image>It."}, {"value": "<ground>"}],
    }  # fmt: skip
    (tmp_path / "scanrefer_val.json").write_text(json.dumps([asked]))
    assert len(read_items("scanrefer", tmp_path)) == 1
    (tmp_path / "scanrefer_val.json").write_text(json.dumps([without(asked, missing)]))
    with pytest.raises(VegaError, match=f"not in the layout of VEGA-3D.*{missing}"):
        read_items("scanrefer", tmp_path)


EYE = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "told", [{}, {"camera_to_world": 5}, {"camera_to_world": [EYE[:3]]}, {"camera_to_world": [[["x"] * 4] * 4]},
             {"camera_to_world": [EYE, [[float("nan")] * 4] * 4]}, {"camera_to_world": []}]
)  # fmt: skip
def test_poses_that_are_none_are_told(told: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "made.json").write_text(json.dumps({"camera_to_world": [EYE] * 3}))
    assert len(read_poses(tmp_path, "made", 2)) == 2
    (tmp_path / "made.json").write_text(json.dumps(told))
    with pytest.raises(VegaError, match=r"made\.json.*camera_to_world.*\(4, 4\)"):
        read_poses(tmp_path, "made", 2)


class Posed:
    """Takes poses as the small scene model does."""

    def watch(self, frames: Sequence[Image]) -> None:
        raise AssertionError("the poses were not told")

    def watch_from(self, frames: Sequence[Image], poses: Sequence[FloatArray]) -> None:
        list(zip(frames, poses, strict=True))

    def answer(self, prompt: str, max_tokens: int) -> str:
        return ""


def test_a_film_and_poses_of_different_length_are_told(tmp_path: Path) -> None:
    film = next((Path(__file__).parent / "films").rglob("*.mp4"))
    shutil.copy(film, tmp_path / "made.mp4")
    (tmp_path / "made.json").write_text(json.dumps({"camera_to_world": [EYE]}))
    asker = Asker(SpatialSettings("vsi_bench", tmp_path, "", poses=True), Posed())
    with pytest.raises(VegaError, match=r"Scene 'made' has \d+ frames and 1 pose"):
        asker._watch("made")


def scores(found: dict[str, Any], kind: str) -> list[float | None]:
    return [found[name]["scores"].get(kind) for name in ("most frequent answer", "question only")]


@pytest.mark.parametrize("limit", [1, 2, 3, None])
def test_a_blind_answer_never_comes_from_the_scene_that_is_asked_about(limit: int | None, tmp_path: Path) -> None:
    """Each scene has a truth of its own, far from every other's: who knows it has looked."""
    letters = "ABCDEFGHIJK"
    options = [f"{letter}. thing {letter}" for letter in letters]
    rows = [row(n, SIZE, f"{10**n}") for n in range(11)] + [row(n, CHOICE, letters[n], options) for n in range(11)]
    every = read_items("vsi_bench", write(tmp_path, rows))
    found = baselines(chosen_items(every, limit), [], every)
    assert scores(found, SIZE) == scores(found, CHOICE) == [0, 0]


def test_of_other_scenes_the_answers_are_known_whatever_the_limit(tmp_path: Path) -> None:
    every = read_items("vsi_bench", write(tmp_path, [row(n, SIZE, "30") for n in range(11)]))
    for limit in (1, 2, None):
        assert scores(baselines(chosen_items(every, limit), [], every), SIZE) == [100, 100]
    assert scores(baselines(every[:1], [], every[:1]), SIZE) == [None, None], "nothing is known where all is asked"


def test_the_usual_number_is_of_all_scenes(tmp_path: Path) -> None:
    """Questions stand scene by scene: the first hundreds are of a few scenes."""
    write(tmp_path, [row(n, SIZE, "1" if n < 4 else "10") for n in range(10) for _ in range(100)], "train")
    items = read_items("vsi_bench", write(tmp_path, [row(n, SIZE, "10") for n in range(20, 24)]))
    training = read_items("vsi_bench", tmp_path, "train")
    assert baselines(items, training, items)["most frequent answer"]["scores"][SIZE] == 100.0
    some = [0.0, 1.0, *np.random.default_rng(0).uniform(0.1, 5.0, 200)]
    for guess in (0.0, 1.0, 2.5):
        expected = [vsi.mean_relative_accuracy(guess, truth) for truth in some]
        assert vsi.relative_accuracies(guess, np.array(some)).tolist() == expected


def test_a_film_in_which_nothing_can_be_clear_is_refused_before_a_scene_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("a scene was built")

    monkeypatch.setattr("sim.space.showing.show", built)
    assert ask.main(["--frames", "1", "--output", str(tmp_path)]) == 2
    assert "--frames counts from 2" in capsys.readouterr().err
