"""The skills where there is little room: a hand that leans, grasps that slip, drawers and doors, boxes that meet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.demonstrations import try_skills
from sim.demonstrations.skills.expert import SkillExpert, skill_for
from sim.demonstrations.skills.grasps import LEANS, SHALLOWER, Grasp, hits
from sim.demonstrations.skills.joints import BEYOND, Push
from sim.demonstrations.skills.motion import DOWN, hand_rotation
from sim.demonstrations.skills.scene import Pose, Scene, turn
from sim.demonstrations.skills.transfer import LOST, Transfer
from sim.worlds.libero_env import LiberoEnvironment

directions = st.tuples(*[st.floats(-1, 1)] * 3).map(np.array).filter(lambda v: np.linalg.norm(v) > 0.1)


@pytest.fixture(scope="module")
def stove() -> Iterator[LiberoEnvironment]:
    environment = LiberoEnvironment("libero_spatial", 7)  # a bowl stands on the stove, another on the cabinet
    yield environment
    environment.close()


@pytest.mark.parametrize(
    "suite, task, episode",
    [
        ("libero_spatial", 4, 5),  # a bowl in an open drawer, close under the cabinet's top
        ("libero_goal", 3, 7),  # a bowl that stands close under the drawer that is opened for it
        ("libero_10", 8, 0),  # two pots on one plate of the stove
        ("libero_10", 9, 0),  # a mug into a microwave by its handle, and its door pushed shut
    ],
)
def test_where_there_is_little_room_the_hand_finds_some(suite: str, task: int, episode: int) -> None:
    environment = LiberoEnvironment(suite, task)
    try:
        solved, steps, _ = try_skills.attempt(environment, 2001, episode, "suite")
    finally:
        environment.close()
    assert solved and steps < 0.9 * environment.max_steps


def test_a_grasp_that_loses_the_thing_is_not_tried_again(stove: LiberoEnvironment) -> None:
    """One that slips slips again: an expert that went back to it would show nothing else for the whole episode."""
    stove.reset(0)
    expert = SkillExpert(stove)
    skill = expert._current()
    assert isinstance(skill, Transfer)
    grasp = skill._grasp
    skill._enter("carry")  # of nothing
    skill._rotation = expert.scene.hand.rotation
    for _ in range(LOST + 1):
        skill.action()
    assert skill._phase == "reach" and skill._grasp is not grasp


def test_a_drawer_is_pushed_on_after_it_is_closed_and_a_box_taken_by_its_middle() -> None:
    """A policy that would stop where `close` just holds, or aim at a corner, misses both by a little."""
    environment = LiberoEnvironment("libero_10", 3)
    try:
        environment.seed_random(1)
        environment.random_reset()
        scene = Scene(environment)
        skill = skill_for(scene, ["close", "white_cabinet_1_bottom_region"])
        assert isinstance(skill, Push)
        joint, places = scene.joint(scene.joints_of("white_cabinet_1_bottom_region")[0]), []
        for _ in range(200):
            if skill.finished:
                break
            environment.step_eef(skill.action())
            if skill._phase == "push" and scene.holds(skill.predicate):
                places.append(joint.value)
        assert skill.finished and scene.holds(skill.predicate)
        assert len(places) > BEYOND and abs(places[-1] - places[-2]) < 1e-5  # and stands
    finally:
        environment.close()
    environment = LiberoEnvironment("libero_object", 1)
    try:
        environment.seed_random(1)
        environment.random_reset()
        expert = SkillExpert(environment)
        skill = expert._current()
        assert isinstance(skill, Transfer) and skill.name == "cream_cheese_1"
        grasp = skill._grasp.in_world(expert.scene, skill.name)
        assert np.linalg.norm((grasp.position - expert.scene.pose(skill.name).position)[:2]) < 0.02
    finally:
        environment.close()


@settings(max_examples=40, deadline=None)
@given(lean=st.sampled_from(LEANS), back=st.sampled_from(SHALLOWER), yaw=st.floats(-3.1, 3.1))
def test_a_variant_presses_where_the_grasp_does(lean: float, back: float, yaw: float) -> None:
    grasp = Grasp(Pose(np.array([0.1, 0.2, 0.3]), hand_rotation(DOWN, np.array([np.cos(yaw), np.sin(yaw), 0.0]))), 0.01)
    variants = {
        (round(float(v.hand.position[2]), 4), round(float(v.hand.rotation[:, 2] @ grasp.hand.rotation[:, 0]), 4))
        for v in grasp.variants()
    }
    assert (lean, back) == (0.0, 0.0) or (round(0.3 + back, 4), round(float(np.sin(lean)), 4)) in variants
    for variant in grasp.variants():  # the fingers open along the same line, over the same spot
        np.testing.assert_allclose(variant.hand.position[:2], grasp.hand.position[:2], atol=1e-9)
        np.testing.assert_allclose(variant.hand.rotation[:, 1], grasp.hand.rotation[:, 1], atol=1e-9)
        np.testing.assert_allclose(variant.hand.rotation @ variant.hand.rotation.T, np.eye(3), atol=1e-9)


def test_a_hand_hits_what_is_there_as_it_is_turned(stove: LiberoEnvironment) -> None:
    stove.reset(0)
    scene = Scene(stove)
    name = "wooden_cabinet_1"
    low, high = scene.box(name).low, scene.box(name).high
    straight = hand_rotation(DOWN, np.array([0.0, 1.0, 0.0]))
    middle = (low + high) / 2
    inside, over = (Pose(np.array([*middle[:2], high[2] + up]), straight) for up in (-0.01, 0.05))
    loose = tuple(scene.movable)  # a bowl stands on it
    assert hits(scene, inside, loose) and hits(scene, over, ())
    assert not hits(scene, over, loose) and not hits(scene, inside, (name, *loose))
    # Beside it, fingers down, a hand that leans over it meets it, one that leans away does not.
    beside = np.array([middle[0], high[1] + 0.06, high[2] - 0.06])
    along = hand_rotation(DOWN, np.array([1.0, 0.0, 0.0]))
    leaning = [hits(scene, Pose(beside, turn(along[:, 1], angle) @ along), loose) for angle in (0.5, -0.5)]
    assert sorted(leaning) == [False, True]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.tuples(st.floats(-0.15, 0.2), st.floats(-0.45, -0.1), st.floats(0.9, 1.2)), axis=directions,
    angle=st.floats(-3.1, 3.1), half=st.tuples(*[st.floats(0.001, 0.1)] * 3), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_box_meets_what_holds_a_point_of_it_and_nothing_farther_than_both_are_wide(
    stove: LiberoEnvironment, at: tuple[float, ...], axis: np.ndarray, angle: float, half: tuple[float, ...], seed: int
) -> None:
    """Against points drawn in the box: `meets` may say more than they do, never less."""
    scene = Scene(stove)
    names = [name for name in scene.names if name != "wooden_cabinet_1"]
    pose, size = Pose(np.array(at), turn(axis / np.linalg.norm(axis), angle)), np.array(half)
    drawn = np.random.default_rng(seed).uniform(-1, 1, (400, 3)) * size
    points = pose.position + drawn @ pose.rotation.T
    held, gaps = False, []
    for geom in scene._geoms["wooden_cabinet_1"]:
        turned, middle = scene.data.geom_xmat[geom].reshape(3, 3), scene.model.geom_aabb[geom][:3]
        local = (points - scene.data.geom_xpos[geom]) @ turned - middle
        held |= bool((np.abs(local) < scene.model.geom_aabb[geom][3:]).all(axis=1).any())
        away = float(np.linalg.norm(scene.data.geom_xpos[geom] + turned @ middle - pose.position))
        gaps.append(away - np.linalg.norm(scene.model.geom_aabb[geom][3:]) - np.linalg.norm(size))
    meets = scene.meets(pose, size, tuple(names))
    assert meets or not held
    assert not meets or min(gaps) < 0
