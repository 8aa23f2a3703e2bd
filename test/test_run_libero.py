"""What a user can get wrong with `sim/run_libero.py`: one sentence, exit status 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from policies.types import VegaError
from sim import demo
from sim.evaluation import evaluate
from sim.evaluation.settings import EpisodeSettings
from sim.results.evaluation import ResultWriter
from sim.results.lerobot.ownership import IDENTITY
from sim.run_libero import main
from vega3d_ros.bringup.bringup import ARGUMENTS, node_table
from vega3d_ros.bringup.entries import parse_arguments

PLAIN = ["--policy", "vega-nano-plain"]  # knows ten things of one suite


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--suite", "libero_objekt"], "such as libero_object"),
        (["--tasks", "12"], "tasks 0 to 9"),
        (["--tasks", ""], "The tasks '' cannot be read"),  # an empty variable of a shell
        (["--dimension", ""], "Only the suites of LIBERO-plus have dimensions"),
        (["--policy", "vega-giant"], "vega-nano"),
        (["--policy", "no_such_module:Policy"], "cannot be imported"),
        (["--policy", "pathlib:Path"], "is no policy"),
        (["--policy", "localhost:8000"], "as --policy ws://HOST:PORT"),
        (["--suite", "libero_plus_objekt"], "There is no suite 'libero_plus_objekt'"),
        (["--transport", "ros", "--command", "eef"], "--command joint"),
        (["--trials", "0"], "from 1 on"),
        (["--device", "cuda:7"], "cannot be used"),
        # Refused before a scene is built; the whole sentence, and what the policy knows.
        ([*PLAIN, "--suite", "libero_goal", "--tasks", "1"], "'put the bowl on the stove' names 'bowl', which this"),
        (["--perturb", "camera,wind"], "--perturb takes camera, light, texture"),
        (["--perturb", "light", "--transport", "ros"], "leave --perturb out"),
        ([*PLAIN, "--suite", "libero_10"], "of 10 instructions are refused"),
        ([*PLAIN, "--suite", "libero_goal"], ", or the policy vega-nano-suites, which can be told all of them."),
        (["--output", "/proc/nowhere"], "cannot be written"),
        (["--record", "/proc/nowhere"], "give another --record"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert part in said


def test_a_corrupt_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from policies.checkpoints import find_checkpoint

    source = find_checkpoint("vega-nano")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    assert main(["--policy", str(tmp_path)]) == 2
    assert "world_simulator" in capsys.readouterr().err
    shutil.copytree(source / "world_simulator", tmp_path / "world_simulator")
    assert main(["--policy", str(tmp_path)]) == 2
    assert "model.safetensors" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:100_000])
    assert main(["--policy", str(tmp_path)]) == 2
    assert "corrupt" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert main(["--policy", str(tmp_path)]) == 2
    assert "is not readable JSON" in capsys.readouterr().err


def test_an_instruction_that_the_policy_does_not_know_is_told_whole_and_before_anything_is_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("a scene was built")

    monkeypatch.setattr("sim.worlds.libero_env._build", built)
    sentence = "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate"
    assert main([*PLAIN, "--suite", "libero_spatial", "--tasks", "4", "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"'{sentence}'" in said and "milk" in said and "chocolate pudding" in said
    assert not (tmp_path / "run").exists()
    assert demo.main([*PLAIN, "--suite", "libero_spatial", "--task", "4", "--output", str(tmp_path / "demo")]) == 1
    assert f"'{sentence}'" in capsys.readouterr().err
    with pytest.raises(VegaError, match="open the pod bay doors"):
        node_table(parse_arguments(["instruction:=open the pod bay doors"], ARGUMENTS))
    node_table(parse_arguments(["instruction:=take the milk"], ARGUMENTS))


def test_pictures_and_tapes_of_an_earlier_run_are_not_taken_for_those_of_one_that_begins_there_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(progress: evaluate.EpisodeProgress, *_: object) -> bool:
        progress.close()
        progress.writer.close()
        return True

    monkeypatch.setattr(evaluate, "carry_out", nothing)
    words = [*PLAIN, "--tasks", "0", "--trials", "1", "--output", str(tmp_path)]
    left = {
        "pictures": ("task0_trial0.jpg", "task0_trial0.mp4"),
        "tapes": ("task0_trial0.npz", "task0_trial0.agentview.mp4", ".task0_trial1.partial.npz", IDENTITY),
    }
    for folder, names in left.items():
        (tmp_path / folder).mkdir()
        for name in (*names, "mine.jpg"):
            (tmp_path / folder / name).touch()
    assert main([*words, "--resume"]) == 0
    assert [len(list((tmp_path / folder).iterdir())) for folder in left] == [3, 5]
    assert main(words) == 0
    for folder in left:
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["mine.jpg"]


def test_a_run_on_one_kind_of_device_does_not_go_on_on_another(tmp_path: Path) -> None:
    devices = ("cpu", "cuda:0", "cuda:1")
    settings = [EpisodeSettings("libero_object", "some:Policy", device=device) for device in devices]
    cpu, first, second = (evaluate.header(each, "p") for each in settings)
    older = {name: value for name, value in cpu.items() if name != "device"}
    for before, now in ((older, cpu), (first, second)):
        for fields, resume in ((before, False), (now, True)):
            ResultWriter(tmp_path, fields, resume=resume).close()
    with pytest.raises(VegaError, match="has device cuda, this one cpu"):
        ResultWriter(tmp_path, cpu, resume=True)


def test_a_run_goes_on_only_with_the_threads_and_the_versions_that_it_began_with(tmp_path: Path) -> None:
    """With another number of threads sums come out otherwise in their last bits, and with them whole episodes."""
    one, two = (evaluate.header(EpisodeSettings("libero_object", "some:Policy", threads=n), "p") for n in (1, 2))
    older = {name: value for name, value in one.items() if name != "threads"}
    older["versions"] = {name: one["versions"][name] for name in ("mujoco", "torch")}
    for fields, resume in ((older, False), (one, True)):
        ResultWriter(tmp_path, fields, resume=resume).close()
    assert json.loads((tmp_path / "summary.json").read_text())["versions"] == one["versions"]
    with pytest.raises(VegaError, match="has threads 1, this one 2"):
        ResultWriter(tmp_path, two, resume=True)
    for package in ("mujoco", "torch", "transformers", "diffusers"):
        other = {**one, "versions": {**one["versions"], package: "0.0.1"}}
        with pytest.raises(VegaError, match=f"has versions {{'{package}': '[^,]*'}}, this one .*'0.0.1'.*: give"):
            ResultWriter(tmp_path, other, resume=True)


def test_a_run_goes_on_only_with_the_renderer_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EGL and OSMesa draw other pixels."""
    drawn_by = {}
    for said in (None, "egl", "glfw", "OSMESA", "osmesa"):
        if said is None:
            monkeypatch.delenv("MUJOCO_GL")
        else:
            monkeypatch.setenv("MUJOCO_GL", said)
        drawn_by[said] = evaluate.header(EpisodeSettings("libero_object", "some:Policy"), "p")
    # What else is said there robosuite overrules.
    assert [fields["renderer"] for fields in drawn_by.values()] == ["egl"] * 4 + ["osmesa"]
    older = {name: value for name, value in drawn_by[None].items() if name != "renderer"}
    for fields, resume in ((older, False), (drawn_by["egl"], True)):
        ResultWriter(tmp_path, fields, resume=resume).close()
    with pytest.raises(VegaError, match="has renderer egl, this one osmesa: give another --output"):
        ResultWriter(tmp_path, drawn_by["osmesa"], resume=True)


def test_a_run_of_libero_plus_goes_on_with_other_tasks_as_any_other_does(tmp_path: Path) -> None:
    header = evaluate.header(EpisodeSettings("libero_object", "some:Policy"), "p")
    camera, robot = {"camera": list(range(900))}, {"camera": [7, 950], "robot": [1000]}
    for dimensions, resume in ((camera, False), (robot, True)):
        ResultWriter(tmp_path, {**header, "dimensions": dimensions}, resume=resume).close()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["dimensions"] == {"camera": [*range(900), 950], "robot": [1000]}


def test_what_is_long_does_not_make_a_sentence_unreadable(tmp_path: Path) -> None:
    ResultWriter(tmp_path, {"suite": list(range(900))}).close()
    with pytest.raises(VegaError, match=r"has suite \[0, 1, .*\.\.\., this one s: give") as refused:
        ResultWriter(tmp_path, {"suite": "s"}, resume=True)
    assert len(str(refused.value)) < 400


def test_a_dataset_of_another_run_is_refused_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "set"
    (target / "meta").mkdir(parents=True)
    (target / "meta" / "mine.txt").touch()
    words = [*PLAIN, "--tasks", "0", "--trials", "1", "--output", str(tmp_path / "o"), "--record", str(target)]
    for more in ([], ["--resume"]):
        assert main([*words, *more]) == 2
        assert "set exists already" in capsys.readouterr().err
    assert [path.name for path in target.rglob("*")] == ["meta", "mine.txt"]
