"""The faster control step and its pictures against robosuite's own, bit for bit, where arms grasp and drawers move."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mujoco
import numpy as np
import pytest

from policies.types import FloatArray
from sim.worlds.libero_env import CAMERAS, LiberoEnvironment
from sim.worlds.robosuite_env import RobosuiteEnvironment

# Suite, task, what the gripper goes for, a joint that is given a push (rad/s or m/s).
SCENES: list[tuple[str, int, str, tuple[str, float] | None]] = [
    ("libero_spatial", 1, "akita_black_bowl_1_main", None),
    ("libero_goal", 0, "akita_black_bowl_1_main", ("wooden_cabinet_1_middle_level", -0.5)),
    ("libero_10", 2, "moka_pot_1_main", ("flat_stove_1_button", 3.0)),
    ("robosuite", 2, "cubeA_main", None),
]


@pytest.fixture(scope="module", params=SCENES, ids=lambda scene: scene[0])
def scene(request: pytest.FixtureRequest) -> Iterator[tuple[LiberoEnvironment, str, tuple[str, float] | None]]:
    suite, task, goal, pushed = request.param
    environment = RobosuiteEnvironment(task) if suite == "robosuite" else LiberoEnvironment(suite, task)
    yield environment, goal, pushed
    environment.close()


def _run(
    environment: LiberoEnvironment,
    step: Callable[[FloatArray], None],
    actions: Iterator[FloatArray],
    pushed: tuple[str, float] | None,
) -> list[tuple[FloatArray, list[bytes], list[bytes]]]:
    """(action, what it leaves in MuJoCo, what it leaves in robosuite) for each; by eef deltas and by joint commands."""
    own, environment._control_step = environment._control_step, step  # type: ignore[assignment]
    environment.reset(0)
    sim = environment.env.sim
    if pushed is not None:
        sim.data.set_joint_qvel(*pushed)
    data, seen = sim.data._data, []
    for i, action in enumerate(actions):
        if i % 30 < 25:
            environment.step_eef(action)
        else:
            now = environment.state().joint_positions
            environment.step_joints(now + 0.02 * np.append(action[:6], 0.0), np.full(7, 0.1), action[6])
        fields = (data.qpos, data.qvel, data.qacc_warmstart, data.ctrl, data.sensordata, data.cfrc_int, data.xpos)
        robot = environment.env.robots[0]
        left = (robot.torques, robot.controller.torques, robot.controller.joint_pos, robot.gripper.current_action)
        seen.append((action, [x.tobytes() for x in fields], [x.tobytes() for x in left]))
    environment._control_step = own
    return seen


def _reach(environment: LiberoEnvironment, goal: str) -> Iterator[FloatArray]:
    """Above a thing, down on it, closed, pulled away; disturbed on the way."""
    rng = np.random.default_rng(1)
    for i in range(70):
        away = environment.env.sim.data.get_body_xpos(goal) - environment.env._eef_xpos
        away = away + np.array([0, 0, 0.1 if i < 20 else 0.01]) if i < 50 else np.array([-0.1, 0.05, 0.1])
        closed = 1.0 if i >= 40 else -1.0
        yield np.append(np.clip(away / 0.05, -1, 1), [0, 0, 0, closed]) + rng.normal(0, 0.05, 7)


def test_states_equal_robosuites_own_bit_for_bit(scene: tuple[LiberoEnvironment, str, Any]) -> None:
    environment, goal, pushed = scene
    touched = moved = 0

    def watched(action: FloatArray) -> None:
        nonlocal touched, moved
        environment_step(action)
        sim = environment.env.sim
        bodies = sim.model.geom_bodyid[sim.data._data.contact.geom]
        names = [[sim.model.body_id2name(body) or "" for body in pair] for pair in bodies]
        touched += any(a.startswith("gripper0") != b.startswith("gripper0") for a, b in names)
        moved += pushed is None or abs(sim.data.get_joint_qvel(pushed[0])) > 1e-3

    environment_step = environment._control_step
    ours = _run(environment, watched, _reach(environment, goal), pushed)
    assert touched >= 5 and moved >= 5
    stock = _run(environment, environment.env.step, iter([action for action, _, _ in ours]), pushed)
    for (_, ours_mujoco, ours_robosuite), (_, stock_mujoco, stock_robosuite) in zip(ours, stock, strict=True):
        assert ours_mujoco == stock_mujoco
        assert ours_robosuite == stock_robosuite


def test_pictures_equal_robosuites_own_pixel_for_pixel(scene: tuple[LiberoEnvironment, str, Any]) -> None:
    environment, goal, pushed = scene
    seen = _run(environment, environment._control_step, _reach(environment, goal), pushed)
    assert len(seen) == 70
    actions = iter([action for action, _, _ in seen])
    left_out = 0
    for _ in range(4):
        for camera, name in CAMERAS.items():
            ours = environment.render(camera)
            sim = environment.env.sim
            drawn = sim._render_context_offscreen.scn.ngeom
            stock = sim.render(camera_name=name, width=256, height=256)[::-1]
            np.testing.assert_array_equal(ours, stock)
            left_out += sim._render_context_offscreen.scn.ngeom - drawn
        for action in itertools.islice(actions, 12):
            environment.step_eef(action)
    # robosuite's table mirrors all that the wrist camera does not see.
    assert left_out > 0 or environment.suite == "robosuite"


def test_what_is_not_known_is_left_to_robosuite(
    scene: tuple[LiberoEnvironment, str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = scene[0]
    env = environment.env
    stepped = []
    stock = env.step
    monkeypatch.setattr(env, "step", lambda action: stepped.append(1) or stock(action))

    def steps(callback: Callable[..., None] | None = None) -> int:
        """How often robosuite's own step is called for one control step after a reset."""
        environment.reset(0)
        stepped.clear()
        mujoco.set_mjcb_control(callback)
        environment.step_eef(np.zeros(7))
        mujoco.set_mjcb_control(None)
        return len(stepped)

    assert steps() == 0
    env.modify_observable("robot0_joint_vel", "enabled", True)
    assert steps() == 1
    env.modify_observable("robot0_joint_vel", "enabled", False)
    with monkeypatch.context() as patched:
        patched.setattr(mujoco.mjtIntegrator, "mjINT_EULER", mujoco.mjtIntegrator.mjINT_RK4)
        assert steps() == 1
    assert steps(callback=lambda model, data: None) == 1
    # A reset makes a new controller; this one runs another law.
    plain = type(env.robots[0].controller).__init__
    with monkeypatch.context() as patched:
        patched.setattr(
            type(env.robots[0].controller),
            "__init__",
            lambda self, *args, **words: plain(self, *args, **{**words, "uncouple_pos_ori": False}),
        )
        assert steps() == 1
    assert steps() == 0
