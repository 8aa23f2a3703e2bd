"""Clips of demonstrations, and how they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.nano.policy import prepare_image
from policies.training.dataset import CAMERAS, CANVAS
from policies.training.recordings import Recording, fingerprint
from policies.types import VegaError

CLIP_FRAMES = 5
MARGIN = 6  # px that clips are larger than the canvas, so that crops differ


class Clips:
    """Crops of consecutive frames of LeRobot datasets, in the size in which the policy will see them.

    batch(n, frames) -> (n, 3, frames, *CANVAS[camera]) in [-1, 1], of one camera drawn from `rng`.  fingerprint: tells
    them from those of other datasets.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.videos: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in CANVAS}
        recordings = [Recording(folder) for folder in folders]
        self.fingerprint = fingerprint(recordings, CANVAS)
        for recording in recordings:
            for camera, (rows, columns) in CANVAS.items():
                size = (columns + MARGIN, rows + MARGIN)
                frames = [
                    cv2.resize(prepare_image(picture, CAMERAS[camera], camera), size, interpolation=cv2.INTER_AREA)
                    for _, picture in recording.pictures(camera)
                ]
                cuts = [slice(episode.begin, episode.end) for episode in recording.episodes]
                self.videos[camera] += [np.stack(frames[c]) for c in cuts if c.stop - c.start >= CLIP_FRAMES]
        if not len(self):
            raise VegaError(f"No episode has {CLIP_FRAMES} frames: give longer recordings as --data.")

    def __len__(self) -> int:
        return sum(map(len, self.videos.values()))

    def batch(
        self, count: int, frames: int, rng: np.random.Generator, camera: str | None = None, side: int | None = None
    ) -> Tensor:
        """side: of squares to cut out in place of the whole canvas, px."""
        camera = camera or str(rng.choice(list(CANVAS)))
        videos, (rows, columns) = self.videos[camera], (side, side) if side else CANVAS[camera]
        clips = np.empty((count, frames, rows, columns, 3), np.uint8)
        for clip in clips:
            video = videos[rng.integers(len(videos))]
            at, y, x = (rng.integers(n - k + 1) for n, k in zip(video.shape, (frames, rows, columns), strict=False))
            clip[:] = video[at : at + frames, y : y + rows, x : x + columns]
        return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def picture(path: Path, *rows: Tensor) -> None:
    """Rows of clips (n, 3, t, H, W) in [-1, 1], every frame beside the other, three times as large."""
    strips = []
    for row in rows:
        frames = ((row.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 4, 1).numpy()
        strips.append(np.concatenate([np.concatenate(list(clip), axis=1) for clip in frames], axis=1))
    image = np.concatenate(strips, axis=0)
    larger = cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(path), cv2.cvtColor(larger, cv2.COLOR_RGB2BGR))
