"""libero_space: what its questions say is true, of made-up scenes and of one that MuJoCo measures itself."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import mujoco
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from policies.spatial.scores.vsi import question_of
from policies.types import VegaError
from sim.results.spatial.frames import read_frames
from sim.space import assets, collect, filming
from sim.space.arrange import lay_out
from sim.space.film import Camera, camera_path, camera_pose, intrinsics
from sim.space.layout import assemble, read_scene
from sim.space.stage import Stage
from sim.space.truth import directions
from sim.space.truth.facts import SceneFacts, Thing
from sim.space.truth.questions import questions
from sim.space.truth.referring import descriptions, groups
from sim.space.truth.shapes import Box, Cloud, aligned_box, level_area, surface_points, upright_box

SIZES = st.floats(0.02, 0.5)
PLACES = st.floats(-1.0, 1.0)
ANGLES = st.floats(-180.0, 180.0)


def block(size: tuple[float, float, float], centre: tuple[float, float, float], yaw: float) -> tuple:
    """Vertices and triangles of a box."""
    corners = Box(np.array(centre), np.array(size), yaw).corners
    faces = [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6]]
    return corners, np.array([*faces, [0, 6, 4], [1, 5, 7], [1, 7, 3]])


@given(st.tuples(SIZES, SIZES, SIZES), st.tuples(PLACES, PLACES, PLACES), st.floats(0.0, 3.1))
def test_the_upright_box_of_a_box_is_that_box(size: tuple, centre: tuple, yaw: float) -> None:
    found = upright_box(surface_points(*block(size, centre, yaw), spacing=0.05))
    assert np.allclose(found.centre, centre, atol=1e-6)
    assert np.allclose(found.size, [max(size[:2]), min(size[:2]), size[2]], atol=1e-6)
    if max(size[:2]) > 1.01 * min(size[:2]):
        expected = yaw if size[0] >= size[1] else yaw + np.pi / 2
        assert min(abs((found.yaw - expected) % np.pi), np.pi - abs((found.yaw - expected) % np.pi)) < 1e-4
    assert np.allclose(sorted(map(tuple, np.round(found.corners, 5))), sorted(map(tuple, np.round(
        Box(found.centre, found.size, found.yaw + np.pi).corners, 5))), atol=2e-5)  # fmt: skip


@settings(max_examples=25)
@given(st.tuples(SIZES, SIZES, SIZES), st.tuples(SIZES, SIZES, SIZES), st.floats(0.01, 0.6), PLACES, st.floats(0, 3))
def test_the_gap_of_two_blocks_is_how_far_they_were_put_apart(
    one: tuple, other: tuple, gap: float, shift: float, yaw: float
) -> None:
    """Side by side along x in a frame that is turned by yaw; shifted so that faces still meet."""
    aside = shift * 0.4 * min(one[1], other[1])
    turned = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    x, y = turned @ [one[0] / 2 + gap + other[0] / 2, aside]
    first = Cloud(surface_points(*block(one, (0, 0, 0), yaw), spacing=0.01))
    second = Cloud(surface_points(*block(other, (x, y, 0), yaw), spacing=0.01))
    # Points at most a centimetre apart on each face: off by the hypotenuse at worst.
    assert gap - 1e-6 <= first.gap(second) <= np.hypot(gap, 0.015)
    assert first.gap(second) == pytest.approx(second.gap(first), abs=1e-9)


@given(st.integers(0, 2**31 - 1))
def test_the_gap_is_that_of_the_closest_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(60, 3)), rng.normal(size=(50, 3)) + rng.uniform(-4, 4, 3)
    plain = np.linalg.norm(one[:, None] - other[None], axis=2).min()
    assert Cloud(one).gap(Cloud(other)) == pytest.approx(plain, abs=1e-12)


@given(SIZES, SIZES, st.floats(0.0, 3.0))
def test_a_table_tops_area_is_that_of_its_upper_face(length: float, width: float, yaw: float) -> None:
    vertices, faces = block((length, width, 0.05), (0.3, -0.2, 0.875), yaw)
    assert level_area(vertices, faces, 0.9) == pytest.approx(length * width, rel=1e-6)
    assert level_area(vertices, faces, 0.6) == 0.0


@given(st.tuples(PLACES, PLACES), ANGLES, ANGLES, st.floats(0.05, 2.0))
def test_a_bearing_is_the_turn_to_the_left(here: tuple, heading: float, turn: float, far: float) -> None:
    def ahead(degrees: float) -> np.ndarray:
        return np.array([*here, 0.0]) + far * np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)), 5.0])

    assume(abs(abs(turn) - 180) > 1e-3)
    found = float(directions.bearing(np.array([*here, 0.0]), ahead(heading), ahead(heading + turn)))
    assert found == pytest.approx(turn, abs=1e-4)


@given(ANGLES, st.floats(0.01, 0.3), st.sampled_from(["easy", "medium", "hard"]))
def test_a_direction_is_told_where_it_is_clear_and_mirrors(angle: float, size: float, level: str) -> None:
    """Standing at the origin, facing +y; mirrored about that axis left and right change places."""
    told = []
    for sign in (1, -1):
        middle = np.array([-sign * np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle)), 0.0])
        corners = Box(middle, np.full(3, size), 0.0).corners
        told.append(directions.relative_direction(np.zeros(3), np.array([0.0, 1.0, 0.0]), middle, corners, level))
    mirrored = told[0]
    if mirrored is not None:
        swap = {"left": "right", "right": "left"}
        mirrored = re.sub("left|right", lambda found: swap[found[0]], mirrored)
    assert told[1] == mirrored
    clear = min(directions.apart(angle, border) for border in directions.BORDERS[level]) >= directions.MARGIN_DEG
    if not clear:
        assert told[0] is None
    elif size < 0.1:
        side = "left" if angle > 0 else "right"
        quadrant = f"{'front' if abs(angle) < 90 else 'back'}-{side}"
        assert told[0] == {"easy": side, "medium": "back" if abs(angle) > 135 else side, "hard": quadrant}[level]


def made_up(seed: int, count: int = 8, frames: int = 12) -> SceneFacts:
    """Things that come into view one after the other; the last two are of one category."""
    rng = np.random.default_rng(seed)
    things = []
    for i in range(count):
        centre = np.array([*rng.uniform(-0.4, 0.4, 2), 0.05])
        box = Box(centre, np.sort(rng.uniform(0.03, 0.12, 3))[::-1], float(rng.uniform(0, 3)))
        seen = np.where(np.arange(frames) >= i, 0.01, 0.0)
        said = "spoon" if i >= count - 2 else f"thing {'abcdefghij'[i]}"
        things.append(Thing(f"t{i}", said, centre, box.corners, box.size, aligned_box(box.corners), seen))
    gaps = np.array([[np.linalg.norm(a.centre - b.centre) * (a is not b) for b in things] for a in things])
    return SceneFacts("made", f"up{seed}", tuple(things), gaps, 1.25)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_answers_are_true_of_the_scene(seed: int) -> None:
    facts = made_up(seed)
    place = {thing.said: thing for thing in facts.things}
    number = {thing.said: i for i, thing in enumerate(facts.things)}
    for row in questions(facts, np.random.default_rng(seed)):
        question = question_of(row)  # VSI-Bench's own layout
        text, truth = question.question, question.ground_truth
        answer = next((option[3:] for option in question.options if option.startswith(f"{truth}.")), truth)
        if question.kind == "object_counting":
            assert (text, truth) == ("How many spoons are in this scene?", "2")
        elif question.kind == "object_abs_distance":
            one, other = re.search("between the (.+) and the (.+) \\(in", text).groups()  # type: ignore[union-attr]
            assert float(truth) == pytest.approx(facts.gaps[number[one], number[other]], abs=6e-4)
        elif question.kind == "object_rel_distance":
            some, to = re.search("objects \\((.+)\\) is the closest to the (.+)\\? If", text).groups()  # type: ignore[union-attr]
            gaps = {
                said: min(facts.gaps[number[to], i] for i, t in enumerate(facts.things) if t.said == said)
                for said in some.split(", ")
            }
            assert answer == min(gaps, key=lambda said: gaps[said])
            first, second = sorted(gaps.values())[:2]
            assert second - first >= 0.04 - 1e-9
        elif question.kind == "obj_appearance_order":
            first = [int(np.flatnonzero(place[said].seen)[0]) for said in answer.split(", ")]
            assert first == sorted(first) and len(set(question.options)) == 4
        elif question.kind == "object_size_estimation":
            said = re.search("dimension \\(length, width, or height\\) of the (.+), measured", text)[1]  # type: ignore[index]
            assert float(truth) == pytest.approx(100 * place[said].size.max(), abs=0.06)
        elif question.kind == "route_planning":
            stops = re.findall("Go forward until the (thing .)\\.", text)
            start = re.search("beginning at the (thing .) facing", text)[1]  # type: ignore[index]
            for before, here, there, turn in zip([start, *stops], stops, stops[1:], answer.split(", "), strict=False):
                a, b, c = (place[said].centre[:2] for said in (before, here, there))
                left = np.cross([*(b - a), 0], [*(c - b), 0])[2] > 0
                straight = np.dot(b - a, c - b) / np.linalg.norm(b - a) / np.linalg.norm(c - b)
                if turn == "Turn Back":
                    assert straight < np.cos(np.deg2rad(140))
                else:
                    assert (turn == "Turn Left") == left and abs(straight) < np.cos(np.deg2rad(54))
        elif question.kind == "room_size_estimation":
            assert truth == "1.25"
        else:
            stand, face, ask = re.findall("thing .", text)[:3]
            ahead, there = (place[said].centre[:2] - place[stand].centre[:2] for said in (face, ask))
            left = ahead[0] * there[1] - ahead[1] * there[0] > 0
            if answer != "back":
                assert ("left" in answer) == left
            if "-" in answer:
                assert answer.startswith("front") == (ahead @ there > 0)


@given(st.integers(0, 10_000))
def test_descriptions_mean_one_thing_and_groups_all_of_a_kind(seed: int) -> None:
    facts = made_up(seed)
    spoons = [i for i, thing in enumerate(facts.things) if thing.said == "spoon"]
    for row in descriptions(facts, np.random.default_rng(seed)):
        (meant,) = row["metadata"]["object_id"]
        assert row["box"] == pytest.approx(facts.things[meant].box, abs=1e-4)
        said = re.search("that is (closest to|farthest from) the (thing .)", row["conversations"][0]["value"])
        if said:
            anchor = next(i for i, thing in enumerate(facts.things) if thing.said == said[2])
            best = min if said[1] == "closest to" else max
            assert meant == best(spoons, key=lambda i: facts.gaps[anchor, i])
    for row in groups(facts, ["fork"], np.random.default_rng(seed)):
        kind, which = row["metadata"]["question_type"], row["metadata"]["object_id"]
        assert (kind == "zt") == ("forks" in row["conversations"][0]["value"]) == (not which)
        assert len(row["box"]) == len(which) and (kind == "mt") == (which == spoons)


def test_what_is_hidden_or_doubtful_is_not_asked_for() -> None:
    facts = made_up(3)
    hidden = [
        Thing(t.name, t.said, t.centre, t.corners, t.size, t.box, t.seen * (t.said != "thing a")) for t in facts.things
    ]
    rows = questions(SceneFacts("made", "up", tuple(hidden), facts.gaps, None), np.random.default_rng(0))
    assert rows and not any("thing a" in row["question"] for row in rows)
    one_spoon = [*hidden[:-1], Thing(**{**vars(hidden[-1]), "seen": np.zeros(12)})]
    rows = questions(SceneFacts("made", "up", tuple(one_spoon), facts.gaps, None), np.random.default_rng(0))
    assert not any("spoon" in row["question"] for row in rows)


def test_train_and_test_share_neither_scene_nor_thing() -> None:
    seen, kept = ({asset for pool in assets.SCENES[split].values() for asset in pool} for split in ("train", "test"))
    assert not seen & kept and not {a.name for a in seen} & {a.name for a in kept}
    assert not set(assets.SCENES["train"]) & set(assets.SCENES["test"])
    assert assets.SCENES["layouts"] == assets.SCENES["train"]


@pytest.fixture(scope="module")
def stage() -> Stage:
    wanted = {"robosuite:red cube", "robosuite:cereal", "robosuite:milk", "robosuite:green cube"}
    some = [(asset, 1) for asset in assets.ROBOSUITE_TRAIN if asset.asset in wanted]
    return Stage("robosuite_table", some, np.random.default_rng(4))


def test_gaps_and_sizes_are_those_that_mujoco_measures(stage: Stage) -> None:
    rng = np.random.default_rng(1)
    things = None
    while things is None:
        things = lay_out(stage, rng)
    cubes = [thing for thing in stage.things if "cube" in thing.said]
    for cube, x in zip(cubes, (-0.1, 0.12), strict=True):
        stage.place(cube, stage.top[:2] + np.array([x, 0.05 * x]), 5 * x)
    mujoco.mj_forward(stage.model, stage.data)
    (one, first), (other, second) = (
        (thing, next(g for g in thing.geoms if stage.model.geom_group[g] == 1)) for thing in cubes
    )
    measured = mujoco.mj_geomDistance(stage.model, stage.data, first, second, 1.0, np.zeros(6))
    assert Cloud(stage.world_points(one)).gap(Cloud(stage.world_points(other))) == pytest.approx(measured, abs=2e-3)
    edge = 2 * stage.model.geom_size[first][0]
    assert upright_box(stage.world_points(one)).size == pytest.approx([edge] * 3, abs=1e-4)
    assert upright_box(stage.world_points(one)).centre[2] - stage.top[2] == pytest.approx(edge / 2 + 0.002, abs=1e-3)


def test_a_thing_is_where_the_camera_shows_it(stage: Stage) -> None:
    rng = np.random.default_rng(2)
    things = None
    while things is None:
        things = lay_out(stage, rng)
    camera = Camera(stage, 96, 128)
    path = np.array([[0.0, 0.0, 0.0, 1.1, 170.0, -50.0], [0.0, 0.1, 0.0, 1.0, 215.0, -40.0]])
    shots = list(camera.film(path, depth=True))
    camera.close()
    lens = intrinsics(96, 128)
    for shot, row in zip(shots, path, strict=True):
        rotation = shot.pose[:3, :3]
        assert np.allclose(shot.pose, camera_pose(row)) and np.allclose(rotation.T @ rotation, np.eye(3))
        for thing in things:
            points = (stage.world_points(thing) - stage.top - shot.pose[:3, 3]) @ shot.pose[:3, :3]
            u, v = (lens @ (points / points[:, 2:]).T)[:2]
            shown = shot.pixels[stage.things.index(thing)]
            inside = (u > 0) & (u < 127) & (v > 0) & (v < 95)
            assert shown <= 1.3 * (np.ptp(u) + 2) * (np.ptp(v) + 2)
            if inside.all() and shown > 20:  # the nearest point of it is what its pixel's depth says
                middle = np.array([np.median(v), np.median(u)]).round().astype(int)
                near = np.hypot(u - middle[1], v - middle[0]) < 1.5
                if near.any():
                    depth = shot.depth_mm[middle[0], middle[1]] / 1000
                    assert depth <= points[near, 2].max() + 0.01


@given(st.integers(0, 1000))
def test_paths_stay_before_the_robot_and_above_the_table(seed: int) -> None:
    path = camera_path(np.random.default_rng(seed), 9)
    heights = [camera_pose(row)[2, 3] for row in path]
    assert path.shape == (9, 6) and min(heights) > 0.1
    assert np.abs(path[:, 4] - 180).max() <= 100 + 1e-9
    assert np.abs(np.diff(path, axis=0)).max(axis=0)[3] < 0.6
    near, around = (camera_path(np.random.default_rng(seed), 9, way)[:, 3] for way in ("near", "around"))
    assert near.max() < around.min() and path[0, 3] in (near[0], around[0])


def test_a_film_is_made_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filming, "choose_assets", lambda pool, rng: [(asset, 1) for asset in pool[:5]])  # robosuite's
    args = argparse.Namespace(
        split="train", output=tmp_path, films=1, frames=3, height=96, width=128, depth=True, seed=1, path=None
    )
    robosuite = list(assets.SCENES["train"]).index("robosuite_table")
    assert filming.collect_stage(args, robosuite) == (robosuite, 1, 0)
    counts = assemble(tmp_path, "train")
    assert counts["object_size_estimation"] >= 3 and sum(counts.values()) > 10
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert set(rows[0]) == {"id", "dataset", "scene_name", "question_type", "question", "ground_truth", "options"}
    scene = f"{rows[0]['dataset']}/{rows[0]['scene_name']}"
    assert [frame.shape for frame in read_frames(tmp_path, scene, 32)] == [(96, 128, 3)] * 3
    content = read_scene(tmp_path / f"{scene}.json")
    assert len(content["camera_to_world"]) == 3 and len(content["things"]) == len(content["gaps_m"])
    posed = tmp_path / "posed_images" / rows[0]["scene_name"]
    assert np.allclose(np.loadtxt(posed / "00002.txt"), content["camera_to_world"][2], atol=1e-5)
    before = (tmp_path / f"{scene}.mp4").stat().st_mtime_ns
    assert filming.collect_stage(args, robosuite) == (robosuite, 0, 0)
    assert (tmp_path / f"{scene}.mp4").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (["--seed", "8"], "with seed 7, not 8"),
        (["--frames", "4"], "with frames 3, not 4"),
        (["--height", "128"], "with height 96, not 128"),
        (["--width", "160"], "with width 128, not 160"),
        (["--path", "near"], "with path None, not near"),
        (["--depth"], "with depth False, not True"),
    ],
)
def test_films_that_were_made_otherwise_are_not_taken_for_those_asked_for(
    other: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "each_in_its_process", lambda *_: [])
    words = ["--output", str(tmp_path), "--frames", "3", "--height", "96", "--width", "128"]
    assert collect.main(words) == 0
    assert collect.main([*words, "--stages", "2", "--films", "3", "--processes", "1"]) == 0
    assert collect.main([*words, *other]) == 2
    told = capsys.readouterr().err
    assert said in told and "give the same again, or another --output" in told
    assert collect.main([*words, *other, "--split", "test"]) == 0  # films of its own


def test_it_draws_where_nobody_said_with_what() -> None:
    said = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    script = "import sim.space.filming; from mujoco.gl_context import GLContext; print(GLContext.__module__)"
    run = subprocess.run(
        [sys.executable, "-c", script], env=said, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    assert run.stdout.strip() == "mujoco.egl"


@pytest.mark.parametrize(
    ("options", "part"),
    [(["--films", "0"], "count from 1"), (["--height", "97"], "even sides"), (["--output", "/proc/x"], "be written")],
)
def test_what_cannot_be_collected_is_one_sentence(
    options: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect.main(options) == 2
    assert part in capsys.readouterr().err
    with pytest.raises(VegaError, match="no scene"):
        Stage("libero_moon", [], np.random.default_rng(0))


def test_all_pairs_of_things_stand_apart(stage: Stage) -> None:
    things = None
    rng = np.random.default_rng(8)
    while things is None:
        things = lay_out(stage, rng)
    clouds = [Cloud(stage.world_points(thing)) for thing in things]
    assert all(one.gap(other) > 0.02 for one, other in combinations(clouds, 2))
