"""Training of the small policy, with and without a world simulator: it runs, goes on, and what it writes acts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recorded import make_dataset

from policies.checkpoints import checkpoint_sha256, find_checkpoint, load_policy
from policies.nano.policy import VegaPolicy, load_vega_policy
from policies.training import train_nano
from policies.training.curves import read_log
from policies.training.dataset import CAMERAS, CANVAS, IMAGE_SIZE, Demonstrations
from policies.training.nano import building
from policies.training.nano.learner import Learner
from policies.training.study.arms import made_with, make_untrained
from policies.training.wan import networks
from policies.types import Observation, RobotState, VegaError
from policies.world_simulator.simulator import LatentWorldSimulator, WorldSimulatorConfig, save_world_simulator

FRAMES = 18  # three episodes of six rows
GRIDS = {"agentview": (20, 20), "wrist": (12, 12)}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("demos"))


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained world simulator of the size that ships."""
    folder = tmp_path_factory.mktemp("simulator") / "wan"
    torch.manual_seed(0)
    generator = networks.Generator(networks.small_transformer())
    config = WorldSimulatorConfig(tap=3, canvas=CANVAS["agentview"], grid=(12, 18))
    save_world_simulator(folder, networks.small_vae(), generator.network, generator.prompt.detach(), config)
    return folder


def train(demos: Path, output: Path, steps: int, *more: str) -> Path:
    sizes = ["--steps", str(steps), "--batch", "4", "--threads", "1", "--save-every", "1"]
    train_nano.main(["--data", str(demos), "--output", str(output), *sizes, *more])
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
    assert len(np.unique(chunk.gates["agentview"])) > 100
    for gate in chunk.gates.values():
        assert 0 < gate.min() <= gate.max() < 1
    assert chunk.world_age == 0
    assert {"world_simulator", "fusion"} <= set(chunk.timings_ms)
    policy.reset()
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
    policy.reset()
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
    before = load_vega_policy(plain)
    fresh = building.build_policy(
        SimpleNamespace(name="x", fusion="token_gate", tokens="wan"),  # type: ignore[arg-type]
        Demonstrations([demos], CAMERAS, plain),
        before,
        LatentWorldSimulator.from_pretrained(simulator, dtype=torch.float32),
        np.arange(FRAMES),
    )
    known = before.state_dict()
    state = fresh.state_dict()
    assert all(torch.equal(state[key], value) for key, value in known.items())
    assert {key for key in state if key not in known} == {key for key in state if key.startswith("world.fusion")}


def test_a_fused_policy_goes_on_with_its_world_simulator_and_its_fusion(
    demos: Path, fused: Path, tmp_path: Path
) -> None:
    """As a round of DAgger does: more data, no other option."""
    before, after = load_vega_policy(fused), load_vega_policy(train(demos, tmp_path, 1, "--init", str(fused)))
    assert before.world is not None and after.world is not None
    assert after.config.world_simulator == before.config.world_simulator
    assert (tmp_path / "world_simulator" / "vae").is_dir()
    for name, value in before.world.fusion.state_dict().items():  # one step is small
        assert torch.allclose(after.world.fusion.state_dict()[name], value, atol=0.02)
    assert not torch.equal(
        torch.cat([p.flatten() for p in before.world.fusion.parameters()]),
        torch.cat([p.flatten() for p in after.world.fusion.parameters()]),
    )
    with torch.no_grad():  # as no fusion begins, whatever the seed
        for parameter in before.world.fusion.parameters():
            parameter += 1.0
    data = Demonstrations([demos], CAMERAS, tmp_path)
    args = SimpleNamespace(name="x", fusion="token_gate", tokens="wan")
    again = building.build_policy(args, data, before, None, np.arange(FRAMES))  # type: ignore[arg-type]
    assert again.world is not None and again.config.name == "x"
    assert again.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in again.state_dict().items())


def test_it_does_not_go_on_with_what_is_composed_in_another_way(
    demos: Path, simulator: Path, plain: Path, fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise, and another world simulator, have as many channels as what they stand for: nothing else would tell."""
    before = (fused / "config.json").read_text()
    make_untrained(simulator, tmp_path / "other", [demos])
    made_with(noise_index=700)(simulator, tmp_path / "noisier", [demos])
    for other in ("other", "noisier"):
        train(demos, fused, 2, "--world-simulator", str(tmp_path / other), "--init", str(plain))
        assert "learned with another world simulator" in capsys.readouterr().err
    begun = ("--init", str(plain))
    for more, said in (((*begun, "--tokens", "noise"), "another world_simulator"), (("--no-remember",), "another")):
        train(demos, fused, 2, "--world-simulator", str(simulator), *more)
        assert said in capsys.readouterr().err
    train(demos, fused, 2, "--hold-out", "1")
    assert "every episode is held out" in capsys.readouterr().err
    assert (fused / "config.json").read_text() == before


def test_it_goes_on_where_it_stopped(demos: Path, simulator: Path, plain: Path, tmp_path: Path) -> None:
    options = ["--world-simulator", str(simulator), "--init", str(plain)]
    train(demos, tmp_path, 1, *options)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("world_tokens_*.npy")}
    assert len(files) == 4
    train(demos, tmp_path, 2, *options)
    assert torch.load(tmp_path / "training_state.pt", weights_only=True)["step"] == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("world_tokens_*.npy")} == files


def test_what_it_believed_goes_into_the_next_decision_until_another_task(plain: Path) -> None:
    policy = load_vega_policy(plain)
    with torch.no_grad():
        assert policy.progress is not None
        policy.progress.bias += 3.0
        policy.trunk.proprio[0].weight[:, -1] += 1.0
    first, second = policy.act(observation()).actions, policy.act(observation()).actions
    assert not np.array_equal(first, second)
    policy.reset()
    np.testing.assert_array_equal(policy.act(observation()).actions, first)
    policy.act(replace(observation(), instruction="put the bowl on the stove"))
    np.testing.assert_array_equal(policy.act(observation()).actions, first)
    with pytest.raises(VegaError, match="one at a time"):
        policy.act_batch([observation(), observation()])


def test_what_it_believes_is_the_share_of_what_looks_the_same(demos: Path, plain: Path) -> None:
    """Where one row in four is done and nothing tells which; the absolute distance teaches to believe in nothing."""
    pictures = Demonstrations([demos], CAMERAS, plain)
    believed = {}
    for loss in ("bce", "l1"):
        torch.manual_seed(0)
        learner = Learner(load_vega_policy(plain).requires_grad_(True), loss)
        row = np.zeros(4, np.int64)
        batch = pictures.batch(row, learner.policy.vocabulary, np.random.default_rng(0), augment=False)
        batch.progress, batch.before = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4)
        optimizer = torch.optim.Adam(learner.policy.parameters(), lr=1e-3)
        for _ in range(60):
            optimizer.zero_grad()
            learner(batch)[0].backward()
            optimizer.step()
        with torch.no_grad():
            before, text = torch.zeros(1), batch.ids[:1]
            images = {camera: image[:1] for camera, image in batch.images.items()}
            found = learner.policy(images, text, batch.proprio[:1], before).progress
        believed[loss] = float(found.sigmoid())
    assert 0.15 < believed["bce"] < 0.35
    assert believed["l1"] < 0.05


def test_labels_that_a_dataset_lacks_cost_nothing(demos: Path, plain: Path, tmp_path: Path) -> None:
    """Taken for 0 they would teach that nothing is ever done, and that what is headed for is in no picture."""
    bare = make_dataset(tmp_path, labelled=False)
    both = Demonstrations([demos, bare], CAMERAS, tmp_path / "cache")
    own, lacking = np.arange(4), np.arange(4) + FRAMES
    learner = Learner(load_vega_policy(plain).requires_grad_(True))

    def gradients(rows: np.ndarray) -> list[torch.Tensor]:
        """Of what is believed, and of each camera's presence."""
        learner.zero_grad()
        batch = both.batch(rows, learner.policy.vocabulary, np.random.default_rng(0), augment=False)
        learner(batch)[0].backward()
        assert learner.policy.progress is not None
        seen = {camera: {"map": torch.zeros(len(rows), h * w), "point": torch.zeros(len(rows), 2),
                         "presence": torch.zeros(len(rows), requires_grad=True)}
                for camera, (h, w) in GRIDS.items()}  # fmt: skip
        learner._grounding(seen, batch.points, batch.pointed)["point"].backward()
        presence = [found["presence"].grad for found in seen.values()]
        return [learner.policy.progress.bias.grad.clone(), *(grad for grad in presence if grad is not None)]

    nothing, alone, beside = map(gradients, (lacking, own, np.concatenate([own, lacking])))
    assert len(nothing) == 3 and all(gradient.abs().sum() == 0 for gradient in nothing)
    for mine, ours in zip(alone, beside, strict=True):
        assert mine.abs().sum() > 0 and not ours[len(mine) :].any()
        torch.testing.assert_close(mine, ours[: len(mine)], atol=1e-5, rtol=1e-4)


def test_the_loss_waits_for_no_number(demos: Path, plain: Path, tmp_path: Path) -> None:
    """Which labels are known decides what is computed, and a GPU that is asked for it waits: no tensor here has any."""
    bare = make_dataset(tmp_path, labelled=False)
    both = Demonstrations([demos, bare], CAMERAS, tmp_path / "cache")
    learner = Learner(load_vega_policy(plain).requires_grad_(True))
    for rows in (np.arange(4), np.arange(4) + FRAMES, np.arange(8) + FRAMES - 4):
        batch = both.batch(rows, learner.policy.vocabulary, np.random.default_rng(0), augment=False)
        learner.to("meta")(batch.to(torch.device("meta")))[0].backward()


def test_a_policy_that_nobody_told_of_progress_believes_that_nothing_is_done(tmp_path: Path) -> None:
    """As it is told in all that it learns from; what an untrained layer believes would be news to it."""
    policy = load_vega_policy(train(make_dataset(tmp_path, labelled=False), tmp_path / "out", 2))
    for seed in range(3):
        policy.act(observation(seed))
        assert policy._believed < 0.02


def test_what_is_normalised_by_is_what_is_learned(demos: Path, tmp_path: Path) -> None:
    """A held-out episode tells nothing; words are known of all, so that held-out sentences can be said."""
    shown = Demonstrations([demos], CAMERAS, tmp_path)
    rows, _ = shown.split(3)
    found = {how: load_vega_policy(train(demos, tmp_path / how, 1, "--hold-out", "3", "--normalise", how)).config
             for how in ("learned", "all")}  # fmt: skip
    for how, part in (("learned", shown.data["proprio"][rows]), ("all", shown.data["proprio"])):
        np.testing.assert_allclose(found[how].proprio_mean, part.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(found[how].proprio_std, part.std(axis=0).clip(0.01), atol=1e-6)
    assert found["learned"].proprio_mean != found["all"].proprio_mean
    assert found["learned"].words == found["all"].words
    train(demos, tmp_path / "all", 2, "--hold-out", "3")  # as trainings from before go on, without the option
    assert torch.load(tmp_path / "all" / "training_state.pt", weights_only=True)["step"] == 2
    assert load_vega_policy(tmp_path / "all").config.proprio_mean == found["all"].proprio_mean


def test_a_sentence_means_the_same_with_more_padding_and_not_the_same_in_another_order(plain: Path) -> None:
    policy = load_vega_policy(plain)
    ids = policy.vocabulary.encode("put the bowl on the stove")
    with torch.inference_mode():
        short, padded = policy.text(torch.tensor([ids])), policy.text(torch.tensor([[*ids, 0, 0, 0]]))
        turned = policy.text(torch.tensor([policy.vocabulary.encode("put the stove on the bowl")]))
    torch.testing.assert_close(short, padded, atol=1e-6, rtol=0)
    assert (short - turned).abs().max() > 1e-3


def test_a_new_policy_starts_warm_from_the_weights_that_fit(demos: Path, tmp_path: Path) -> None:
    folder = train(demos, tmp_path, 1, "--warm-start", str(find_checkpoint("vega-nano-plain")), "--lr", "1e-9")
    known, fresh = load_policy("vega-nano-plain"), load_vega_policy(folder)
    key = "semantic_encoder.encoders.wrist.stem.0.weight"
    torch.testing.assert_close(fresh.state_dict()[key], known.state_dict()[key], atol=1e-6, rtol=0)  # type: ignore[attr-defined]


def test_a_teacher_of_language_places_words_and_stays_out_of_the_checkpoint(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Teacher:
        def __call__(self, sentences: list[str]) -> np.ndarray:
            rng = np.random.default_rng(len(sentences))
            return rng.normal(size=(len(sentences), 384)).astype(np.float32)

        def words(self, known: tuple[str, ...], dim: int) -> np.ndarray:
            return np.arange(len(known) * dim, dtype=np.float32).reshape(len(known), dim) / 1000

    monkeypatch.setattr(building, "LanguageTeacher", Teacher)
    folder = train(demos, tmp_path, 2, "--language-teacher")
    policy = load_vega_policy(folder)
    count = len(policy.vocabulary) - 1
    np.testing.assert_array_equal(policy.text.embedding.weight[1:].detach(), Teacher().words(("",) * count, 64))
    assert {"meaning", "action", "progress"} <= set(read_log(folder / "log.jsonl")[-1]["train"])
    assert not any("meaning" in key for key in policy.state_dict())


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
