"""The benchmark's files.

    <split>.jsonl                                VSI-Bench's rows: id, dataset, scene_name, question_type, question, ...
    scanrefer_<split>.json multi3drefer_<split>.json   descriptions and boxes, as VEGA-3D reads those benchmarks
    <dataset>/<scene>.mp4 <scene>.json           a film; its camera, things, boxes and what is asked about it
    settings_<split>.json                        how its films were asked for, which holds for all of them
    posed_images/<scene>/00000.{jpg,png,txt}     with --depth: frames, depth in mm, poses, as ScanNet has them
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from policies.files.made_once import write_whole
from policies.types import FloatArray, VegaError
from sim.results.video import write_video
from sim.space.truth.facts import SceneFacts, as_row

if TYPE_CHECKING:
    from sim.space.film import Shot

FPS = 4.0
PARTS = ("questions", "scanrefer", "multi3drefer")


def film_name(split: str, stage: int, film: int) -> str:
    return f"{split}_{stage:04d}_{film:03d}"


def scene_file(root: Path, dataset: str, scene: str) -> Path:
    return root / dataset / f"{scene}.json"


def write_film(
    root: Path, facts: SceneFacts, shots: Sequence[Shot], camera: FloatArray, questions: list[dict[str, Any]],
    descriptions: list[dict[str, Any]], groups: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Put a film and what is said about it on disk, the JSON file last; what that holds."""
    path = scene_file(root, facts.dataset, facts.scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path.with_suffix(".mp4"), [shot.picture for shot in shots], FPS)
    if shots[0].depth_mm is not None:
        _write_posed(root / "posed_images" / facts.scene, shots, camera)
    content = {
        "dataset": facts.dataset,
        "scene": facts.scene,
        "table_area_m2": facts.table_area,
        "intrinsics": camera.tolist(),
        "camera_to_world": [np.round(shot.pose, 6).tolist() for shot in shots],
        "things": [as_row(thing) for thing in facts.things],
        "gaps_m": np.round(facts.gaps, 4).tolist(),
        "questions": questions,
        "scanrefer": descriptions,
        "multi3drefer": groups,
    }
    write_whole(path, json.dumps(content))
    return content


def assemble(root: Path, split: str) -> dict[str, int]:
    """Join what the films of a split ask into its files; how many of each kind."""
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for path in sorted(root.glob(f"*/{split}_*.json"), key=lambda path: path.name):
        content = read_scene(path)
        for part in PARTS:
            rows[part] += content[part]
    for part in PARTS:
        rows[part] = [{"id": number, **row} for number, row in enumerate(rows[part])]
    write_whole(root / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows["questions"]))
    for part in PARTS[1:]:
        write_whole(root / f"{part}_{split}.json", json.dumps(rows[part]))
    counts = Counter(row["question_type"] for row in rows["questions"])
    counts.update(f"{part} {row['metadata']['question_type']}" for part in PARTS[1:] for row in rows[part])
    return dict(sorted(counts.items()))


def read_scene(path: Path) -> dict[str, Any]:
    """A film's JSON file.  Raises VegaError."""
    try:
        content = json.loads(path.read_text())
        assert isinstance(content, dict)
        return content
    except (OSError, ValueError, AssertionError) as error:
        raise VegaError(f"File '{path}' cannot be read ({error}): remove it and collect its film again.") from error


def _write_posed(folder: Path, shots: Sequence[Shot], camera: FloatArray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    square = np.eye(4)
    square[:3, :3] = camera
    for name in ("intrinsic.txt", "depth_intrinsic.txt"):
        np.savetxt(folder / name, square, fmt="%.6f")
    for number, shot in enumerate(shots):
        stem = folder / f"{number:05d}"
        cv2.imwrite(f"{stem}.jpg", shot.picture[:, :, ::-1])
        cv2.imwrite(f"{stem}.png", shot.depth_mm)
        np.savetxt(f"{stem}.txt", shot.pose, fmt="%.8f")
