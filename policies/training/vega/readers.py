"""Where demonstrations come from: LIBERO's HDF5 files, LeRobot v3 datasets, RLDS exports."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.files.weight_files import available_bytes
from policies.openvla.preprocessing import mirror, rotate_180
from policies.training.recordings import VIDEO, Recording, check_gripper
from policies.training.vega.demonstrations import Demonstration, libero_data_set_actions, without_idling
from policies.types import FloatArray, Image, VegaError

_SUFFIX = "_demo"
# LIBERO's names of cameras in its files -> a policy's.
_CAMERAS = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
_VERSION = re.compile(r"\d+\.\d+\.\d+")  # as TensorFlow Datasets calls the folder of one
_RLDS_CAMERAS = {"agentview": "image", "wrist": "wrist_image"}
# What robosuite's `macros.IMAGE_CONVENTION` was as a file was written: the bottom or the top row comes first.
_CONVENTIONS: dict[str, Callable[[Image], Image]] = {"opengl": rotate_180, "opencv": mirror}
RATE_HZ = 20.0  # of LIBERO's control steps
Say = Callable[[str], None]


def _once(text: str) -> None:
    """For people: of the processes that torchrun has started, the first prints it."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def read_demonstrations(source: Path, cameras: tuple[str, ...], say: Say = _once) -> list[Demonstration]:
    """All of a LeRobot dataset, a LIBERO file or folder of them, or an RLDS export.  Raises VegaError.

    say: is told, a sentence at a time, what was found out about them and what is left out.
    """
    if (source / "meta" / "info.json").is_file():
        return _lerobot(source, cameras, say)
    files = [source] if source.suffix == ".hdf5" and source.is_file() else sorted(source.rglob("*.hdf5"))
    exports = sorted(file.parent for file in source.rglob("features.json"))
    if files and exports:
        raise VegaError(
            f"'{source}' holds both LIBERO's *.hdf5 and an RLDS export, {exports[0]}: give the folder of one of them."
        )
    if not files and not exports:
        raise VegaError(
            f"'{source}' holds no demonstrations: give a LeRobot v3 dataset, LIBERO's *_demo.hdf5, or an RLDS export."
        )
    for camera in cameras:
        if camera not in _CAMERAS:
            raise VegaError(
                f"Demonstrations of LIBERO have the cameras {', '.join(_CAMERAS)}, and the policy '{camera}': give "
                "--policy of LIBERO, or a LeRobot v3 dataset with its cameras."
            )
    return _hdf5_files(files, cameras, say) if files else _rlds(source, exports, cameras, say)


def instruction_of(file: Path) -> str:
    """The sentence in a LIBERO file's name, which is what OpenVLA-OFT is told: `SCENE_pick_up_the_milk_demo.hdf5`."""
    words = file.stem.removesuffix(_SUFFIX).split("_")
    while len(words) > 1 and re.fullmatch(r"[A-Z]+\d*", words[0]):  # KITCHEN_SCENE3_
        words = words[1:]
    return " ".join(words)


def _hdf5_files(files: list[Path], cameras: tuple[str, ...], say: Say) -> list[Demonstration]:
    found, late = list[Demonstration](), 0
    for file in files:
        demonstrations, seen_after = _hdf5(file, cameras)
        found += demonstrations
        late += seen_after
    if late:
        say(
            f"{late} of {len(files)} files hold what was seen after each action, as LIBERO's own do: each picture is "
            "learned with the action that followed"
        )
    return found


def _hdf5(file: Path, cameras: tuple[str, ...]) -> tuple[list[Demonstration], bool]:
    """What a file holds, and whether that was seen after each action."""
    try:
        import h5py
    except ImportError:
        raise VegaError("LIBERO's demonstrations need h5py, which is not installed: pip install h5py.") from None
    found = []
    try:
        data = h5py.File(file, "r")["data"]
        turned = _turning(data, file)
        late = _seen_after(data.values())
        for name in sorted(data, key=lambda name: int(name.rpartition("_")[2])):
            given = data[name]
            actions = np.asarray(given["actions"], dtype=np.float64)
            if not np.isfinite(actions).all():  # else such steps would be left out as idle ones
                raise VegaError(f"The actions of {name} in '{file}' are not all finite: leave that file out.")
            if late:  # nobody saw on what the first was chosen, and nothing was chosen on what was seen last
                actions = actions[1:]
            check_gripper(actions, f"'{file}'")
            seen = given["obs"]
            states = np.concatenate([seen["ee_states"][()], seen["gripper_states"][()]], axis=1).astype(np.float64)
            streams = {camera: seen[_CAMERAS[camera]] for camera in cameras}
            kept = without_idling(actions)
            found.append(
                Demonstration(
                    instruction_of(file), libero_data_set_actions(actions)[kept], states[kept],
                    partial(_shown, streams, kept, turned),
                )
            )  # fmt: skip
    except (OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise VegaError(f"File '{file}' holds no demonstrations of LIBERO ({error}): get it again.") from error
    return found, late


def _turning(data: Any, file: Path) -> Callable[[Image], Image]:
    """From a file's pictures to those of the data set.  Without a word they are as the renderer gives them."""
    convention = data.attrs.get("macros_image_convention", "opengl")
    convention = convention.decode() if isinstance(convention, bytes) else str(convention)
    if convention not in _CONVENTIONS:
        raise VegaError(
            f"The macros_image_convention of '{file}' is '{convention}': give one that is {' or '.join(_CONVENTIONS)}."
        )
    return _CONVENTIONS[convention]


def _seen_after(episodes: Iterable[Any]) -> bool:
    """Whether `obs` is what each action of a file led to, as in LIBERO's own, and not what it was chosen on.

    That is told by the arm's joints beside `states`, which holds them as each action was chosen, in columns 1 to 7.
    Where they do not tell, as in a file without them, it is taken for what each was chosen on.
    """
    before = after = 0.0
    for episode in episodes:
        if "states" not in episode or "joint_states" not in episode["obs"]:
            continue
        seen, states = (np.asarray(part[()], np.float64) for part in (episode["obs/joint_states"], episode["states"]))
        if seen.ndim != 2 or states.ndim != 2 or len(seen) != len(states) or states.shape[1] <= seen.shape[1]:
            continue
        chosen = states[:, 1 : 1 + seen.shape[1]]
        # Not the first: what OpenVLA-OFT's script keeps as its state is from before the arm had settled.
        before += float(np.abs(seen[1:-1] - chosen[1:-1]).sum())
        after += float(np.abs(seen[1:-1] - chosen[2:]).sum())
    return after < before / 2  # robosuite's sensors may be some ms older than the state


def _shown(
    streams: dict[str, Any], kept: np.ndarray, turned: Callable[[Image], Image], camera: str, step: int
) -> Image:
    return turned(np.asarray(streams[camera][int(kept[step])]))


def _lerobot(folder: Path, cameras: tuple[str, ...], say: Say) -> list[Demonstration]:
    recording = Recording(folder)
    steps = recording.actions(7, None)
    if steps.shape[1] > 1:
        raise VegaError(
            f"The dataset in {folder} has {steps.shape[1]} control steps in a row, and a picture of the first alone: "
            "record every one (--every 1)."
        )
    if recording.fps != RATE_HZ:
        say(
            f"the dataset in {folder} is labelled {recording.fps:g} rows a second: each row is taken for one of "
            f"LIBERO's control steps, of which there are {RATE_HZ:g}"
        )
    actions, states, sentences, solved = steps[:, 0], recording.state(), recording.instructions(), recording.solved()
    if not solved.all():
        say(f"{np.sum(~solved)} of {len(solved)} episodes did not end in success and are left out")
    pictures = _decoded(recording, cameras, say)
    found = []
    for episode in (recording.episodes[number] for number in np.flatnonzero(solved)):
        rows = episode.begin + without_idling(actions[episode.begin : episode.end])
        found.append(_episode(sentences[episode.begin], actions[rows], states[rows], pictures, rows))
    return found


def _decoded(recording: Recording, cameras: tuple[str, ...], say: Say) -> dict[str, np.ndarray]:
    """All pictures (rows, H, W, 3) of each camera: a video is read from its beginning, so they are kept, as they are.

    Raises VegaError, before any is decoded, where they do not fit into this machine's memory.
    """
    features = recording.info["features"]
    shapes = {camera: features.get(f"{VIDEO}{camera}", {}).get("shape") or [0] for camera in cameras}
    size = len(recording) * sum(int(np.prod(shape)) for shape in shapes.values())
    say(f"pictures of {len(recording)} rows: {size / 1e9:.3g} GB of memory in every process")
    _check_room(recording.folder, size, available_bytes(torch.device("cpu")))
    found = dict[str, np.ndarray]()
    for camera in cameras:
        for row, picture in recording.pictures(camera):
            if camera not in found:
                found[camera] = np.empty((len(recording), *picture.shape), np.uint8)
            found[camera][row] = picture
    return found


def _check_room(source: Path, size: int, free: int | None, more: str = "") -> None:
    """Raise VegaError where so many bytes of pictures in every process are more than this machine had free."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this machine, as torchrun says
    if free is not None and size * processes > free:
        raise VegaError(
            f"The pictures in {source} take {more}{size / 1e9:.3g} GB of memory in every process ({processes} here) "
            f"and {free / 1e9:.3g} GB are free: give fewer episodes, or LIBERO's *_demo.hdf5, which are read as needed."
        )


def _episode(
    sentence: str, actions: FloatArray, states: FloatArray, pictures: dict[str, np.ndarray], rows: np.ndarray
) -> Demonstration:
    def picture(camera: str, step: int) -> Image:
        return mirror(pictures[camera][int(rows[step])])  # they are upright

    return Demonstration(sentence, libero_data_set_actions(actions), states, picture)


def _rlds(source: Path, exports: list[Path], cameras: tuple[str, ...], say: Say) -> list[Demonstration]:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise VegaError(
            "An RLDS export needs tensorflow_datasets, which is not installed: pip install tensorflow-datasets, or "
            "give LIBERO's *_demo.hdf5."
        ) from None
    kept: dict[tuple[Path, str], Path] = {}
    for export in exports:
        name = (export.parent, "" if _VERSION.fullmatch(export.name) else export.name)
        other = kept.setdefault(name, export)
        if other != export:
            raise VegaError(
                f"'{source}' holds versions {other.name} and {export.name} of one data set, {export.parent}: give the "
                "folder of one of them."
            )
    if len(exports) > 1:
        say(f"data sets of '{source}': {', '.join(str(export.relative_to(source)) for export in exports)}")
    free, size, found = available_bytes(torch.device("cpu")), 0, list[Demonstration]()
    for export in exports:
        for episode in tfds.builder_from_directory(export).as_dataset("train"):
            demonstration, taken = _rlds_episode(episode, cameras, export)
            size += taken
            _check_room(source, size, free, "more than ")  # how many pictures there are, only reading them tells
            found.append(demonstration)
    say(f"pictures of {sum(len(one.actions) for one in found)} steps: {size / 1e9:.3g} GB of memory in every process")
    return found


def _rlds_episode(episode: Any, cameras: tuple[str, ...], export: Path) -> tuple[Demonstration, int]:
    """It, and how many bytes its pictures, which are kept as they are, take."""
    try:
        steps = list(episode["steps"].as_numpy_iterator())
        actions = np.stack([step["action"] for step in steps])
        states = np.stack([step["observation"]["state"] for step in steps]).astype(np.float64)
        sentence = steps[0]["language_instruction"].decode()
        streams = {
            camera: [np.asarray(step["observation"][_RLDS_CAMERAS[camera]]) for step in steps] for camera in cameras
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise VegaError(
            f"The RLDS export '{export}' holds no demonstrations of LIBERO ({error}): give --data of that layout."
        ) from error

    def picture(camera: str, step: int) -> Image:
        return streams[camera][step]

    check_gripper(actions, f"'{export}'")
    size = sum(shown.nbytes for stream in streams.values() for shown in stream)
    return Demonstration(sentence, libero_data_set_actions(actions), states, picture, jpeg=True), size
