"""A distilled encoder stands in for the simulator: it learns, is in use, lies where the simulator's tokens lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import make_dataset

from policies.checkpoints import checkpoint_sha256, find_checkpoint, load_policy
from policies.fusion.distilled import DistilledEncoder
from policies.nano.policy import VegaPolicy, load_vega_policy
from policies.training import distil
from policies.training.curves import read_log
from policies.training.nano.distillation import Distillation
from policies.types import Observation, RobotState, VegaError

TEACHER = "vega-nano"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("demos"))


def learn(demos: Path, output: Path, steps: int) -> Path:
    words = ["--policy", TEACHER, "--data", str(demos), "--output", str(output), "--hold-out", "3", "--width", "32"]
    assert distil.main([*words, "--steps", str(steps), "--save-every", "6"]) == 0
    return output


@pytest.fixture(scope="module")
def student(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn(demos, tmp_path_factory.mktemp("student"), 12)


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 255, (1, 256, 256, 3), dtype=np.uint8) for camera in ("agentview", "wrist")}
    pose = np.array([0.45, 0.0, 0.26]), np.array([1.0, 0.0, 0.0, 0.0])
    state = RobotState(0, (), np.zeros(7), np.zeros(7), np.array([0.04, 0.04]), *pose)
    return Observation(images, state, "pick up the milk and place it in the basket", 0)


def test_it_learns_and_says_how_near_it_comes(student: Path) -> None:
    first, last = (read_log(student / "log.jsonl")[at] for at in (0, -1))
    assert last["held_out"]["error"] < first["held_out"]["error"]
    told = json.loads((student / "distilled.json").read_text())
    assert told["error"] == last["held_out"]["error"]
    assert told["policy_sha256"] == checkpoint_sha256(str(find_checkpoint(TEACHER)))


def test_it_decides_in_the_simulators_place(student: Path) -> None:
    """No simulator's weights are in the folder; what the policy does follows from the encoder's, and only from them."""
    assert not list(student.rglob("transformer")) and (student / "world_encoder" / "model.safetensors").is_file()
    policy, teacher = load_vega_policy(student), load_vega_policy(find_checkpoint(TEACHER))
    assert policy.state_dict().keys() == teacher.state_dict().keys()
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in policy.state_dict().items())
    first = policy.act(observation()).actions
    assert np.array_equal(load_vega_policy(student).act(observation()).actions, first)
    assert policy.world is not None and isinstance(policy.world.source, DistilledEncoder)
    with torch.no_grad():
        policy.world.source.layers[0].weight += 0.5  # type: ignore[operator]
    policy.reset()
    assert not np.array_equal(policy.act(observation()).actions, first)


def test_its_tokens_lie_where_the_simulators_lie(student: Path) -> None:
    policy, teacher = load_vega_policy(student), load_vega_policy(find_checkpoint(TEACHER))
    assert policy.world is not None and teacher.world is not None
    frames = torch.randint(0, 255, (2, 1, 160, 160, 3), dtype=torch.uint8)
    for camera in teacher.world.cameras:
        own, other = policy.world.source_of(camera), teacher.world.source_of(camera)
        native = own.native(frames)
        assert native.shape == other.native(frames).shape
        tokens = own.pool(native[:, None], (160, 160))
        torch.testing.assert_close(tokens, other.pool(native[:, None], (160, 160)))
        torch.testing.assert_close(own(frames), tokens[:, 0])


@pytest.mark.parametrize("control", ["off", "noise", "shuffled"])
def test_controls_work_in_its_place_too(control: str, student: Path) -> None:
    on, other = load_policy(str(student)), load_policy(str(student), world_simulator=control)
    assert isinstance(on, VegaPolicy)
    assert not np.array_equal(on.act(observation()).actions, other.act(observation()).actions)


def test_a_distillation_that_diverges_keeps_the_state_that_was_good(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--policy", TEACHER, "--data", str(demos), "--output", str(tmp_path), "--width", "32", "--lr", "1e25"]
    assert distil.main([*words, "--steps", "9", "--save-every", "1"]) == 2
    assert "is no number any more" in capsys.readouterr().err
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert state["step"] < 9 and all(bool(torch.isfinite(value).all()) for value in state["encoder"].values())


def test_it_goes_on_to_the_same_encoder(demos: Path, student: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    honest, seen = Distillation.evaluate, []

    def evaluate(own: Distillation) -> dict[str, float]:
        seen.append(own.step)
        if len(seen) == 2:
            raise Killed  # at step 12, before anything of it is kept
        return honest(own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "evaluate", evaluate)
        with pytest.raises(Killed):
            learn(demos, tmp_path, 12)
    assert torch.load(tmp_path / "training_state.pt", weights_only=True)["step"] == 6
    learn(demos, tmp_path, 12)
    one, other = (folder / "world_encoder" / "model.safetensors" for folder in (student, tmp_path))
    assert one.read_bytes() == other.read_bytes()


def test_what_cannot_be_distilled_or_read_is_one_sentence(
    demos: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for policy in ("vega-nano-plain", str(student)):
        assert distil.main(["--policy", policy, "--data", str(demos), "--output", str(tmp_path)]) == 2
        assert "no world simulator to be distilled" in capsys.readouterr().err
    policy = load_vega_policy(student)
    policy.save_pretrained(tmp_path / "copy")
    weights = tmp_path / "copy" / "world_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(VegaError, match="distilled encoder"):
        load_policy(str(tmp_path / "copy"))
    weights.unlink()
    with pytest.raises(VegaError, match="distilled encoder"):
        load_policy(str(tmp_path / "copy"))


def test_it_overwrites_neither_its_teacher_nor_another_encoder(
    demos: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = shutil.copytree(find_checkpoint(TEACHER), tmp_path / "teacher")
    (teacher / "log.jsonl").touch()  # as where it was trained
    before, words = checkpoint_sha256(str(teacher)), ["--data", str(demos), "--hold-out", "3", "--steps", "1"]
    assert distil.main(["--policy", str(teacher), "--output", str(teacher / ".." / "teacher"), *words]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert checkpoint_sha256(str(teacher)) == before
    assert distil.main(["--policy", TEACHER, "--output", str(student), "--width", "48", *words]) == 2
    assert "another --width" in capsys.readouterr().err


def test_a_teacher_that_crops_its_pictures_is_refused(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The encoder sees whole pictures: tokens of cropped ones would lie where it sees something else."""
    teacher = shutil.copytree(find_checkpoint(TEACHER), tmp_path / "teacher")
    path = teacher / "world_simulator" / "world_simulator.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"framing": "official"}))
    assert distil.main(["--policy", str(teacher), "--data", str(demos), "--output", str(tmp_path / "out")]) != 0
    assert "framing: official" in capsys.readouterr().err


@pytest.mark.parametrize("setting", [{"width": 40}, {"width": 0}, {"frames": 0}])
def test_an_encoder_of_an_impossible_size_is_refused(student: Path, tmp_path: Path, setting: dict[str, int]):
    folder = shutil.copytree(student / "world_encoder", tmp_path / "encoder")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(VegaError, match="a multiple of 16"):
        DistilledEncoder.from_pretrained(folder)
