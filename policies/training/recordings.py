"""Episodes of a LeRobot v3 dataset, read from its files: Parquet for the numbers, MP4 for the cameras.

Whoever recorded them: what is read is what the format says, and columns that `sim/demonstrations/labels.py` names where
they are there.  A row may hold several control steps, its action then being theirs one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from policies.types import FloatArray, Image, VegaError

VERSION = "v3.0"
STATE = ("x", "y", "z", "rx", "ry", "rz", "finger_1", "finger_2")
VIDEO = "observation.images."


@dataclass(frozen=True)
class Episode:
    """Rows [begin, end) of the dataset; videos: camera -> (file, seconds into it)."""

    begin: int
    end: int
    videos: dict[str, tuple[Path, float]]


class Recording:
    """One dataset.  Raises VegaError for a folder that is none, or is one of another version or robot.

    columns: name -> (rows, n) or (rows,) of everything but pictures; sentences: what is asked in each row's task_index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise VegaError("Datasets need pyarrow, which is not installed: pip install pyarrow.") from error
        try:
            self.info: dict[str, Any] = json.loads((folder / "meta" / "info.json").read_text())
            tables = [pq.read_table(path) for path in sorted((folder / "data").rglob("*.parquet"))]
            tasks = pq.read_table(folder / "meta" / "tasks.parquet").to_pydict()
            found = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
            rows = [row for path in found for row in pq.read_table(path).to_pylist()]
        except (OSError, ValueError) as error:
            raise VegaError(
                f"There is no LeRobot dataset in {folder} ({error}): make one with "
                "`python -m sim.demonstrations.collect_skills`, or get it again."
            ) from error
        if self.info.get("codebase_version") != VERSION:
            raise VegaError(
                f"The dataset in {folder} has version {self.info.get('codebase_version')}: convert it to {VERSION}."
            )
        self.columns = {
            name: np.concatenate([np.array(table[name].to_pylist()) for table in tables])
            for name in tables[0].column_names
        }
        text = next((name for name in tasks if name != "task_index"), "")
        self.sentences = dict(zip(tasks["task_index"], tasks[text], strict=True))
        self.fps = float(self.info["fps"])
        self.cameras = tuple(k.removeprefix(VIDEO) for k, f in self.info["features"].items() if f["dtype"] == "video")
        self.episodes = [self._episode(row) for row in sorted(rows, key=lambda row: row["episode_index"])]

    def __len__(self) -> int:
        return len(self.columns["index"])

    def _episode(self, row: dict[str, Any]) -> Episode:
        videos = {}
        for camera in self.cameras:
            where = {key: row[f"videos/{VIDEO}{camera}/{key}"] for key in ("chunk_index", "file_index")}
            path = self.folder / self.info["video_path"].format(video_key=f"{VIDEO}{camera}", **where)
            videos[camera] = (path, float(row[f"videos/{VIDEO}{camera}/from_timestamp"]))
        return Episode(row["dataset_from_index"], row["dataset_to_index"], videos)

    def actions(self, dim: int, rate_hz: float) -> FloatArray:
        """(rows, steps, dim): the control steps of every row.  Raises VegaError where they are others."""
        action = self.columns["action"]
        steps = action.shape[1] // dim
        if action.shape[1] % dim or round(self.fps * steps) != round(rate_hz):
            raise VegaError(
                f"The dataset in {self.folder} has rows of {action.shape[1]} numbers at {self.fps:g} Hz: this policy "
                f"learns from actions of {dim} numbers at {rate_hz:g} Hz."
            )
        return np.asarray(action.reshape(len(action), steps, dim), dtype=np.float64)

    def instructions(self) -> list[str]:
        """What is asked in every row."""
        return [self.sentences[int(task)] for task in self.columns["task_index"]]

    def arm(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """In every row: TCP (n, 3) m and quaternion (n, 4) xyzw in the base frame, openings of the fingers (n, 2) m.

        Raises VegaError unless the state is LIBERO's: TCP and rotation vector in the world, finger joints.  Without a
        column `robot.base` the base frame is the world's.
        """
        names = self.info["features"]["observation.state"].get("names")
        if names is not None and tuple(names) != STATE:
            raise VegaError(f"The state in {self.folder} is {', '.join(map(str, names))}: give {', '.join(STATE)}.")
        state = np.asarray(self.columns["observation.state"], dtype=np.float64)
        base = np.asarray(self.columns.get("robot.base", np.tile([0, 0, 0, 0, 0, 0, 1.0], (len(state), 1))), float)
        inverse = base[:, 3:] * [-1, -1, -1, 1]
        position = rotate(inverse, state[:, :3] - base[:, :3])
        quaternion = multiply(inverse, from_rotation_vector(state[:, 3:6]))
        return position, quaternion, np.abs(state[:, 6:8])

    def pictures(self, camera: str) -> Iterator[tuple[int, Image]]:
        """(row, (H, W, 3) RGB) of one camera, all rows in order.  Raises VegaError where a picture is missing."""
        if camera not in self.cameras:
            raise VegaError(f"The dataset in {self.folder} has no camera '{camera}', only {', '.join(self.cameras)}.")
        for episode in self.episodes:
            path, start = episode.videos[camera]
            capture = cv2.VideoCapture(str(path))
            try:
                for _ in range(round(start * self.fps)):
                    capture.grab()
                for row in range(episode.begin, episode.end):
                    found, picture = capture.read()
                    if not found:
                        raise VegaError(f"The video {path} ends before row {row}: get the dataset again.")
                    yield row, np.asarray(picture[:, :, ::-1], dtype=np.uint8)
            finally:
                capture.release()


def from_rotation_vector(vector: FloatArray) -> FloatArray:
    """(n, 3) rad -> (n, 4) xyzw."""
    angle = np.linalg.norm(vector, axis=1, keepdims=True)
    half = np.sinc(angle / (2 * np.pi)) / 2  # sin(angle / 2) / angle
    return np.concatenate([vector * half, np.cos(angle / 2)], axis=1)


def multiply(one: FloatArray, other: FloatArray) -> FloatArray:
    """Hamilton products of quaternions (n, 4) xyzw."""
    v, w, u, t = one[:, :3], one[:, 3:], other[:, :3], other[:, 3:]
    return np.concatenate([w * u + t * v + np.cross(v, u), w * t - np.sum(v * u, axis=1, keepdims=True)], axis=1)


def rotate(quaternion: FloatArray, vector: FloatArray) -> FloatArray:
    """(n, 4) xyzw and (n, 3) -> (n, 3)."""
    v, w = quaternion[:, :3], quaternion[:, 3:]
    twice = 2 * np.cross(v, vector)
    return vector + w * twice + np.cross(v, twice)
