"""robosuite's own tasks through the same protocol as LIBERO's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from policies.types import VegaError
from sim.run_robosuite import main, parse_names
from sim.worlds.robosuite_env import TASKS, RobosuiteEnvironment, _make


def test_trials_are_robosuites_seeded_resets_in_any_order_and_lifting_the_cube_is_success() -> None:
    environment, stock = RobosuiteEnvironment(0), _make("Lift")
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7))
    for trial in (3, 0, 3):
        environment.reset(trial)
        np.random.seed(trial)
        stock.reset()
        assert environment.states_digest() == stock.sim.get_state().flatten().tobytes()
        for action in actions:
            assert not environment.step_eef(action)
            stock.step(action)
        assert environment.states_digest() == stock.sim.get_state().flatten().tobytes()
    world = environment.state().eef_position + environment.base_position
    assert world == pytest.approx(np.array(environment.env._eef_xpos), abs=1e-9)
    assert environment.render("wrist").shape == (256, 256, 3)
    data = environment.env.sim.data
    cube = data.get_joint_qpos("cube_joint0").copy()
    cube[2] += 0.1
    data.set_joint_qpos("cube_joint0", cube)
    assert environment.step_eef(np.zeros(7))
    stock.close()
    environment.close()


def test_tasks_by_name_and_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_names("Door,Lift") == [3, 0]
    assert parse_names("0-2") == [0, 1, 2]
    assert parse_names(None) == list(range(len(TASKS)))
    assert main(["--tasks", "Lift,Dor"]) == 2
    assert "NutAssemblySquare" in capsys.readouterr().err
    with pytest.raises(VegaError, match="0 to 4"):
        RobosuiteEnvironment(5)


def test_an_episode_ends_in_the_same_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.worlds.robosuite_env.MAX_STEPS", 12)
    status = main(["--policy", "tiny_policy:TinyPolicy", "--tasks", "Lift", "--trials", "1", "--output", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert status == 0 and summary["protocol"] == "robosuite-seeded"
    assert [(e["steps"], e["error"]) for e in summary["episodes"]] == [(12, "")]
    assert (tmp_path / "report.html").stat().st_size > 5000
