"""`run_libero.py --perturb`: views drawn for each episode within their bounds, in its record and in its hash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_policy import TinyPolicy

from benchmarks import closed_loop
from policies.files.made_once import made_with
from policies.types import ActionChunk, Observation, VegaError
from sim.evaluation.direct_episodes import DirectEpisodes
from sim.results.evaluation_report import read_run
from sim.run_libero import main
from sim.worlds.environment import VIEW_KINDS
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.suites import MAX_STEPS


class Blind(TinyPolicy):
    """Does the same whatever it sees, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.saw: list[np.ndarray] = []

    def act(self, observation: Observation) -> ActionChunk:
        self.saw.append(observation.images["agentview"][-1])
        actions = np.tile([0.1, 0.0, -0.1, 0.0, 0.0, 0.0, -1.0], (8, 1))
        return ActionChunk(actions, observation.stamp_ns, observation.instruction)


@pytest.fixture(scope="module")
def environment() -> Iterator[LiberoEnvironment]:
    environment = LiberoEnvironment("libero_object", 0)
    environment.max_steps = 3
    yield environment
    environment.close()


def episodes(environment: LiberoEnvironment, *perturb: str) -> DirectEpisodes:
    runner = DirectEpisodes("libero_object", Blind(), "eef", perturb=perturb)
    runner._environment = environment
    return runner


def test_each_trial_has_its_own_view_again_and_again_and_the_physics_of_the_plain_one(
    environment: LiberoEnvironment,
) -> None:
    plain = episodes(environment)
    camera = environment.env.sim.model._model.camera("agentview")
    before = camera.pos.copy(), camera.quat.copy()
    wanted = plain.run(0, 0)
    assert not wanted.perturbed and not wanted.error
    runner = episodes(environment, *VIEW_KINDS)
    first, other, again = runner.run(0, 0), runner.run(0, 1), runner.run(0, 0)
    assert first == again and first.perturbed != other.perturbed
    assert first.states_sha256 == wanted.states_sha256 and first.actions_sha256 != wanted.actions_sha256
    saw, plainly = runner.policy.saw, plain.policy.saw[0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(saw[0], saw[2])
    assert np.abs(saw[0].astype(float) - plainly).mean() > 3.0
    for result in (first, other):
        moved = result.perturbed["camera"]
        assert 0 < np.linalg.norm(moved["shift_m"]) <= 0.10 and 0 < moved["angle_rad"] <= np.deg2rad(10) + 1e-12
    # One kind alone leaves the others as they were built.
    runner._perturb = ("light",)
    light = runner.run(0, 0)
    hashes = {result.actions_sha256 for result in (wanted, first, other, light)}
    assert set(light.perturbed) == {"light"} and len(hashes) == 4
    np.testing.assert_array_equal(camera.pos, before[0])
    np.testing.assert_array_equal(camera.quat, before[1])


def test_the_summary_says_what_was_perturbed_and_a_run_is_not_gone_on_with_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MAX_STEPS, "libero_object", 2)
    words = ["--policy", "tiny_policy:TinyPolicy", "--tasks", "0", "--trials", "1", "--output", str(tmp_path / "run")]
    assert main([*words, "--perturb", "camera"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["perturb"] == ["camera"] and set(summary["episodes"][0]["perturbed"]) == {"camera"}
    assert main([*words, "--perturb", "camera,light", "--resume"]) == 2
    assert "perturb" in capsys.readouterr().err
    assert "views" not in summary and kept_by_benchmarks(tmp_path, monkeypatch) is not None


def kept_by_benchmarks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any] | None:
    monkeypatch.setattr(closed_loop, "checkpoint_sha256", lambda policy: "")
    return closed_loop.kept(folder / "run", "tiny_policy:TinyPolicy")


@pytest.mark.parametrize("kind", ["light", "texture"])
def test_a_run_does_not_go_on_with_views_that_an_older_version_drew_otherwise(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MAX_STEPS, "libero_object", 2)
    words = ["--policy", "tiny_policy:TinyPolicy", "--tasks", "0", "--trials", "1", "--output", str(tmp_path / "run")]
    assert main([*words, "--perturb", f"camera,{kind}"]) == 0
    assert main([*words, "--perturb", f"camera,{kind}", "--resume"]) == 0
    assert kept_by_benchmarks(tmp_path, monkeypatch) is not None
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    del summary["views"]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    assert main([*words, "--perturb", f"camera,{kind}", "--resume"]) == 2
    assert "has views 1, this one 2" in capsys.readouterr().err
    assert kept_by_benchmarks(tmp_path, monkeypatch) is None
    assert f"perturbed camera+{kind} as drawn in version 1" in read_run(tmp_path / "run").arm


def test_a_collection_does_not_go_on_with_views_drawn_otherwise(tmp_path: Path) -> None:
    made_with(tmp_path / "new.json", {"every": 4, "views": 2}, older={"views": 1})
    made_with(tmp_path / "new.json", {"every": 4, "views": 2}, older={"views": 1})
    (tmp_path / "old.json").write_text('{"every": 4}')
    with pytest.raises(VegaError, match="was made with views 1, not 2"):
        made_with(tmp_path / "old.json", {"every": 4, "views": 2}, older={"views": 1})
