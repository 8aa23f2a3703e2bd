"""Trainings go on with what they began with: other data and other options that decide are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import test_train_spatial
import torch
from recorded import make_dataset

from policies.checkpoints import find_checkpoint
from policies.training import distil, train_nano, train_spatial, train_world_simulator
from policies.training.optimisation import LEFT_OUT, going_on
from policies.training.spatial.films import film_files
from policies.types import VegaError

SHIPPED = find_checkpoint("vega-nano") / "world_simulator"
STATE = "training_state.pt"
Main = Callable[[Sequence[str]], int]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("demos"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sentences and pictures, another course of the steps."""
    return make_dataset(tmp_path_factory.mktemp("others"), steps=20)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for seed, name in enumerate(("train_0000_000", "train_0000_001", "layouts_0000_000")):
        test_train_spatial.write_film(folder, name, seed)
    return folder


def refused(
    main: Main, words: Sequence[str], output: Path, state: str, changes: dict[str, Sequence[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each of `changes` (what is said -> further words) ends it with a sentence, and changes nothing that is kept."""
    kept = (output / state).read_bytes()
    for said, more in changes.items():
        capsys.readouterr()
        assert main([*words, *more]) == 2, said
        told = capsys.readouterr().err.strip()
        assert said in told and "give" in told and "\n" not in told
        assert (output / state).read_bytes() == kept


def as_before(path: Path) -> None:
    """Make a state as versions wrote it that did not keep what decided it."""
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "decides"}, path)


def nano(demos: Path, output: Path, steps: int) -> list[str]:
    return [
        "--data", str(demos), "--output", str(output), "--steps", str(steps), "--batch", "2", "--threads", "1",
        "--save-every", "1", "--hold-out", "2",
    ]  # fmt: skip


def test_a_small_policy_goes_on_with_what_it_began_with(
    demos: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_nano.main(nano(demos, tmp_path, 1)) == 0
    changes = {
        "another --hold-out (2, now 3)": ["--hold-out", "3"],
        "another --seed (7, now 99)": ["--seed", "99"],
        "another --lr (0.001, now 0.1)": ["--lr", "0.1"],
        "another --batch (2, now 4)": ["--batch", "4"],
        "another --drop-semantic (0.0, now 0.5)": ["--drop-semantic", "0.5"],
        "another --mask-patches (0.0, now 0.5)": ["--mask-patches", "0.5"],
        "another --data": ["--data", str(others)],
    }
    refused(train_nano.main, nano(demos, tmp_path, 2), tmp_path, STATE, changes, capsys)
    moved = shutil.copytree(demos, tmp_path / "moved")
    more = ["--steps", "3", "--until", "2", "--save-every", "2", "--threads", "2", "--name", "other"]
    assert train_nano.main([*nano(moved, tmp_path, 2), *more]) == 0
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == 2


def test_a_small_policy_goes_on_in_as_many_processes_as_it_began_with(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each draws a batch of its own, so that a step of two learns from other rows, and from twice as many."""
    words = nano(demos, tmp_path, 2)
    assert train_nano.main([*words, "--until", "1"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_nano.Accelerator, "num_processes", property(lambda _: 2))  # as `accelerate launch` says
        said = {"another number of processes (1, now 2)": []}
        refused(train_nano.main, words, tmp_path, STATE, said, capsys)
    state = torch.load(tmp_path / STATE, weights_only=True)
    del state["decides"]["number of processes"]
    torch.save(state, tmp_path / STATE)  # as before that was kept
    assert train_nano.main(words) == 0


def test_a_small_policy_goes_on_from_the_weights_that_it_began_with(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else `--init` or `--warm-start` of a command that goes on would change nothing, and nobody would be told."""
    one, other = (tmp_path / name for name in ("one", "other"))
    for output, seed in ((one, "1"), (other, "2")):
        assert train_nano.main([*nano(demos, output, 1), "--seed", seed]) == 0
    (one / STATE).unlink()  # no part of the weights
    for option in ("--init", "--warm-start"):
        output, moved = tmp_path / option, shutil.copytree(one, tmp_path / f"moved{option}")
        assert train_nano.main([*nano(demos, output, 1), option, str(one)]) == 0
        changes = {f"another {option} (": [option, str(other)], ", now None)": []}
        refused(train_nano.main, nano(demos, output, 2), output, STATE, changes, capsys)
        assert train_nano.main([*nano(demos, output, 2), option, str(moved)]) == 0
        changes = {f"another {option} (None, now ": [option, str(one)]}
        refused(train_nano.main, [*nano(demos, other, 2), "--seed", "2"], other, STATE, changes, capsys)


def test_a_fusion_that_cannot_be_of_several_grids_is_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    for name, offered in (("cross_attention", False), ("token_gate_residual", True)):
        words = ["--data", "nowhere", "--fusion", name]
        if offered:
            assert train_nano.arguments(words).fusion == name
            continue
        with pytest.raises(SystemExit):
            train_nano.arguments(words)
        assert "invalid choice: 'cross_attention'" in capsys.readouterr().err


def test_a_small_policy_goes_on_with_the_tokens_that_it_began_with(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What several trainings share has shifts and colours of its own."""
    output, cache = tmp_path / "out", ["--cache", str(tmp_path / "cache")]
    words = [*nano(demos, output, 2), "--world-simulator", str(SHIPPED)]
    assert train_nano.main([*words, "--until", "1"]) == 0
    refused(train_nano.main, words, output, STATE, {"another --cache (seed of its tokens) (7, now 0)": cache}, capsys)
    state = torch.load(output / STATE, weights_only=True)
    state["decides"] = {name: value for name, value in state["decides"].items() if "--cache" not in name}
    torch.save(state, output / STATE)  # as before that was kept
    assert train_nano.main([*words, *cache]) == 0


def test_a_state_that_does_not_say_what_decided_it_goes_on_to_the_same_weights(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the loss that all of them learned with, which has to be asked for now."""
    weights, loss = [], ["--progress-loss", "l1"]
    for name, older in (("new", False), ("old", True)):
        output = tmp_path / name
        assert train_nano.main([*nano(demos, output, 3), *loss, "--until", "1"]) == 0
        if older:
            as_before(output / STATE)
            assert train_nano.main(nano(demos, output, 3)) != 0
            assert "began with another --progress-loss (l1, now bce)" in capsys.readouterr().err
        assert train_nano.main([*nano(demos, output, 3), *loss]) == 0
        weights.append((output / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert torch.load(tmp_path / "old" / STATE, weights_only=True)["decides"]["--hold-out"] == 2


def test_a_state_from_before_failed_episodes_were_left_out_has_learned_from_all(tmp_path: Path) -> None:
    for state, now in (({}, 0), ({LEFT_OUT: 2}, 2)):
        torch.save({"step": 1, "decides": state}, tmp_path / STATE)
        with going_on(tmp_path / STATE, decides={LEFT_OUT: now}) as found:
            assert found["step"] == 1
    torch.save({"step": 1, "decides": {}}, tmp_path / STATE)
    with (
        pytest.raises(VegaError, match=r"began with another --data \(episodes that failed\) \(0, now 1\)"),
        going_on(tmp_path / STATE, decides={LEFT_OUT: 1}),
    ):
        pass


def test_where_the_base_stands_is_part_of_what_is_learned(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was begun before --base existed has learned such datasets in the world's coordinates: base 0 0 0."""
    bare, output = make_dataset(tmp_path, placed=False), tmp_path / "out"
    assert train_nano.main(nano(bare, output, 1)) == 2
    told = capsys.readouterr().err.strip()
    assert "does not say where the arm's base stands" in told and "--base X Y Z" in told and "\n" not in told
    for wrong in ("nan", "inf", "far"):
        assert train_nano.main([*nano(bare, output, 1), "--base", "0", wrong, "0"]) == 2
        assert f"--base {wrong} is no finite number" in capsys.readouterr().err
    base = ["--base", "-0.5", "0.1", "0.9"]
    assert train_nano.main([*nano(bare, output, 1), *base]) == 0
    changes = {"another --base ([-0.5, 0.1, 0.9], now [0.0, 0.0, 0.0])": ["--base", "0", "0", "0"]}
    refused(train_nano.main, nano(bare, output, 2), output, STATE, changes, capsys)
    assert train_nano.main([*nano(bare, output, 2), *base]) == 0
    assert train_nano.main(nano(demos, tmp_path / "told", 1)) == 0
    assert train_nano.main([*nano(demos, tmp_path / "told", 2), *base]) == 0  # nothing there needs it
    torch.save({"step": 1, "decides": {}}, tmp_path / STATE)
    with going_on(tmp_path / STATE, decides={"--base": [0.0, 0.0, 0.0]}) as found:
        assert found["step"] == 1
    with pytest.raises(VegaError, match="another --base"), going_on(tmp_path / STATE, decides={"--base": [1.0, 0, 0]}):
        pass


def test_a_distillation_looks_at_pictures_and_needs_no_base(tmp_path: Path) -> None:
    bare = make_dataset(tmp_path, placed=False)
    words = ["--policy", "vega-nano", "--data", str(bare), "--output", str(tmp_path / "out"), "--width", "32"]
    assert distil.main([*words, "--steps", "1"]) == 0


def test_a_distillation_goes_on_with_what_it_began_with(
    demos: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--policy", "vega-nano", "--data", str(demos), "--output", str(tmp_path), "--hold-out", "3", "--width"]
    words += ["32", "--save-every", "1", "--steps"]
    assert distil.main([*words, "1"]) == 0
    changes = {
        "another --hold-out (3, now 2)": ["--hold-out", "2"],
        "another --seed (0, now 99)": ["--seed", "99"],
        "another --lr (0.002, now 0.1)": ["--lr", "0.1"],
        "another --data": ["--data", str(others)],
    }
    refused(distil.main, [*words, "2"], tmp_path, STATE, changes, capsys)
    as_before(tmp_path / STATE)
    assert distil.main([*words, "2"]) == 0


def test_a_spatial_model_goes_on_with_what_it_began_with(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, other = tmp_path / "out", shutil.copytree(films, tmp_path / "other")
    words = ["--data", str(films), "--output", str(output), "--batch", "2", "--save-every", "1", "--steps"]
    assert train_spatial.main([*words, "1"]) == 0
    simulator = shutil.copytree(SHIPPED, tmp_path / "simulator")
    config = simulator / "world_simulator.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    changes = {
        "began with --held-out 'layouts': give the same again": ["--held-out", ""],
        "another --seed (7, now 99)": ["--seed", "99"],
        "another --lr (0.0015, now 0.1)": ["--lr", "0.1"],
        "another --batch (2, now 4)": ["--batch", "4"],
        "another --without-prior (False, now True)": ["--without-prior"],
        "another --world-simulator": ["--world-simulator", str(simulator)],
        "another --init (None, now ": ["--init", "vega-nano-spatial"],
        "another --warm-start": ["--warm-start", "vega-nano-plain"],
        ", now None)": ["--from-scratch"],
        "learns from films of": ["--data", str(films), str(other)],
    }
    refused(train_spatial.main, [*words, "2"], output, STATE, changes, capsys)
    (film,) = film_files([films], "layouts")
    honest = film.read_text()
    film.write_text(honest.replace("red mug", "red pot"))  # as collected anew with another seed
    refused(train_spatial.main, [*words, "2"], output, STATE, {"another --data": []}, capsys)
    film.write_text(honest)
    as_before(output / STATE)
    assert train_spatial.main([*words, "2"]) == 0


def test_a_world_simulator_goes_on_with_what_it_began_with(
    demos: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(demos), "--output", str(tmp_path), "--threads", "1", "--save-every", "1", "--batch", "1"]
    unet = [*words, "--unet-beside", str(SHIPPED), "--transformer-steps"]
    assert train_world_simulator.main([*unet, "1"]) == 0
    other = shutil.copytree(SHIPPED, tmp_path / "other")
    config = other / "world_simulator.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    of_another_vae = shutil.copytree(SHIPPED, tmp_path / "of_another_vae")
    config = of_another_vae / "vae" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"latents_mean": [value + 0.5 for value in told["latents_mean"]]}))
    changes = {
        "another --seed (7, now 99)": ["--seed", "99"],
        "another --lr (0.001, now 0.1)": ["--lr", "0.1"],
        "another --batch (1, now 2)": ["--batch", "2"],
        "another --data": ["--data", str(others)],
        "another --unet-beside": ["--unet-beside", str(other)],
        "another --unet-beside (": ["--unet-beside", str(of_another_vae)],
    }
    refused(train_world_simulator.main, [*unet, "2"], tmp_path, "unet.pt", changes, capsys)
    as_before(tmp_path / "unet.pt")
    assert train_world_simulator.main([*unet, "2"]) == 0
