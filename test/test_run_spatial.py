"""`sim/run_spatial.py`: every benchmark's layout, its scores, workers, and what a user can get wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tiny_reasoner import write_tiny_reasoner

from policies.spatial.scores import vsi
from policies.types import VegaError
from sim.evaluation.spatial.benchmarks import read_items
from sim.results.spatial.answers import AnswerRecord, AnswerWriter, figures, intervals
from sim.results.spatial.blind import baselines
from sim.results.spatial.frames import read_frames
from sim.results.spatial.items import split_of
from sim.results.spatial.page import PUBLISHED, table_rows, write_page
from sim.results.video import write_video
from sim.run_spatial import AnswerProgress, main

HERE = Path(__file__).parent
SEEING, POINTING = "spatial_models:Seeing", "spatial_models:Pointing"
SHADES = (20, 40, 60, 80)


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("SPATIAL_TEST_MARKS", str(tmp_path))
    monkeypatch.delitem(sys.modules, "spatial_models", raising=False)


def scenes(folder: Path, dataset: str = "made", frames: int = 3) -> None:
    """A folder of pictures for each shade."""
    for shade in SHADES:
        path = folder / dataset / f"scene{shade}"
        path.mkdir(parents=True, exist_ok=True)
        for number in range(frames):
            cv2.imwrite(str(path / f"{number:05d}.png"), np.full((20, 30, 3), shade, np.uint8))


def vsi_rows(dataset: str = "made") -> list[dict[str, Any]]:
    """About every scene a choice, a number that it answers, and one that it misses by half."""
    rows = []
    for shade in SHADES:
        scene = {"dataset": dataset, "scene_name": f"scene{shade}"}
        options = [f"{letter}. {value}" for letter, value in zip("ABCD", SHADES, strict=True)]
        truth = "ABCD"[SHADES.index(shade)]
        rows += [
            {**scene, "question_type": "object_rel_distance", "question": "Which?", "ground_truth": truth,
             "options": options},
            {**scene, "question_type": "object_counting", "question": "How many?", "ground_truth": f"{shade}",
             "options": None},
            {**scene, "question_type": "object_abs_distance", "question": "How far?", "ground_truth": f"{2 * shade}",
             "options": None},
        ]  # fmt: skip
    return [{"id": number, **row} for number, row in enumerate(rows)]


def write_vsi(folder: Path, rows: list[dict[str, Any]], split: str = "test") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def reference_row(number: int, shade: int, said: str, answer: str = "<ground>", **more: Any) -> dict[str, Any]:
    return {
        "id": number, "video": f"scannet/scene{shade}",
        "conversations": [{"from": "human", "value": f"<image>{said}"}, {"from": "gpt", "value": answer}],
        "metadata": {"dataset": "x", "question_type": "unique", "answers": [answer, f"{shade}"]}, **more,
    }  # fmt: skip


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    for measured in ("wall_s", "latency_ms"):
        summary.pop(measured, None)
    return summary


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_vsi(folder, vsi_rows())
    scenes(folder)
    return folder


def test_vsi_bench_is_scored_as_the_reference_scores_it(data: Path, tmp_path: Path) -> None:
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING, "--output", str(tmp_path / "o")]
    assert main(run) == 0
    summary = summary_of(tmp_path / "o")
    # Half of the truth is within the first threshold of ten, 0.5 <= 1 - 0.5.
    expected = {"object_rel_distance": 100.0, "object_counting": 100.0, "object_abs_distance": 10.0}
    assert {name: summary["scores"][name] for name in expected} == pytest.approx(expected)
    assert summary["scores"]["overall"] == pytest.approx(70.0)
    records = [(row["kind"], row["scores"]["score"]) for row in summary["answers"]]
    assert vsi.aggregate(records)["overall"] == pytest.approx(0.7)
    assert summary["interval_95"]["object_counting"] == [100.0, 100.0]
    assert summary["blind"]["most frequent answer"]["scores"]["object_rel_distance"] < 50
    page = (tmp_path / "o" / "report.html").read_text()
    assert "VEGA-3D" in page and "50.5" in page and "http" not in page.replace("http://www.w3.org", "")


def test_the_published_tables_are_read_too(data: Path, tmp_path: Path) -> None:
    (data / "test.jsonl").unlink()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(vsi_rows()), data / "test-00000-of-00001.parquet")
    assert len(read_items("vsi_bench", data)) == 12
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING, "--limit", "2"]
    assert main([*run, "--output", str(tmp_path / "o")]) == 0
    summary = summary_of(tmp_path / "o")
    assert summary["questions"] == 6 and summary["scenes"] == 2


def test_a_checkpoint_is_asked_about_the_frames(data: Path, tmp_path: Path) -> None:
    """Qwen2.5-VL with the world simulator's tokens, tiny: the same answers again."""
    folder = write_tiny_reasoner(tmp_path / "checkpoint")
    write_vsi(data, vsi_rows()[:2] + [{**row, "scene_name": "scene80"} for row in vsi_rows()[:2]])
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", str(folder), "--frames", "1"]
    for name in ("one", "two"):
        assert main([*run, "--output", str(tmp_path / name)]) == 0
    answers = [[row["answer"] for row in summary_of(tmp_path / name)["answers"]] for name in ("one", "two")]
    assert answers[0] == answers[1] and len(answers[0]) == 4 and all(answers[0])


def test_an_answer_that_is_refused_is_an_error_not_a_wrong_answer(data: Path, tmp_path: Path) -> None:
    rows = vsi_rows()
    rows[1]["question"] = "Please refuse."
    write_vsi(data, rows)
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING, "--output", str(tmp_path / "o")]
    assert main(run) == 1
    summary = summary_of(tmp_path / "o")
    assert summary["errors"] == 1 and summary["scores"]["object_counting"] == 100.0
    assert summary["refused_as_wrong"]["object_counting"] == 75.0, "beside it what it would be if it were wrong"


def test_boxes_are_scored_as_scanrefer_and_multi3drefer_do(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    scenes(folder / "posed_images", dataset="")
    (folder / "processed").mkdir()
    exact = [0.5, 0.5, 0.5]
    one = [reference_row(i, s, "It.", box=[*exact, *[s / 100 * (1.0 if i else 1.3)] * 3]) for i, s in enumerate(SHADES)]
    (folder / "processed" / "scanrefer_vg_val_llava_style.json").write_text(json.dumps(one))
    many = [reference_row(i, s, "All.", box=[[*exact, *[s / 100] * 3]] * (1 + i % 2)) for i, s in enumerate(SHADES)]
    many.append(reference_row(9, 20, "What is nothing.", box=[]))
    many.append(reference_row(10, 20, "Nobody.", box=[]))
    (folder / "multi3drefer_val_llava_style.json").write_text(json.dumps(many))
    run = ["--data", str(folder), "--model", POINTING, "--output"]
    assert main(["--benchmark", "scanrefer", *run, str(tmp_path / "one")]) == 0
    scores = summary_of(tmp_path / "one")["scores"]
    # The first true box is 1.3 times as long: they overlap by 1 / 1.3^3 = 0.455.
    assert scores["Acc@0.25"] == 100.0 and scores["Acc@0.5"] == 75.0
    assert main(["--benchmark", "multi3drefer", *run, str(tmp_path / "many")]) == 0
    scores = summary_of(tmp_path / "many")["scores"]
    # Two of four have a second box that was not found: F1 2 * 1 / (1 + 2); none is meant once rightly, once wrongly.
    assert scores["F1@0.5"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 2 / 3 + 1 + 0) / 6, abs=1e-3)


def test_words_are_scored_as_scanqa_sqa3d_and_scan2cap_do(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    scenes(folder / "posed_images", dataset="")
    asked = [reference_row(i, s, "What number?", answer=f"{s}.") for i, s in enumerate(SHADES)]
    asked[0]["metadata"]["answers"] = ["20."]  # a final dot breaks the reference's match, and no reader's
    asked[1]["metadata"]["answers"] = ["41"]
    for name, split in (("scanqa", "val"), ("sqa3d", "test")):
        (folder / f"{name}_{split}_llava_style.json").write_text(json.dumps(asked))
        arguments = ["--benchmark", name, "--data", str(folder), "--model", SEEING]
        assert main([*arguments, "--output", str(tmp_path / name)]) == 0
    scanqa = summary_of(tmp_path / "scanqa")
    assert (scanqa["scores"]["EM"], scanqa["corrected"]["EM"]) == (50.0, 75.0) and "CIDEr" in scanqa["scores"]
    assert summary_of(tmp_path / "sqa3d")["scores"]["EM"] == 100.0
    captions = [
        reference_row(i, s, "Given an object located at <coord> , describe it.", annotations=[f"{s}"], box_input=box)
        for (i, s), box in zip(enumerate(SHADES), ([1, 2, 3, 1, 1, 1], None, [1] * 6, [1] * 6), strict=True)
    ]
    (folder / "scan2cap_val_llava_style.json").write_text(json.dumps(captions))
    items = read_items("scan2cap", folder)
    assert items[0].prompt.startswith("Given an object located at (1.00, 2.00, 3.00) ,") and items[1].prompt == ""
    arguments = ["--benchmark", "scan2cap", "--data", str(folder), "--model", SEEING]
    assert main([*arguments, "--output", str(tmp_path / "cap")]) == 0
    summary = summary_of(tmp_path / "cap")
    assert [row["answer"] for row in summary["answers"]] == ["20", "", "60", "80"]
    assert 0 < summary["scores"]["ROUGE-L"] < 100


def test_spaces_around_an_answer_count_where_the_reference_counts_them(data: Path, tmp_path: Path) -> None:
    scenes(data / "posed_images", dataset="")
    asked = [reference_row(i, s, "What number?", answer=f"{s}") for i, s in enumerate(SHADES)]
    (data / "scanqa_val_llava_style.json").write_text(json.dumps(asked))
    found = {}
    for name in ("vsi_bench", "scanqa"):
        run = ["--benchmark", name, "--data", str(data), "--model", "spatial_models:Breathing"]
        assert main([*run, "--output", str(tmp_path / name)]) == 0
        found[name] = summary_of(tmp_path / name)
    assert found["scanqa"]["scores"]["EM"] == 100.0 and found["scanqa"]["answers"][0]["answer"] == "20"
    assert found["vsi_bench"]["scores"]["object_rel_distance"] == 0.0
    assert found["vsi_bench"]["corrected"]["object_rel_distance"] == 100.0


def test_blind_baselines_learn_from_other_scenes_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    rows = []
    for number in range(40):
        said = "apple" if number % 2 else "pear"
        rows.append(
            {"dataset": "made", "scene_name": f"s{number}", "question_type": "object_size_estimation", "id": number,
             "question": f"How long is the {said}?", "ground_truth": "8" if number % 2 else "30", "options": None}
        )  # fmt: skip
    write_vsi(folder, rows[:20])
    write_vsi(folder, rows[20:], "train")
    items, training = read_items("vsi_bench", folder), read_items("vsi_bench", folder, "train")
    found = baselines(items, training, items)
    assert found["question only"]["scores"]["object_size_estimation"] == pytest.approx(100.0, abs=5)
    assert found["most frequent answer"]["scores"]["object_size_estimation"] < 60
    odd = [dict(row) for row in rows[:20]]
    odd[0]["ground_truth"] = "500"
    write_vsi(folder, odd)
    items = read_items("vsi_bench", folder)
    assert baselines(items, [], items)["question only"]["scores"]["object_size_estimation"] < 97


def test_intervals_are_over_scenes(data: Path) -> None:
    items = {item.key: item for item in read_items("vsi_bench", data)}
    records = [
        AnswerRecord(i.task, i.trial, i.kind, "", (), {"score": float(i.task < 2)}, {"score": 1.0})
        for i in items.values()
    ]
    assert figures(items, records, "scores")["overall"] == 50.0
    low, high = intervals(records, "scores")["overall"]
    # Four scenes, two all right and two all wrong: as wide as four coins, whatever the number of questions.
    assert (low, high) == (0.0, 100.0) and intervals(records, "corrected")["overall"] == (100.0, 100.0)


def test_of_one_scene_nothing_is_known_of_others(data: Path, tmp_path: Path) -> None:
    """Drawn again it is always the same: an interval without any width."""
    kinds = ("object_counting", "room_size_estimation")
    asked = [(0, 0, kinds[0], 1.0), (0, 1, kinds[1], 0.2), (1, 0, kinds[1], 0.6)]
    records = [AnswerRecord(task, trial, kind, "", scores={"score": value}) for task, trial, kind, value in asked]
    assert intervals(records[:2], "scores") == {}
    found = intervals(records, "scores")
    assert set(found) == {kinds[1]} and found[kinds[1]] == (20.0, 60.0)
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING, "--limit", "1"]
    assert main([*run, "--output", str(tmp_path / "o")]) == 0
    assert summary_of(tmp_path / "o")["interval_95"] == {}


def test_the_first_right_answer_does_not_make_all_right(data: Path, tmp_path: Path) -> None:
    items = read_items("vsi_bench", data)
    writer = AnswerWriter(tmp_path, {}, items, {}, resume=False)
    progress, record = AnswerProgress(writer, 2, 0), AnswerRecord(0, 0, items[0].kind, "A", scores={"score": 1.0})
    writer.add(record)
    assert "100.0 % over 1, 95 % interval 20.7 to 100.0" in progress.describe(record)
    progress.close()
    writer.close()


def test_of_a_long_film_frames_are_taken_evenly(tmp_path: Path) -> None:
    path = tmp_path / "made" / "scene"
    path.mkdir(parents=True)
    for number in range(50):
        cv2.imwrite(str(path / f"{number:05d}.jpg"), np.full((20, 30, 3), 4 * number, np.uint8))
        cv2.imwrite(str(path / f"{number:05d}.png"), np.zeros((20, 30), np.uint16))  # its depth
    frames = read_frames(tmp_path, "made/scene", 32)
    assert [round(float(f.mean()) / 4) for f in frames] == [int(i) for i in np.linspace(0, 49, 32)]


def test_a_video_that_is_cut_off_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    """A download that broke off still tells how many frames it had."""
    path = tmp_path / "made" / "scene.mp4"
    path.parent.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    write_video(path, [np.roll(picture, step, axis=1) for step in range(100)], 10.0)
    whole = path.read_bytes()
    assert len(read_frames(tmp_path, "made/scene", 32)) == 32
    for share in (0.97, 0.5):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(VegaError, match=r"scene\.mp4' ends after \d+ of its 100 frames: get it again"):
            read_frames(tmp_path, "made/scene", 32)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--data", "/no/folder"], "no folder"),
        (["--benchmark", "scanqa"], "has no scanqa_val_llava_style.json"),
        (["--split", "val"], "neither val.jsonl"),
        (["--split", ""], "--split is empty"),
        (["--model", "vega-nano-spatail"], "no scene model 'vega-nano-spatail': give one of vega-nano-spatial"),
        (["--model", "vega-nano"], "There is no scene model 'vega-nano': give one of vega-nano-spatial"),
        (["--model", "no_such_module:Model"], "cannot be imported"),
        (["--model", ":Model"], "cannot be imported"),
        (["--model", "sys:exit"], "cannot be made"),
        (["--model", "pathlib:Path"], "is no model"),
        (["--workers", "0"], "from 1 on"),
        (["--limit", "0"], "count from 1"),
        (["--poses"], "takes no poses"),
        (["--world-simulator", "noise"], "leave --world-simulator at on"),
        (["--resume"], "give it as --output"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    options: list[str], part: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"--benchmark": "vsi_bench", "--data": str(data), "--model": SEEING}
    arguments = [word for pair in base.items() for word in pair]
    if "--resume" not in options:
        arguments += ["--output", str(tmp_path / "o")]
    assert main([*arguments, *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and part in said


def test_published_scores_are_not_shown_beside_a_model_whose_tokens_are_replaced() -> None:
    summary = {"benchmark": "vsi_bench", "scores": {"overall": 50.0}, "interval_95": {}, "corrected": {}}
    assert "GPT-4o" in table_rows(summary)[0] and "GPT-4o" in table_rows({**summary, "world_simulator": "on"})[0]
    assert "GPT-4o" not in table_rows({**summary, "world_simulator": "noise"})[0]


@pytest.mark.parametrize("benchmark", PUBLISHED)
def test_published_scores_are_said_to_be_of_the_whole_split(benchmark: str, tmp_path: Path) -> None:
    """Of a run with --limit, which asks a part, they are no less."""
    numbers = {name: {} for name in ("scores", "interval_95", "corrected", "kinds")}
    counts = dict.fromkeys(("questions", "scenes", "errors", "wall_s"), 1)
    summary = {"benchmark": benchmark, "model": "m", "split": split_of(benchmark, None), **numbers, **counts}
    for more, shown in (({}, True), ({"world_simulator": "noise"}, False)):
        write_page(tmp_path, tmp_path, summary | more, {})
        page = (tmp_path / "report.html").read_text()
        assert ("VEGA-3D" in page, "Published numbers are of the whole" in page) == (shown, shown)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_scene_without_frames_ends_the_run_with_one_sentence(
    workers: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(data / "made" / "scene40")
    run = ["--benchmark", "vsi_bench", "--data", str(data), "--model", SEEING, "--output", str(tmp_path / "o")]
    assert main([*run, "--workers", workers]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: Scene 'made/scene40' has no video") and error.count("\n") == 1
    assert summary_of(tmp_path / "o")["errors"] == 0
    scenes(data)
    assert main([*run, "--workers", workers, "--resume"]) == 0


def test_a_model_without_boxes_says_so_before_anything_is_asked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [reference_row(0, 20, "It.", box=[0, 0, 0, 1, 1, 1])]
    (data / "scanrefer_test.json").write_text(json.dumps(rows))
    (data / "multi3drefer_test.json").write_text("[]")
    run = ["--benchmark", "libero_space", "--data", str(data), "--model", SEEING, "--output"]
    assert main([*run, str(tmp_path / "a")]) == 2
    assert "--no-grounding" in capsys.readouterr().err
    assert main([*run, str(tmp_path / "b"), "--no-grounding"]) == 0
    (data / "made" / "scene40" / "00000.png").write_bytes(b"no picture")
    assert main([*run, str(tmp_path / "c"), "--no-grounding"]) == 2
    assert "cannot be read" in capsys.readouterr().err
