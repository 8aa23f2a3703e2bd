"""The full-size policy says in a sentence what is wrong with its config, its parts and what it is shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file, save_file
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
        ({"open_loop_horizon": 0}, "above 0"),
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
        ({"shift": 0.0}, "shift 0.0"),
        ({"shift": -1.0}, "shift -1.0"),
        ({"seed": 2**70}, f"seed {2**70}"),
        ({"canvas": [0, 64]}, "'canvas'.*above 0"),
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
        (spatial(lambda entry: entry["proprio"].update(q99=[1.0])), "8 numbers but 'q99' of its statistics 1"),
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


def text(**changes):
    return lambda values: values["text_config"].update(changes)


@pytest.mark.parametrize(
    "change, sentence",
    [
        *((lambda values, wrong=wrong: values.update(text_config=wrong), "'text_config'.*give an object")
          for wrong in (None, [], "x", 3)),
        *((text(num_attention_heads=wrong), "'num_attention_heads'.*give") for wrong in (None, 0, -1, "4", 4.0)),
        *((text(rms_norm_eps=wrong), "'rms_norm_eps'.*give") for wrong in (None, 0, float("nan"))),
        (text(hidden_act="x"), "no hidden_act 'x'"),
        *((text(rope_theta=wrong), "'rope_theta'.*give") for wrong in (None, "x", 0)),
        *((lambda values, wrong=wrong: values.update(image_sizes=wrong), "'image_sizes'.*give")
          for wrong in (None, [], 3, "x", [0], [-1], ["a"])),
        (lambda values: values.update(image_sizes=[100000]), "100000 pixels are not the 256 patches"),
        *((lambda values, wrong=wrong: values.update(chunk_length=wrong), "'chunk_length'.*give")
          for wrong in ("x", 4.5, 0)),
        (lambda values: values.update(chunk_length=10**9), "chunks of 1000000000 actions"),
    ],
)  # fmt: skip
def test_a_bad_published_config_is_named(change, sentence, openvla, tmp_path):
    folder = shutil.copytree(openvla, tmp_path / "checkpoint")
    edit(folder / "config.json", change)
    with pytest.raises(VegaError, match=sentence):
        load_policy(str(folder))


TOWER = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    "tower",
    [1, None, "mean std", *(TOWER | {"mean": wrong} for wrong in (0.5, None, [0.5], ["a"] * 3, [0.5] * 4)),
     *(TOWER | {"std": [wrong] * 3} for wrong in (0, float("nan")))],
)  # fmt: skip
def test_bad_image_constants_are_named_when_loading(tower, openvla, tmp_path):
    folder = shutil.copytree(openvla, tmp_path / "checkpoint")
    (folder / "preprocessor_config.json").write_text(json.dumps({"tvf_normalize_params": [TOWER, tower]}))
    with pytest.raises(VegaError, match="each with three numbers"):
        load_policy(str(folder))


def test_a_tokenizer_beyond_the_embedding_is_refused_when_loading(openvla, tmp_path):
    folder = shutil.copytree(openvla, tmp_path / "checkpoint")
    edit(folder / "tokenizer.json", lambda values: values["model"]["vocab"].update(robot=10**6))
    with pytest.raises(VegaError, match="token 1000000 where the language model knows"):
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
        ([*base, "--fusion", "token_gate"], "--fusion is about a world simulator: give one as --world-simulator"),
        ([*base, "--refresh-every", "4"], "--refresh-every is about a world simulator"),
        ([*base, "--seed", "3"], "--seed is about a world simulator"),
        (["--openvla", str(openvla), "--output", str(tmp_path / "full")], "not empty"),
    ):
        assert compose(arguments) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["num_attention_heads", "attention_head_dim"])
@pytest.mark.parametrize("value", [None, "2", 0, 2.5, True])
def test_composing_with_a_wan_of_unknown_width_is_refused(name, value, openvla, wan, tmp_path, capsys):
    copy = shutil.copytree(wan, tmp_path / "wan")
    change = (lambda values: values.pop(name)) if value is None else (lambda values: values.update({name: value}))
    edit(copy / "transformer" / "config.json", change)
    capsys.readouterr()
    options = ["--openvla", str(openvla), "--world-simulator", str(copy), "--output", str(tmp_path / "out")]
    assert compose(options) == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert f"'{copy / 'transformer' / 'config.json'}' gives no '{name}'" in error and error.count("\n") == 1


@pytest.mark.parametrize("cameras", ["agentview, wrist", " agentview ,wrist"])
def test_blanks_around_cameras_names_are_no_part_of_them(cameras, openvla, tmp_path):
    assert compose(["--openvla", str(openvla), "--output", str(tmp_path / "out"), "--cameras", cameras]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["cameras"] == ["agentview", "wrist"]


@pytest.mark.parametrize("cameras", ["agentview,", ",wrist", "agentview, ,wrist", " ", ""])
def test_a_camera_without_a_name_is_refused(cameras, openvla, tmp_path, capsys):
    assert compose(["--openvla", str(openvla), "--output", str(tmp_path / "out"), "--cameras", cameras]) == 2
    error = capsys.readouterr().err
    assert "--cameras" in error and "without a name" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_batch_of_pictures_of_two_sizes_is_refused(openvla):
    plain, one = load_policy(str(openvla)), observation()
    other = replace(one, images={camera: image[:, :128] for camera, image in one.images.items()})
    with pytest.raises(VegaError, match=r"^Camera 'agentview' gave .*256.* and .*128.*\.$"):
        plain.act_batch([one, other])


@pytest.fixture
def folder(openvla: Path, tmp_path: Path) -> Path:
    return shutil.copytree(openvla, tmp_path / "checkpoint")


EMBEDDING, PLACES = "language_model.model.embed_tokens.weight", "vision_backbone.featurizer.pos_embed"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (EMBEDDING, lambda tensor: tensor.T),
        (EMBEDDING, lambda tensor: tensor[0]),
        ("language_model.model.layers.0.self_attn.k_proj.weight", lambda tensor: tensor[0, 0]),
        ("projector.fc1.weight", lambda tensor: tensor[0, 0]),
        (PLACES, lambda tensor: tensor[0, 0, 0]),
        ("vision_backbone.featurizer.cls_token", lambda tensor: tensor[0, 0, 0]),
        ("vision_backbone.featurizer.blocks.0.attn.qkv.bias", lambda tensor: tensor[0]),
        ("projector.fc1.bias", lambda tensor: tensor * float("inf")),
        (PLACES, lambda tensor: tensor * float("nan")),
    ],
)
def test_a_tensor_of_another_rank_or_without_numbers_is_named(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = weights | {name: change(weights[name]).contiguous()}
    save_file(changed, folder / "model.safetensors")
    with pytest.raises(VegaError, match=rf"'{name}'.*(shape|NaN)|embeddings of width|keys of"):
        load_policy(str(folder))


@pytest.mark.parametrize("file", [tiny.HEAD, tiny.PROPRIO])
def test_components_are_checked_as_the_weights_are(folder: Path, file: str) -> None:
    state = torch.load(folder / file, weights_only=True)
    one = next(name for name in state if name.endswith("fc1.weight"))
    for changed, named in (
        (state | {one: state[one][0, 0]}, r"fc1\.weight'.*shape \(\)"),
        (state | {one: state[one] * float("nan")}, r"fc1\.weight'.*NaN"),
        (dict(enumerate(state.values())), "tensors by name"),
    ):
        torch.save(changed, folder / file)
        with pytest.raises(VegaError, match=named):
            load_policy(str(folder))


@pytest.mark.parametrize("index", [None, ["a"], {"a": ["b"]}, {"a": 1}])
def test_a_shard_index_is_read_strictly(folder: Path, index: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(VegaError, match=r"'weight_map' in .*index\.json"):
        load_policy(str(folder))


@pytest.mark.parametrize(
    ("settings", "b", "named"),
    [({"rank_pattern": {"(": 4}}, (1, 4), "no regular expression"), ({}, (), "no matrices")],
)
def test_a_damaged_adapter_is_named(folder: Path, settings: dict, b: tuple[int, ...], named: str) -> None:
    stem = "base_model.model.language_model.model.layers.0.mlp.down_proj"
    halves = {f"{stem}.lora_A.weight": torch.ones(4, 1), f"{stem}.lora_B.weight": torch.ones(b)}
    save_file(halves, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | settings))
    with pytest.raises(VegaError, match=named):
        load_policy(str(folder))
