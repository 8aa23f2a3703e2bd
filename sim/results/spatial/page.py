"""The page about one run of questions: scores beside published and blind ones, and answers with their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from policies.spatial.scores.vsi import DIRECTIONS
from policies.types import VegaError
from sim.results.film import strip
from sim.results.report_style import data_url, document, facts_table, section, table, write_document
from sim.results.spatial.frames import read_frames
from sim.results.spatial.items import Item, split_of

REPORT_FILE = "report.html"
SHOWN = 16
STRIP = 6

_VSI = (
    "overall", "object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation",
    "object_rel_distance", "object_rel_direction", "route_planning", "obj_appearance_order",
)  # fmt: skip


def _of_tasks(*numbers: float) -> dict[str, float]:
    return dict(zip(_VSI, numbers, strict=False))


# Per cent.  VSI-Bench: Yang et al. 2024, arXiv 2412.14171 (GPT-4o, Gemini-1.5-Pro), VG-LLM's paper, and VEGA-3D's,
# which does not give its tasks.  The 3D benchmarks: VEGA-3D's paper.
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "vsi_bench": {
        "VEGA-3D": {"overall": 50.5},
        "VEGA-3D without its world simulator": {"overall": 48.9},
        "VG-LLM-8B": _of_tasks(50.7, 67.9, 37.7, 58.6, 62.0, 46.6, 40.7, 32.4),
        "Gemini-1.5-Pro": _of_tasks(45.4, 56.2, 30.9, 64.1, 43.6, 51.3, 46.3, 36.0, 34.6),
        "GPT-4o": _of_tasks(34.0, 46.2, 5.3, 43.8, 38.2, 37.0, 41.3, 31.5, 28.5),
    },
    "scanrefer": {"VEGA-3D": {"Acc@0.5": 56.2}, "without its world simulator": {"Acc@0.5": 51.7}},
    "sqa3d": {"VEGA-3D": {"EM": 61.3}, "without its world simulator": {"EM": 58.6}},
}
NOTES = {
    "vsi_bench": "Published numbers are of the whole test split of 5130 questions.",
    "scanrefer": "Published numbers are of the whole validation split.",
    "sqa3d": "Published numbers are of the whole test split.",
    "libero_space": "Nobody has published numbers: the benchmark is this package's own.",
}
LOOK = """
.number { font-size: clamp(2rem, 9vw, 3.2rem); font-weight: 700; line-height: 1.1; margin: 0; }
.scroll { overflow-x: auto; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
.answers img { display: block; width: 100%; border-radius: .3rem; }
.answers figcaption { font-size: .85rem; padding-top: .3rem; }
.answers p { margin: .15rem 0; }
"""


def table_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Head and rows: each task's score, interval, corrected score, the blind ones, the published ones."""
    blind, published = summary.get("blind", {}), _published(summary)
    head = ("task, %", "model", "95 % interval", "corrected", *blind, *published, "questions")
    counts = summary.get("kinds", {})
    rows: list[tuple[str, ...]] = [head]
    scores = summary.get("scores", {})
    for name in sorted(scores, key=_place):
        value = scores[name]
        low, high = summary["interval_95"].get(name, (None, None))
        rows.append(
            (
                ("  " if name in DIRECTIONS else "") + name,
                _number(value),
                "" if low is None else f"{low:.1f} to {high:.1f}",
                _number(summary["corrected"].get(name)),
                *(_number(found["scores"].get(name)) for found in blind.values()),
                *(_number(found.get(name)) for found in published.values()),
                str(counts.get(name, counts.get(name.partition(" ")[2], ""))),
            )
        )
    return rows


def _published(summary: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """What is published of a run's benchmark; nothing beside another split or other tokens."""
    benchmark = str(summary["benchmark"])
    whole = split_of(benchmark, summary.get("split")) == split_of(benchmark, None)
    return PUBLISHED.get(benchmark, {}) if whole and summary.get("world_simulator", "on") == "on" else {}


def _place(name: str) -> tuple[int, int, str]:
    """VSI-Bench's tasks in its order, the levels of direction under them; then what is asked for boxes or words."""
    if name in DIRECTIONS:
        return 0, 10 * _VSI.index("object_rel_direction") + 1 + DIRECTIONS.index(name), name
    return (0, 10 * _VSI.index(name), name) if name in _VSI else (1, 0, name)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def write_page(folder: Path, data: Path, summary: Mapping[str, Any], items: Mapping[tuple[int, int], Item]) -> None:
    """Write `report.html`; it appears whole or not at all.  Raises VegaError if it cannot be written."""
    tokens = summary.get("world_simulator", "on")
    name = f"{summary['model']}" + (f", world simulator {tokens}" if tokens != "on" else "")
    header = f"""<p class="over">vega3d_ros · questions about scenes · {escape(str(summary["benchmark"]))}</p>
<h1>{escape(name)}</h1>"""
    sections = [_headline(summary), _answers(data, summary, items), _facts(summary)]
    title = f"{summary['benchmark']}: {name}"
    write_document(folder / REPORT_FILE, document(title, header, sections, LOOK))


def _headline(summary: Mapping[str, Any]) -> str:
    head, *rows = table_rows(summary)
    scores = summary.get("scores", {})
    best = next((scores[name] for name in ("overall", "Acc@0.5", "F1@0.5", "EM", "CIDEr") if name in scores), None)
    number = "" if best is None else f'<p class="number">{best:.1f} %</p>'
    benchmark = str(summary["benchmark"])
    more = NOTES.get(benchmark, "") if _published(summary) or benchmark not in PUBLISHED else ""
    note = (
        "Scores as the reference counts them; corrected: an answer read as a reader would, boxes not rounded. "
        "Intervals over scenes drawn again with replacement. Blind: without a frame, from the training split, or from "
        f"other scenes where there is none. {more}"
    )
    return section("Scores", number + table(head, rows), note)


def _answers(data: Path, summary: Mapping[str, Any], items: Mapping[tuple[int, int], Item]) -> str:
    """Some of the answers, of each kind some, right and wrong ones, with the frames."""
    shown: list[Mapping[str, Any]] = []
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in summary.get("answers", ()):
        by_kind.setdefault(row["kind"], []).append(row)
    while by_kind and len(shown) < SHOWN:
        for kind in sorted(by_kind):
            shown.append(by_kind[kind].pop(7 * len(shown) % len(by_kind[kind])))
            if not by_kind[kind]:
                del by_kind[kind]
    figures = [_figure(data, row, items[row["task"], row["trial"]]) for row in shown[:SHOWN]]
    return section("Some of the answers", f'<div class="answers">{"".join(figures)}</div>') if figures else ""


def _figure(data: Path, row: Mapping[str, Any], item: Item) -> str:
    try:
        picture = data_url(strip(read_frames(data, item.scene, STRIP)), "image/jpeg")
        image = f'<img alt="frames of the scene" src="{picture}">'
    except VegaError as error:
        image = f"<p>{escape(str(error))}</p>"
    answer = row["answer"] or (_boxes(row["boxes"]) if item.boxes or row["boxes"] else "(nothing)")
    value = next(iter(row["scores"].values()), None)
    kind = "" if value is None else "good" if value >= 0.5 else "bad"
    options = f"<p>{escape('; '.join(item.question.options))}</p>" if item.question and item.question.options else ""
    return f"""<figure>{image}<figcaption><p><b>{escape(item.kind)}</b>: {escape(item.text)}</p>{options}
<p class="{kind}">{escape(row["error"] or answer)}</p>
<p class="note">true: {escape(_truth(item))}</p></figcaption></figure>
"""


def _truth(item: Item) -> str:
    if item.question is not None:
        return item.question.ground_truth
    return _boxes(item.boxes) if item.part in ("one_box", "boxes") else "; ".join(item.references)


def _boxes(boxes: Sequence[Sequence[float]]) -> str:
    return "; ".join(" ".join(f"{value:.2f}" for value in box) for box in boxes) or "no such thing"


def _facts(summary: Mapping[str, Any]) -> str:
    latency = summary.get("latency_ms") or {}
    facts = {
        "Benchmark": f"{summary['benchmark']} {summary['split']}".strip(),
        "Model": summary["model"],
        "Cameras": "their poses were told" if summary.get("poses") else "nothing was told of their poses",
        "World simulator": summary.get("world_simulator", "on"),
        "Questions": f"{summary['questions']} about {summary['scenes']} scenes, {summary['errors']} errors",
        "Answer": " · ".join(f"{name} {value:.1f} ms" for name, value in latency.items()),
        "Wall time": f"{summary['wall_s'] / 60:.1f} min",
        **summary.get("versions", {}),
    }
    return section("What was run", facts_table(facts))
