"""The page about one question: the answer beside the truth, the views with what was found, the gate, the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from policies.fusion.gated_fusion import gate_image
from policies.spatial.nano.bundle import towards
from policies.spatial.nano.model import Frame, NanoScene
from policies.types import FloatArray, Image, SceneAnswer
from sim.results.report_style import data_url, document, facts_table, section, table, write_document
from sim.space.film import Shot
from sim.space.truth.facts import SceneFacts

PAGE = "ask.html"
TRUE, FOUND = (255, 255, 255), (255, 122, 40)  # RGB of boxes
SIDES = [(0, 1), (1, 3), (3, 2), (2, 0), (4, 5), (5, 7), (7, 6), (6, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
REACH_M = 0.55  # of the map's picture, from its middle
LOOK = """
.number { font-size: clamp(1.6rem, 6vw, 2.6rem); font-weight: 700; line-height: 1.2; margin: 0; }
.views { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .6rem; }
.views img, .map { display: block; width: 100%; border-radius: .3rem; }
.map { max-width: 34rem; background: var(--ground); }
.map text { fill: var(--ink); font-size: .022px; text-anchor: middle; }
.map .true { fill: none; stroke: var(--measured); stroke-width: .004; }
.map .found { fill: var(--commanded); fill-opacity: .25; stroke: var(--commanded); stroke-width: .004; }
.map .surface { fill: none; stroke: var(--rule); stroke-width: .003; }
"""


@dataclass(frozen=True, eq=False)
class AskedScene:
    """names: categories that the question is about.  intrinsics: (3, 3) of the shots."""

    question: str
    answer: SceneAnswer
    truth: str
    names: tuple[str, ...]
    facts: SceneFacts
    shots: Sequence[Shot]
    intrinsics: FloatArray


def write_ask_page(path: Path, about: AskedScene, model: NanoScene, seen: Sequence[Frame]) -> None:
    """Raises VegaError where it cannot be written."""
    header = f"""<p class="over">vega3d_ros · a question about a simulated scene · {escape(model.name)}</p>
<h1>{escape(about.question)}</h1>
<p class="number">{escape(about.answer.text)}</p>
<p class="note">true: {escape(about.truth)} · confidence {about.answer.confidence:.2f}</p>"""
    found = model.things(seen)
    cameras = model.scene_map(seen).cameras
    views = [_marked(about, shot, [thing.box for name, thing in found if name in about.names], cameras[i])
             for i, shot in enumerate(about.shots)]  # fmt: skip
    gates = [_gated(frame) for frame in seen]
    sections = [
        section("Views", _figures(views), "White: where the things that were asked about are. Orange: where the model, "
                "which is told neither poses nor depth, believes them."),
        section("Gate", _figures(gates), "Yellow where the semantic encoder speaks, violet where the world simulator "
                "does."),
        section("From above", _map(about, found), "Blue: true outlines. Orange: what the model found in all frames, "
                "in metres from the middle of the surface."),
        section("What it found", table(("thing", "x, m", "y, m", "longest, cm", "score"), [
            (name, f"{t.centre[0]:.2f}", f"{t.centre[1]:.2f}", f"{100 * t.longest:.1f}", f"{t.score:.2f}")
            for name, t in found])),
        section("What was run", facts_table({
            "Model": model.about, "Frames": len(seen), "Scene": about.facts.dataset,
            "Answer": ", ".join(f"{name} {ms:.1f} ms" for name, ms in model.timings_ms.items())})),
    ]  # fmt: skip
    write_document(path, document(about.question, header, sections, LOOK))


def _figures(pictures: Sequence[Image]) -> str:
    images = []
    for number, picture in enumerate(pictures, 1):
        done, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        if not done:
            raise RuntimeError("OpenCV could not encode a picture")
        images.append(f'<img alt="frame {number}" src="{data_url(bytes(data), "image/jpeg")}">')
    return f'<div class="views">{"".join(images)}</div>'


def _marked(about: AskedScene, shot: Shot, boxes: Sequence[FloatArray], camera: FloatArray) -> Image:
    """The frame with true and found boxes."""
    picture = np.ascontiguousarray(shot.picture.copy())
    for thing in about.facts.things:
        if thing.said in about.names:
            local = (thing.corners - shot.pose[:3, 3]) @ shot.pose[:3, :3]
            _draw(picture, local, about.intrinsics, TRUE)
    for box in boxes:
        signs = np.array([[x, y, z] for z in (-0.5, 0.5) for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
        _draw(picture, towards(camera, box[:3] + signs * box[3:]), about.intrinsics, FOUND)
    return picture


def _draw(picture: Image, local: FloatArray, camera: FloatArray, colour: tuple[int, int, int]) -> None:
    """Edges of a box whose corners (8, 3) are in the optical frame, m."""
    if (local[:, 2] < 0.05).any():
        return
    pixels = local @ camera.T
    points: Any = np.round(pixels[:, :2] / pixels[:, 2:] * 8).astype(int)
    for a, b in SIDES:
        start, end = tuple(map(int, points[a])), tuple(map(int, points[b]))
        cv2.line(picture, start, end, colour, 1, cv2.LINE_AA, 3)


def _gated(frame: Frame) -> Image:
    """The model's picture under its gate."""
    height, width = frame.picture.shape[:2]
    gate = gate_image(frame.sightings.gate, (height, width))
    levels = np.round(255 * np.clip(gate, 0.0, 1.0)).astype(np.uint8)
    heat = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
    return np.asarray((0.45 * frame.picture + 0.55 * heat).round().astype(np.uint8))


def _map(about: AskedScene, found: Sequence[tuple[str, Any]]) -> str:
    """Seen from above as the robot sees it: x up, y to the left."""

    def outline(points: FloatArray, kind: str) -> str:
        text = " ".join(f"{-y:.4f},{-x:.4f}" for x, y in points)
        return f'<polygon class="{kind}" points="{text}"/>'

    parts = [outline(thing.corners[[0, 1, 3, 2], :2], "true") for thing in about.facts.things]
    for name, thing in found:
        x, y = thing.centre[:2]
        width, depth = thing.box[3:5] / 2
        corners = np.array(
            [[x - width, y - depth], [x - width, y + depth], [x + width, y + depth], [x + width, y - depth]]
        )
        parts += [outline(corners, "found"), f'<text x="{-y:.4f}" y="{-x:.4f}">{escape(name)}</text>']
    edge = f'<rect class="surface" x="-{REACH_M}" y="-{REACH_M}" width="{2 * REACH_M}" height="{2 * REACH_M}"/>'
    box = f"-{REACH_M} -{REACH_M} {2 * REACH_M} {2 * REACH_M}"
    return f'<svg class="map" viewBox="{box}" role="img" aria-label="map from above">{edge}{"".join(parts)}</svg>'
