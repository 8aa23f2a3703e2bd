"""What a report says of perturbed suites: success per dimension of LIBERO-plus, and over the graded shifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

import numpy as np

from sim.results.charts import Series, line_chart
from sim.results.evaluation import interval, percent
from sim.results.report_style import section, table
from sim.worlds.plus.libero_plus import DIMENSIONS, PUBLISHED
from sim.worlds.suites import PLUS, base_suite, shift

METRES_PER_GRADE = 0.7  # measured: the initial states of x0.1 have the target 0.07 m off, of x0.5 0.35 m
COLOURS = 6


class Run(Protocol):
    """What is used of an evaluation."""

    @property
    def summary(self) -> Mapping[str, Any]: ...

    @property
    def name(self) -> str: ...

    @property
    def arm(self) -> str: ...

    @property
    def as_published(self) -> bool: ...

    @property
    def counted(self) -> list[dict[str, Any]]: ...


def dimensions(runs: Sequence[Run]) -> str:
    """A section with a row for each dimension of each LIBERO-plus run; empty without such runs."""
    rows = []
    for run in runs:
        if not str(run.summary["suite"]).startswith(PLUS):
            continue
        for dimension in DIMENSIONS:
            tasks = set(run.summary.get("dimensions", {}).get(dimension, ()))
            found = [episode for episode in run.counted if episode["task"] in tasks]
            if not tasks:
                continue
            won, count = sum(episode["success"] for episode in found), len(found)
            rows.append(
                (dimension, run.name, f"{won} of {count}", percent(won, count), interval(won, count),
                 f"{PUBLISHED[dimension]:.1f} %" if run.as_published else "")
            )  # fmt: skip
    if not rows:
        return ""
    head = ("dimension", "run", "solved", "rate", "95 % interval (Wilson)", "OpenVLA-OFT, published")
    note = (
        "Published: LIBERO-plus, Fei et al. 2025, arXiv 2510.13626, over the four suites and all of each dimension's "
        "tasks. Light, background and layout need assets that no package carries."
    )
    return section("Dimensions of LIBERO-plus", table(head, rows), note)


def shifts(runs: Sequence[Run]) -> str:
    """A section with success over the shift of the target, a chart for each axis; empty unless runs differ in it."""
    names = _arms(runs)
    charts = []
    for axis in ("x", "y"):
        lines: dict[str, dict[float, list[bool]]] = {}
        for run, name in zip(runs, names, strict=True):
            suite = str(run.summary["suite"])
            graded = shift(suite)
            grade = graded[1] if graded and graded[0] == axis else 0.0 if _is_origin(suite, runs) else None
            if grade is not None and run.counted:
                won = lines.setdefault(name, {}).setdefault(grade, [])
                won.extend(bool(episode["success"]) for episode in run.counted)
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        if not lines:
            continue
        series = [
            Series(
                100 * METRES_PER_GRADE * np.array(sorted(points)),
                np.array([100 * float(np.mean(points[grade])) for grade in sorted(points)]), f"run{i % COLOURS}",
            )
            for i, points in enumerate(lines.values())
        ]  # fmt: skip
        legend = "".join(
            f'<span class="key dot run{i % COLOURS}"></span>{escape(name)}' for i, name in enumerate(lines)
        )
        chart = line_chart(series, f"success in percent over the shift along {axis} in cm", "cm", y_range=(0.0, 100.0))
        charts.append(
            f"<figure><figcaption>shift along {axis}, solved in %</figcaption>{chart}</figure>"
            f'<p class="legend">{legend}</p>'
        )
    if not charts:
        return ""
    note = (
        "libero_object_temp_x0.1 to y0.5 move the object that is asked for: a grade of 0.1 is 7 cm in their initial "
        "states. From 0.2 on, in some tasks, and from x0.3 and y0.4 on in most, what would stand in its way is out of "
        "the scene, ten metres off. 0 is libero_object itself, if it is among the runs."
    )
    return section("Success over the shift", f'<div class="charts">{"".join(charts)}</div>', note)


def _arms(runs: Sequence[Run]) -> list[str]:
    """What each run's line is called: runs of one policy in one way are one line, and other weights another."""
    weights = [str(run.summary.get("checkpoint_sha256", "")) for run in runs]
    of_arm: dict[str, set[str]] = {}
    for run, its in zip(runs, weights, strict=True):
        of_arm.setdefault(run.arm, set()).add(its)
    return [
        f"{run.arm}, weights {its[:8] or 'unknown'}" if len(of_arm[run.arm]) > 1 else run.arm
        for run, its in zip(runs, weights, strict=True)
    ]


def _is_origin(suite: str, runs: Sequence[Run]) -> bool:
    """Whether a suite is the plain one of shifts among the runs."""
    return any(shift(str(run.summary["suite"])) and base_suite(str(run.summary["suite"])) == suite for run in runs)
