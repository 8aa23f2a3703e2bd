"""The command that trains an experiment's arms: whole blocks first, the same numbers after a kill, nothing mixed up.

With it the resumption of `train_nano` itself, which trains each of them.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from recorded import make_dataset

from policies.checkpoints import checkpoint_sha256, find_checkpoint
from policies.files import made_once
from policies.fusion import imagenet
from policies.training.curves import read_log
from policies.training.study import __main__ as study
from policies.training.study import page
from policies.training.study.arms import Arm, simulator_of
from policies.training.study.runs import Study, claimed

SHIPPED = find_checkpoint("vega-nano") / "world_simulator"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("demos"))


def words(demos: Path, output: Path, *more: str) -> list[str]:
    return [
        "--data", str(demos), "--world-simulator", str(SHIPPED), "--output", str(output), "--arms", "semantic", "prior",
        "--seeds", "0", "1", "--steps", "4", "--batch", "4", "--save-every", "2", "--hold-out", "3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert study.main(words(demos, output)) == 0
    return output


def test_all_arms_and_seeds_are_trained_at_equal_budget(whole: Path) -> None:
    found = json.loads((whole / "study.json").read_text())
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [
        ("semantic", 0), ("prior", 0), ("semantic", 1), ("prior", 1),
    ]  # fmt: skip
    assert found["asked"] == 4 and found["whole_seeds"] == [0, 1]
    assert {run["steps"] for run in found["runs"]} == {4}
    sizes = [run["parameters"] for run in found["runs"]]
    assert max(sizes) / min(sizes) < 1.01
    for run in found["runs"]:
        assert run["held_out"]["action"] > 0 and run["seconds"] > 0 and len(run["data_sha256"][0]) == 64
        folder = whole / "runs" / f"{run['arm']}-{run['seed']}"
        assert run["checkpoint_sha256"] == checkpoint_sha256(str(folder))
    assert len({run["checkpoint_sha256"] for run in found["runs"]}) == 4
    assert (whole / "study.png").stat().st_size > 1000


def test_killed_it_goes_on_to_the_same_numbers_with_whole_blocks(demos: Path, whole: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "policies.training.study", *words(demos, tmp_path)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    watchdog = threading.Timer(300, process.kill)
    watchdog.start()
    try:  # in the first seed's second arm, while it says that step 2 is logged and before its state is kept
        said = next(line for line in process.stdout if "prior-0: held out" in line)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait(60)
    assert said.startswith("[2/4]")
    with (tmp_path / "runs" / "prior-0" / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "train": {"acti')  # a line cut off by a kill
    assert json.loads((tmp_path / "study.json").read_text())["whole_seeds"] == []
    assert not (tmp_path / "runs" / "semantic-1").exists(), "another seed before the first was whole"
    before = (tmp_path / "runs" / "semantic-0" / "run.json").stat().st_mtime_ns
    assert study.main(words(demos, tmp_path)) == 0
    assert (tmp_path / "runs" / "semantic-0" / "run.json").stat().st_mtime_ns == before
    for name in ("semantic-0", "prior-0", "prior-1"):
        one, other = (read_log(folder / "runs" / name / "log.jsonl") for folder in (whole, tmp_path))
        for line in (*one, *other):
            del line["seconds"]
        assert one == other
    hashes = [
        {run["checkpoint_sha256"] for run in json.loads((folder / "study.json").read_text())["runs"]}
        for folder in (whole, tmp_path)
    ]
    assert hashes[0] == hashes[1]


def test_another_process_can_be_told_to_work(demos: Path, tmp_path: Path) -> None:
    """What `--jobs 2` hands to its processes can be sent to them, and means the same there."""
    asked = Study(tmp_path, (demos,), SHIPPED, arms=("prior",), seeds=(0,), words=(), window=5)
    assert asked.options["window"] == 5  # computed once, and sent along
    worker, sent = pickle.loads(pickle.dumps((study.work, asked)))
    assert worker.__module__ != study.__name__ and sent.options == asked.options
    assert [run.name for run in sent.runs] == ["prior-0"]


def test_a_run_of_another_process_is_left_alone_and_told(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path / "runs" / "semantic-0") as ours:
        assert ours
        assert study.main([*words(demos, tmp_path), "--arms", "semantic", "--seeds", "0"]) == 2
    assert "Another process" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "semantic-0" / "config.json").exists()


def test_a_plan_says_how_long_and_trains_nothing(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main(words(demos, tmp_path, "--plan")) == 0
    said = capsys.readouterr().out
    assert "4 of 4 runs are missing" in said and "rows/s" in said
    assert not (tmp_path / "runs").exists() and not list(tmp_path.glob("cache/world_tokens*"))


def test_what_an_arm_lacks_is_said_before_any_is_trained(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imagenet, "PACKAGES", ("no_such_package",))
    for arm, said in (("imagenet", "pip install"), ("kx", "no arm 'kx'")):
        assert study.main([*words(demos, tmp_path), "--arms", "semantic", arm]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_where_nobody_says_where_the_base_stands_no_study_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, output = make_dataset(tmp_path, placed=False), tmp_path / "study"
    asked = [*words(bare, output), "--arms", "semantic", "--seeds", "0", "--steps", "1"]
    assert study.main(asked) == 2
    assert "--base X Y Z" in capsys.readouterr().err and not list(output.iterdir())
    assert study.main([*asked, "--base", "-0.5", "-0.00001", "0.9"]) == 0
    told = json.loads((output / "study.json").read_text())["runs"][0]["words"]
    assert told[told.index("--base") :][:4] == ["--base", "-0.5", "-0.00001", "0.9"]


def test_other_options_are_another_study(demos: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([*words(demos, whole), "--steps", "5"]) == 2
    assert "another words" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--drop-semantic", "1.5"), ("--hold-out", "1"), ("--window", "4")])
def test_a_slip_of_the_pen_leaves_the_folder_free(
    wrong: tuple[str, str], demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main([*words(demos, tmp_path), "--arms", "window", *wrong]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "options.json").exists() and not (tmp_path / "runs").exists()


def test_what_is_made_of_one_simulator_is_not_taken_for_anothers(demos: Path, tmp_path: Path) -> None:
    """Such as after a plan with another one in the same folder."""
    given = [find_checkpoint(name) / "world_simulator" for name in ("vega-nano", "vega-nano-suites")]
    made = [Study(tmp_path, (demos,), one, ("window",), (0,), (), 5).simulator_of("window") for one in given]
    weights = [path / "transformer" / "diffusion_pytorch_model.safetensors" for path in (*given, *made)]
    kept = [path.read_bytes() for path in weights]
    assert kept[0] != kept[1] and kept[:2] == kept[2:]


def test_processes_that_begin_together_make_a_simulator_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, asked, flock = [], threading.Semaphore(0), made_once.fcntl.flock

    def make(given: Path, target: Path, data: Sequence[Path]) -> None:
        calls.append(target)
        target.mkdir()
        if len(calls) == 1:
            assert asked.acquire(timeout=60) and asked.acquire(timeout=60), "the other did not come for it"

    def counted(*args: object) -> None:
        asked.release()
        flock(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(made_once.fcntl, "flock", counted)
    arm, found = Arm(made="x", make=make), []
    threads = [threading.Thread(target=lambda: found.append(simulator_of(arm, SHIPPED, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == [tmp_path / "x"] * 2 and len(calls) == 1


def test_the_summary_keeps_what_other_commands_have_trained(demos: Path, tmp_path: Path) -> None:
    """And a sweep may have more arms than there are colours."""
    arms = tuple(f"k{number}" for number in range(100, 1300, 100))
    asked = Study(tmp_path, (demos,), SHIPPED, arms, (0, 1), (), 5)
    for run in asked.runs:
        run.folder.mkdir(parents=True)
        losses = {"action": 0.1 + run.seed}
        (run.folder / "log.jsonl").write_text(json.dumps({"step": 1, "train": losses, "held_out": losses}) + "\n")
        record = {"arm": run.arm, "seed": run.seed, "train": losses, "held_out": losses}
        (run.folder / "run.json").write_text(json.dumps(record))
    page.write(tmp_path, asked.runs)
    whole = json.loads((tmp_path / "study.json").read_text())["runs"]
    page.write(tmp_path, Study(tmp_path, (demos,), SHIPPED, arms[:1], (1,), (), 5).runs)
    assert len(whole) == 24
    assert sorted(json.loads((tmp_path / "study.json").read_text())["runs"], key=str) == sorted(whole, key=str)
