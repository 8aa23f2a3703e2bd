"""Episodes as a LeRobot dataset, format v3.0: Parquet for what is small, MP4 for the cameras, JSON for the rest.

Layout as `lerobot/datasets/lerobot_dataset.py` reads it (huggingface/lerobot 0.4).  Two stages, because episodes end in
any order and in several processes: each leaves a tape (one .npz and one .mp4 for each camera), and `write_dataset`
joins the tapes in the order of task and trial.  Pictures are upright; LIBERO's own data sets show them turned by 180°.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.files.command_line import results_folder
from policies.openvla.robots import libero_proprio
from policies.types import FloatArray, Image, Observation, VegaError
from sim.results.lerobot.ownership import check_replaceable, mark
from sim.results.lerobot.statistics import column_stats, combine, image_stats
from sim.results.video import write_video
from sim.worlds.environment import Environment

VERSION = "v3.0"
ROBOT = "panda"
FILES_PER_CHUNK = 1000
STATE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "finger_1", "finger_2")
EEF_ACTION_NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
KEYFRAME_EVERY = 2  # training reads single frames: each is at most one frame from where decoding can begin
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
COLUMN, NAMES = "column/", "names/"  # in a tape, before the name of a further column
# The base frame in the world frame: the state is in the world's, and who learns in the arm's own needs both.
BASE, BASE_NAMES = "robot.base", ("x", "y", "z", "qx", "qy", "qz", "qw")


def tape_path(folder: Path, task: int, trial: int) -> Path:
    """The tape's .npz; it is written last, so where it exists the tape is whole."""
    return folder / f"task{task}_trial{trial}.npz"


def camera_path(tape: Path, camera: str) -> Path:
    return tape.with_name(f"{tape.stem}.{camera}.mp4")


class EpisodeTape:
    """Everything of one episode: pictures, states, the base's place and actions.

    Draws what the policy did not look at.

    every: control steps in a row of the dataset: its pictures and state are those of the first of them, its action is
        theirs, one after the other (the last row's is filled up with the last action).
    columns: what else a row has: name -> names of its numbers.
    """

    def __init__(
        self, environment: Environment, action_names: Sequence[str], instruction: str = "", *, every: int = 1,
        columns: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self._environment, self._action_names, self._every = environment, tuple(action_names), every
        self._instruction = instruction or environment.instruction
        self._frames: dict[str, list[Image]] = {camera: [] for camera in environment.cameras}
        self._states: list[FloatArray] = []
        self._actions: list[FloatArray] = []
        self._column_names = {BASE: BASE_NAMES} | {name: tuple(parts) for name, parts in columns.items()}
        self._columns: dict[str, list[FloatArray]] = {name: [] for name in self._column_names}
        if every < 1 or round(1 / environment.control_period_s) % every:
            raise VegaError(
                f"Rows of {every} control steps have no whole rate at {1 / environment.control_period_s:.0f} Hz: give "
                "a number that divides it."
            )

    @property
    def begins_row(self) -> bool:
        """Whether the next step is the first of a row."""
        return len(self._actions) % self._every == 0

    def step(
        self, action: FloatArray, drawn: Mapping[str, Image],
        columns: Mapping[str, FloatArray] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Call before the action is executed.

        drawn: camera -> (H, W, 3) pictures of this moment that exist.  columns: the further columns' numbers; of the
        first step of a row only.
        """
        begins_row = self.begins_row
        self._actions.append(np.array(action, dtype=float))
        if not begins_row:
            return
        environment = self._environment
        base = np.concatenate([environment.base_position, environment.base_quaternion])
        for name, values in self._columns.items():
            values.append(np.array(base if name == BASE else columns[name], dtype=float))
        for camera, frames in self._frames.items():
            frames.append(drawn[camera] if camera in drawn else environment.render(camera))
        state = environment.state()
        observation = Observation(
            {}, state, self._instruction, state.stamp_ns, environment.base_position, environment.base_quaternion
        )
        self._states.append(libero_proprio(observation))

    def keep(self, path: Path, success: bool) -> None:
        """Write the tape.  Raises VegaError where that fails."""
        if not self._actions:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fps = round(1 / self._environment.control_period_s) // self._every
            actions = [*self._actions, *self._actions[-1:] * (-len(self._actions) % self._every)]
            names = list(self._action_names)
            if self._every > 1:
                names = [f"{name}_{step}" for step in range(self._every) for name in self._action_names]
            for camera, frames in self._frames.items():
                write_video(camera_path(path, camera), frames, fps, keyframe_every=KEYFRAME_EVERY)
            stats = {f"stats/{c}/{k}": v for c, frames in self._frames.items() for k, v in image_stats(frames).items()}
            more = {f"{COLUMN}{name}": np.array(values) for name, values in self._columns.items()}
            more |= {f"{NAMES}{name}": np.array(parts) for name, parts in self._column_names.items()}
            partial = path.with_name(f".{path.stem}.partial.npz")
            np.savez(
                partial, state=np.array(self._states), action=np.reshape(actions, (len(self._states), -1)),
                success=success, fps=fps, instruction=self._instruction, action_names=np.array(names),
                cameras=np.array(list(self._frames)), size=np.array(next(iter(self._frames.values()))[0].shape),
                **stats, **more,  # type: ignore[arg-type]
            )  # fmt: skip
            partial.replace(path)
        except OSError as error:
            raise VegaError(f"The recording {path} cannot be written ({error.strerror}): make room there.") from error


def check_target(dataset: Path, tapes: Sequence[Path]) -> None:
    """Raise VegaError unless a dataset of these tapes can be written there: nothing is there, or one of some of them.

    tapes: those that there will be; of a run that does not go on with another none.
    """
    check_replaceable(dataset, tapes)
    results_folder(dataset.parent, "--record")
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise VegaError("Recording needs pyarrow, which is not installed: pip install pyarrow.") from error


def write_dataset(tapes: Sequence[Path], dataset: Path) -> int:
    """Join tapes into the folder `dataset`, which appears whole or not at all; the number of episodes.

    tapes: all of one folder.  A dataset of some of them that is there is replaced.  Raises VegaError where there is
    something else, and where it cannot be written.
    """
    whole = [tape for tape in tapes if tape.is_file()]
    if not whole:
        return 0
    check_replaceable(dataset, whole)
    partial, before = (dataset.with_name(f".{dataset.name}.{name}") for name in ("partial", "before"))
    try:
        for left in (partial, before):  # by a kill
            shutil.rmtree(left, ignore_errors=True)
        _write(whole, partial)
        mark(partial, whole)
        if dataset.exists():  # half of it removed would be nobody's, and in the way of the run that goes on
            dataset.rename(before)
        partial.rename(dataset)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise VegaError(f"The dataset {dataset} cannot be written ({error.strerror}): make room there.") from error
    return len(whole)


def _write(tapes: Sequence[Path], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    loaded = [_loaded(tape) for tape in tapes]
    if not all(COLUMN + BASE in tape for tape in loaded):  # a run that began before 2026-12 and has gone on
        loaded = [{key: value for key, value in tape.items() if not key.endswith(f"/{BASE}")} for tape in loaded]
    first = loaded[0]
    for path, tape in zip(tapes, loaded, strict=True):
        other = [key for key in _kind(first) | _kind(tape) if _kind(first).get(key) != _kind(tape).get(key)]
        if other:
            raise VegaError(
                f"The recordings {tapes[0]} and {path} differ in {other[0]}, so they are no one dataset: record what "
                "differs into another folder."
            )
    cameras, fps = [str(c) for c in first["cameras"]], int(first["fps"])
    sentences = list(dict.fromkeys(str(tape["instruction"]) for tape in loaded))
    rows, tables, begin = [], [], 0
    for number, (path, tape) in enumerate(zip(tapes, loaded, strict=True)):
        columns = _columns(tape, number, begin, sentences.index(str(tape["instruction"])), fps)
        tables.append(_table(columns))
        end = begin + len(columns["index"])
        where = {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}
        row: dict[str, Any] = {
            "episode_index": number, "tasks": [str(tape["instruction"])], "length": end - begin,
            "data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": begin, "dataset_to_index": end,
        }  # fmt: skip
        stats = {key: column_stats(values) for key, values in columns.items()}
        for camera in cameras:
            key = f"observation.images.{camera}"
            row |= {f"videos/{key}/{name}": value for name, value in where.items()}
            row |= {f"videos/{key}/from_timestamp": 0.0, f"videos/{key}/to_timestamp": (end - begin) / fps}
            stats[key] = {n: tape[f"stats/{camera}/{n}"] for n in stats["action"]}
            video = folder / VIDEO_PATH.format(video_key=key, **where)
            video.parent.mkdir(parents=True, exist_ok=True)
            _link(camera_path(path, camera), video)
        row |= {f"stats/{key}/{name}": value.tolist() for key, s in stats.items() for name, value in s.items()}
        rows.append((row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}, stats))
        begin = end
    data = folder / DATA_PATH.format(chunk_index=0, file_index=0)
    for path in (data, folder / EPISODES_PATH):
        path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), data)
    pq.write_table(pa.Table.from_pylist([row for row, _ in rows]), folder / EPISODES_PATH)
    _write_tasks(sentences, folder / "meta" / "tasks.parquet")
    total = combine([stats for _, stats in rows])
    _write_json({k: {n: v.tolist() for n, v in s.items()} for k, s in total.items()}, folder / "meta" / "stats.json")
    _write_json(_info(first, columns, cameras, len(tapes), begin, len(sentences)), folder / "meta" / "info.json")
    (folder / "README.md").write_text(_card(sentences, cameras, fps, len(tapes), begin), encoding="utf-8")


def _loaded(path: Path) -> dict[str, Any]:
    """A tape.  Raises VegaError where it is damaged, or a video is gone."""
    try:
        with np.load(path) as tape:
            found = dict(tape)
            lost = [camera for camera in map(str, found["cameras"]) if not camera_path(path, camera).is_file()]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise VegaError(f"The recording {path} is damaged: remove it, and record its episode again.") from error
    if lost:
        raise VegaError(f"The recording {path} has no video of '{lost[0]}': remove it, and record its episode again.")
    return found


def _kind(tape: Mapping[str, Any]) -> dict[str, Any]:
    """What all episodes of a dataset have alike."""
    alike = {key: tape[key].tolist() for key in ("fps", "cameras", "size", "action_names") if key in tape}
    return alike | {key: value.tolist() for key, value in tape.items() if key.startswith(NAMES)}


def _card(sentences: Sequence[str], cameras: Sequence[str], fps: int, episodes: int, frames: int) -> str:
    """The dataset card that the hub shows; its front matter lets LeRobot's tools find the set."""
    tasks = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"""\
---
task_categories:
- robotics
tags:
- LeRobot
- LIBERO
configs:
- config_name: default
  data_files: data/*/*.parquet
---
{episodes} episodes of a simulated Panda ({frames} frames at {fps} Hz), recorded with vega3d_ros.
Format: LeRobot {VERSION}.

Cameras: {", ".join(cameras)}, upright (LIBERO's own data sets show them turned by 180 degrees).
State: TCP in the world frame (m, rotation vector in rad) and finger joints (m); `meta/info.json` names each number.

Instructions:

{tasks}
"""


def _columns(tape: Mapping[str, Any], episode: int, begin: int, task: int, fps: int) -> dict[str, NDArray[Any]]:
    count = len(tape["action"])
    last = np.arange(count) == count - 1
    return {
        "observation.state": tape["state"].astype(np.float32),
        "action": tape["action"].astype(np.float32),
        "next.done": last,
        "next.success": last & bool(tape["success"]),
        "timestamp": (np.arange(count) / fps).astype(np.float32),
        "frame_index": np.arange(count),
        "episode_index": np.full(count, episode),
        "index": np.arange(begin, begin + count),
        "task_index": np.full(count, task),
        **{k.removeprefix(COLUMN): v.astype(np.float32) for k, v in tape.items() if k.startswith(COLUMN)},
    }


def _table(columns: Mapping[str, NDArray[Any]]) -> Any:
    import pyarrow as pa

    def array(values: NDArray[Any]) -> Any:
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    return pa.table({key: array(values) for key, values in columns.items()})


def _info(
    tape: Mapping[str, Any], columns: Mapping[str, NDArray[Any]], cameras: Sequence[str], episodes: int, frames: int,
    tasks: int,
) -> dict[str, Any]:  # fmt: skip
    fps, size = int(tape["fps"]), [int(n) for n in tape["size"]]
    video = {
        "video.height": size[0], "video.width": size[1], "video.codec": "h264", "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False, "video.fps": fps, "video.channels": size[2], "has_audio": False,
    }  # fmt: skip
    names = {"observation.state": list(STATE_NAMES), "action": [str(name) for name in tape["action_names"]]}
    names |= {k.removeprefix(NAMES): [str(name) for name in v] for k, v in tape.items() if k.startswith(NAMES)}
    features: dict[str, Any] = {
        f"observation.images.{camera}": {
            "dtype": "video", "shape": size, "names": ["height", "width", "channels"], "info": video,
        }
        for camera in cameras
    }  # fmt: skip
    for key, values in columns.items():
        shape = [values.shape[1]] if values.ndim == 2 else [1]
        features[key] = {"dtype": str(values.dtype), "shape": shape, "names": names.get(key)}
    return {
        "codebase_version": VERSION, "robot_type": ROBOT, "total_episodes": episodes, "total_frames": frames,
        "total_tasks": tasks, "chunks_size": FILES_PER_CHUNK, "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200, "fps": fps, "splits": {"train": f"0:{episodes}"}, "data_path": DATA_PATH,
        "video_path": VIDEO_PATH, "features": features,
    }  # fmt: skip


def _write_tasks(sentences: Sequence[str], path: Path) -> None:
    """A table that pandas reads with the sentences as its index, named as lerobot names it since 0.6."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = "task"
    described = [("task_index", "int64"), (index, "object")]
    pandas = {
        "index_columns": [index], "column_indexes": [], "pandas_version": "2.0.0",
        "columns": [
            {"name": n, "field_name": n, "pandas_type": "int64" if t == "int64" else "unicode", "numpy_type": t,
             "metadata": None} for n, t in described
        ],
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(range(len(sentences)), pa.int64()), index: pa.array(sentences)})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n")


def _link(source: Path, target: Path) -> None:
    """One copy on the disk where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
