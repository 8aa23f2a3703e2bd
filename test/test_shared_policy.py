"""One policy that decides for several workers at once."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.checkpoints import find_checkpoint, load_policy
from policies.nano.policy import VegaPolicy
from policies.types import ActionChunk, ActionSpace, BatchPolicy, Observation, PolicySpec, RobotState, VegaError
from sim.evaluation.evaluate import policy_is_shared
from sim.evaluation.settings import EpisodeSettings
from sim.evaluation.shared_policy import PolicyProcess, SharedPolicy
from sim.run_libero import main

DEADLINE_S = 240.0
GATE = "VEGA3D_TEST_GATE"  # names a file without which the first batch is not answered


def observation(number: int, cameras: Sequence[str] = (), window: int = 1, text: str = "pick up the milk") -> Any:
    rng = np.random.default_rng(number)
    images = {camera: rng.integers(0, 255, (window, 256, 256, 3), dtype=np.uint8) for camera in cameras}
    down = np.array([1.0, 0.0, 0.0, 0.0])
    state = RobotState(number, (), np.zeros(7), np.zeros(7), np.full(2, 0.04), np.array([0.45, 0.0, 0.26]), down)
    return Observation(images, state, text, number)


class Alone:
    """Moves slowly, without looking; decides for one episode at a time."""

    spec = PolicySpec("alone", (), ActionSpace("eef_delta"), chunk_length=280, open_loop_horizon=280)

    def act(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.full((280, 7), 0.05), observation.stamp_ns, observation.instruction)

    def reset(self) -> None:
        """Nothing is remembered."""


class Together(Alone):
    """The same for many episodes; tells the size of the batch as a timing."""

    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        gate, begun = os.environ.get(GATE), time.monotonic()
        while gate and not Path(gate).exists() and time.monotonic() - begun < DEADLINE_S:
            time.sleep(0.005)
        return [
            ActionChunk(np.full((280, 7), 0.05), o.stamp_ns, o.instruction, {"size": float(len(observations))})
            for o in observations
        ]


class Moody(Together):
    """Fails on a batch in which somebody asks the wrong thing."""

    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks = super().act_batch(observations)
        for row, observation in enumerate(observations):
            if observation.instruction == "unknown":
                raise VegaError("The instruction 'unknown' names nothing that this policy knows.")
            if observation.instruction == "crash":
                raise RuntimeError("CUDA error: out of memory\nand more lines")
            if observation.instruction == "unsendable":
                chunks[row] = lambda: None  # type: ignore[call-overload]
            if observation.instruction == "too few":
                return []
        return chunks


class Broken(Alone):
    """Cannot be loaded, for a reason that nobody foresaw."""

    def __init__(self) -> None:
        raise ZeroDivisionError("no layers")


class Deadly(Alone):
    """Its process ends while it is loaded."""

    def __init__(self) -> None:
        os._exit(3)


def test_a_batch_decides_as_each_alone_up_to_rounding() -> None:
    shipped = load_policy("vega-nano")
    assert isinstance(shipped, VegaPolicy) and shipped.world is not None
    # Its like without a memory, which could not be shared.
    policy = VegaPolicy(replace(shipped.config, remembers=False), shipped.world.simulator).eval()
    assert isinstance(policy, BatchPolicy)
    texts = ("pick up the milk and place it in the basket", "get the ketchup", "milk")
    seen = [observation(i, policy.spec.cameras, policy.spec.window, text) for i, text in enumerate(texts)]
    for one, chunk in zip(seen, policy.act_batch(seen), strict=True):
        policy.reset()
        alone = policy.act(one)
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-4)
        assert (chunk.stamp_ns, chunk.instruction) == (one.stamp_ns, one.instruction)
        for camera, gate in alone.gates.items():
            np.testing.assert_allclose(chunk.gates[camera], gate, atol=1e-4)


def test_those_who_wait_are_decided_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GATE, str(tmp_path / "gate"))
    with PolicyProcess("test_shared_policy:Together", "cpu", 1) as process:
        workers = [SharedPolicy(process.place) for _ in range(4)]
        assert workers[0].spec == Together.spec
        for number, worker in enumerate(workers):
            worker._connection.send(observation(number))
        (tmp_path / "gate").touch()
        answers = [worker._connection.recv() for worker in workers]
    assert [answer.stamp_ns for answer in answers] == [0, 1, 2, 3]
    sizes = sorted(answer.timings_ms["size"] for answer in answers)
    # The first may have been taken before the others came; these then waited together.
    assert sum(1 / size for size in sizes) <= 2.0


def test_a_worker_that_dies_disturbs_nobody_and_without_its_process_one_sentence_says_so() -> None:
    with PolicyProcess("test_shared_policy:Together", "cpu", 1) as process:
        lost, worker = SharedPolicy(process.place), SharedPolicy(process.place)
        lost._connection.send(observation(1))
        lost._connection.close()
        assert worker.act(observation(2)).stamp_ns == 2
        assert process.alive
    assert not process.alive
    with pytest.raises(VegaError, match="--resume goes on"):
        worker.act(observation(3))


def test_an_error_reaches_only_whom_it_concerns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GATE, str(tmp_path / "gate"))
    texts = ("milk", "unknown", "soup", "crash", "unsendable", "too few", 7, "ketchup")
    with PolicyProcess("test_shared_policy:Moody", "cpu", 1) as process:
        workers = [SharedPolicy(process.place) for _ in texts]
        for number, (text, worker) in enumerate(zip(texts, workers, strict=True)):
            worker._connection.send(7 if text == 7 else observation(number, text=str(text)))
        (tmp_path / "gate").touch()
        answers = {text: worker._connection.recv() for text, worker in zip(texts, workers, strict=True)}
        assert {text: answers[text].stamp_ns for text in ("milk", "soup", "ketchup")} == {
            "milk": 0,
            "soup": 2,
            "ketchup": 7,
        }
        assert answers["unknown"] == "The instruction 'unknown' names nothing that this policy knows."
        assert "(RuntimeError: CUDA error: out of memory): see" in answers["crash"]
        assert "cannot be sent" in answers["unsendable"] and "answered 0 of 1" in answers["too few"]
        assert "AttributeError" in answers[7]
        for worker in workers:  # it goes on, with all of them
            assert worker.act(observation(9)).stamp_ns == 9
        with pytest.raises(VegaError, match="names nothing"):
            workers[0].act(observation(1, text="unknown"))


@pytest.mark.parametrize(
    ("policy", "part"),
    [
        ("test_shared_policy:Broken", "cannot be made .ZeroDivisionError: no layers"),
        ("test_shared_policy:Alone", "leave --share-policy out"),
        ("vega-giant", "vega-nano"),
        ("test_shared_policy:Deadly", "exit status 3"),
    ],
)
def test_what_cannot_be_shared_is_one_sentence(policy: str, part: str) -> None:
    with pytest.raises(VegaError, match=part), PolicyProcess(policy, "cpu", 1):
        pass


def test_workers_that_share_run_the_episodes_of_workers_that_do_not(tmp_path: Path) -> None:
    found = []
    for name, options in (("own", []), ("shared", ["--share-policy"])):
        arguments = ["--policy", "test_shared_policy:Together", "--tasks", "0,1", "--trials", "1", "--workers", "2"]
        assert main([*arguments, *options, "--output", str(tmp_path / name)]) == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["policy_shared"] is bool(options)
        found.append([(e["task"], e["trial"], e["states_sha256"]) for e in summary["episodes"]])
    assert found[0] == found[1] and len(found[0]) == 2


def test_a_policy_that_remembers_an_episode_is_shared_neither_by_default_nor_when_asked_to(tmp_path: Path) -> None:
    folder = shutil.copytree(find_checkpoint("vega-nano-plain"), tmp_path / "remembers")
    config = json.loads((folder / "config.json").read_text()) | {"remembers": True}
    (folder / "config.json").write_text(json.dumps(config))
    workers = argparse.Namespace(workers=4, share_policy=None)
    for policy, shared in (("vega-nano-plain", True), (str(folder), False)):
        assert policy_is_shared(workers, EpisodeSettings("libero_object", policy, device="cuda:0")) is shared
    with pytest.raises(VegaError, match="serves one at a time: leave --share-policy out"):
        policy_is_shared(
            argparse.Namespace(workers=4, share_policy=True), EpisodeSettings("libero_object", str(folder))
        )


def test_one_worker_shares_with_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--share-policy"]) == 2
    assert "give --workers" in capsys.readouterr().err
