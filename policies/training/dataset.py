"""Demonstrations in memory, and batches of them (arrays as `sim/demonstrations/collect_demos.py` writes them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.nano.config import CameraConfig
from policies.nano.policy import proprioception
from policies.nano.vocabulary import Vocabulary
from policies.training.stored_views import AGENTVIEW_CROP, WRIST_SIZE
from policies.training.wordings import instruction
from policies.types import VegaError

IMAGE_SIZE = (256, 256)
STORED_ORIGIN = AGENTVIEW_CROP[:2]
CAMERAS = {
    "agentview": CameraConfig(IMAGE_SIZE, crop=(60, 32, 204, 248)),
    "wrist": CameraConfig(IMAGE_SIZE, resize=(WRIST_SIZE, WRIST_SIZE)),
}
CANVAS = {"agentview": (96, 144), "wrist": (96, 96)}  # px on which the world simulator sees each of them
SHIFT = {"agentview": 2, "wrist": 3}
PER_FRAME = ("agentview", "wrist", "pixels", "frame_step")
PER_STEP = ("actions", "eef_position", "eef_quaternion", "gripper", "target_position", "episode_end")


@dataclass
class Batch:
    """images: camera -> (B, 3, H, W) in [-1, 1]; ids (B, L); proprio (B, 11); actions (B, chunk, 7).

    points: camera -> (B, 2) row and column of the grasp point in encoder pixels, NaN where outside; target (B, 3) m.
    f_gen: camera -> (B, N, G), the world simulator's tokens, where there is one.
    """

    images: dict[str, Tensor]
    ids: Tensor
    proprio: Tensor
    actions: Tensor
    points: dict[str, Tensor]
    target: Tensor
    f_gen: dict[str, Tensor] | None = None


class WorldTokens(Protocol):
    """The world simulator's tokens of all frames, computed before training (`policies/training/world_tokens.py`)."""

    def batch(self, index: NDArray[np.int64], rng: np.random.Generator, *, augment: bool) -> dict[str, Tensor]:
        """f_gen of frames `index`: camera -> (B, N, G)."""
        ...


class Demonstrations:
    """All frames of a folder of demonstrations."""

    def __init__(self, paths: Sequence[Path], chunk_length: int = 8) -> None:
        if not paths:
            raise VegaError(
                "There are no demonstrations: make some with "
                "`python -m sim.demonstrations.collect_demos --output data/demos`."
            )
        arrays: dict[str, list[NDArray[np.generic]]] = {key: [] for key in (*PER_FRAME, *PER_STEP, "target_name")}
        steps = 0
        for path in paths:
            with np.load(path) as file:
                for key in (*PER_FRAME, *PER_STEP):
                    offset = steps if key in ("frame_step", "episode_end") else 0
                    arrays[key].append(file[key] + offset if offset else file[key])
                episode = np.searchsorted(file["first_step"], file["frame_step"], side="right") - 1
                arrays["target_name"].append(file["target"][episode])
                steps += len(file["actions"])
        self.data = {key: np.concatenate(value) for key, value in arrays.items()}
        self.chunk_length = chunk_length
        at = self.data["frame_step"]
        self.proprio = proprioception(
            self.data["eef_position"][at], self.data["eef_quaternion"][at], self.data["gripper"][at]
        ).astype(np.float32)
        ends = self.data["episode_end"][at]
        index = np.minimum(at[:, None] + np.arange(chunk_length), ends[:, None] - 1)
        self.chunks = self.data["actions"][index]

        self.world_tokens: WorldTokens | None = None

    def __len__(self) -> int:
        return len(self.chunks)

    def frames(
        self, camera: str, index: NDArray[np.int64], rng: np.random.Generator, *, augment: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """What the encoder sees of frames `index`, (B, H, W, 3), and the grasp point there in px, (B, 2).

        With `augment` each is shifted by up to SHIFT[camera] px.
        """
        most = SHIFT[camera]
        shifts = rng.integers(-most, most + 1, (len(index), 2)) if augment else np.zeros((len(index), 2), int)
        height, width = CAMERAS[camera].output_size
        stored = self.data[camera]
        views = np.empty((len(index), height, width, 3), np.uint8)
        if camera == "agentview":
            top, left, _, _ = CAMERAS[camera].crop or (0, 0, 0, 0)
            origin = np.array([top, left]) + shifts
            for view, frame, (y, x) in zip(views, index, origin - STORED_ORIGIN, strict=True):
                view[:] = stored[frame, y : y + height, x : x + width]
            return views, self.data["pixels"][index, 0] - origin
        padded = np.pad(stored[index], ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
        for view, frame, (y, x) in zip(views, padded, shifts + most, strict=True):
            view[:] = frame[y : y + height, x : x + width]
        scale = height / IMAGE_SIZE[0]
        return views, (self.data["pixels"][index, 1] + 0.5) * scale - 0.5 - shifts

    def batch(
        self, index: NDArray[np.int64], vocabulary: Vocabulary, rng: np.random.Generator, *, augment: bool
    ) -> Batch:
        """Frames `index`, each with a wording drawn from `rng`, shifted and recoloured if `augment`."""
        images, points = {}, {}
        for camera in CAMERAS:
            views, at = self.frames(camera, index, rng, augment=augment)
            images[camera] = recolour(torch.from_numpy(views), rng, augment)
            points[camera] = torch.from_numpy(at.astype(np.float32))
        ids = [self._words(str(name), vocabulary, rng, augment) for name in self.data["target_name"][index]]
        longest = max(map(len, ids))
        proprio = self.proprio[index]
        if augment:
            proprio = proprio + rng.normal(0, 1, proprio.shape).astype(np.float32) * np.r_[
                [1e-3] * 3, [3e-3] * 6, [3e-4] * 2
            ].astype(np.float32)
        return Batch(
            images=images,
            ids=torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids]),
            proprio=torch.from_numpy(proprio),
            actions=torch.from_numpy(self.chunks[index]),
            points=points,
            target=torch.from_numpy(self.data["target_position"][self.data["frame_step"][index]]),
            f_gen=self.world_tokens.batch(index, rng, augment=augment) if self.world_tokens else None,
        )

    def _words(self, target: str, vocabulary: Vocabulary, rng: np.random.Generator, augment: bool) -> list[int]:
        ids = vocabulary.encode(instruction(target, rng))
        kept = [i for i in ids if not augment or rng.random() > 0.03]
        return kept or ids


def recolour(image: Tensor, rng: np.random.Generator, augment: bool) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float in [-1, 1]; recoloured at random if `augment`."""
    x = image.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    if not augment:
        return x
    n = len(x)
    gain = rng.uniform(0.8, 1.2, (n, 1, 1, 1)) * rng.uniform(0.93, 1.07, (n, 3, 1, 1))
    bias = rng.uniform(-0.12, 0.12, (n, 1, 1, 1))
    return x.mul_(torch.from_numpy(gain.astype(np.float32))).add_(torch.from_numpy(bias.astype(np.float32)))
