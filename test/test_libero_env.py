"""The LIBERO environment against the stock one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from policies.types import VegaError
from sim.worlds.libero_env import WAIT_STEPS, LiberoEnvironment
from sim.worlds.suites import list_tasks, load_suite

TASK = 3


@pytest.fixture(scope="module")
def environment() -> Iterator[LiberoEnvironment]:
    env = LiberoEnvironment("libero_object", TASK)
    yield env
    env.close()


def test_states_and_pictures_equal_those_of_the_stock_environment_bit_for_bit(environment: LiberoEnvironment) -> None:
    from libero.libero.envs import OffScreenRenderEnv

    actions = np.random.default_rng(0).uniform(-1, 1, (10, 7))
    states, pictures = {}, {}
    for trial in (1, 0):
        np.random.seed(trial)  # draws of others must not matter
        environment.reset(trial)
        for action in actions:
            environment.step_eef(action)
        states[trial], pictures[trial] = environment.states_digest(), environment.render("agentview")

    benchmark = load_suite("libero_object")
    stock = OffScreenRenderEnv(
        bddl_file_name=benchmark.get_task_bddl_file_path(TASK), camera_heights=256, camera_widths=256
    )
    stock.seed(0)
    for trial in (0, 1):
        stock.reset()
        stock.set_init_state(environment.initial_states[trial])
        for action in [[0, 0, 0, 0, 0, 0, -1]] * WAIT_STEPS + list(actions):
            stock.step(action)
        assert stock.get_sim_state().tobytes() == states[trial]
        # What `step` returns was drawn up to a substep (2 ms) before the step's end: observables have their own clock.
        seen = stock.env._get_observations(force_update=True)
        np.testing.assert_array_equal(seen["agentview_image"][::-1], pictures[trial])
    stock.close()


def test_a_trial_does_not_depend_on_what_ran_before(environment: LiberoEnvironment) -> None:
    digests = []
    for order in ((2,), (0, 1, 2), (7, 2)):
        for trial in order:
            environment.reset(trial)
        for _ in range(5):
            environment.step_joints(environment.state().joint_positions, np.zeros(7), -1.0)
        digests.append(environment.states_digest())
    assert digests[0] == digests[1] == digests[2]


def test_the_state_is_the_arm_in_its_base_frame(environment: LiberoEnvironment) -> None:
    environment.reset(0)
    state = environment.state()
    assert state.stamp_ns == 0
    assert np.linalg.norm(state.eef_quaternion) == pytest.approx(1.0)
    world = state.eef_position + environment.base_position
    assert world == pytest.approx(np.array(environment.env._eef_xpos), abs=1e-12)
    assert (state.gripper_positions > 0.03).all()


@pytest.mark.parametrize(
    ("suite", "task", "part"),
    [("libero", 0, "libero_object"), ("libero_object", 10, "0 to 9"), ("libero_object", -1, "0 to 9")],
)
def test_unknown_suites_and_tasks_say_what_exists(suite: str, task: int, part: str) -> None:
    with pytest.raises(VegaError, match=part):
        LiberoEnvironment(suite, task)


def test_unknown_trial_and_camera(environment: LiberoEnvironment) -> None:
    with pytest.raises(VegaError, match="0 to 49"):
        environment.reset(50)
    with pytest.raises(VegaError, match="wrist"):
        environment.render("head")


def test_the_sentence_is_the_file_name_except_where_only_the_field_differs() -> None:
    assert list_tasks("libero_object")[0] == "pick up the alphabet soup and place it in the basket"
    assert list_tasks("libero_object_swap") == list_tasks("libero_object")
    assert list_tasks("libero_object_lan")[0] != list_tasks("libero_object")[0]
