"""Which suites there are, their tasks, sentences, step limits and initial states.

Offered is what can be run: LIBERO's own suites, and of LIBERO-PRO every folder that holds initial states.  The graded
shifts of libero_object (`libero_object_temp_x0.1` ...) have files but no class; they are libero_object's tasks, in its
order, with the files of that folder.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import re
from pathlib import Path
from typing import Any, Protocol

from policies.types import FloatArray, VegaError
from sim.worlds.installation import check_versions
from sim.worlds.plus import libero_plus
from sim.worlds.plus.libero_plus import language_field

MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
# Suites that extend none; no protocol names their limits, so they get those of the suite they resemble.
RESEMBLES = {"libero_mine": "libero_object", "libero_study_table": "libero_10"}
PLUS = "libero_plus_"


class Benchmark(Protocol):
    """What is used of LIBERO's benchmark classes."""

    n_tasks: int

    def get_task(self, i: int) -> Any: ...

    def get_task_bddl_file_path(self, i: int) -> str: ...

    def get_task_init_states(self, i: int) -> FloatArray: ...


@functools.cache
def suites() -> tuple[str, ...]:
    """Names of all suites that have initial states here."""
    check_versions()
    with contextlib.redirect_stdout(io.StringIO()):
        from libero.libero import get_libero_path
    states, scenes = (Path(get_libero_path(name)) for name in ("init_states", "bddl_files"))
    found = {path.name for path in states.iterdir() if path.is_dir() and (scenes / path.name).is_dir()}
    others = sorted(name for name in found if name not in MAX_STEPS and _extends(name))
    plus = tuple(PLUS + name.removeprefix("libero_") for name in libero_plus.SUITES) if libero_plus.folder() else ()
    return (*(name for name in MAX_STEPS if name in found), *others, *plus)


def load_suite(suite: str) -> Benchmark:
    """The benchmark object of a suite; VegaError names those that are spelt alike."""
    check_versions()
    if suite.startswith(PLUS) and "libero_" + suite.removeprefix(PLUS) in libero_plus.SUITES:
        return libero_plus.PlusBenchmark(suite, load_suite("libero_" + suite.removeprefix(PLUS)))
    if suite not in suites():
        alike = difflib.get_close_matches(suite, suites(), 5, 0.3) or list(MAX_STEPS)
        raise VegaError(
            f"There is no suite '{suite}': choose one such as {', '.join(alike)}; sim/run_libero.py --list shows all "
            f"{len(suites())}."
        )
    with contextlib.redirect_stdout(io.StringIO()):
        from libero.libero import benchmark

        if suite in benchmark.BENCHMARK_MAPPING:
            return benchmark.get_benchmark(suite)()  # type: ignore[no-any-return]
        plain = benchmark.get_benchmark(base_suite(suite))()
    plain.tasks = [task._replace(problem_folder=suite) for task in plain.tasks]
    plain.name = suite
    return plain  # type: ignore[no-any-return]


def load_task(suite: str, task: int) -> Benchmark:
    """The benchmark object of a suite that has this task; VegaError lists what exists."""
    benchmark = load_suite(suite)
    if not 0 <= task < benchmark.n_tasks:
        raise VegaError(f"Suite {suite} has tasks 0 to {benchmark.n_tasks - 1}: task {task} does not exist.")
    return benchmark


def base_suite(suite: str) -> str:
    """libero_object_swap, libero_object_with_mug, libero_plus_object -> libero_object."""
    suite = "libero_" + suite.removeprefix(PLUS) if suite.startswith(PLUS) else suite
    return _extends(suite) or suite


def _extends(suite: str) -> str:
    """The plain suite that this one is or extends; empty where there is none."""
    if suite in RESEMBLES:
        return RESEMBLES[suite]
    return next((name for name in MAX_STEPS if suite == name or suite.startswith(f"{name}_")), "")


def shift(suite: str) -> tuple[str, float] | None:
    """libero_object_temp_x0.3 -> ("x", 0.3); None for suites that are no graded shift."""
    match = re.fullmatch(r".*_temp_([xy])([0-9.]+)", suite)
    return (match.group(1), float(match.group(2))) if match else None


def task_instruction(suite: str, benchmark: Benchmark, task: int) -> str:
    """The sentence a policy is given.

    It comes from the bddl file name, as in the reference, except in LIBERO-PRO's `_lan` and `_task` suites: their files
    are named as in the plain suite, and what they change about the sentence is in the `:language` field only.  Names of
    libero_study_table carry a scene that LIBERO's own reading of names does not know.
    """
    if suite.endswith(("_lan", "_task")) or suite == "libero_study_table":
        sentence = language_field(Path(benchmark.get_task_bddl_file_path(task)))
        if sentence:
            return sentence
    return str(benchmark.get_task(task).language).lower()


def list_tasks(suite: str) -> list[str]:
    """Instructions of a suite's tasks, in order."""
    benchmark = load_suite(suite)
    return [task_instruction(suite, benchmark, i) for i in range(benchmark.n_tasks)]


def initial_states(suite: str, benchmark: Benchmark, task: int) -> FloatArray:
    """(n, d) official initial states of a task, n >= 1.  Raises VegaError where the suite has none for it."""
    try:
        states = benchmark.get_task_init_states(task)
    except FileNotFoundError as error:
        raise VegaError(f"Task {task} of {suite} has no initial states here: choose other --tasks.") from error
    if not len(states):
        raise VegaError(f"Task {task} of {suite} has 0 initial states: choose other --tasks.")
    return states
