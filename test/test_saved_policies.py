"""What `save_pretrained` and training write is a policy by itself, wherever the one that was loaded had its parts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
from tiny_checkpoints import composed, observation

from policies.checkpoints import find_checkpoint, load_policy
from policies.spatial.models import shipped_scene_models
from policies.spatial.nano.model import load_network, save_network
from policies.training.vega.publishing import publish
from policies.world_simulator.prompt import save_prompt


@pytest.fixture
def with_its_own_prompt(tmp_path: Path) -> Path:
    """A full-size policy whose prompt lies in its folder, under a name of its own; its fusion is open."""
    openvla, wan = tiny.openvla_folder(tmp_path / "openvla"), tiny.wan_folder(tmp_path / "wan")
    folder = composed(tmp_path / "policy", openvla, wan, {"prompt_embedding": "mine.safetensors"})
    save_prompt(torch.randn(3, tiny.TEXT, generator=torch.Generator().manual_seed(5)), folder / "mine.safetensors")
    policy = load_policy(str(folder))
    with torch.no_grad():
        policy.world.fusion.residual.fill_(0.5)
    policy.save_pretrained(folder)
    return folder


def test_a_policy_with_a_prompt_of_its_own_is_saved_with_it(with_its_own_prompt: Path, tmp_path: Path) -> None:
    policy = load_policy(str(with_its_own_prompt))
    policy.save_pretrained(tmp_path / "deeper" / "copy")
    expected = policy.act(observation()).actions
    shutil.rmtree(with_its_own_prompt)
    again = load_policy(str(tmp_path / "deeper" / "copy"))
    assert torch.equal(again.world.simulator.prompt, policy.world.simulator.prompt)
    assert np.array_equal(again.act(observation()).actions, expected)


def test_what_training_writes_has_the_prompt_that_it_learned_with(with_its_own_prompt: Path, tmp_path: Path) -> None:
    policy, out = load_policy(str(with_its_own_prompt)), tmp_path / "run" / "policy"
    state, fusion = policy.model.state_dict(), policy.world.fusion.state_dict()
    publish(policy, state, fusion, 7, out)
    expected = policy.act(observation()).actions
    shutil.rmtree(with_its_own_prompt)
    again = load_policy(str(shutil.move(tmp_path / "run", tmp_path / "elsewhere") / "policy"))
    assert torch.equal(again.world.simulator.prompt, policy.world.simulator.prompt)
    np.testing.assert_allclose(again.act(observation()).actions, expected, atol=0.05)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_small_policy_is_saved_inside_the_folder_that_is_named(absolute: bool, tmp_path: Path) -> None:
    loaded, prior = tmp_path / "loaded" / "policy", tmp_path / "loaded" / "prior"
    shutil.copytree(find_checkpoint("vega-nano"), loaded)
    shutil.move(loaded / "world_simulator", prior)
    config = json.loads((loaded / "config.json").read_text())
    config["world_simulator"]["source"] = str(prior) if absolute else "../prior"
    (loaded / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    load_policy(str(loaded)).save_pretrained(tmp_path / "out" / "policy")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["policy"]
    shutil.rmtree(tmp_path / "loaded")
    again, shipped = load_policy(str(tmp_path / "out" / "policy")), load_policy("vega-nano")
    seen = observation(instruction="pick up the milk and place it in the basket")
    assert np.array_equal(again.act(seen).actions, shipped.act(seen).actions)


def test_a_scene_model_is_saved_inside_the_folder_that_is_named(tmp_path: Path) -> None:
    network = load_network(shipped_scene_models()["vega-nano-spatial"])
    network.config = replace(network.config, world_simulator="../elsewhere")
    save_network(network, tmp_path / "out" / "model")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    again = load_network(tmp_path / "out" / "model")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())


def test_what_others_read_in_a_trained_checkpoint_is_what_it_holds(tmp_path: Path) -> None:
    """OpenVLA's own loader takes config.json's statistics, and transformers its way of storing weights."""
    source = tiny.openvla_folder(tmp_path / "openvla")
    config = json.loads((source / "config.json").read_text())
    own = json.loads((source / "dataset_statistics.json").read_text())
    config |= {"quantization_config": {"load_in_8bit": True}, "norm_stats": {"bridge_orig": next(iter(own.values()))}}
    (source / "config.json").write_text(json.dumps(config))
    policy = load_policy(str(source))
    publish(policy, policy.model.state_dict(), None, 7, tmp_path / "policy")
    written = json.loads((tmp_path / "policy" / "openvla" / "config.json").read_text())
    assert written == {**{k: v for k, v in config.items() if k != "quantization_config"}, "norm_stats": own}
    trained = load_policy(str(tmp_path / "policy"))
    assert np.array_equal(trained.act(observation()).actions, policy.act(observation()).actions)
