"""Training of the small policy, with and without a world simulator: it runs, goes on, and what it writes acts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.checkpoints import checkpoint_sha256, load_policy
from policies.nano.policy import VegaPolicy, load_vega_policy
from policies.training import train_nano
from policies.training import train_world_simulator as world_simulator
from policies.training.dataset import CAMERAS, CANVAS, IMAGE_SIZE, Demonstrations
from policies.types import Observation, RobotState, VegaError
from policies.world_simulator.simulator import LatentWorldSimulator, WorldSimulatorConfig, save_world_simulator

FRAMES = 6
GRIDS = {"agentview": (18, 27), "wrist": (12, 12)}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    rng = np.random.default_rng(0)
    steps = FRAMES * 4
    np.savez(
        folder / "demo_0.npz",
        agentview=rng.integers(0, 255, (FRAMES, 168, 232, 3), dtype=np.uint8),
        wrist=rng.integers(0, 255, (FRAMES, 96, 96, 3), dtype=np.uint8),
        pixels=rng.uniform(90, 120, (FRAMES, 2, 2)).astype(np.float32),
        frame_step=np.arange(FRAMES) * 4,
        first_step=np.array([0]),
        actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        eef_position=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        eef_quaternion=np.tile(np.float32([1, 0, 0, 0]), (steps, 1)),
        gripper=rng.uniform(0, 0.04, (steps, 2)).astype(np.float32),
        target_position=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        episode_end=np.full(steps, steps),
        target=np.array(["milk"]),
    )
    return folder


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained world simulator of the size that ships."""
    folder = tmp_path_factory.mktemp("simulator") / "wan"
    torch.manual_seed(0)
    generator = world_simulator.Generator()
    config = WorldSimulatorConfig(tap=3, canvas=CANVAS["agentview"], grid=(12, 18))
    save_world_simulator(folder, world_simulator.small_vae(), generator.transformer, generator.prompt.detach(), config)
    return folder


def train(demos: Path, output: Path, steps: int, *more: str) -> Path:
    sizes = ["--steps", str(steps), "--batch", "4", "--threads", "1", "--save-every", "1"]
    train_nano.main(["--demos", str(demos), "--output", str(output), *sizes, *more])
    return output


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 255, (1, *IMAGE_SIZE, 3), dtype=np.uint8) for camera in GRIDS}
    pose = np.array([0.45, 0.0, 0.26]), np.array([1.0, 0.0, 0.0, 0.0])
    state = RobotState(0, (), np.zeros(7), np.zeros(7), np.array([0.04, 0.04]), *pose)
    return Observation(images, state, "pick up the milk and place it in the basket", 0)


@pytest.fixture(scope="module")
def plain(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(demos, tmp_path_factory.mktemp("plain"), 1)


@pytest.fixture(scope="module")
def fused(demos: Path, simulator: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fused")
    return train(demos, output, 1, "--world-simulator", str(simulator), "--init", str(plain))


def test_what_training_writes_shows_its_gates(fused: Path) -> None:
    policy = load_policy(str(fused))
    chunk = policy.act(observation())
    assert {camera: gate.shape for camera, gate in chunk.gates.items()} == dict.fromkeys(GRIDS, IMAGE_SIZE)
    top, left, bottom, right = CAMERAS["agentview"].crop or (0, 0, 0, 0)
    seen = chunk.gates["agentview"][top:bottom, left:right]
    assert len(np.unique(seen)) > 100
    for gate in (seen, chunk.gates["wrist"]):
        assert 0 < gate.min() <= gate.max() < 1
    assert chunk.gates["agentview"][:top].min() == 1
    assert chunk.world_age == 0
    assert {"world_simulator", "fusion"} <= set(chunk.timings_ms)
    assert chunk.actions.tobytes() == policy.act(observation()).actions.tobytes()


def test_the_world_simulator_decides_with(fused: Path) -> None:
    """Other tokens of the world simulator, other actions: nothing else changes with its noise."""
    policy = load_vega_policy(fused)
    base = policy.act(observation()).actions
    assert policy.world is not None
    for camera in policy.world.cameras:
        simulator = policy.world.simulator_of(camera)
        simulator.config = replace(simulator.config, seed=1)
        simulator._noises.clear()
    assert not np.array_equal(base, policy.act(observation()).actions)


def test_saving_and_loading_keeps_the_world_simulator(fused: Path, tmp_path: Path) -> None:
    policy = load_vega_policy(fused)
    policy.save_pretrained(tmp_path)
    again = load_vega_policy(tmp_path)
    assert again.act(observation()).actions.tobytes() == policy.act(observation()).actions.tobytes()
    assert checkpoint_sha256(str(tmp_path)) == checkpoint_sha256(str(tmp_path))
    before = checkpoint_sha256(str(tmp_path))
    prompt = next((tmp_path / "world_simulator").glob("prompt*"))
    prompt.write_bytes(prompt.read_bytes()[:-1] + b"x")
    assert checkpoint_sha256(str(tmp_path)) != before


def test_a_fused_policy_starts_from_a_plain_one(plain: Path, fused: Path, demos: Path, simulator: Path) -> None:
    fresh = train_nano.build_policy(
        Demonstrations(sorted(demos.glob("*.npz"))),
        "x",
        LatentWorldSimulator.from_pretrained(simulator, dtype=torch.float32),
        "token_gate",
        plain,
    )
    known = load_vega_policy(plain).state_dict()
    state = fresh.state_dict()
    assert all(torch.equal(state[key], value) for key, value in known.items())
    assert {key for key in state if key not in known} == {key for key in state if key.startswith("world.fusion")}


def test_tokens_come_from_the_cache_as_the_policy_would_see_them(demos: Path, simulator: Path, fused: Path) -> None:
    policy = load_vega_policy(fused)
    assert policy.world is not None
    data = Demonstrations(sorted(demos.glob("*.npz")))
    data.world_tokens = train_nano.CachedWorldTokens(policy.world, data, fused, 7)
    index = np.arange(FRAMES)
    rng = np.random.default_rng(0)
    batch = data.batch(index, policy.vocabulary, rng, augment=False)
    frames = {c: torch.from_numpy(data.frames(c, index, rng, augment=False)[0])[:, None] for c in GRIDS}
    assert batch.f_gen is not None
    for camera, tokens in policy.world.tokens(frames).items():
        assert torch.allclose(batch.f_gen[camera], tokens, atol=2e-3 * float(tokens.abs().max()))


def test_it_goes_on_where_it_stopped(demos: Path, simulator: Path, plain: Path, tmp_path: Path) -> None:
    options = ["--world-simulator", str(simulator), "--init", str(plain)]
    train(demos, tmp_path, 1, *options)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("world_tokens_*.npy")}
    assert len(files) == 4
    train(demos, tmp_path, 2, *options)
    assert torch.load(tmp_path / "training_state.pt", weights_only=True)["step"] == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("world_tokens_*.npy")} == files


def test_refreshed_on_every_second_query_it_reports_its_age(fused: Path) -> None:
    policy = load_vega_policy(fused)
    assert policy.config.world_simulator is not None
    config = replace(policy.config, world_simulator=replace(policy.config.world_simulator, refresh_every=2))
    assert policy.world is not None
    slower = VegaPolicy(config, policy.world.simulator)
    slower.load_state_dict(policy.state_dict())
    slower.eval()
    first, second, third = (slower.act(observation(seed)) for seed in (0, 1, 1))
    assert [first.world_age, second.world_age, third.world_age] == [0, 1, 0]
    assert second.actions.tobytes() != third.actions.tobytes()
    slower.act(observation(0))
    slower.reset()
    assert slower.act(observation(0)).world_age == 0


def test_a_world_simulator_that_is_not_there_is_named(fused: Path, tmp_path: Path) -> None:
    policy = load_vega_policy(fused)
    policy.save_pretrained(tmp_path)
    (tmp_path / "world_simulator" / "transformer" / "config.json").unlink()
    with pytest.raises(VegaError, match="transformer"):
        load_vega_policy(tmp_path)


def test_what_cannot_be_written_or_read_is_said_in_one_sentence(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for demonstrations, output, text in ((demos, tmp_path / "file", "--output"), (tmp_path, tmp_path, "collect_demos")):
        for main in (train_nano.main, world_simulator.main):
            assert main(["--demos", str(demonstrations), "--output", str(output)]) == 2
            assert text in capsys.readouterr().err.splitlines()[-1]
