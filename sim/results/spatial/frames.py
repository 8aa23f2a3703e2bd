"""The frames of a scene: of a video, or of a folder of pictures; and where the cameras of libero_space's were."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from policies.files.json_config import read_json
from policies.types import FloatArray, Image, VegaError

PLACES = ("", "posed_images", "scannet/posed_images", "videos")
PICTURES = (".jpg", ".jpeg", ".png")
ENDS_EARLY = 0.01  # of a video's frames, the share that may be missing at its end


def read_frames(data: Path, scene: str, most: int) -> list[Image]:
    """(H, W, 3) uint8 RGB, oldest first; of more than `most` as many, evenly, as the reference does.

    scene: as the benchmark names it, `dataset/scene` or `scannet/scene0011_00`.  Raises VegaError.
    """
    name = scene.rsplit("/", 1)[-1]
    for place in PLACES:
        for stem in (data / place / scene, data / place / name):
            if stem.with_name(stem.name + ".mp4").is_file():
                return _of_video(stem.with_name(stem.name + ".mp4"), most)
            if stem.is_dir() and (pictures := _pictures(stem)):
                return [_picture(pictures[i]) for i in _evenly(len(pictures), most)]
    raise VegaError(f"Scene '{scene}' has no video and no pictures in '{data}': complete the data there.")


def read_poses(data: Path, scene: str, most: int) -> list[FloatArray]:
    """(4, 4) of the optical frames of what `read_frames` gives of libero_space, in the world, m.  Raises VegaError."""
    path = data / f"{scene}.json"
    if not path.is_file():
        raise VegaError(f"Scene '{scene}' has no {path}, which tells where its cameras were: leave --poses out.")
    try:
        poses = np.array(read_json(path).get("camera_to_world"), dtype=np.float64)
    except (TypeError, ValueError):
        poses = np.empty(0)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise VegaError(
            f"File '{path}' gives no camera_to_world of finite (4, 4) matrices: film the scene again, or leave --poses "
            "out."
        )
    return [poses[i] for i in _evenly(len(poses), most)]


def _evenly(count: int, most: int) -> list[int]:
    return list(range(count)) if count <= most else [int(i) for i in np.linspace(0, count - 1, most)]


def _of_video(path: Path, most: int) -> list[Image]:
    video = cv2.VideoCapture(str(path))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted, read = set(_evenly(count, most)), 0
    frames: list[Image] = []
    for number in range(count):
        if not video.grab():
            break
        read += 1
        if number in wanted:
            done, frame = video.retrieve()
            if done:
                frames.append(np.ascontiguousarray(frame[:, :, ::-1], dtype=np.uint8))
    video.release()
    if not frames:
        raise VegaError(f"Video '{path}' shows nothing that can be read: get it again.")
    # Some files count a little more than they hold; of one cut off, a model would be asked about what is left.
    if count - read > ENDS_EARLY * count:
        raise VegaError(f"Video '{path}' ends after {read} of its {count} frames: get it again.")
    return frames


def _pictures(folder: Path) -> list[Path]:
    """Colour pictures; in ScanNet's layout the .png beside a .jpg is its depth."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    colour = [path for path in files if path.suffix.lower() != ".png"]
    return colour or files


def _picture(path: Path) -> Image:
    picture = cv2.imread(str(path))
    if picture is None:
        raise VegaError(f"Picture '{path}' cannot be read: get it again.")
    return np.ascontiguousarray(picture[:, :, ::-1], dtype=np.uint8)
