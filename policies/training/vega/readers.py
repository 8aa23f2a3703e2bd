"""Where demonstrations come from: LIBERO's HDF5 files, LeRobot v3 datasets, RLDS exports."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from policies.openvla.preprocessing import mirror, rotate_180
from policies.training.vega.demonstrations import Demonstration, libero_data_set_actions, without_idling
from policies.types import FloatArray, Image, VegaError

_SUFFIX = "_demo"
# LIBERO's names of cameras in its files -> a policy's.
_CAMERAS = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
_RLDS_CAMERAS = {"agentview": "image", "wrist": "wrist_image"}


def read_demonstrations(source: Path, cameras: tuple[str, ...]) -> list[Demonstration]:
    """All of a LeRobot dataset, a LIBERO file or folder of them, or an RLDS export.  Raises VegaError."""
    if (source / "meta" / "info.json").is_file():
        return _lerobot(source, cameras)
    files = [source] if source.suffix == ".hdf5" and source.is_file() else sorted(source.rglob("*.hdf5"))
    if files:
        return [demo for file in files for demo in _hdf5(file, cameras)]
    if next(source.rglob("features.json"), None) is not None:
        return _rlds(source, cameras)
    raise VegaError(
        f"'{source}' holds no demonstrations: give a LeRobot v3 dataset, LIBERO's *_demo.hdf5, or an RLDS export."
    )


def instruction_of(file: Path) -> str:
    """The sentence in a LIBERO file's name, which is what OpenVLA-OFT is told: `SCENE_pick_up_the_milk_demo.hdf5`."""
    words = file.stem.removesuffix(_SUFFIX).split("_")
    while len(words) > 1 and re.fullmatch(r"[A-Z]+\d*", words[0]):  # KITCHEN_SCENE3_
        words = words[1:]
    return " ".join(words)


def _hdf5(file: Path, cameras: tuple[str, ...]) -> list[Demonstration]:
    try:
        import h5py
    except ImportError:
        raise VegaError("LIBERO's demonstrations need h5py, which is not installed: pip install h5py.") from None
    found = []
    try:
        data = h5py.File(file, "r")["data"]
        for name in sorted(data, key=lambda name: int(name.rpartition("_")[2])):
            given = data[name]
            actions = np.asarray(given["actions"], dtype=np.float64)
            if not np.isfinite(actions).all():  # else such steps would be left out as idle ones
                raise VegaError(f"The actions of {name} in '{file}' are not all finite: leave that file out.")
            seen = given["obs"]
            states = np.concatenate([seen["ee_states"][()], seen["gripper_states"][()]], axis=1).astype(np.float64)
            streams = {camera: seen[_CAMERAS[camera]] for camera in cameras}
            kept = without_idling(actions)
            found.append(
                Demonstration(
                    instruction_of(file), libero_data_set_actions(actions)[kept], states[kept],
                    partial(_turned, streams, kept),
                )
            )  # fmt: skip
    except (OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise VegaError(f"File '{file}' holds no demonstrations of LIBERO ({error}): get it again.") from error
    return found


def _turned(streams: dict[str, Any], kept: np.ndarray, camera: str, step: int) -> Image:
    """The files have what the renderer gives, bottom row first."""
    return rotate_180(np.asarray(streams[camera][int(kept[step])]))


def _lerobot(folder: Path, cameras: tuple[str, ...]) -> list[Demonstration]:
    from policies.training.recordings import Recording

    recording = Recording(folder)
    actions = recording.actions(7, recording.fps)[:, 0]
    states = recording.column("observation.state").reshape(len(recording), -1)
    sentences = recording.instructions()
    # A video is read from its beginning: all pictures are kept, as they are.
    pictures = {camera: np.stack([image for _, image in recording.pictures(camera)]) for camera in cameras}
    found = []
    for episode in recording.episodes:
        rows = episode.begin + without_idling(actions[episode.begin : episode.end])
        found.append(_episode(sentences[episode.begin], actions[rows], states[rows], pictures, rows))
    return found


def _episode(
    sentence: str, actions: FloatArray, states: FloatArray, pictures: dict[str, np.ndarray], rows: np.ndarray
) -> Demonstration:
    def picture(camera: str, step: int) -> Image:
        return mirror(pictures[camera][int(rows[step])])  # they are upright

    return Demonstration(sentence, libero_data_set_actions(actions), states, picture)


def _rlds(folder: Path, cameras: tuple[str, ...]) -> list[Demonstration]:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise VegaError(
            "An RLDS export needs tensorflow_datasets, which is not installed: pip install tensorflow-datasets, or "
            "give LIBERO's *_demo.hdf5."
        ) from None
    directory = next(folder.rglob("features.json")).parent
    return [_rlds_episode(episode, cameras) for episode in tfds.builder_from_directory(directory).as_dataset("train")]


def _rlds_episode(episode: Any, cameras: tuple[str, ...]) -> Demonstration:
    steps = list(episode["steps"].as_numpy_iterator())
    actions = np.stack([step["action"] for step in steps])
    states = np.stack([step["observation"]["state"] for step in steps]).astype(np.float64)
    sentence = steps[0]["language_instruction"].decode()
    pictures: Callable[[str, int], Image] = lambda camera, i: steps[i]["observation"][_RLDS_CAMERAS[camera]]  # noqa: E731
    return Demonstration(sentence, libero_data_set_actions(actions), states, pictures)
