"""Skills that begin where another was at the wheel, as in a round of DAgger: what the hand has it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.demonstrations.arrangements import lay_out
from sim.demonstrations.skills.expert import SkillExpert
from sim.demonstrations.skills.motion import CLOSE, DOWN, lean_from
from sim.demonstrations.skills.places import Place
from sim.demonstrations.skills.scene import Scene, turn
from sim.worlds.libero_env import LiberoEnvironment

LONGEST = 200  # steps


def drive_until(environment: LiberoEnvironment, phase: str, steps: int, goal: list[list[str]] | None = None) -> None:
    """To where another is, `steps` after it has entered a phase of its first skill."""
    other = SkillExpert(environment, goal)
    for _ in range(LONGEST):
        environment.step_eef(other.action())
        if getattr(other._skill, "_phase", "") == phase:
            break
    for _ in range(steps):
        environment.step_eef(other.action())
    assert getattr(other._skill, "_phase", "") == phase


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Iterator[LiberoEnvironment]:
    made = LiberoEnvironment(*request.param)
    lay_out(made, np.random.default_rng(5), "suite")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("environment", "phase", "steps", "kept"),
    [
        (("libero_goal", 9), "carry", 45, 8),  # a bottle, leaned, over the rack
        (("libero_goal", 0), "pull", 6, 8),  # a drawer's handle
        (("libero_goal", 7), "turn", 3, 4),  # a knob
        (("libero_10", 9), "carry", 30, 8),  # a mug by its handle, in front of the microwave
    ],
    indirect=["environment"],
)
def test_what_the_hand_has_it_keeps_and_the_task_is_solved(
    environment: LiberoEnvironment, phase: str, steps: int, kept: int
) -> None:
    drive_until(environment, phase, steps)
    expert, grips = SkillExpert(environment), []
    for _ in range(environment.max_steps):
        action = expert.action()
        grips.append(action[6])
        if environment.step_eef(action):
            break
    assert expert.solved
    assert grips[:kept] == [CLOSE] * kept


@pytest.mark.parametrize("environment", [("libero_goal", 7)], indirect=True)
def test_something_else_in_the_hand_is_let_go(environment: LiberoEnvironment) -> None:
    drive_until(environment, "carry", 10, [["on", "akita_black_bowl_1", "plate_1"]])
    assert any(Scene(environment).touches("akita_black_bowl_1"))
    assert SkillExpert(environment).action()[6] != CLOSE


@given(st.floats(-np.pi, np.pi), st.floats(0, 0.75), st.floats(-np.pi, np.pi), st.sampled_from(range(5)))
def test_what_stood_before_it_was_leaned_is_upright_again(yaw: float, lean: float, to: float, side: int) -> None:
    up = [*np.eye(3), *-np.eye(3)[:2]][side]  # the axis of the body that points up while the thing stands
    standing = turn(-DOWN, yaw) @ lean_from(up, -DOWN)
    leaned = turn(np.array([np.cos(to), np.sin(to), 0.0]), lean) @ standing
    upright = Place.upright(leaned)
    np.testing.assert_allclose(upright @ up, -DOWN, atol=2e-6)
    np.testing.assert_allclose(upright @ upright.T, np.eye(3), atol=1e-9)
