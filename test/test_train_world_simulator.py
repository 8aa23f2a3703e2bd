"""Training of the small world simulator: it runs, goes on where it stopped, and what it writes can be loaded."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from recorded import make_dataset

from policies.checkpoints import find_checkpoint
from policies.correspondence import encoders
from policies.training import train_world_simulator as training
from policies.training.wan import quality
from policies.training.wan.clips import Clips
from policies.training.wan.networks import LATENT_CHANNELS, Generator, small_transformer, small_vae
from policies.training.wan.quality import decibels
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator
from policies.world_simulator.unet import load_unet


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of 6 rows."""
    return make_dataset(tmp_path_factory.mktemp("demos"), episodes=2)


def arguments(demos: Path, output: Path, vae: int, transformer: int) -> list[str]:
    sizes = ["--batch", "1", "--threads", "1", "--save-every", "1", "--tap", "1"]
    steps = ["--vae-steps", str(vae), "--transformer-steps", str(transformer)]
    return ["--data", str(demos), "--output", str(output), *sizes, *steps]


def test_clips_stay_within_an_episode(demos: Path) -> None:
    clips = Clips([demos])
    for camera, shape in (("agentview", (128, 128)), ("wrist", (80, 80))):
        assert [len(video) for video in clips.videos[camera]] == [6, 6]
        batch = clips.batch(3, 5, np.random.default_rng(0), camera)
        assert batch.shape == (3, 3, 5, *shape)
        assert batch.min() >= -1 and batch.max() <= 1


def test_it_trains_resumes_and_writes_a_world_simulator(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLIPS", "BATCH"):  # of a camera; drawing them is most of the time
        monkeypatch.setattr(quality, name, 2)
    training.main(arguments(demos, tmp_path / "a", 1, 1))
    before = torch.load(tmp_path / "a" / "vae.pt", weights_only=True)
    assert before["step"] == 1
    others = make_dataset(tmp_path / "others", episodes=2)
    training.main([*arguments(demos, tmp_path / "a", 1, 2), "--held-out", str(others)])
    assert "held out, wrist: reconstruction" in capsys.readouterr().out
    told = json.loads((tmp_path / "a" / "held_out.json").read_text())["psnr_db"]["agentview"]
    assert told.keys() == {"reconstruction", "prediction", "repetition"} and all(0 < db < 100 for db in told.values())
    assert torch.load(tmp_path / "a" / "transformer.pt", weights_only=True)["step"] == 2
    for name in ("reconstructions.png", "samples.png", "held_out.png"):
        assert (tmp_path / "a" / name).stat().st_size > 1000
    simulator = LatentWorldSimulator.from_pretrained(tmp_path / "a" / "world_simulator")
    frames = torch.randint(0, 255, (1, 1, 160, 160, 3), dtype=torch.uint8)
    tokens = simulator(frames)
    assert tokens.shape == (1, 256, 128)
    assert torch.isfinite(tokens).all()
    assert torch.equal(tokens, simulator(frames))


def test_a_transformer_stays_with_the_vae_whose_latents_it_learned(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another one's latents mean something else, and nothing that is written would tell."""
    output, words = tmp_path / "o", arguments(demos, tmp_path / "o", 1, 1)
    assert training.main(words) == 0
    vae = (output / "vae.pt").read_bytes()

    def refused(*more: str) -> None:
        kept = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        assert training.main([*words, *more]) == 2
        told = capsys.readouterr().err.strip()
        assert "began with another --vae-steps (the VAE itself)" in told and "\n" not in told
        assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == kept

    refused("--vae-steps", "2")
    (output / "vae.pt").unlink()
    refused()
    state = torch.load(io.BytesIO(vae), weights_only=True)
    next(iter(state["module"].values())).add_(1e-3)  # as one that was trained elsewhere
    torch.save(state, output / "vae.pt")
    refused()
    (output / "vae.pt").write_bytes(vae)
    kept = torch.load(output / "transformer.pt", weights_only=True)
    config = output / "world_simulator" / "vae" / "config.json"
    learned = json.loads(config.read_text())
    kept["latents"]["latents_mean"] = [value + 0.25 for value in learned["latents_mean"]]  # as another machine finds it
    torch.save(kept, output / "transformer.pt")
    assert training.main([*words, "--transformer-steps", "2"]) == 0
    after = json.loads(config.read_text())
    assert after["latents_mean"] == kept["latents"]["latents_mean"] and after["latents_std"] == learned["latents_std"]


def test_a_transformer_from_before_it_knew_its_vae_goes_on(demos: Path, tmp_path: Path) -> None:
    assert training.main(arguments(demos, tmp_path, 1, 1)) == 0
    state = torch.load(tmp_path / "transformer.pt", weights_only=True)
    decides = {name: value for name, value in state["decides"].items() if "VAE" not in name}
    older = {name: value for name, value in state.items() if name != "latents"} | {"decides": decides}
    torch.save(older, tmp_path / "transformer.pt")
    assert training.main(arguments(demos, tmp_path, 2, 2)) == 0
    assert torch.load(tmp_path / "transformer.pt", weights_only=True)["step"] == 2


def test_a_training_that_diverges_keeps_the_state_that_was_good(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.main([*arguments(demos, tmp_path, 9, 1), "--lr", "1e25"]) == 2
    assert "is no number any more" in capsys.readouterr().err
    state = torch.load(tmp_path / "vae.pt", weights_only=True)
    assert state["step"] < 9 and all(bool(torch.isfinite(value).all()) for value in state["module"].values())
    assert not (tmp_path / "world_simulator").exists()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--held-out", "nowhere"], "no LeRobot dataset in nowhere"),
        (["--tap", "6"], "no block of the transformer"),
        (["--batch", "0"], "count from above 0"),
        (["--save-every", "0"], "count from above 0"),
    ],
)
def test_what_the_end_needs_is_looked_at_before_hours_of_training(
    more: list[str], part: str, demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.main([*arguments(demos, tmp_path, 1, 1), *more]) == 2
    assert part in capsys.readouterr().err and not (tmp_path / "vae.pt").exists()


def test_the_velocity_of_the_straight_line_has_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is zero for a network that knows noise - data, so it is that which is learned."""
    generator = Generator(small_transformer())
    data = torch.full((2, LATENT_CHANNELS, 1, 4, 4), 0.5)

    def known(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (latents - data) / sigma.view(-1, 1, 1, 1, 1)

    monkeypatch.setattr(generator, "velocity", known)
    assert float(generator.loss(data)) < 1e-6
    sampled = generator.sample(tuple(data.shape), torch.Generator().manual_seed(0))
    assert torch.allclose(sampled, data, atol=1e-4)
    data, begun = data.expand(-1, -1, 2, -1, -1), torch.full((2, LATENT_CHANNELS, 1, 4, 4), -0.25)
    sampled = generator.sample(tuple(data.shape), torch.Generator().manual_seed(0), begun)
    assert torch.equal(sampled[:, :, :1], begun)
    assert torch.allclose(sampled[:, :, 1:], data[:, :, 1:], atol=1e-4)


def test_decibels_are_those_of_the_definition() -> None:
    """Half of the range away: 6.02 dB; equal: as many as are counted at most; beyond the range is as its end."""
    wanted = torch.zeros(3, 3, 4, 4)
    found = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4), torch.full((3, 4, 4), 5.0)])
    assert decibels(found, wanted).tolist() == pytest.approx([6.0206, 100.0, 6.0206], abs=1e-3)


def test_without_demonstrations_it_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(VegaError, match="collect_skills"):
        Clips([tmp_path])


def test_a_unet_learns_on_the_latents_of_a_world_simulator_and_is_scored_beside_it(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = find_checkpoint("vega-nano") / "world_simulator"
    words = ["--data", str(demos), "--output", str(tmp_path), "--batch", "1", "--threads", "1", "--save-every", "1"]
    training.main([*words, "--transformer-steps", "2", "--unet-beside", str(given)])
    assert torch.load(tmp_path / "unet.pt", weights_only=True)["step"] == 2
    assert checkpoint_files(tmp_path / "world_simulator") == checkpoint_files(given)  # the Wan is as it was
    look = encoders.Look(64, (4, 4))
    pictures = torch.randint(0, 255, (2, 80, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found: dict[encoders.Reading, torch.Tensor] = {}
    with torch.inference_mode():
        for read in encoders.encoders([], look, "vega-nano", [tmp_path / "world_simulator"], [0, 1000]):
            found |= {reading: tokens for reading, tokens in read(pictures) if "UNet" in reading.encoder}
    assert {(reading.k, reading.block) for reading in found} == {(k, block) for k in (0, 1000) for block in range(5)}
    assert all(tokens.shape[:2] == (2, 16) and torch.isfinite(tokens).all() for tokens in found.values())
    quiet, loud = (next(t for r, t in found.items() if (r.k, r.block) == (k, 4)) for k in (0, 1000))
    assert not torch.allclose(quiet[0], quiet[1]) and not torch.allclose(quiet, loud)
    (tmp_path / "world_simulator" / "unet" / "prompt.safetensors").write_bytes(b"")
    with pytest.raises(VegaError, match="train it again"):
        load_unet(tmp_path / "world_simulator")


def checkpoint_files(folder: Path) -> dict[str, bytes]:
    """What lies in a world simulator's folder, a UNet aside."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "unet" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_lone_frame_is_encoded_as_diffusers_does_it() -> None:
    """Without the products with the zeros before it, and with the same gradients."""
    quick = small_vae()
    plain = AutoencoderKLWan.from_config(quick.config)
    plain.load_state_dict(quick.state_dict())
    frame = torch.rand(2, 3, 1, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = [vae.decode(vae.encode(frame).latent_dist.mode()).sample for vae in (quick, plain)]
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-4)
    for one in seen:
        one.square().mean().backward()
    for (name, own), other in zip(quick.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, atol=1e-4, rtol=1e-3, msg=name)
