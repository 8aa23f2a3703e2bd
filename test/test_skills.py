"""The skills: they solve tasks by the suite's own test, from layouts of ours, and leave a dataset that others read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_policy import TinyPolicy

from policies.openvla.robots import libero_proprio
from policies.training.wordings import paraphrase
from policies.types import ActionChunk, ActionSpace, Observation, VegaError
from sim.demonstrations import arrangements, collect_skills, try_layouts, try_skills
from sim.demonstrations.arrangements import lay_out
from sim.demonstrations.disturbances import Driver
from sim.demonstrations.dyes import Dyes
from sim.demonstrations.skills.expert import SkillExpert, ordered, skill_for
from sim.demonstrations.skills.motion import DOWN, hand_rotation, lean_from, nearer_half_turn
from sim.demonstrations.skills.scene import Scene
from sim.demonstrations.views import MOVED, Views
from sim.evaluation.direct_episodes import DirectEpisodes
from sim.worlds.libero_env import LiberoEnvironment

pq = pytest.importorskip("pyarrow.parquet")
directions = st.tuples(*[st.floats(-1, 1)] * 3).map(np.array).filter(lambda v: np.linalg.norm(v) > 0.1)


@pytest.fixture(scope="module")
def stove() -> Iterator[LiberoEnvironment]:
    environment = LiberoEnvironment("libero_spatial", 7)  # the bowl stands on the stove
    yield environment
    environment.close()


def test_a_task_of_each_kind_is_solved_and_the_row_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    # A drawer pulled open, a bottle laid on a rack.
    options = ["--suite", "libero_goal", "--tasks", "0", "9", "--episodes", "2", "--layouts", "suite"]
    assert try_skills.main(options) == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert len(rows) == 2 and all("solved 2/2 >= 0.95 ok" in row for row in rows)


def test_from_official_states_what_is_out_of_reach_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    # In LIBERO-PRO's first state of this one, the basket lies ten metres off.
    options = ["--suite", "libero_object_temp_y0.4", "--tasks", "5", "--episodes", "1", "--layouts", "official"]
    assert try_skills.main(options) == 1
    row = capsys.readouterr().out
    assert "solved 0/1" in row and "[not solved: 0 official, basket_1 10." in row
    options[3:6] = "0", "--episodes", "2"
    assert try_skills.main(options) == 0 and "solved 2/2" in capsys.readouterr().out


def test_a_dataset_of_the_skills_is_made_once_and_tells_its_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", "libero_goal", "--tasks", "7", "--episodes", "1", "--processes", "1"]
    assert collect_skills.main([*arguments, "--output", str(tmp_path)]) == 0
    rows = pq.read_table(tmp_path / "dataset/data/chunk-000/file-000.parquet").to_pydict()
    assert rows["next.success"][-1] and np.abs(rows["action"]).max() <= 1.0
    assert set(np.array(rows["action"])[:, 6]) <= {-1.0, 1.0}
    info = json.loads((tmp_path / "dataset/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["total_frames"] == len(rows["index"])
    capsys.readouterr()
    assert collect_skills.main([*arguments, "--output", str(tmp_path)]) == 0
    assert "all episodes were there" in capsys.readouterr().out


MADE_OTHERWISE = [["--every", "2"], ["--policy", "vega-nano-suites"], ["--as-scored"], ["--layouts", "suite"]]


@pytest.mark.parametrize("other", MADE_OTHERWISE)
def test_episodes_that_were_made_otherwise_are_not_taken_for_those_asked_for(
    other: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_skills, "each_in_its_process", lambda *_: [])
    arguments = ["--suite", "libero_goal", "--tasks", "7", "--output", str(tmp_path)]
    assert collect_skills.main(arguments) == collect_skills.main(arguments) == 0
    assert collect_skills.main([*arguments, *other]) == 2
    assert "give the same again, or another --output" in capsys.readouterr().err
    assert collect_skills.main([*arguments, *other, "--seed", "1"]) == 0  # in a folder of its own


class LaidOut(Exception):
    pass


@pytest.mark.parametrize("layouts", ["suite", ""])
def test_layouts_are_of_the_kind_that_is_asked_for(
    layouts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def laid_out(environment: LiberoEnvironment, rng: np.random.Generator, kind: str) -> None:
        assert kind == layouts
        raise LaidOut

    monkeypatch.setattr(collect_skills, "lay_out", laid_out)
    with pytest.raises(LaidOut):
        collect_skills.collect_task("libero_goal", 7, 1, 1, 4, tmp_path, layouts=layouts)


def test_a_policy_drives_first_and_what_is_recorded_begins_where_the_skills_take_over(
    stove: LiberoEnvironment, tmp_path: Path
) -> None:
    tape, home, views, dyes = tmp_path / "tape.npz", stove.state().eef_position, Views(stove), Dyes(stove)
    attempts = (
        collect_skills.collect_episode(stove, views, dyes, np.random.default_rng(seed), tape, 4, TinyPolicy())
        for seed in range(3)
    )
    assert any(attempts)
    views.draw([], np.random.default_rng(0))
    dyes.wash()
    with np.load(tape) as kept:
        assert kept["action"].shape == (len(kept["state"]), 28) and kept["fps"] == 5
        arm = kept["state"][0, :3] - kept["column/robot.base"][0, :3]
        assert np.linalg.norm(arm - home) > 0.01
        inside = kept["column/teacher.pixel.agentview"]
        assert ((inside == -1).all(axis=1) | ((inside >= 0) & (inside < 256)).all(axis=1)).all()


def test_a_policy_that_drives_is_told_what_an_evaluation_tells_it(stove: LiberoEnvironment) -> None:
    """Where the base stands, too: policies of the world frame, such as OpenVLA-OFT, know no other state."""
    told: dict[str, Observation] = {}

    class Listening(TinyPolicy):
        def act(self, observation: Observation) -> ActionChunk:
            told.setdefault(where, observation)
            return super().act(observation)

    where, episodes = "evaluation", DirectEpisodes(stove.suite, Listening(), "eef")
    episodes._environment = stove
    stove.max_steps, honest = 1, stove.max_steps
    try:
        assert not episodes.run(stove.task, 0).error
    finally:
        stove.max_steps = honest
    stove.reset(0)
    true = stove.env.sim.data.site_xpos[stove.env.robots[0].eef_site_id].copy()
    where = "driving"
    Driver(stove, Listening(), "in other words").step()
    np.testing.assert_allclose(libero_proprio(told["driving"])[:3], true, atol=1e-6)
    for name in ("base_position", "base_quaternion", "stamp_ns"):
        np.testing.assert_array_equal(getattr(told["driving"], name), getattr(told["evaluation"], name))
    assert [o.instruction for o in told.values()] == [stove.instruction, "in other words"]
    Listening.spec = replace(TinyPolicy.spec, action_space=ActionSpace("joint_position"))
    with pytest.raises(VegaError, match="commands joints"):
        Driver(stove, Listening(), stove.instruction)


def test_a_policy_that_cannot_be_told_the_tasks_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", "libero_goal", "--policy", "vega-nano-plain"]
    for main in (collect_skills.main, try_layouts.main):
        more = ["--output", str(tmp_path)] if main is collect_skills.main else []
        assert main([*arguments, *more]) == 2
        assert "which this policy does not know" in capsys.readouterr().err


def test_a_policy_is_tried_on_the_kind_of_layouts_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is drawn unless it is named; in the success of a training they are not taken together."""
    noted: list[tuple[object, ...]] = []
    monkeypatch.setattr(try_layouts, "note", lambda *line: noted.append(line))
    monkeypatch.setattr(try_layouts, "attempt", lambda *_: (False, 0.1))
    monkeypatch.setattr(
        try_layouts, "each_in_its_process", lambda work, jobs, *_: [(job, work(*job)) for job in jobs]
    )  # fmt: skip
    words = ["--policy", "tiny_policy:TinyPolicy", "--suite", "libero_goal", "--tasks", "7", "--episodes", "1"]
    assert try_layouts.main([*words, "--layouts", "suite"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert rows[0].startswith("task 7 suite:") and len(rows) == 3  # drawn, this one would be shifted
    assert [line[1:] for line in noted] == [("libero_goal suite", 0, 1)]


def test_what_stands_on_a_fixture_is_reset_onto_it_and_stays_in_a_new_layout(stove: LiberoEnvironment) -> None:
    for seed in range(3):
        stove.seed_random(seed)
        stove.random_reset()
        scene = Scene(stove)
        region, bowl = scene.site("flat_stove_1_cook_region"), scene.pose("akita_black_bowl_1")
        assert np.linalg.norm((region.position - bowl.position)[:2]) < 0.1
        lay_out(stove, np.random.default_rng(seed))
        assert scene.box("akita_black_bowl_1").low[2] > scene.table


def test_layouts_exchange_things_and_keep_the_place_that_an_instruction_names(stove: LiberoEnvironment) -> None:
    """What a layout is called is what it is: things moved far, fixtures exchanged, and the twin is still told apart."""
    stove.seed_random(0)
    stove.random_reset()
    scene = Scene(stove)
    usual = {name: scene.pose(name).position[:2] for name in scene.names}
    moved: dict[str, list[np.ndarray]] = {name: [] for name in scene.names}
    kinds = []
    for seed in range(12):
        kinds.append(lay_out(stove, np.random.default_rng(seed)))
        for name, at in moved.items():
            at.append(np.linalg.norm(scene.pose(name).position[:2] - usual[name]))
        stands_on = scene.site("flat_stove_1_cook_region").position - scene.pose("akita_black_bowl_1").position
        assert np.linalg.norm(stands_on[:2]) < 0.1  # the instruction: the bowl on the stove
    assert kinds.count("suite") < 6
    assert np.median(moved["cookies_1"]) > 0.05
    assert max(moved["plate_1"]) > 0.15
    assert max(moved["flat_stove_1"]) > 0.3


def test_a_knob_is_turned_where_its_fixture_has_been_put() -> None:
    environment = LiberoEnvironment("libero_goal", 7)  # turn on the stove
    try:
        environment.seed_random(0)
        environment.random_reset()
        scene = Scene(environment)
        usual = scene.pose("flat_stove_1").position[:2]
        for seed in range(20):
            lay_out(environment, np.random.default_rng(seed), "permuted")
            if np.linalg.norm(scene.pose("flat_stove_1").position[:2] - usual) > 0.3:
                break
        else:
            pytest.fail("the stove stands where it always does")
        expert = SkillExpert(environment)
        assert any(environment.step_eef(expert.action()) for _ in range(environment.max_steps))
    finally:
        environment.close()


def test_views_stay_in_their_bounds_and_leave_the_physics_alone(stove: LiberoEnvironment) -> None:
    views, model = Views(stove), stove.env.sim.model._model
    built = model.cam_pos.copy(), model.mat_rgba.copy()
    digests, moved = [], []
    for kinds in ((), ("camera", "light", "texture")):
        for seed in range(3):
            views.draw(kinds, np.random.default_rng(seed))
            moved.append(float(np.linalg.norm(model.cam_pos - built[0], axis=1).max()))
        stove.reset(0)
        for _ in range(3):
            stove.step_eef(np.array([0.5, 0.2, -0.5, 0, 0, 0.1, -1.0]))
        digests.append(stove.states_digest())
    assert digests[0] == digests[1]
    assert moved[:3] == [0.0] * 3 and all(0.0 < m <= MOVED for m in moved[3:])
    views.draw((), np.random.default_rng(0))
    np.testing.assert_array_equal(model.mat_rgba, built[1])
    with pytest.raises(VegaError, match="camera, light, texture"):
        views.draw(["weather"], np.random.default_rng(0))


def test_where_a_layout_has_no_room_the_next_wider_one_is_made_and_none_that_is_solved(
    stove: LiberoEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrangements, "ATTEMPTS", 2)
    honest, no_room = arrangements._rearrange, {"permuted"}

    def rearrange(scene: Scene, kind: str, rng: np.random.Generator, wide: bool) -> bool:
        return kind not in no_room and honest(scene, kind, rng, wide)

    monkeypatch.setattr(arrangements, "_rearrange", rearrange)
    assert lay_out(stove, np.random.default_rng(0), "permuted") == "random"
    no_room.add("random")
    assert lay_out(stove, np.random.default_rng(0), "permuted") == "shifted"
    monkeypatch.setattr(stove.env, "_check_success", lambda: True)
    with pytest.raises(VegaError, match="solved as it begins"):
        lay_out(stove, np.random.default_rng(0), "permuted")


def test_of_two_simulators_in_a_process_each_draws_its_own(stove: LiberoEnvironment) -> None:
    stove.reset(0)
    alone = stove.render("agentview")
    other = LiberoEnvironment("libero_goal", 7)
    other.reset(0)
    seen = other.render("agentview")
    np.testing.assert_array_equal(stove.render("agentview"), alone)
    np.testing.assert_array_equal(other.render("agentview"), seen)
    other.close()
    np.testing.assert_array_equal(stove.render("agentview"), alone)


def test_what_is_told_of_a_view_is_what_is_seen_and_named_things_keep_their_colours(stove: LiberoEnvironment) -> None:
    views, model = Views(stove), stove.env.sim.model._model
    stove.reset(0)
    plain, kept = stove.render("agentview").astype(int), model.mat_rgba.copy()
    lit = model.light_diffuse.copy()
    of_cabinet = ["wooden" in model.body(body).name for body in model.geom_bodyid]
    named = np.unique(model.geom_matid[np.flatnonzero(of_cabinet)])
    named = named[named >= 0]
    brighter = set()
    for seed in range(8):
        drawn = views.draw(["texture"], np.random.default_rng(seed))["texture"]
        wanted = kept[drawn["materials"], :3] * drawn["tints"]
        np.testing.assert_allclose(model.mat_rgba[drawn["materials"], :3], wanted, rtol=1e-6)
        np.testing.assert_array_equal(model.mat_rgba[named], kept[named])
        drawn = views.draw(["light"], np.random.default_rng(seed))["light"]
        np.testing.assert_allclose(model.light_diffuse, lit * drawn["factor"], rtol=1e-6)
        brighter.add(stove.render("agentview").astype(int).mean() > plain.mean())
    assert len(named) >= 1 and brighter == {True, False}
    views.draw((), np.random.default_rng(0))


def test_the_hand_leans_out_to_what_stands_farther_than_it_reaches_straight_down() -> None:
    environment = LiberoEnvironment("libero_object", 3)
    try:
        environment.reset(0)
        joint = str(environment.env.objects_dict[environment.env.obj_of_interest[0]].joints[-1])
        pose = np.array(environment.env.sim.data.get_joint_qpos(joint))
        pose[:2] = 0.22, -0.15  # 0.83 m from the arm's base
        environment.env.sim.data.set_joint_qpos(joint, pose)
        environment.env.sim.forward()
        expert = SkillExpert(environment)
        assert any(environment.step_eef(expert.action()) for _ in range(environment.max_steps))
    finally:
        environment.close()


def test_goals_are_put_in_order_and_an_unknown_one_is_refused(stove: LiberoEnvironment) -> None:
    scene = Scene(stove)
    drawer = "wooden_cabinet_1_top_region"
    steps = ordered(scene, [["close", drawer], ["in", "akita_black_bowl_1", drawer]])
    assert [step[0] for step in steps] == ["open", "in", "close"]
    with pytest.raises(VegaError, match="levitate"):
        skill_for(scene, ["levitate", "akita_black_bowl_1"])
    with pytest.raises(VegaError, match="unicorn_1"):
        skill_for(scene, ["on", "akita_black_bowl_1", "unicorn_1"])


@given(approach=directions, opening=directions)
def test_hand_rotations_are_rotations(approach: np.ndarray, opening: np.ndarray) -> None:
    if np.linalg.norm(np.cross(approach, opening)) < 0.01:
        return
    rotation = hand_rotation(approach, opening)
    for candidate in (rotation, nearer_half_turn(rotation, np.eye(3)), lean_from(DOWN, rotation[:, 2])):
        np.testing.assert_allclose(candidate @ candidate.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(candidate) == pytest.approx(1.0)
    np.testing.assert_allclose(nearer_half_turn(rotation, np.eye(3))[:, 2], rotation[:, 2])


@given(seed=st.integers(0, 2**32 - 1))
def test_a_paraphrase_names_the_same_things_at_the_same_places(seed: int) -> None:
    text = paraphrase(
        "put the black bowl in the bottom drawer of the cabinet and close it", np.random.default_rng(seed)
    )
    for part in ("black bowl", "bottom drawer of cabinet"):
        assert part in text.replace("the ", "")  # articles may be left out
