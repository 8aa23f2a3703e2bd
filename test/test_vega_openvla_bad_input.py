"""The full-size policy says in a sentence what is wrong with its config, its parts and what it is shown."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
from tiny_checkpoints import composed, observation, robot_state

from policies.checkpoints import load_policy
from policies.compose import main as compose
from policies.types import VegaError


@pytest.fixture(scope="module")
def openvla(tmp_path_factory):
    return tiny.openvla_folder(tmp_path_factory.mktemp("openvla") / "checkpoint")


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return tiny.wan_folder(tmp_path_factory.mktemp("wan"))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"robot": "spot"}, "'spot' is unknown.*aloha"),
        ({"robot": "aloha"}, "14 and 14: name its own robot"),
        ({"cameras": ["front", "front"]}, "cannot be told apart"),
        ({"cameras": "front"}, "'cameras'.*config.json"),
        ({"colour": 1}, "'colour' in .*config.json"),
        ({"dtype": "int8"}, "'int8'"),
        ({"openvla": "nowhere"}, "nowhere"),
        ({"statistics_key": "bridge"}, r"'bridge'.*libero_spatial_no_noops"),
        ({"open_loop_horizon": 9}, "horizon of 9"),
        ({"attention": "telepathy"}, "'telepathy' is not to be had"),
        ({"world_simulator": {"source": "nowhere"}}, "nowhere"),
        ({"world_simulator": {}}, "lacks 'source'"),
        ({"world_simulator": 3}, "'world_simulator'"),
    ],
)
def test_a_bad_config_is_named(changes, sentence, openvla, tmp_path):
    folder = composed(tmp_path / "policy", openvla, **changes)
    (folder / "model.safetensors").touch()
    with pytest.raises(VegaError, match=sentence) as error:
        load_policy(str(folder))
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    "world, sentence",
    [
        ({"canvas": [60, 64]}, "multiples of 16"),
        ({"fusion": "sum"}, "Fusion 'sum'"),
        ({"fusion": "concat"}, r"model\.safetensors"),
        ({"refresh_every": 0}, "0th query"),
        ({"prompt_embedding": "prompt.safetensors"}, r"prompt\.safetensors.*export-prompt"),
        ({"tap": 2.5}, "'tap'"),
    ],
)
def test_a_bad_world_simulator_is_named(world, sentence, openvla, wan, tmp_path):
    folder = composed(tmp_path / "policy", openvla, wan, world)
    with pytest.raises(VegaError, match=sentence):
        load_policy(str(folder))


def edit(path: Path, change) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def spatial(change):
    return lambda values: change(values["libero_spatial_no_noops"])


@pytest.mark.parametrize(
    "change, sentence",
    [
        (spatial(lambda entry: entry.pop("proprio")), "proprio statistics lack 'q01'"),
        (spatial(lambda entry: entry["proprio"].update(q99=["x"] * 8)), "proprio statistics lack 'q99'"),
        (spatial(lambda entry: entry["proprio"].update(q99=[1.0])), "8 numbers but its statistics"),
        (spatial(lambda entry: entry["action"].update(mask=[])), r"mask \[\].*7 times"),
        (spatial(lambda entry: entry.update(action=3)), "action statistics lack 'q01'"),
        (lambda values: values.update(libero_spatial_no_noops=3), "no object of objects"),
    ],
)
def test_damaged_statistics_are_named_when_loading(change, sentence, openvla, tmp_path):
    folder = shutil.copytree(openvla, tmp_path / "checkpoint")
    edit(folder / "dataset_statistics.json", change)
    with pytest.raises(VegaError, match=sentence):
        load_policy(str(folder))


@pytest.mark.parametrize("text", ["", "[1]", "{}"])
def test_a_damaged_tokenizer_is_named(text, openvla, tmp_path):
    folder = shutil.copytree(openvla, tmp_path / "checkpoint")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(VegaError, match=r"tokenizer\.json.*again"):
        load_policy(str(folder)).act(observation())


def test_bad_observations_are_named(openvla):
    plain = load_policy(str(openvla))
    with pytest.raises(VegaError, match="camera 'wrist'"):
        plain.act(observation(cameras=("agentview",)))
    with pytest.raises(VegaError, match="instruction is empty"):
        plain.act(observation(instruction=" "))
    with pytest.raises(VegaError, match="3 fingers"):
        plain.act(observation(state=replace(robot_state(), gripper_positions=np.zeros(3))))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--output", "FILE"], "cannot be written to"),
        (["--output", "FILE/x"], "cannot be written to"),
        (["--output", "/proc/x"], "cannot be written to"),
        (["--refresh-every", "0"], "--refresh-every 0 is none: give a number from 1 on"),
        (["--refresh-every", "-1"], "--refresh-every -1 is none"),
    ],
)
def test_composing_begins_with_what_cannot_be_written_or_meant(options, part, openvla, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = [option.replace("FILE", str(tmp_path / "file")) for option in options]
    assert compose(["--openvla", str(openvla), "--output", str(tmp_path / "new"), *options]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1


def test_composing_says_what_is_wrong(openvla, wan, tmp_path, capsys):
    base = ["--openvla", str(openvla), "--output", str(tmp_path / "out")]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, sentence in (
        (["--openvla", str(tmp_path / "no"), "--output", "out"], "no checkpoint folder"),
        ([*base, "--world-simulator", str(tmp_path / "no")], "no checkpoint folder"),
        ([*base, "--statistics", "bridge"], "libero_spatial_no_noops"),
        (["--openvla", str(openvla), "--output", str(tmp_path / "full")], "not empty"),
    ):
        assert compose(arguments) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
