"""Pictures of an episode: the last frames that the policy saw, and on demand a video."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policies.types import Image, VegaError
from sim.results.video import write_video
from sim.worlds.environment import Environment

PICTURES = "pictures"  # folder of a run's
STRIP_FRAMES = 6
STRIP_SIZE = 128
VIDEO_EVERY = 2


def strip_path(folder: Path, task: int, trial: int) -> Path:
    return folder / f"task{task}_trial{trial}.jpg"


def video_path(folder: Path, task: int, trial: int) -> Path:
    return folder / f"task{task}_trial{trial}.mp4"


def forget(folder: Path) -> None:
    """Remove the pictures of an earlier run, which a page would show as those of one that begins there anew."""
    for path in [*folder.glob("task*_trial*.jpg"), *folder.glob("task*_trial*.mp4")]:
        path.unlink(missing_ok=True)


class Film:
    """Frames of one camera during one episode.

    video: draw every second step beside what the policy asked for; the physics is not touched.
    """

    def __init__(self, environment: Environment, camera: str, video: bool) -> None:
        self.camera = camera
        self._environment, self._video = environment, video
        self._last: deque[Image] = deque(maxlen=STRIP_FRAMES)
        self._frames: list[Image] = []

    def saw(self, step: int, image: Image) -> None:
        """The policy was given this frame, (H, W, 3) uint8 RGB, at this step."""
        self._last.append(image)
        if self._video and step == 0:
            self._frames.append(image)

    def step(self, steps: int) -> None:
        """`steps` control periods have been executed."""
        if self._video and steps % VIDEO_EVERY == 0:
            self._frames.append(self._environment.render(self.camera))

    def keep(self, folder: Path, task: int, trial: int, success: bool) -> None:
        """Write the video, and the last frames if the task was not solved.  Raises VegaError on a full disk."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not success and self._last:
                strip_path(folder, task, trial).write_bytes(strip(self._last))
        except OSError as error:
            raise VegaError(f"Pictures cannot be written to {folder} ({error.strerror}): make room there.") from error
        if self._frames:
            fps = 1.0 / (VIDEO_EVERY * self._environment.control_period_s)
            write_video(video_path(folder, task, trial), self._frames, fps)


def strip(frames: Sequence[Image]) -> bytes:
    """JPEG of frames beside each other."""
    import cv2

    height, width = frames[0].shape[:2]
    size = (round(STRIP_SIZE * width / height), STRIP_SIZE)
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    done, data = cv2.imencode(".jpg", np.hstack(small)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not done:
        raise RuntimeError("OpenCV could not encode a picture")
    return bytes(data)
