"""Whose word counts: an argument's, the robot's file's, the policy's file's, ours; what would do nothing is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from policies.types import DEFAULT_POLICY, VegaError
from vega3d_ros.bringup import bringup, preflight, scene
from vega3d_ros.bringup.bringup import ARGUMENTS, node_table, strict_files
from vega3d_ros.bringup.entries import NodeEntry, parse_arguments, robot_file


def table_of(*words: str) -> dict[str, NodeEntry]:
    return {entry.name: entry for entry in node_table(parse_arguments(words, ARGUMENTS))}


def understood(entry: NodeEntry, folder: Path) -> dict[str, object]:
    """The parameters of a process as ROS reads its files: later ones win."""
    files = strict_files(entry, folder)
    return {
        name: value
        for path in files
        for name, value in yaml.safe_load(path.read_text())["/**"]["ros__parameters"].items()
    }


OF_A_FILE = {"policy": "vega-nano-suites", "device": "cuda:0", "threads": 4, "use_sim_time": True, "autostart": True}


@pytest.fixture
def opinionated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a real robot that says itself what bringup would choose otherwise."""
    monkeypatch.setattr(preflight, "check_device", lambda _: None)  # this machine may lack it
    said = "".join(f"    {name}: {str(value).lower()}\n" for name, value in OF_A_FILE.items())
    path = tmp_path / "opinionated.yaml"
    path.write_text(robot_file("ur5e").read_text() + said)
    return path


def test_what_a_robots_file_says_wins_over_the_policys_and_our_own_defaults(opinionated: Path, tmp_path: Path) -> None:
    table = table_of(f"robot:={opinionated}", "scene:=true", "scene_model:=tiny_scene:RedScene")
    values = understood(table["policy_node"], tmp_path)
    assert {name: values[name] for name in OF_A_FILE} == OF_A_FILE
    assert understood(table["scene_node"], tmp_path)["use_sim_time"] is True
    words = parse_arguments([f"robot:={opinionated}", "scene_model:=tiny_scene:RedScene"], scene.ARGUMENTS)
    alone = {entry.name: entry for entry in scene.scene_table(words)}["scene_node"]
    scene_values = understood(alone, tmp_path)
    assert (scene_values["use_sim_time"], scene_values["device"]) == (True, "cuda:0")
    # The policy's own file still says what nobody else does, before our defaults.
    opinionated.write_text(robot_file("ur5e").read_text())
    values = understood(table_of(f"robot:={opinionated}")["policy_node"], tmp_path)
    assert (values["policy"], values["device"], values["threads"]) == (DEFAULT_POLICY, "cpu", 1)
    assert (values["use_sim_time"], values["autostart"]) == (False, False)


def test_an_argument_wins_over_the_robots_file_also_with_the_value_of_our_default(
    opinionated: Path, tmp_path: Path
) -> None:
    words = [f"policy:={DEFAULT_POLICY}", "device:=cpu", "threads:=1", "use_sim_time:=false", "scene:=true"]
    table = table_of(f"robot:={opinionated}", *words, "scene_model:=tiny_scene:RedScene", "scene_device:=cpu")
    values = understood(table["policy_node"], tmp_path)
    told = [values[name] for name in ("policy", "device", "threads", "use_sim_time")]
    assert told == [DEFAULT_POLICY, "cpu", 1, False]
    seen = understood(table["scene_node"], tmp_path)
    assert (seen["use_sim_time"], seen["device"]) == (False, "cpu")


def test_a_policy_or_a_device_of_the_robots_file_that_is_not_there_is_told_before_anything_starts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "arm.yaml"
    for line, said in (("policy: nobody", "There is no policy 'nobody'"), ("device: gpu", "The device 'gpu' cannot")):
        path.write_text(robot_file("ur5e").read_text() + f"    {line}\n")
        with pytest.raises(VegaError, match=said):
            table_of(f"robot:={path}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scene_model:=/nowhere"], "scene_model:=/nowhere says nothing without scene_node: add scene:=true"),
        (["scene_device:=cpu"], "scene_device:=cpu says nothing without scene_node: add scene:=true"),
        (["robot:=ur5e", "suite:=libero_object"], "suite:=libero_object is for the simulated robot only"),
        (["world_simulator:=bogus"], "world_simulator:=bogus is not possible: choose one of auto, on, off"),
    ],
)
def test_an_argument_that_would_do_nothing_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(VegaError, match=re.escape(said)):
        table_of(*words)


@pytest.mark.parametrize("word", ["suite:=libero_object", "task:=0", "trial:=0", "suite:=libero_goal", "trial:=abc"])
def test_the_scene_of_a_real_robot_has_no_task(word: str, opinionated: Path) -> None:
    words = [f"robot:={opinionated}", "scene_model:=tiny_scene:RedScene", word]
    with pytest.raises(VegaError, match=f"{word} is for the simulated robot only: leave it out"):
        scene.scene_table(parse_arguments(words, scene.ARGUMENTS))


def test_a_bag_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bringup.main(["record:=true", f"bag:={tmp_path}"]) == 1
    assert f"The bag {tmp_path} exists already" in capsys.readouterr().err


def test_a_bag_where_none_can_be_made_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where anybody's permissions would allow it, too, as in /proc."""
    monkeypatch.setattr(bringup, "run_table", lambda *_: pytest.fail("something is started"))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    refused = ("file/runs/one", "link", "link/one", "x" * 300)
    for bag in ("/proc/x", "/proc/runs/one", "~nobody.of.that.name/x", *(f"{tmp_path}/{name}" for name in refused)):
        assert bringup.main(["record:=true", f"bag:={bag}"]) == 1
        error = capsys.readouterr().err
        assert f"The bag {bag} cannot be made" in error and error.count("\n") == 1, error
    monkeypatch.chdir("/proc")
    assert bringup.main(["record:=true"]) == 1
    assert "The bag /proc/vega3d-bag-" in capsys.readouterr().err


def test_a_bag_that_can_be_made_is_not_made_before_it_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    for words in (["bag:=there/one"], [f"bag:={tmp_path}/runs/one"], ["bag:=one"], []):
        assert "recorder" in table_of("record:=true", *words)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_what_is_there_and_no_robots_file_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("three.py", "arm.yaml", "plain"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.yaml").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, what in (
        ("three.py", "'three.py' is no YAML file, as a robot's is"), ("plain", "'plain' is no YAML file"),
        (f"{tmp_path}/plain", "plain' is no YAML file"), ("folder.yaml", "'folder.yaml' is a folder"),
        (str(tmp_path), "is a folder"), ("four.py", "There is no robot 'four.py'"), ("", "There is no robot ''"),
        ("x" * 300 + ".yaml", "There is no robot"), ("~nobody.of.that.name/arm.yaml", "There is no robot"),
    ):  # fmt: skip
        with pytest.raises(VegaError, match=r": choose one of .*, or give the path of a \.yaml file") as told:
            robot_file(name)
        assert what in str(told.value)
    assert robot_file("~/arm.yaml") == robot_file("arm.yaml") == tmp_path / "arm.yaml"
