"""What a full-size policy is trained by and from: whose statistics, which options, and where what comes out is put."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_checkpoints import observation

from benchmarks.training import GOLDEN, logged, losses, make_demonstrations, make_policy
from policies.checkpoints import load_policy
from policies.measuring.benchmark_models import REDUCED
from policies.measuring.counted import on_meta
from policies.openvla import policy as openvla_policy
from policies.openvla.policy import VegaOpenVLA
from policies.training.train_vega import main
from policies.training.vega import demonstrations, plan, publishing, tokens
from policies.training.vega.demonstrations import Samples
from policies.training.vega.learner import VegaLearner
from policies.training.vega.plan import make_plan
from policies.training.vega.readers import read_demonstrations
from policies.training.vega.run import Course, Run
from policies.training.vega.tokens import TokenCache
from policies.types import VegaError

CAMERAS = ("agentview", "wrist")
OWN = "libero_spatial_no_noops"  # of the golden checkpoint


@pytest.fixture(autouse=True, scope="module")
def _an_engine_of_their_own():
    """accelerate keeps what the first trainer of a process chose; another test's may have been one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _any_precision():
    """The same of the precision that one test here asks for."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """data/, policy/ and cached tokens/."""
    folder = tmp_path_factory.mktemp("room")
    make_demonstrations(folder / "data", episodes=3, steps=10)
    make_policy(folder)
    return folder


def words(room: Path, policy: Path | str, output: Path, steps: int, *more: str) -> list[str]:
    return [
        "--policy", str(policy), "--data", str(room / "data"), "--output", str(output), "--tokens",
        str(room / "tokens"), "--steps", str(steps), "--batch", "2", "--micro", "1", "--lr", "1e-3", "--lora-rank",
        "2", "--holdout", "0", "--validation", "2", "--save-every", "1", "--device", "cpu", "--dtype", "float32",
        *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(room, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    assert main(words(room, room / "policy", output, 3, "--dataset", "my_kitchen")) == 0
    return output


def with_data_sets(room: Path, folder: Path, *keys: str, config: str | None = None) -> Path:
    """The policy on a checkpoint with statistics of these data sets, the n-th n times as wide; config: its own key."""
    checkpoint = shutil.copytree(GOLDEN / "openvla_oft_tiny", folder / "checkpoint")
    path = checkpoint / "dataset_statistics.json"
    entry = json.loads(path.read_text())[OWN]
    entries = {}
    for number, key in enumerate(keys, 1):
        entries[key] = json.loads(json.dumps(entry))
        for bound in ("q01", "q99"):
            entries[key]["action"][bound] = [number * value for value in entry["action"][bound]]
    path.write_text(json.dumps(entries))
    return changed(room, folder / "policy", openvla=str(checkpoint), statistics_key=config)


def changed(room: Path, folder: Path, **settings: object) -> Path:
    shutil.copytree(room / "policy", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def statistics_of(folder: Path) -> dict:
    return json.loads((folder / "openvla" / "dataset_statistics.json").read_text())


@pytest.fixture
def started(monkeypatch) -> list[VegaOpenVLA]:
    """The policies of runs that have come to their first step, and end there."""
    seen: list[VegaOpenVLA] = []
    monkeypatch.setattr(Run, "go", lambda run, _: seen.append(run._policy))
    return seen


def test_the_data_set_that_is_asked_for_takes_the_place_of_the_policys(room, tmp_path):
    """And only its statistics are published: others would be taken for those of a LIBERO suite."""
    policy = with_data_sets(room, tmp_path, OWN, "my_kitchen", "my_garage", config="my_garage")
    given = json.loads((tmp_path / "checkpoint" / "dataset_statistics.json").read_text())
    assert main(words(room, policy, tmp_path / "out", 1, "--dataset", "my_kitchen")) == 0
    published = tmp_path / "out" / "policy"
    assert load_policy(str(published)).statistics_key == "my_kitchen"
    assert statistics_of(published) == {"my_kitchen": given["my_kitchen"]}


def test_what_comes_out_acts_by_the_statistics_that_it_learned_by(trained):
    published = trained / "policy"
    assert list(statistics_of(published)) == ["my_kitchen"]
    assert load_policy(str(published), suite="libero_object").statistics_key == "my_kitchen"  # as its user says
    alone = f"{published}/openvla"
    with pytest.raises(VegaError, match=r"\['my_kitchen'\].*'#my_kitchen'"):
        load_policy(alone)
    assert load_policy(f"{alone}#my_kitchen").statistics_key == "my_kitchen"
    with pytest.raises(VegaError, match="leave '#my_garage' out"):
        load_policy(f"{published}#my_garage")


def test_a_checkpoint_of_several_suites_learns_what_it_is_asked_to(room, tmp_path, started, capsys):
    suites = [f"libero_{suite}_no_noops" for suite in ("spatial", "object", "goal", "10")]
    policy = with_data_sets(room, tmp_path, *suites)
    given = json.loads((tmp_path / "checkpoint" / "dataset_statistics.json").read_text())
    goal = suites[2]
    for number, (name, more, key, where) in enumerate((
        (policy, ["--dataset", "mine"], "mine", "of these demonstrations"),
        (policy, ["--dataset", goal], goal, "of the checkpoint"),
        (f"{policy}#{goal}", [], goal, "of the checkpoint"),
        (f"{policy}#libero_goal", [], goal, "of the checkpoint"),
        (f"{policy}#libero_goal", ["--dataset", goal], goal, "of the checkpoint"),
    )):  # fmt: skip
        assert main(words(room, name, tmp_path / str(number), 1, *more)) == 0
        assert f"by the statistics '{key}' {where}" in capsys.readouterr().out
        assert started[-1].statistics_key == key and (started[-1].statistics == given.get(key)) == (key == goal)
    for name, more, sentence in (
        (policy, [], f"give --dataset with one of {sorted(suites)}, or with a new name"),
        (f"{policy}#libero_90", [], "none of suite 'libero_90'"),
        (f"{policy}#{goal}", ["--dataset", "mine"], "leave one of them out"),
        (policy, ["--dataset", "bridge_orig"], "of another robot"),
    ):
        assert main(words(room, name, tmp_path / "refused", 1, *more)) == 2
        assert sentence in capsys.readouterr().err
    assert len(started) == 5 and not (tmp_path / "refused" / "policy").exists()


def test_it_goes_on_only_with_the_data_set_behind_the_policys_name(room, tmp_path, capsys):
    policy = with_data_sets(room, tmp_path, OWN, "libero_goal_no_noops")
    assert main(words(room, f"{policy}#libero_goal", tmp_path / "out", 1)) == 0
    assert main(words(room, f"{policy}#libero_spatial", tmp_path / "out", 2)) == 2
    assert f"another --dataset (libero_goal_no_noops, now {OWN})" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [{"weights": "int8"}, {"compiled": True}, {"dtype": "bfloat16"}])
def test_a_policy_learns_in_plain_weights_however_it_acts(setting, room, tmp_path):
    policy = changed(room, tmp_path / "policy", **setting)
    assert main(words(room, policy, tmp_path / "out", 1)) == 0
    published = json.loads((tmp_path / "out" / "policy" / "config.json").read_text())
    assert {name: published[name] for name in setting} == setting
    learned = losses(logged(tmp_path / "out"))
    assert main(words(room, room / "policy", tmp_path / "plain", 1)) == 0
    assert learned[1] == pytest.approx(losses(logged(tmp_path / "plain"))[1], abs=0.02)  # tokens are of bf16 parts


def test_adapters_of_a_policy_in_bfloat16_learn_in_float32(room, tmp_path):
    """Small steps would be rounded off."""
    policy = changed(room, tmp_path / "policy", dtype="bfloat16")
    assert main(words(room, policy, tmp_path / "out", 1, "--dtype", "bfloat16")) == 0
    state = torch.load(tmp_path / "out" / "training_state.pt", weights_only=True)
    adapters = {name: value.dtype for name, value in state["learning"].items() if "lora_" in name}
    assert adapters and set(adapters.values()) == {torch.float32}


def test_the_terminal_names_the_cameras(room, tmp_path, started, capsys):
    assert main(words(room, room / "policy", tmp_path / "out", 1)) == 0
    assert "pictures of agentview, wrist" in capsys.readouterr().out
    load_policy(str(GOLDEN / "openvla_oft_tiny"))
    assert "pictures of agentview, wrist" in capsys.readouterr().err


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_policy_is_not_replaced_by_what_is_trained_from_it(room, trained, tmp_path, capsys, monkeypatch):
    output = shutil.copytree(trained, tmp_path / "own")
    (output / "training_state.pt").unlink()
    before = files_in(output / "policy")
    monkeypatch.setattr(TokenCache, "compute", lambda *_: pytest.fail("hours of work come before the refusal"))
    for name in ("policy", "policy/openvla"):
        assert main(words(room, output / name, output, 1, "--dataset", "my_kitchen")) == 2
        assert "lies where the trained policy is put" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    shutil.copytree(room / "policy", tmp_path / "other" / "policy")
    assert main(words(room, output / "policy", tmp_path / "other", 1)) == 2
    assert "that no training has put there" in capsys.readouterr().err
    assert files_in(output / "policy") == before
    assert files_in(tmp_path / "other").keys() == {
        tmp_path / "other" / "policy" / name.name for name in (room / "policy").iterdir()
    }


def test_a_publishing_that_fails_leaves_the_policy_that_is_there(trained, tmp_path, monkeypatch):
    output = shutil.copytree(trained, tmp_path / "out")
    policy, before = load_policy(str(output / "policy")), files_in(output / "policy")
    state, fusion = policy.model.state_dict(), policy.world.fusion.state_dict()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(VegaError, match="make room there"):
        patch.setattr(VegaOpenVLA, "write", full)
        publishing.publish(policy, state, fusion, 4, output / "policy")
    assert files_in(output / "policy") == before
    (output / "policy").rename(output / ".policy.before")  # as a kill between two renamings leaves it
    (output / ".policy.partial").mkdir()
    with monkeypatch.context() as patch, pytest.raises(VegaError, match="make room there"):
        patch.setattr(VegaOpenVLA, "write", full)
        publishing.publish(policy, state, fusion, 4, output / "policy")
    assert files_in(output / "policy") == before
    publishing.publish(policy, state, fusion, 4, output / "policy")
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in trained.iterdir())
    assert [path.name for path in (output / "policy").rglob("action_head*")] == ["action_head--4_checkpoint.pt"]
    np.testing.assert_allclose(
        load_policy(str(output / "policy")).act(observation()).actions, policy.act(observation()).actions, atol=1e-6
    )


def test_it_publishes_on_its_way(room, trained, tmp_path, monkeypatch):
    """What comes out then is a policy, and the training learns as one that publishes at its end."""
    found, loaded = [], publishing.publish

    def publish(policy, state, fusion, step, folder):
        loaded(policy, state, fusion, step, folder)
        found.append((step, load_policy(str(folder)).act(observation()).actions.tobytes()))

    monkeypatch.setattr("policies.training.vega.run.publish", publish)
    every = ["--dataset", "my_kitchen", "--publish-every", "1"]
    assert main(words(room, room / "policy", tmp_path / "out", 3, *every)) == 0
    assert [step for step, _ in found] == [1, 2, 3] and len({actions for _, actions in found}) == 3
    assert losses(logged(tmp_path / "out")) == losses(logged(trained))


def test_a_longer_run_says_of_when_the_policy_is(room, trained, tmp_path, capsys):
    output = shutil.copytree(trained, tmp_path / "out")
    assert main(words(room, room / "policy", output, 4, "--dataset", "my_kitchen")) == 0
    assert "is of an earlier step until step 4" in capsys.readouterr().out
    assert [path.name for path in (output / "policy").rglob("action_head*")] == ["action_head--4_checkpoint.pt"]


def test_a_policy_that_is_replaced_while_it_is_read_is_refused(trained, tmp_path, monkeypatch):
    """Else it would be the fusion of one step with the language model of another."""
    folder = shutil.copytree(trained / "policy", tmp_path / "policy")
    load = openvla_policy.load_openvla_oft

    def replaced(*args, **kwargs):
        shutil.copytree(folder, tmp_path / "next")
        folder.rename(tmp_path / "old")
        (tmp_path / "next").rename(folder)
        shutil.rmtree(tmp_path / "old")
        return load(*args, **kwargs)

    monkeypatch.setattr(openvla_policy, "load_openvla_oft", replaced)
    with pytest.raises(VegaError, match="was written anew while it was read: load it again"):
        load_policy(str(folder))


def test_a_training_that_diverges_ends_with_the_state_that_was_good(room, trained, tmp_path, capsys):
    assert main(words(room, room / "policy", tmp_path / "out", 6, "--lr", "1e18")) == 2
    told = capsys.readouterr().err
    at = int(re.search(r"step (\d+) is no number any more", told)[1])  # type: ignore[index]
    state = torch.load(tmp_path / "out" / "training_state.pt", weights_only=True)
    assert 1 < at <= 6 and state["step"] == at - 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["learning"].values())
    assert not (tmp_path / "out" / "policy").exists()


def test_tokens_that_are_no_numbers_end_a_training_before_its_first_step(room, tmp_path, capsys):
    """As caches from before they were looked at may hold them."""
    shutil.copytree(room, tmp_path / "room", ignore=shutil.ignore_patterns("tokens"))
    assert main(words(tmp_path / "room", room / "policy", tmp_path / "first", 1)) == 0
    for path in (tmp_path / "room" / "tokens").rglob("*.npy"):
        np.save(path, np.full_like(np.load(path), np.inf))
    capsys.readouterr()
    assert main(words(tmp_path / "room", room / "policy", tmp_path / "out", 1)) == 2
    assert "is no number" in capsys.readouterr().err
    assert not (tmp_path / "out" / "training_state.pt").exists()


def test_tokens_that_float16_does_not_hold_are_kept_as_they_are(room, tmp_path, monkeypatch):
    world = load_policy(str(room / "policy")).world
    samples = Samples(read_demonstrations(room / "data", CAMERAS), 8)
    native = tokens.native_tokens
    seen = {}
    for name, factor in (("plain", 1.0), ("large", 1e6), ("damaged", float("nan"))):
        monkeypatch.setattr(tokens, "native_tokens", lambda *given, by=factor: by * native(*given))
        cache = TokenCache(world, samples, tmp_path / name)
        if name == "damaged":
            with pytest.raises(VegaError, match="tokens of camera 'agentview' are not all finite"):
                cache.compute()
            assert not list(tmp_path.glob("damaged/**/*.npy"))
        else:
            cache.compute()
            seen[name] = cache.tokens("wrist", 5, (48, 48), (0.0, 0.0, 1.0, 1.0))
    assert 1e6 * seen["plain"].abs().max() > 65504
    torch.testing.assert_close(seen["large"], 1e6 * seen["plain"], rtol=1e-2, atol=1e4)


def test_the_warm_up_is_openvla_ofts():
    """From a tenth, which its finetune.py begins with."""
    course = Course(100, 1, 1, 1.0, 50, 10, 1, 1)
    assert [course.rate_at(step) for step in (0, 4, 9, 10)] == pytest.approx([0.19, 0.55, 1.0, 1.0])
    assert course.rate_at(50) == pytest.approx(0.1) and Course(100, 1, 1, 1.0, 50, 0, 1, 1).rate_at(0) == 1.0


def test_a_run_goes_on_with_the_episodes_that_it_has_held_out(room, tmp_path, monkeypatch):
    """A share of 0.4 was once every second; a state from then does not say so."""
    asked = ("--holdout", "0.4", "--decay-step", "2")
    split, rule, kept = demonstrations.held_out, "--holdout (which episodes)", []
    watched = lambda *given: kept.append(split(*given)[1]) or split(*given)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(demonstrations, "held_out", lambda given, share, *_: watched(given, share, demonstrations.EVERY))
        assert main(words(room, room / "policy", tmp_path, 1, *asked)) == 0
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    del state["decides"][rule]
    torch.save(state, tmp_path / "training_state.pt")
    monkeypatch.setattr(demonstrations, "held_out", watched)
    for steps in (2, 3):  # what it writes now is gone on with alike
        assert main(words(room, room / "policy", tmp_path, steps, *asked)) == 0
        state = torch.load(tmp_path / "training_state.pt", weights_only=True)
        assert state["step"] == steps and state["decides"][rule] == demonstrations.EVERY
    assert main(words(room, room / "policy", tmp_path / "new", 1, *asked)) == 0
    numbers = [[float(demo.actions[0, 0]) for demo in aside] for aside in kept]
    assert numbers[0] == numbers[1] == numbers[2] != numbers[3] and [*map(len, numbers)] == [1] * 4


SMALL = replace(REDUCED, dinov2=(64, 3, 128), siglip=(80, 3, 128), llama=(64, 2, 128, 4), tap=1)


def test_a_plan_counts_the_weights_of_all_that_is_on_the_device():
    """The world simulator's too, which never learns; what learns takes four bytes a number, all else two."""
    query, counted = on_meta(SMALL), make_plan(0, 2, False, SMALL)
    world = query.world.simulator
    parts = (*query.policy.parameters(), *query.world.fusion.parameters(), *world.parameters(), *world.buffers())
    assert counted.weights == sum(part.nbytes for part in parts) + 2 * counted.learning and not counted.gathered


def test_a_plan_counts_what_is_left_for_backward_once_and_no_weights(monkeypatch):
    """Views of a weight are the weight, and views of one result are one result."""
    one, two = (make_plan(4, micro, False, SMALL) for micro in (1, 2))
    assert 0 <= 2 * one.activations - two.activations < 0.01 * one.weights, "what does not grow with the samples"
    weight = []

    def forward(learner, batch):
        weight.append(next(parameter for _, parameter in learner.learning() if parameter.ndim == 2))
        result = (torch.empty(3, weight[0].shape[1]).to(weight[0]) @ weight[0].t()).exp()
        return (result.flatten() * result[:, :].flatten()).sum()

    monkeypatch.setattr(VegaLearner, "forward", forward)
    assert make_plan(0, 2, False, SMALL).activations == 2 * 3 * sum(weight[0].shape)  # what goes in and what comes out


def test_a_plan_takes_float32_and_spread_weights_for_what_they_are(monkeypatch, capsys):
    plain, single, spread = (
        make_plan(4, 2, False, SMALL, **how) for how in ({}, {"dtype": torch.float32}, {"among": 3})
    )
    query = on_meta(SMALL, torch.float32)
    world, own = query.world.simulator, (*query.policy.parameters(), *query.world.fusion.parameters())
    beside = [*world.parameters(), *world.buffers()]
    assert make_plan(0, 2, False, SMALL, torch.float32).weights == sum(part.nbytes for part in (*own, *beside))
    assert single.gradients_and_optimizer == 12 * single.learning and single.activations > 1.1 * plain.activations
    world = on_meta(SMALL).world.simulator
    half = sum(part.nbytes for part in (*world.parameters(), *world.buffers()))
    assert (plain.weights - half) / 3 <= spread.weights - half < 0.4 * (plain.weights - half), "the simulator is whole"
    assert plain.gradients_and_optimizer / 3 <= spread.gradients_and_optimizer < 0.4 * plain.gradients_and_optimizer
    assert spread.gathered < plain.weights - half and spread.activations == plain.activations
    numbers = (spread.weights, spread.gathered, spread.gradients_and_optimizer, spread.activations)
    assert spread.gigabytes == pytest.approx(sum(numbers) / 1e9)

    asked = ["--plan", "--shard", "--micro", "2", "--lora-rank", "4"]
    assert main([*asked, "--gpus", "1"]) == 2 and "leave --shard out, or give more --gpus" in capsys.readouterr().err
    given = []
    monkeypatch.setattr(plan, "make_plan", lambda *a, **k: given.append((a, k)) or spread)
    assert main([*asked, "--gpus", "3", "--dtype", "float32"]) == 0
    assert given == [((4, 2, False), {"dtype": torch.float32, "among": 3})]
    said = capsys.readouterr().out
    assert "the policy's spread over 3" in said and "has whole at a time" in said and "in float32" in said
