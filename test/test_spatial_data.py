"""The benchmarks' files as people have them, and what is known of their answers without looking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policies.types import VegaError
from sim import ask
from sim.evaluation.spatial.benchmarks import has_training, read_items
from sim.results.spatial.blind import baselines
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


def test_a_film_in_which_nothing_can_be_clear_is_refused_before_a_scene_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("a scene was built")

    monkeypatch.setattr("sim.space.showing.show", built)
    assert ask.main(["--frames", "1", "--output", str(tmp_path)]) == 2
    assert "--frames counts from 2" in capsys.readouterr().err
