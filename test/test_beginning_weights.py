"""A training begins with the weights of any policy that the other commands know, by the same names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_nano import demos as demos  # a fixture
from test_train_nano import train
from test_train_spatial import data as data  # a fixture
from test_train_spatial import run

from policies.checkpoints import HERE, find_checkpoint
from policies.training import distil, train_nano, train_spatial, train_vega

WEIGHTS = "model.safetensors"
BARELY = ("--lr", "1e-9")


def test_a_shipped_policy_is_gone_on_with_by_its_name(demos: Path, tmp_path: Path) -> None:
    known = load_file(find_checkpoint("vega-nano-suites") / WEIGHTS)
    found = load_file(train(demos, tmp_path, 1, "--init", "vega-nano-suites", *BARELY) / WEIGHTS)
    assert known.keys() == found.keys()
    for name, value in known.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_a_new_policy_starts_warm_from_a_shipped_one_by_its_name(demos: Path, tmp_path: Path) -> None:
    name = "semantic_encoder.encoders.wrist.stem.0.weight"
    known = load_file(find_checkpoint("vega-nano-plain") / WEIGHTS)[name]
    found = load_file(train(demos, tmp_path, 1, "--warm-start", "vega-nano-plain", *BARELY) / WEIGHTS)[name]
    torch.testing.assert_close(found, known, atol=1e-6, rtol=0)


def test_a_scene_model_begins_with_shipped_ones_by_their_names(data: Path, tmp_path: Path) -> None:
    words = ("--without-prior", "--held-out", "", *BARELY)
    known = load_file(HERE / "vega_nano_spatial" / WEIGHTS)
    found = run(data, tmp_path / "known", 1, "--init", "vega-nano-spatial", *words)
    name = "semantic_encoder.encoders.eye.stem.0.weight"
    torch.testing.assert_close(found[name], known[name], atol=1e-6, rtol=0)
    policy = load_file(find_checkpoint("vega-nano-plain") / WEIGHTS)
    found = run(data, tmp_path / "warm", 1, "--warm-start", "vega-nano-plain", *words)
    other = "semantic_encoder.encoders.agentview.stem.0.weight"
    torch.testing.assert_close(found[name], policy[other], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vega-nana", "There is no policy 'vega-nana': give one of vega-nano,"),
        ("", "There is no policy ''"),
        ("tiny_policy:TinyPolicy", "The policy 'tiny_policy:TinyPolicy' is a class and has no folder of weights"),
        ("ws://127.0.0.1:1", "There is no policy 'ws://127.0.0.1:1' on this machine"),
        ("vega-nano#libero_goal", "Policy 'vega-nano' has no statistics to choose from"),
        ("FULL", "has the full size: give one trained by train_nano"),
        (str(HERE / "vega_nano_spatial"), "answers questions and is no policy"),
        (str(HERE / "vega_nano" / "config.json"), "is a file: give its folder"),
    ],
)
def test_what_no_small_policy_is_called_is_told_as_elsewhere(
    name: str, said: str, demos: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "FULL":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla"}))
        name = str(tmp_path)
    output = ["--output", str(tmp_path / "o")]
    for main, words in (
        (train_nano.main, ["--data", str(demos), "--init", name]),
        (train_nano.main, ["--data", str(tmp_path / "none"), "--warm-start", name]),  # before any data are read
        (train_spatial.main, ["--data", str(data), "--warm-start", name]),
        (distil.main, ["--data", str(demos), "--policy", name]),
    ):
        assert main([*words, *output]) == 2  # type: ignore[operator]
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_what_is_no_scene_model_of_this_kind_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in (("vega-nano", "There is no scene model 'vega-nano': give one of vega-nano-spatial"),
                       (str(HERE / "vega_nano"), "is none of this command's: give vega-nano-spatial"),
                       ("json:loads", "is none of this command's")):  # fmt: skip
        assert train_spatial.main(["--data", str(data), "--output", str(tmp_path / "o"), "--init", name]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_a_class_has_no_weights_for_the_full_size_to_learn_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(tmp_path), "--output", str(tmp_path / "o"), "--policy", "tiny_policy:TinyPolicy"]
    assert train_vega.main(words) == 2
    assert "is a class and has no folder of weights" in capsys.readouterr().err
