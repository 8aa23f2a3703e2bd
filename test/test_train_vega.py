"""Training of the full-size policy at tiny size: what it reads, that it goes on where it stopped, what comes out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tiny_checkpoints import observation

from benchmarks.training import (
    GOLDEN,
    Training,
    arguments_of,
    farthest,
    logged,
    losses,
    make_demonstrations,
    make_policy,
)
from policies.checkpoints import load_policy
from policies.files.tensor_sources import SafetensorsSource
from policies.fusion.gated_fusion import build_fusion
from policies.measuring.benchmark_models import REDUCED
from policies.openvla.policy import SEMANTIC_VIEW
from policies.openvla.preprocessing import policy_image, rotate_180
from policies.training.train_vega import main
from policies.training.vega.demonstrations import Samples, normalized_actions, without_idling
from policies.training.vega.pictures import training_image
from policies.training.vega.plan import make_plan
from policies.training.vega.readers import instruction_of, read_demonstrations
from policies.training.vega.tokens import TokenCache

CAMERAS = ("agentview", "wrist")


@pytest.fixture(autouse=True, scope="module")
def _an_engine_of_their_own():
    """accelerate keeps what the first trainer of a process chose; another test's may have been one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_demonstrations(tmp_path_factory.mktemp("demonstrations"), episodes=3, steps=10)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokens")


def words(policy: Path, data: Path, output: Path, tokens: Path, steps: int) -> list[str]:
    return [
        "--policy", str(policy), "--data", str(data), "--output", str(output), "--tokens", str(tokens), "--dataset",
        "libero_tiny", "--steps", str(steps), "--batch", "2", "--micro", "1", "--lr", "1e-3", "--lora-rank", "2",
        "--holdout", "0", "--validation", "2", "--save-every", "1", "--device", "cpu", "--dtype", "float32",
    ]  # fmt: skip


def train(policy: Path, data: Path, output: Path, tokens: Path, steps: int) -> list[dict]:
    assert main(words(policy, data, output, tokens, steps)) == 0
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(policy, data, tokens, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    return output, train(policy, data, output, tokens, 3)


def test_it_begins_as_the_published_policy_and_learns(trained, policy):
    output, log = trained
    assert [line["step"] for line in log] == [0, 1, 2, 3]
    assert log[-1]["learned_l1"] < log[0]["learned_l1"]
    state = torch.load(output / "training_state.pt", weights_only=True)["learning"]
    names = set(state)
    assert any(".lora_A." in name for name in names) and any(name.startswith("fusion.gate") for name in names)
    assert not any("simulator" in name or "embed_tokens" in name for name in names)
    # Gate and projector have moved, which with a residual of 0 alone they could not at the first step.
    fresh = SafetensorsSource(policy)
    for name in ("gate.weight", "project.0.weight"):
        assert not torch.equal(state[f"fusion.{name}"], fresh.read(name))


def test_what_comes_out_is_a_policy_and_so_is_the_checkpoint_inside(trained, policy):
    output, _ = trained
    before, after = load_policy(str(policy)), load_policy(str(output / "policy"))
    assert after.spec.cameras == before.spec.cameras and after.statistics_key == "libero_tiny"
    assert not np.array_equal(after.act(observation()).actions, before.act(observation()).actions)
    published = output / "policy" / "openvla"
    assert sorted(file.name for file in published.glob("*.pt")) == [
        "action_head--3_checkpoint.pt", "proprio_projector--3_checkpoint.pt",
    ]  # fmt: skip
    names = set(SafetensorsSource(published).names())
    assert names == set(SafetensorsSource(Path(before.model.info.folder)).names())
    alone = load_policy(f"{published}#libero_tiny")
    with torch.no_grad():
        after.world.fusion.residual.zero_()
    np.testing.assert_allclose(alone.act(observation()).actions, after.act(observation()).actions, atol=0.05)  # bf16


def test_it_goes_on_with_the_same_losses(trained, policy, data, tokens, tmp_path):
    _, log = trained
    files = {path: path.stat().st_mtime_ns for path in tokens.rglob("*.npy")}
    train(policy, data, tmp_path, tokens, 2)
    again = train(policy, data, tmp_path, tokens, 3)
    assert files and {path: path.stat().st_mtime_ns for path in tokens.rglob("*.npy")} == files
    assert farthest(losses(log), losses(again)) == 0.0


def test_it_does_not_go_on_from_another_policy_of_equal_shapes(trained, policy, data, tokens, tmp_path, capsys):
    other, output = tmp_path / "other", tmp_path / "out"
    shutil.copytree(policy, other)
    weights = other / "model.safetensors"
    save_file({name: 1.1 * tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    shutil.copytree(trained[0], output)
    before = (output / "training_state.pt").read_bytes()
    capsys.readouterr()
    assert main(words(other, data, output, tokens, 4)) == 2
    assert "has learned from another --policy" in capsys.readouterr().err
    assert (output / "training_state.pt").read_bytes() == before


def test_it_goes_on_with_the_data_and_the_options_that_it_began_with(
    trained, policy, data, tokens, tmp_path, capsys, monkeypatch
):
    """Before tokens of other data are computed.  Published statistics that changed would scale every movement."""
    slower, dark, output = tmp_path / "slower", tmp_path / "dark", tmp_path / "out"
    shutil.copytree(data, slower)
    shutil.copytree(data, dark)
    for file in dark.glob("*.hdf5"):
        with h5py.File(file, "r+") as opened:
            for demo in opened["data"].values():
                demo["obs/eye_in_hand_rgb"][-1] = 0
    for file in slower.glob("*.hdf5"):
        with h5py.File(file, "r+") as opened:
            for demo in opened["data"].values():
                demo["actions"][:, :6] *= 0.1
    shutil.copytree(trained[0], output)
    kept = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(TokenCache, "compute", lambda *_: pytest.fail("hours of work come before the refusal"))
        for said, more in {
            "another --data (": ["--data", str(slower)],
            "another --data (its pictures)": ["--data", str(dark)],
            "another --dataset (libero_tiny, now mine)": ["--dataset", "mine"],
            "another --holdout (0.0, now 0.4)": ["--holdout", "0.4"],
            "another --seed (7, now 99)": ["--seed", "99"],
            "another --batch (2, now 3)": ["--batch", "3"],
            "another --lr (0.001, now 0.1)": ["--lr", "0.1"],
            "another --no-augment (False, now True)": ["--no-augment"],
        }.items():
            capsys.readouterr()
            assert main([*words(policy, data, output, tokens, 4), *more]) == 2, said
            assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == kept
    state = torch.load(output / "training_state.pt", weights_only=True)
    del state["decides"]  # as older versions wrote it
    torch.save(state, output / "training_state.pt")
    more = ["--micro", "2", "--save-every", "2", "--validation", "4"]
    assert main([*words(policy, data, output, tokens, 4), *more]) == 0
    assert "--lr" in torch.load(output / "training_state.pt", weights_only=True)["decides"]


def test_it_goes_on_in_the_dtype_that_it_began_with(trained, policy, data, tokens, tmp_path, capsys):
    """Who forgets --dtype float32 would learn on in bfloat16."""
    output = tmp_path / "out"
    shutil.copytree(trained[0], output)
    kept = (output / "training_state.pt").read_bytes()
    AcceleratorState._reset_state(reset_partial_state=True)  # it knows one dtype a process
    try:
        assert main([*words(policy, data, output, tokens, 4), "--dtype", "bfloat16"]) == 2
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert "began with another --dtype (float32, now bfloat16)" in capsys.readouterr().err
    assert (output / "training_state.pt").read_bytes() == kept


def test_only_what_is_held_out_is_called_validation(trained, policy, data, tokens, tmp_path, capsys):
    """Of three episodes none is held out for a share of 0.05, and one for 0.4."""
    measured = {name for line in trained[1] for name in line}
    assert "learned_l1" in measured and "validation_l1" not in measured
    for share, name in (("0.05", "learned_l1"), ("0.4", "validation_l1")):
        output = tmp_path / share
        assert main([*words(policy, data, output, tokens, 1), "--holdout", share]) == 0
        told = capsys.readouterr().out
        assert ("no episode is held out" in told) == (name == "learned_l1")
        assert {key for line in logged(output) for key in line} == {"step", "l1", name}


def test_two_processes_have_the_losses_of_one(policy, data, tokens, tmp_path):
    """torchrun on this machine, over gloo: with the batch shared, and with weights shared too; one alone goes on."""
    two = Training(policy, data, tmp_path / "two", tokens, 2, 2)
    spread = Training(policy, data, tmp_path / "spread", tokens, 2, 2, "--shard")
    assert main(arguments_of(policy, data, tmp_path / "one", tokens, 3)) == 0
    alone, shared, sharded = losses(logged(tmp_path / "one")), losses(two.wait()), losses(spread.wait())
    assert len(alone) == 3 and len(shared) == 2
    assert farthest({step: alone[step] for step in (1, 2)}, shared) < 1e-5 and farthest(shared, sharded) < 1e-5
    published = load_policy(str(tmp_path / "spread" / "policy")), load_policy(str(tmp_path / "two" / "policy"))
    np.testing.assert_allclose(*(one.act(observation()).actions for one in published), atol=1e-4)
    assert main(arguments_of(policy, data, tmp_path / "spread", tokens, 3)) == 0
    assert farthest(alone, losses(logged(tmp_path / "spread"))) < 1e-5


def test_what_dropout_drops_depends_on_seed_step_and_place_too(data, tokens, tmp_path):
    """Cross-attention has some: a run that stopped, and one on two processes, leave out the same."""
    policy = make_policy(tmp_path, GOLDEN, "--fusion", "cross_attention")
    weights = policy / "model.safetensors"
    opened = load_file(weights) | {"residual": torch.tensor(1.0)}  # closed, it would hide what is dropped
    save_file(opened, weights, metadata={"format": "pt"})
    two = Training(policy, data, tmp_path / "two", tokens, 3, 2)
    assert main(arguments_of(policy, data, tmp_path / "one", tokens, 3)) == 0
    alone = losses(logged(tmp_path / "one"))
    for steps in (2, 3):
        assert main(arguments_of(policy, data, tmp_path / "again", tokens, steps)) == 0
    assert farthest(alone, losses(logged(tmp_path / "again"))) == 0.0
    assert farthest(alone, losses(two.wait())) < 1e-5


def test_one_process_shares_weights_with_nobody(policy, data, tokens, tmp_path, capsys):
    arguments = ["--policy", str(policy), "--data", str(data), "--output", str(tmp_path / "out"), "--shard"]
    more = ["--tokens", str(tokens), "--dataset", "libero_tiny", "--holdout", "0", "--device", "cpu"]
    assert main([*arguments, *more, "--batch", "8", "--dtype", "float32"]) == 2
    assert "leave --shard out" in capsys.readouterr().err


def test_demonstrations_of_libero_are_read_as_openvla_oft_has_them(data):
    demos = read_demonstrations(data, CAMERAS)
    assert len(demos) == 3 and demos[0].instruction == "pick up the milk and place it in the basket"
    assert demos[0].actions.shape == (10, 7) and demos[0].states.shape == (10, 8)
    assert set(demos[0].actions[:, 6]) == {0.0, 1.0} and demos[0].actions[0, 6] == 1.0  # open first
    with h5py.File(next(data.glob("*.hdf5"))) as file:
        raw = file["data/demo_0/obs/agentview_rgb"][2]
    assert np.array_equal(demos[0].picture("agentview", 2), rotate_180(raw))
    samples = Samples(demos, 8)
    assert len(samples) == 3 * 3
    assert np.array_equal(samples.actions(4), demos[1].actions[1:9])
    assert instruction_of(Path("KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5")) == "turn on the stove"


def test_steps_that_do_nothing_are_left_out():
    actions = np.zeros((5, 7))
    actions[1, 0], actions[:, 6] = 0.5, (-1, -1, -1, 1, 1)
    assert without_idling(actions).tolist() == [1, 3]


def test_the_policys_own_view_is_that_of_validation():
    picture = observation().images["agentview"][0]
    shown, view = training_image(picture, 224, None)
    assert np.array_equal(shown, policy_image(picture))
    np.testing.assert_allclose(view, SEMANTIC_VIEW)
    other, moved = training_image(picture, 224, np.random.default_rng(0))
    assert other.shape == shown.shape and not np.array_equal(other, shown)
    assert moved[2] - moved[0] == pytest.approx(view[2] - view[0]) and moved[0] >= 0 and moved[2] <= 1


def test_cached_tokens_are_those_that_the_policy_sees(policy, data, tmp_path):
    world = load_policy(str(policy)).world
    samples = Samples(read_demonstrations(data, CAMERAS), 8)
    cache = TokenCache(world, samples, tmp_path)
    assert cache.gigabytes() == pytest.approx(2 * 30 * 4 * 4 * 96 * 2 / 1e9)
    assert cache.compute(1, 2) == 0 and cache.compute(0, 2) == 2 and cache.compute() == 0
    picture = samples.picture("wrist", 5)
    seen = world.tokens({camera: torch.from_numpy(samples.picture(camera, 5))[None, None] for camera in CAMERAS})
    kept = cache.tokens("wrist", 5, picture.shape[:2], SEMANTIC_VIEW)
    torch.testing.assert_close(kept, seen["wrist"][0], atol=2e-2, rtol=1e-2)  # float16
    changed = cache.tokens("wrist", 5, picture.shape[:2], (0.0, 0.0, 0.5, 0.5))
    assert not torch.allclose(changed, kept, atol=0.1)


def test_tokens_of_another_prompt_are_not_taken_from_the_cache(policy, data, tmp_path):
    """The one that a policy names may say the same as that in Wan's folder: then it is no other."""
    folder, samples = shutil.copytree(policy, tmp_path / "policy"), Samples(read_demonstrations(data, CAMERAS), 8)
    prompt = load_policy(str(policy)).world.simulator.prompt
    computed = []
    for own in (None, prompt, prompt + 1.0, prompt + 1.0):
        config = json.loads((folder / "config.json").read_text())
        config["world_simulator"]["prompt_embedding"] = None if own is None else "mine.safetensors"
        (folder / "config.json").write_text(json.dumps(config))
        if own is not None:
            save_file({"prompt_embedding": own}, folder / "mine.safetensors")
        computed.append(TokenCache(load_policy(str(folder)).world, samples, tmp_path / "tokens").compute())
    assert computed == [2, 0, 2, 0]


def test_actions_are_scaled_as_the_head_says_them():
    entry = {"action": {"q01": [0.0, 0.0], "q99": [2.0, 1.0], "mask": [True, False]}}
    np.testing.assert_allclose(
        normalized_actions(np.array([[1.0, 1.0], [9.0, 0.0]]), entry, "bounds_q99"), [[0, 1], [1, 0]], atol=1e-6
    )


def test_a_closed_fusion_gives_its_parts_a_gradient_and_changes_nothing():
    fusion = build_fusion("token_gate", 8, 12, unchanged=True).train()
    fusion.gradient_floor = 0.1
    sem, gen = torch.randn(1, 5, 8), torch.randn(1, 5, 12)
    out = fusion(sem, gen)[0]
    assert torch.equal(out, sem)
    out.square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in fusion.parameters())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "needs a policy"),
        (["--steps", "0"], "above 0"),
        (["--policy", "vega-nano", "--data", "."], "small one"),
        (["--policy", "POLICY", "--data", "EMPTY"], "holds no demonstrations"),
        (["--policy", "POLICY", "--data", "DATA", "--batch", "3", "--micro", "2"], "does not divide"),
    ],
)
def test_what_is_wrong_is_said(arguments, sentence, policy, data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = {"POLICY": str(policy), "DATA": str(data), "EMPTY": str(tmp_path / "empty")}
    output = ["--output", str(tmp_path / "out"), "--device", "cpu", "--dtype", "float32"]
    assert main([*(words.get(word, word) for word in arguments), *output]) == 2
    assert sentence in capsys.readouterr().err


def test_demonstrations_of_another_robot_or_with_gaps_are_refused(policy, data, tmp_path, capsys):
    """Before tokens are computed: what is wrong may be in the last file."""
    (tmp_path / "data").mkdir()
    for name, change, sentence in (
        ("actions", lambda rows: np.where(rows == rows[3, 2], np.nan, rows), "are not all finite"),
        ("actions", lambda rows: rows[:, :6], "have 6 numbers and the policy's 7"),
        ("obs/ee_states", lambda rows: rows[:, :5], "have 7 numbers and the policy's 8"),
    ):
        for number, file in enumerate(sorted(data.rglob("*.hdf5"))):
            copied = shutil.copy(file, tmp_path / "data" / file.name)
            with h5py.File(copied, "r+") as opened:
                for demo in opened["data"].values() if not number else ():
                    rows = change(demo[name][()])
                    del demo[name]
                    demo[name] = rows
        words = ["--policy", str(policy), "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
        assert main([*words, "--device", "cpu", "--dtype", "float32"]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "out" / "tokens").exists()


def test_a_plan_counts_what_a_run_holds():
    """Of a small policy: what follows from sizes alone, and that checkpointing trades memory for operations."""
    small = replace(REDUCED, dinov2=(64, 3, 128), siglip=(80, 3, 128), llama=(64, 2, 128, 4), tap=1)
    plain, spare = make_plan(4, 2, False, small), make_plan(4, 2, True, small)
    whole = make_plan(0, 2, False, small)
    assert plain.learning == spare.learning and whole.gradients_and_optimizer == 12 * whole.learning
    assert plain.gradients_and_optimizer == 12 * plain.learning > whole.gradients_and_optimizer, "adapters in float32"
    assert spare.activations < 0.7 * plain.activations
    assert spare.operations_per_sample > 1.05 * plain.operations_per_sample
    side, width = small.canvas // 16, small.wan_heads * small.wan_head_dim
    assert plain.bytes_per_frame == side * side * width * 2 and plain.operations_per_frame > 0
