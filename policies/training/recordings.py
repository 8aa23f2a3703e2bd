"""Episodes of a LeRobot v3 dataset, read from its files: Parquet for the numbers, MP4 for the cameras.

Whoever recorded them: what is read is what the format says, and columns that `sim/demonstrations/labels.py` names where
they are there.  A row may hold several control steps, its action then being theirs one after the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray, Image, VegaError

VERSION = "v3.0"
STATE = ("x", "y", "z", "rx", "ry", "rz", "finger_1", "finger_2")
ACTION = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
SUCCESS = "next.success"
BASE = "robot.base"
VIDEO = "observation.images."
TASK_TEXTS = ("task", "__index_level_0__")
END = 2**16  # bytes of a video


@dataclass(frozen=True)
class Episode:
    """Rows [begin, end) of the dataset; videos: camera -> (file, seconds into it), of those that are told of."""

    begin: int
    end: int
    videos: dict[str, tuple[Path, float]]


class Recording:
    """One dataset.  Raises VegaError for a folder that is none or not whole, or is one of another version or robot.

    sentences: what is asked in rows of each task_index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise VegaError("Datasets need pyarrow, which is not installed: pip install pyarrow.") from error
        self.info = self._read_info()
        try:
            self._tables = [pq.read_table(path) for path in sorted((folder / "data").rglob("*.parquet"))]
            tasks = pq.read_table(folder / "meta" / "tasks.parquet").to_pydict()
            found = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
            rows = [row for path in found for row in pq.read_table(path).to_pylist()]
            self.fps = float(self.info["fps"])
            kinds = {name: feature["dtype"] for name, feature in self.info["features"].items()}
            self.sentences = dict(zip(tasks["task_index"], tasks[_texts(tasks)], strict=True))
            self.episodes = [episode for row in rows if (episode := self._episode(row, kinds)).end > episode.begin]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise VegaError(f"The dataset in {folder} cannot be read ({what}): get all of its files again.") from error
        if not 0 < self.fps < math.inf:
            raise VegaError(f"The dataset in {folder} has {self.fps:g} rows a second: correct fps in meta/info.json.")
        self.cameras = tuple(k.removeprefix(VIDEO) for k, kind in kinds.items() if kind == "video")
        self._stills = tuple(k.removeprefix(VIDEO) for k, kind in kinds.items() if kind == "image")
        self.episodes.sort(key=lambda episode: episode.begin)
        self._check_whole()

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    def _read_info(self) -> dict[str, Any]:
        """Before all other files, which another version has under other names."""
        try:
            info = json.loads((self.folder / "meta" / "info.json").read_text(encoding="utf-8"))
            version = info.get("codebase_version")
        except (OSError, ValueError, AttributeError) as error:
            within = self.folder / "dataset"  # of what collect_skills was given as --output
            other = "make one with `python -m sim.demonstrations.collect_skills`, or get it again"
            raise VegaError(
                f"There is no LeRobot dataset in {self.folder} ({error}): "
                f"{f'give {within}' if (within / 'meta').is_dir() else other}."
            ) from error
        if version != VERSION:
            raise VegaError(f"The dataset in {self.folder} has version {version}: convert it to {VERSION}.")
        return dict(info)

    def _episode(self, row: Mapping[str, Any], kinds: Mapping[str, str]) -> Episode:
        videos = {}
        for key in (name for name, kind in kinds.items() if kind == "video"):
            names = ("chunk_index", "file_index", "from_timestamp")
            where: dict[str, Any] = {name: row.get(f"videos/{key}/{name}") for name in names}
            if self.info.get("video_path") is not None and None not in where.values():
                start = float(where.pop("from_timestamp"))
                path = self.folder / self.info["video_path"].format(video_key=key, **where)
                videos[key.removeprefix(VIDEO)] = (path, start)
        return Episode(int(row["dataset_from_index"]), int(row["dataset_to_index"]), videos)

    def _check_whole(self) -> None:
        """Raise VegaError unless every row is of one episode and lies in its place: files may be missing."""
        edges = [0, *(episode.end for episode in self.episodes)]
        if not self.episodes or not len(self):
            raise VegaError(f"The dataset in {self.folder} has no episodes: record some, or get all of its files.")
        tiled = [episode.begin for episode in self.episodes] == edges[:-1]
        in_order = not self.has("index") or np.array_equal(self.column("index"), np.arange(len(self)))
        if not (tiled and edges[-1] == len(self) and in_order):
            raise VegaError(
                f"The dataset in {self.folder} is not whole: meta/episodes tells of {edges[-1]} rows, data holds "
                f"{len(self)}, and each is to follow the other; get all of its files again."
            )

    def has(self, name: str) -> bool:
        """Whether rows have such a column."""
        return all(name in table.column_names for table in self._tables)

    def column(self, name: str) -> FloatArray:
        """(rows, n) or (rows,) numbers.  Raises VegaError where a row lacks one, or one is not finite."""
        if not self.has(name):
            raise VegaError(
                f"The dataset in {self.folder} has no column '{name}', only {', '.join(self._tables[0].column_names)}: "
                "rename what it is, or give another dataset."
            )
        try:
            parts = [np.array(table[name].to_pylist(), dtype=np.float64) for table in self._tables if len(table)]
            values = np.concatenate(parts)
        except (TypeError, ValueError) as error:
            raise VegaError(
                f"Not every row of the dataset in {self.folder} has as many numbers in '{name}': record it again."
            ) from error
        wrong = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if wrong.size:
            raise VegaError(
                f"In the dataset in {self.folder} '{name}' is no finite number in {wrong.size} rows, the first row "
                f"{wrong[0]}: leave their episodes out, or record them again."
            )
        return values

    def actions(self, dim: int, rate_hz: float | None) -> FloatArray:
        """(rows, steps, dim): the control steps of every row, at any rate where `rate_hz` is None.

        Raises VegaError where they are others, or are said to be, and where the gripper's are in other units.
        """
        action = self.column("action").reshape(len(self), -1)
        steps = action.shape[1] // dim
        if action.shape[1] % dim or (rate_hz is not None and round(self.fps * steps) != round(rate_hz)):
            wanted = "" if rate_hz is None else f" at {rate_hz:g} Hz"
            raise VegaError(
                f"The dataset in {self.folder} has rows of {action.shape[1]} numbers at {self.fps:g} Hz: this policy "
                f"learns from actions of {dim} numbers{wanted}."
            )
        names = _names(self.info["features"].get("action"))
        each = tuple(f"{name}_{step}" for step in range(steps) for name in ACTION)
        if dim == len(ACTION) and names not in ((), ACTION, each):
            raise VegaError(
                f"The actions in {self.folder} are {', '.join(names)}: give {', '.join(ACTION)}, in LIBERO's units, or "
                "correct their names in meta/info.json where they are that."
            )
        if dim == len(ACTION):
            check_gripper(action.reshape(-1, dim), str(self.folder))
        return action.reshape(len(action), steps, dim)

    def solved(self) -> NDArray[np.bool_]:
        """Of every episode, whether its last row says that it ended in success; all did where no row says it.

        Raises VegaError where none did.
        """
        if not self.has(SUCCESS):
            return np.ones(len(self.episodes), bool)
        told = self.column(SUCCESS).reshape(len(self), -1)[:, 0]
        found = np.array([bool(told[episode.end - 1]) for episode in self.episodes])
        if not found.any():
            raise VegaError(
                f"No episode of the dataset in {self.folder} ended in success: give others, or remove the column "
                f"'{SUCCESS}' where nobody has filled it in."
            )
        return found

    def instructions(self) -> list[str]:
        """What is asked in every row.  Raises VegaError where that is not told."""
        tasks = self.column("task_index").astype(int).tolist()
        for task in dict.fromkeys(tasks):
            text = self.sentences.get(task)
            if not isinstance(text, str) or not text.strip():
                raise VegaError(
                    f"The dataset in {self.folder} does not say what is asked in task {task}: put it into "
                    "meta/tasks.parquet."
                )
        return [self.sentences[task] for task in tasks]

    def state(self) -> FloatArray:
        """(rows, 8): LIBERO's, TCP m and rotation vector rad in the world, finger joints m.

        Raises VegaError where it is another, or is said to be.
        """
        state = self.column("observation.state").reshape(len(self), -1)
        names = _names(self.info["features"].get("observation.state"))
        if names not in ((), STATE) or state.shape[1] != len(STATE):
            told, remedy = ", ".join(names), ", or correct its names in meta/info.json where it is that"
            if names in ((), STATE):
                told, remedy = f"{state.shape[1]} numbers", ""
            raise VegaError(f"The state in {self.folder} is {told}: give {', '.join(STATE)}{remedy}.")
        return state

    def base(self, otherwise: Sequence[float] | None = None) -> FloatArray:
        """(rows, 7): the base frame in the world frame, position m and quaternion xyzw.

        otherwise: its position where the dataset does not say it, the frame then being unturned.  Raises VegaError
        without either: a policy is told of its arm in the base frame, and in the world's it would learn another pose.
        """
        if not self.has(BASE):
            if otherwise is None:
                raise VegaError(
                    f"The dataset in {self.folder} does not say where the arm's base stands (it has no column '{BASE}'"
                    "): give its position in the world as --base X Y Z in m, or record the dataset again."
                )
            return np.tile([*otherwise, 0, 0, 0, 1.0], (len(self), 1))
        found = self.column(BASE).reshape(len(self), -1)
        if found.shape[1] != 7:
            raise VegaError(
                f"The dataset in {self.folder} has {found.shape[1]} numbers in '{BASE}': give it a position and a "
                "quaternion xyzw."
            )
        return found

    def arm(self, base: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """In every row: TCP (n, 3) m and quaternion (n, 4) xyzw in the base frame, openings of the fingers (n, 2) m.

        base: as `base` gives it.  Raises VegaError as `state` does.
        """
        state = self.state()
        position = seen_from(base, state[:, :3])
        quaternion = multiply(conjugate(base[:, 3:]), from_rotation_vector(state[:, 3:6]))
        return position, quaternion, np.abs(state[:, 6:8])

    def videos(self, camera: str) -> list[tuple[Path, float]]:
        """Of every episode: (file, seconds into it).  Raises VegaError where the dataset has no such camera."""
        if camera in self._stills:
            raise VegaError(
                f"The dataset in {self.folder} keeps the pictures of '{camera}' one by one: make videos of them with "
                "lerobot-edit-dataset (convert_image_to_video)."
            )
        if camera not in self.cameras:
            known = ", ".join((*self.cameras, *self._stills)) or "none"
            raise VegaError(
                f"The dataset in {self.folder} has no camera '{camera}', its cameras are: {known}; rename the one that "
                "it is, with upright pictures, or give another dataset."
            )
        found = [episode.videos.get(camera) for episode in self.episodes]
        if None in found:
            raise VegaError(
                f"The dataset in {self.folder} does not say where the videos of '{camera}' are: get its meta folder "
                "again."
            )
        return [video for video in found if video is not None]

    def pictures(self, camera: str) -> Iterator[tuple[int, Image]]:
        """(row, (H, W, 3) RGB) of one camera, all rows in order.  Raises VegaError where a picture is missing."""
        film: _Film | None = None
        try:
            for episode, (path, start) in zip(self.episodes, self.videos(camera), strict=True):
                first = round(start * self.fps)
                # LeRobot puts many episodes into a file: opened anew for each, it would be decoded as many times.
                if film is None or film.path != path or film.at > first:
                    if film is not None:
                        film.close()
                    film = _Film(path)
                film.skip_to(first)
                for row in range(episode.begin, episode.end):
                    picture = film.read()
                    if picture is None:
                        raise VegaError(f"The video {path} ends before row {row}: get the dataset again.")
                    yield row, picture
        finally:
            if film is not None:
                film.close()

    def tell(self, digest: Any, camera: str) -> None:
        """Into a hash (of hashlib): all rows, and which videos of this camera they have.

        Videos with other pictures, such as turned ones, are other files: their indices of frames, at an end, tell.
        """
        for path in sorted((self.folder / "data").rglob("*.parquet")):
            digest.update(path.read_bytes())
        for path in dict.fromkeys(path for path, _ in self.videos(camera) if path.is_file()):
            with path.open("rb") as video:
                digest.update(video.read(END))
                video.seek(max(path.stat().st_size - END, 0))
                digest.update(video.read(END))


class _Film:
    """A video that is read from its beginning; at: its frame that comes next.  Raises VegaError for a file of none."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise VegaError(f"The video {path} is missing: get the dataset again.")
        self.path, self.at, self._capture = path, 0, cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise VegaError(f"The video {path} cannot be read: get the dataset again.")

    def skip_to(self, frame: int) -> None:
        for _ in range(self.at, frame):
            self._capture.grab()
        self.at = frame

    def read(self) -> Image | None:
        """(H, W, 3) RGB, None behind the last."""
        found, picture = self._capture.read()
        self.at += 1
        return np.asarray(picture[:, :, ::-1], dtype=np.uint8) if found else None

    def close(self) -> None:
        self._capture.release()


def fingerprint(recordings: Sequence[Recording], cameras: Iterable[str]) -> str:
    """Tells some datasets in this order from others, wherever they lie: by rows, sentences and videos."""
    digest, cameras = hashlib.sha256(), list(cameras)
    for recording in recordings:
        episodes = [(episode.begin, episode.end) for episode in recording.episodes]
        digest.update(repr((recording.fps, sorted(recording.sentences.items()), episodes)).encode())
        for camera in cameras:
            recording.tell(digest, camera)
    return digest.hexdigest()[:12]


def _texts(tasks: Mapping[str, Sequence[Any]]) -> str:
    """The column of the sentences: the index in what lerobot writes, named since 0.6; else the first that has texts."""
    texts = (name for name, values in tasks.items() if any(isinstance(value, str) for value in values))
    return next((name for name in (*TASK_TEXTS, *texts) if name in tasks), TASK_TEXTS[0])


def _names(feature: Any) -> tuple[str, ...]:
    """Of a feature's numbers, where they are told: as a list, or as LeRobot's robots have them, {"motors": [...]}."""
    names = feature.get("names") if isinstance(feature, dict) else None
    groups = names.values() if isinstance(names, dict) else [names]
    return tuple(str(name) for group in groups if isinstance(group, list) for name in group)


def check_gripper(actions: FloatArray, where: str) -> None:
    """Raise VegaError where the gripper's commands, the last of actions (n, 7), are from 0 to 1 as in many data sets.

    Some have 1 for open and others 0, which nothing tells, and LIBERO's are neither.
    """
    commands = actions[:, -1]
    if len(commands) and 0 <= commands.min() < commands.max():
        raise VegaError(
            f"The gripper's commands in {where} lie from 0 to 1 and LIBERO's are -1 (open) and 1 (closed): write "
            "1 - 2 x in place of x where 1 is open there, and 2 x - 1 where it is closed."
        )


def from_rotation_vector(vector: FloatArray) -> FloatArray:
    """(n, 3) rad -> (n, 4) xyzw."""
    angle = np.linalg.norm(vector, axis=1, keepdims=True)
    half = np.sinc(angle / (2 * np.pi)) / 2  # sin(angle / 2) / angle
    return np.concatenate([vector * half, np.cos(angle / 2)], axis=1)


def seen_from(base: FloatArray, point: FloatArray) -> FloatArray:
    """Points (n, 3) of the world in base frames (n, 7), position and quaternion xyzw."""
    return rotate(conjugate(base[:, 3:]), point - base[:, :3])


def conjugate(quaternion: FloatArray) -> FloatArray:
    """The opposite turn, (n, 4) xyzw."""
    return quaternion * [-1, -1, -1, 1]


def multiply(one: FloatArray, other: FloatArray) -> FloatArray:
    """Hamilton products of quaternions (n, 4) xyzw."""
    v, w, u, t = one[:, :3], one[:, 3:], other[:, :3], other[:, 3:]
    return np.concatenate([w * u + t * v + np.cross(v, u), w * t - np.sum(v * u, axis=1, keepdims=True)], axis=1)


def rotate(quaternion: FloatArray, vector: FloatArray) -> FloatArray:
    """(n, 4) xyzw and (n, 3) -> (n, 3)."""
    v, w = quaternion[:, :3], quaternion[:, 3:]
    twice = 2 * np.cross(v, vector)
    return vector + w * twice + np.cross(v, twice)
