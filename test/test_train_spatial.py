"""`policies.training.train_spatial`: it goes on after a kill as if nothing had happened; its model can be asked."""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.checkpoints import HERE, load_scene_model
from policies.spatial.models import GroundingModel, load_spatial_model
from policies.spatial.nano.config import SpatialConfig
from policies.training import train_spatial
from policies.training.spatial.films import WorldTokens, film_files, read_films, video_digests
from policies.training.spatial.training import STATE_FILE, Training, chosen_films
from policies.types import SceneModel, SceneView, VegaError
from policies.world_simulator.simulator import LatentWorldSimulator
from sim.results.video import write_video
from sim.space.film import camera_pose, intrinsics
from sim.space.truth.shapes import Box

FRAMES = 3


def write_film(folder: Path, name: str, seed: int) -> None:
    """Noise, with two blocks that are said to stand there."""
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(FRAMES)]
    things = []
    for i, said in enumerate(("red mug", "milk carton")):
        box = Box(np.array([0.2 * i - 0.1, 0.1, 0.05]), np.array([0.12, 0.08, 0.1]), 0.4)
        low, high = box.corners.min(axis=0), box.corners.max(axis=0)
        things.append({
            "name": f"thing{i}", "category": said, "box": [*((low + high) / 2), *(high - low)], "size": list(box.size),
            "centre": list(box.centre), "corners": box.corners.tolist(), "seen": [0.01] * FRAMES,
        })  # fmt: skip
    path = [np.array([0.0, 0.0, 0.0, 1.0, 170.0 + 10 * i, -40.0]) for i in range(FRAMES)]
    content = {
        "dataset": "made", "scene": name, "table_area_m2": 1.1, "intrinsics": intrinsics(96, 128).tolist(),
        "camera_to_world": [camera_pose(row).tolist() for row in path], "things": things,
    }  # fmt: skip
    (folder / "made").mkdir(parents=True, exist_ok=True)
    (folder / "made" / f"{name}.json").write_text(json.dumps(content))
    write_video(folder / "made" / f"{name}.mp4", pictures, 4.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_film(folder, "train_0000_000", 0)
    write_film(folder, "train_0000_001", 1)
    write_film(folder, "layouts_0000_000", 2)
    return folder


def run(data: Path, output: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
    words = ["--data", str(data), "--output", str(output), "--steps", str(steps), "--batch", "2", "--save-every", "2"]
    assert train_spatial.main([*words, *more]) == 0
    return load_file(output / "model.safetensors")


def test_a_training_that_was_killed_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(data, tmp_path / "whole", 4)
    optimise = Training.optimise

    def killed(training: Training) -> dict[str, float]:
        if training.step == 3:
            raise KeyboardInterrupt
        return optimise(training)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "optimise", killed)
        run(data, tmp_path / "parts", 4)
    write_film(data, "train_0000_002", 3)  # what comes later changes nothing
    try:
        parts = run(data, tmp_path / "parts", 4)
    finally:
        for path in (data / "made").glob("train_0000_002.*"):
            path.unlink()
    assert "from step 2 of 4" in capsys.readouterr().out
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4] and {"heat", "camera", "depth"} <= set(log[-1]["held_out"])
    assert (tmp_path / "parts" / "curves.png").is_file()

    model = load_scene_model(str(tmp_path / "parts"))
    assert isinstance(model, SceneModel) and isinstance(load_spatial_model(str(tmp_path / "parts")), GroundingModel)
    view = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    seen = [model.see(SceneView("eye", i, view)) for i in range(2)]
    with pytest.raises(VegaError, match=r"is not seen in any frame|nothing that this model was shown"):
        model.answer(seen, "how far is the milk from the banana?")
    assert 0.5 < float(model.answer(seen, "how big is the table?").text.split()[0]) < 2.0
    with pytest.raises(VegaError, match="give uint8 RGB"):
        model.see(SceneView("eye", 3, view[:, :, 0]))
    with pytest.raises(VegaError, match="has 20x300 pixels"):
        model.see(SceneView("eye", 3, np.zeros((300, 20, 3), np.uint8)))


def test_a_training_that_diverges_keeps_the_state_that_was_good(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--output", str(tmp_path), "--steps", "9", "--batch", "2", "--save-every", "1"]
    assert train_spatial.main([*words, "--without-prior", "--lr", "1e25"]) == 2
    assert "is no number any more" in capsys.readouterr().err
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert state["step"] < 9 and all(bool(torch.isfinite(value).all()) for value in state["learner"].values())


@pytest.mark.parametrize("factor", [1e6, float("inf")])
def test_tokens_that_float16_does_not_hold_are_kept_as_they_are_if_they_are_numbers(
    factor: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = LatentWorldSimulator.tokens
    monkeypatch.setattr(LatentWorldSimulator, "tokens", lambda *given: factor * tokens(*given))
    words = ["--data", str(data), "--output", str(tmp_path), "--steps", "1", "--batch", "2"]
    status = train_spatial.main(words)
    kept = [np.load(path) for path in tmp_path.glob("world_tokens*.npy")]
    if factor == 1e6:
        assert status == 0 and len(kept) == 4
        assert all(file.dtype == np.float32 and 65504 < np.abs(file).max() < np.inf for file in kept)
    else:
        assert status == 2 and not kept
        assert "tokens are not all finite: give another one" in capsys.readouterr().err


def test_what_is_kept_of_films_is_of_these_films_and_of_this_simulator(tmp_path: Path) -> None:
    """Other weights where the simulator was, other pictures where a film was, another camera: nothing old is taken."""
    films, shown = tmp_path / "films", [0]
    write_film(films, "train_0000_000", 0)
    files = film_files([films], "train")
    config = SpatialConfig("made", ("milk carton", "red mug"))
    folder = shutil.copytree(HERE / "vega_nano" / "world_simulator", tmp_path / "simulator")

    def kept(config: SpatialConfig) -> tuple[np.ndarray, torch.Tensor]:
        simulator = LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32).looking(
            canvas=config.canvas, grid=config.grid, view=(0.0, 0.0, 1.0, 1.0)
        )
        read = read_films(files, config, tmp_path, video_digests(files))
        tokens = WorldTokens(simulator, read, tmp_path).batch(np.array(shown), np.array([False]))
        frames = torch.from_numpy(np.array(read.pictures[shown]))
        assert torch.allclose(tokens, simulator(frames[:, None]), atol=0.02), "tokens of another simulator or picture"
        return np.array(read.pictures), tokens

    pictures, tokens = kept(config)
    written = sorted(path.name for path in tmp_path.glob("*.npy"))
    again = kept(config)
    assert np.array_equal(again[0], pictures) and torch.equal(again[1], tokens)
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == written, "computed twice"
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.3 * value for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert not torch.allclose(kept(config)[1], tokens, atol=0.02)
    assert not np.array_equal(kept(replace(config, fovy_deg=40.0))[0], pictures)
    content = json.loads(files[0].read_text())
    content["intrinsics"][0][0] *= 1.2
    files[0].write_text(json.dumps(content))
    assert not np.array_equal(kept(config)[0], pictures)
    write_film(films, "train_0000_000", 77)
    assert not np.array_equal(kept(config)[0], pictures)


def test_videos_are_read_once_however_much_they_decide(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, honest = Counter[str](), Path.read_bytes

    def counted(path: Path) -> bytes:
        read[path.name] += path.suffix == ".mp4"
        return honest(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    run(data, tmp_path, 1, "--without-prior")
    films = [path.name for path in data.glob("*/*.mp4")]
    assert len(films) > 2 and {name: read[name] for name in films} == dict.fromkeys(films, 1)


def test_films_made_anew_are_no_films_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films, output = tmp_path / "films", tmp_path / "output"
    write_film(films, "train_0000_000", 0)
    words = ("--held-out", "", "--without-prior")
    run(films, output, 2, *words)
    state = torch.load(output / "training_state.pt", weights_only=True)
    del state["decides"]["--data (its films)"]  # as one that was written before
    torch.save(state, output / "training_state.pt")
    run(films, output, 4, *words)
    assert "from step 2 of 4" in capsys.readouterr().out
    write_film(films, "train_0000_000", 77)
    options = ["--data", str(films), "--output", str(output), "--steps", "6", "--batch", "2", *words]
    assert train_spatial.main(options) == 2
    assert "began with another --data (its films)" in capsys.readouterr().err


def test_what_ended_before_its_first_state_begins_anew_with_the_films_that_are_there(tmp_path: Path) -> None:
    """A name that was mistyped, or Ctrl-C while tokens are computed, does not leave later films out unheard."""
    films, output = tmp_path / "films", tmp_path / "output"
    write_film(films, "train_0000_000", 0)
    words = ["--data", str(films), "--output", str(output), "--steps", "1", "--batch", "2"]
    assert train_spatial.main([*words, "--held-out", "", "--init", "nowhere"]) == 2
    write_film(films, "train_0000_001", 1)
    write_film(films, "layouts_0000_000", 2)
    assert train_spatial.main(words) == 0
    lists = json.loads((output / "films.json").read_text())
    assert (len(lists["train"]), len(lists["held_out"]), lists["split"]) == (2, 1, "layouts")


def test_another_split_is_not_held_out_unheard(tmp_path: Path) -> None:
    write_film(tmp_path / "films", "train_0000_000", 0)
    for split in ("layouts", "nouns"):
        write_film(tmp_path / "films", f"{split}_0000_000", 1)
    for output, first in ((tmp_path / "some", "layouts"), (tmp_path / "none", "")):
        output.mkdir()
        (output / STATE_FILE).touch()
        args = argparse.Namespace(output=output, data=[tmp_path / "films"], held_out=first)
        begun = chosen_films(args)
        lists = json.loads((output / "films.json").read_text())
        for named in (lists, {part: lists[part] for part in ("train", "held_out")}):  # older ones do not name it
            (output / "films.json").write_text(json.dumps(named))
            assert chosen_films(args) == begun
            for other in {"layouts", "nouns", ""} - {first}:
                with pytest.raises(VegaError, match=f"began with --held-out '{first}': give the same again"):
                    chosen_films(argparse.Namespace(**(vars(args) | {"held_out": other})))


def test_both_arms_have_as_many_parameters_and_one_is_blind_to_the_prior(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "with", 2, "--held-out", "")
    run(data, tmp_path / "without", 2, "--held-out", "", "--without-prior")
    picture = np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8)
    counts, changes = [], []
    for arm in ("with", "without"):
        model = load_scene_model(str(tmp_path / arm))
        counts.append(sum(p.numel() for p in model.network.parameters()))
        before = model.see(SceneView("eye", 0, picture)).sightings.pose
        with torch.no_grad():
            model.network.world.simulator.trunk.patch_embedding.weight.mul_(-3.0)
        changes.append(bool((model.see(SceneView("eye", 1, picture)).sightings.pose != before).any()))
    assert counts[0] == counts[1] and changes == [True, False]


def test_a_mirrored_frame_is_a_true_one(data: Path, tmp_path: Path) -> None:
    """Seen in a mirror: every centre at the mirrored pixel, as far away, the camera's heading and side reversed."""
    from policies.training.spatial.learner import labels

    config = SpatialConfig("made", ("milk carton", "red mug"))
    files = film_files([data], "train")
    films = read_films(files, config, tmp_path, video_digests(files))
    index = np.arange(len(films.film))
    plain, mirrored = (labels(films, index, np.full(len(index), m), config.focal) for m in (False, True))
    there = plain["kind"] >= 0
    assert torch.allclose(mirrored["uv"][there][:, 0], 255 - plain["uv"][there][:, 0], atol=1e-4)
    assert torch.allclose(mirrored["depth"], plain["depth"])
    assert torch.allclose(mirrored["pose"][:, [0, 4]], -plain["pose"][:, [0, 4]])
    assert torch.allclose(mirrored["pose"][:, [1, 2, 3, 5]], plain["pose"][:, [1, 2, 3, 5]])
