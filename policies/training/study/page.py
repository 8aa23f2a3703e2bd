"""What a study has found so far: `study.json`, and one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from policies.files.json_config import read_json
from policies.files.made_once import write_whole
from policies.training.curves import LOG, read_log
from policies.training.study.runs import RUN_FILE, Run, records

SUMMARY, PICTURE = "study.json", "study.png"
SHOWN = ("action", "target_m", "map", "point")  # held-out losses


def write(output: Path, runs: Sequence[Run]) -> None:
    """The finished runs of a study and how their held-out losses went; nothing before the first is logged.

    Told are all that the folder has; drawn those that are asked for now.
    """
    found = records(runs)
    own = {run.folder for run in runs}
    others = [read_json(path) for path in sorted(output.glob(f"runs/*/{RUN_FILE}")) if path.parent not in own]
    blocks = [seed for seed in dict.fromkeys(run.seed for run in runs) if _whole(seed, runs)]
    text = {"asked": len(runs), "whole_seeds": blocks, "runs": [*found, *others]}
    write_whole(output / SUMMARY, json.dumps(text, indent=1) + "\n")
    draw(output / PICTURE, runs, found)


def _whole(seed: int, runs: Sequence[Run]) -> bool:
    return all(run.record is not None for run in runs if run.seed == seed)


def draw(path: Path, runs: Sequence[Run], found: Sequence[Mapping[str, Any]]) -> None:
    """Held-out losses over the steps, a thin line for a run and a thick one for an arm's mean; then where they end."""
    logs = {run: read_log(run.folder / LOG) for run in runs}
    which = "held_out" if any("held_out" in line for log in logs.values() for line in log) else "train"
    arms = list(dict.fromkeys(run.arm for run in runs))
    names = [name for name in SHOWN if any(name in line.get(which, {}) for log in logs.values() for line in log)]
    if not names:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(arms, cycle(pyplot.get_cmap("tab10").colors), strict=False))  # type: ignore[attr-defined]
    figure, axes = pyplot.subplots(1, len(names) + 1, figsize=(4.2 * (len(names) + 1), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=False):
        for arm in arms:
            courses = [_course(log, which, name) for run, log in logs.items() if run.arm == arm and log]
            for course in courses:
                axis.plot(*zip(*course, strict=True), color=colours[arm], linewidth=0.6, alpha=0.6)
            if courses:
                common = sorted(set.intersection(*(set(dict(course)) for course in courses)))
                mean = [np.mean([dict(course)[step] for course in courses]) for step in common]
                axis.plot(common, mean, color=colours[arm], linewidth=2, label=arm)
        axis.set(title=f"{name}, {which.replace('_', ' ')}", xlabel="step")
    axes[0][0].legend(fontsize="small")
    last, name = axes[0][-1], names[0]
    for row, arm in enumerate(arms):
        values = [record[which][name] for record in found if record["arm"] == arm and name in record[which]]
        last.plot(values, [row] * len(values), "o", color=colours[arm])
        last.plot([np.mean(values)] if values else [], [row] if values else [], "|", color=colours[arm], markersize=20)
    last.set(
        title=f"{name} at the end, each seed", yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5)
    )
    last.locator_params(axis="x", nbins=4)
    figure.suptitle(f"{len(found)} of {len(runs)} runs finished")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _course(log: Sequence[Mapping[str, Any]], which: str, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[which][name]) for line in log if name in line.get(which, {})]
