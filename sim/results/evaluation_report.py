"""The page about one or several evaluations: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from policies.types import VegaError
from sim.results.evaluation import interval, percent, wilson_95
from sim.results.film import PICTURES, strip_path, video_path
from sim.results.paired import compare_pair
from sim.results.perturbations import dimensions, shifts
from sim.results.report_style import data_url, document, facts_table, section, table, write_document
from sim.results.result_files import SUMMARY_FILE
from sim.worlds.environment import VIEWS, views_of

REPORT_FILE = "report.html"
SHOWN_FAILURES = 24
MANY_TASKS = 100
COLOURS = 6
VIDEO_BUDGET = 24 * 2**20  # bytes of video that a page carries; what is beyond stays in the folder

# Success in percent.  OpenVLA-OFT: Kim et al. 2025, arXiv 2502.19645 (third-person and wrist image, proprioception, one
# policy a suite).  VEGA-3D: table 3 of its paper.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "libero_spatial": {"OpenVLA-OFT (its paper)": 97.6, "VEGA-3D (its paper, table 3)": 97.4},
    "libero_object": {"OpenVLA-OFT (its paper)": 98.4, "VEGA-3D (its paper, table 3)": 99.4},
    "libero_goal": {"OpenVLA-OFT (its paper)": 97.9, "VEGA-3D (its paper, table 3)": 97.0},
    "libero_10": {"OpenVLA-OFT (its paper)": 94.5, "VEGA-3D (its paper, table 3)": 95.2},
}
PUBLISHED_NOTE = (
    "Published: Kim et al. 2025, arXiv 2502.19645 (both cameras and proprioception, 500 episodes a suite); VEGA-3D, "
    "table 3 of its paper, which does not state the number of episodes. Others who repeated OpenVLA-OFT on "
    "libero_spatial report 93.2 to 99.4 %."
)
PUBLISHED_TASKS = 10  # of each of these suites
WITHHELD_NOTE = "Published rates are not shown beside runs whose views are perturbed, or whose tokens are replaced."
LOOK = """
.forest { width: 100%; max-width: 36rem; height: auto; display: block; }
.forest .band { stroke-width: 2.4; }
.forest .dot { stroke: var(--paper); stroke-width: 1; }
.run0 { --run: #2b6cb0; } .run1 { --run: #d9480f; } .run2 { --run: #2f9e44; } .run3 { --run: #9c36b5; }
.run4 { --run: #b58900; } .run5 { --run: #0b8793; }
path.run0, path.run1, path.run2, path.run3, path.run4, path.run5 { stroke: var(--run); stroke-width: 2; }
.band { stroke: var(--run); } .dot { fill: var(--run); } .key.dot { background: var(--run); }
.forest .published { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 3 3; }
.failures { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .8rem; }
.failures img { display: block; width: 100%; border-radius: .3rem; }
.failures summary { cursor: pointer; }
.failures figcaption { font-size: .8rem; color: var(--soft); }
.number { font-size: clamp(2rem, 9vw, 3.2rem); font-weight: 700; line-height: 1.1; margin: 0; }
.scroll { overflow-x: auto; }
.rates td { white-space: nowrap; }
"""


# What a page or a comparison needs of a summary and of each of its episodes.
SUMMARY_FIELDS: dict[str, Any] = {"suite": str, "policy": str, "protocol": str, "errors": int, "wall_s": (int, float)}
EPISODE_FIELDS: dict[str, Any] = {"task": int, "trial": int, "success": int, "steps": int, "error": str}


@dataclass(frozen=True)
class Run:
    """One evaluation as it lies in its folder."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.arm} ({self.folder.name})"

    @property
    def arm(self) -> str:
        """Policy and command, and what is not as usual."""
        return ", ".join([str(self.summary.get("policy", "?")), str(self.summary.get("command", "?")), *self.unusual])

    @property
    def unusual(self) -> list[str]:
        """What is not as usual: perturbed views, what stands for the world simulator's tokens."""
        said = []
        if kinds := self.summary.get("perturb"):
            drawn = views_of(self.summary)
            how = f" as drawn in version {drawn}" if drawn not in (None, VIEWS) else ""
            said.append(f"perturbed {'+'.join(map(str, kinds))}{how}")
        if (tokens := self.summary.get("world_simulator", "on")) != "on":
            said.append(f"world simulator {tokens}")
        return said

    @property
    def as_published(self) -> bool:
        """Whether a published rate of its suite was measured in the same way."""
        return not self.unusual

    @property
    def counted(self) -> list[dict[str, Any]]:
        """Episodes without an error."""
        return [episode for episode in self.summary["episodes"] if not episode["error"]]

    def tally(self, task: int | None = None) -> tuple[int, int]:
        """(solved, episodes without error) of a task, or of all."""
        found = [e for e in self.counted if task is None or e["task"] == task]
        return sum(e["success"] for e in found), len(found)


def read_run(folder: Path) -> Run:
    """The run in a folder, or of a summary.json.  Raises VegaError."""
    path = folder / SUMMARY_FILE if folder.is_dir() else folder
    try:
        summary = json.loads(path.read_text())
        for what, found, fields in (
            ("it", summary, SUMMARY_FIELDS),
            *(("an episode", episode, EPISODE_FIELDS) for episode in summary["episodes"]),
        ):
            for name, kind in fields.items():
                if not isinstance(found.get(name), kind):
                    raise ValueError(f"{what} does not say '{name}'")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VegaError(f"No evaluation can be read from {folder} ({error}): give a folder of a run.") from error
    return Run(path.parent, summary)


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write the page; it appears whole or not at all.  Raises VegaError if it cannot be written."""
    write_document(path, page(runs))


def page(runs: Sequence[Run]) -> str:
    """The HTML text about runs of one suite or several."""
    first = runs[0].summary
    title = ", ".join([f"{first['suite']}: {first['policy']}", *runs[0].unusual])
    title = title if len(runs) == 1 else f"{len(runs)} evaluations compared"
    sections = [_headline(runs), dimensions(runs), shifts(runs), _tasks(runs), _pairs(runs), _steps(runs)]
    sections += [*map(_failures, runs), *map(_facts, runs)]
    header = f"""<p class="over">vega3d_ros · evaluation · protocol {escape(str(first["protocol"]))}</p>
<h1>{escape(title)}</h1>"""
    return document(title, header, sections, LOOK)


def _headline(runs: Sequence[Run]) -> str:
    body = ""
    if len(runs) == 1:
        won, count = runs[0].tally()
        first_error = next((episode["error"] for episode in runs[0].summary["episodes"] if episode["error"]), "")
        body = f'<p class="number">{percent(won, count)}</p>' if count else ""
        if not count and first_error:
            body = f"<p>Every episode ended with an error, the first with: {escape(first_error)}</p>"
    rows = []
    for run in runs:
        won, count = run.tally()
        errors = f", {run.summary['errors']} errors" if run.summary["errors"] else ""
        rows.append((run.name, run.summary["suite"], percent(won, count), interval(won, count), f"{count}{errors}"))
    suites = dict.fromkeys(str(run.summary["suite"]) for run in runs)
    known = {suite: _published(suite, runs) for suite in suites}
    rows += [(name, suite, f"{v:.1f} %", "", "") for suite in suites for name, v in known[suite].items()]
    rates = table(("run", "suite", "solved", "95 % interval (Wilson)", "episodes"), rows)
    body += f'<div class="rates">{rates}</div>'
    withheld = any(suite in PUBLISHED and not known[suite] for suite in suites)
    beside = [run for run in runs if known[str(run.summary["suite"])]]
    note = f"{_in_part(beside)}{PUBLISHED_NOTE}" if beside else WITHHELD_NOTE if withheld else ""
    return section("Success", body, note)


def _in_part(runs: Sequence[Run]) -> str:
    """Which of these runs tried other tasks than the published rates beside them are of; some are far easier."""
    tried = {run.name: len({episode["task"] for episode in run.counted}) for run in runs}
    told = [f"{name} tried {count} of them" for name, count in tried.items() if count < PUBLISHED_TASKS]
    return f"Published rates are of all {PUBLISHED_TASKS} tasks of a suite: {', '.join(told)}. " if told else ""


def _published(suite: str, runs: Sequence[Run]) -> Mapping[str, float]:
    """What is published of a suite; nothing beside a run with other views or other tokens."""
    alike = all(run.as_published for run in runs if run.summary["suite"] == suite)
    return PUBLISHED.get(suite, {}) if alike else {}


def _tasks(runs: Sequence[Run]) -> str:
    """Rates and Wilson intervals of each task, the runs of a suite below each other."""
    body, drawn = "", False
    for suite in dict.fromkeys(str(run.summary["suite"]) for run in runs):
        members = [run for run in runs if run.summary["suite"] == suite]
        if len({episode["task"] for run in members for episode in run.summary["episodes"]}) > MANY_TASKS:
            continue  # the variants of LIBERO-plus: one episode each says nothing of a task
        keys = "".join(
            f'<span class="key dot run{i % COLOURS}"></span>{escape(run.name)}' for i, run in enumerate(members)
        )
        legend = f'<p class="legend">{keys}</p>' if len(members) > 1 else ""
        body += f"<h3>{escape(suite)}</h3>{legend}{_forest(members, _published(suite, runs))}"
        drawn = drawn or bool(_published(suite, runs))
    dashed = "; dashed: published rates of the whole suite" if drawn else ""
    note = f"Point: share solved; bar: 95 % Wilson interval{dashed}."
    return section("Tasks", body, note) if body else ""


def _forest(runs: Sequence[Run], published: Mapping[str, float]) -> str:
    tasks = sorted({e["task"] for run in runs for e in run.summary["episodes"]})
    left, right, line, gap = 46, 64, 11 * len(runs), 10
    width, height = 420, (line + gap) * len(tasks) + 26

    def x_of(rate: float) -> float:
        return left + rate * (width - left - right)

    label = "success rate and interval of each task"
    parts = [f'<svg class="forest" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    for rate in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = x_of(rate)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 20}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{100 * rate:.0f} %</text>')
    for value in published.values():
        x = x_of(value / 100)
        parts.append(f'<line class="published" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 20}"/>')
    for row, task in enumerate(tasks):
        top = row * (line + gap) + 6
        parts.append(f'<text class="name" x="2" y="{top + line / 2 + 4:.1f}">task {task}</text>')
        for index, run in enumerate(runs):
            won, count = run.tally(task)
            y, colour = top + 11 * index + 5.5, f"run{index % COLOURS}"
            low, high = wilson_95(won, count)
            parts.append(
                f'<line class="band {colour}" x1="{x_of(low):.1f}" x2="{x_of(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            if count:
                parts.append(f'<circle class="dot {colour}" cx="{x_of(won / count):.1f}" cy="{y:.1f}" r="4"/>')
            parts.append(
                f'<text class="tick" x="{width - 2}" y="{y + 3.5:.1f}" text-anchor="end">{won} of {count}</text>'
            )
    return "".join([*parts, "</svg>"])


def _pairs(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    rows = []
    for i, a in enumerate(runs):
        for b in runs[i + 1 :]:
            if a.summary["suite"] != b.summary["suite"]:
                continue
            pair = compare_pair(a.counted, b.counted)
            rows.append(
                (
                    f"{a.name} against {b.name}", str(pair.count), str(pair.both), str(pair.only_first),
                    str(pair.only_second), str(pair.neither), f"{pair.difference:+.1f}", f"{pair.p_value:.3g}",
                    f"{pair.p_over_tasks:.3g}",
                )
            )  # fmt: skip
    if not rows:
        return ""
    head = ("runs", "pairs", "both", "first only", "second only", "neither", "difference, points", "p", "p of tasks")
    note = (
        "Paired by task and initial state. p: exact two-sided McNemar test on the states that only one run solved; p "
        "of tasks: all of a task's states go together, as they are often one layout moved a little (randomised signs "
        "of the tasks' differences, exact). Many comparisons at once need a stricter bound than 0.05."
    )
    return section("Run against run", table(head, rows), note)


def _steps(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        steps = sorted(e["steps"] for e in run.counted if e["success"])
        if steps:
            middle = steps[len(steps) // 2]
            rows.append((run.name, str(steps[0]), str(middle), str(steps[-1]), f"{middle / 20:.1f} s"))
    head = ("run", "fewest", "median", "most", "median, robot time")
    return section("Steps to success", table(head, rows)) if rows else ""


def _failures(run: Run) -> str:
    """The last frames that the policy saw of what was not solved; with --video the whole episode at a click."""
    folder, budget = run.folder / PICTURES, VIDEO_BUDGET
    figures: list[str] = []
    failed = [e for e in run.counted if not e["success"]]
    for episode in failed:
        path = strip_path(folder, episode["task"], episode["trial"])
        if len(figures) == SHOWN_FAILURES or not path.is_file():
            continue
        picture = f'<img alt="the last frames" src="{data_url(path.read_bytes(), "image/jpeg")}">'
        film = video_path(folder, episode["task"], episode["trial"])
        if film.is_file() and film.stat().st_size <= budget:
            budget -= film.stat().st_size
            source = data_url(film.read_bytes(), "video/mp4")
            video = f'<video controls muted playsinline preload="none" src="{source}"></video>'
            picture = f"<details><summary>{picture}</summary>{video}</details>"
        caption = f"task {episode['task']}, initial state {episode['trial']}, {episode['steps']} steps"
        figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    if not figures:
        return ""
    note = (
        f"{len(failed)} episodes not solved, {len(figures)} shown; a click on a strip opens its video if there is one."
    )
    return section(f"Where it fails: {run.name}", f'<div class="failures">{"".join(figures)}</div>', note)


def _facts(run: Run) -> str:
    summary = run.summary
    latency = summary.get("latency_ms") or {}
    facts = {
        "Suite": summary["suite"],
        "Policy": summary["policy"],
        "Checkpoint": summary.get("checkpoint_sha256", ""),
        "Protocol": f"{summary['protocol']}, clock {summary.get('clock', '')}, command {summary.get('command', '')}, "
        f"transport {summary.get('transport', '')}",
        "Perturbed views": ", ".join(map(str, summary.get("perturb") or ["none"])),
        "World simulator": summary.get("world_simulator", "on"),
        "Device": summary.get("device", ""),
        "Threads": summary.get("threads"),
        "Renderer": summary.get("renderer"),
        "Decision": " · ".join(f"{name} {latency[name]:.1f} ms" for name in ("p50", "p95", "p99") if name in latency),
        "Wall time": f"{summary['wall_s'] / 60:.1f} min",
        **summary.get("versions", {}),
    }
    return section(f"What was run: {run.name}", facts_table(facts))
