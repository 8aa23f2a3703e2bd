"""Demonstrations from LeRobot v3 datasets, and batches of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.files.made_once import made_once
from policies.nano.config import CameraConfig
from policies.nano.policy import prepare_image, proprioception
from policies.nano.vocabulary import Vocabulary
from policies.training.recordings import BASE, Recording, fingerprint, seen_from
from policies.training.wordings import paraphrase
from policies.types import ActionSpace, VegaError

IMAGE_SIZE = (256, 256)
CAMERAS = {
    "agentview": CameraConfig(IMAGE_SIZE, resize=(160, 160)),
    "wrist": CameraConfig(IMAGE_SIZE, resize=(96, 96)),
}
CANVAS = {"agentview": (128, 128), "wrist": (80, 80)}  # px on which the world simulator sees each of them
SPACE = ActionSpace("eef_delta")
SHIFT = 3  # px of the encoder's pictures
WORDINGS = 12  # of every sentence
PROPRIO_NOISE = np.array([1e-3] * 3 + [3e-3] * 6 + [3e-4] * 2, np.float32)
PROGRESS_NOISE, PROGRESS_LOST = 0.08, 0.15  # what the policy believed: standard deviation, and how often it is 0


@dataclass
class Batch:
    """images: camera -> (B, 3, H, W) in [-1, 1]; ids (B, L); proprio (B, 11); actions (B, chunk, 7).

    points: camera -> (B, 2) row and column of what the teacher headed for in encoder pixels, target: (B, 3) the same in
    the base frame, m, NaN where that is outside or not recorded.  pointed: camera -> (K,) positions in the batch of
    which it is recorded, as outside or not.  before, progress: (B,) share of the task that was done at the last
    decision, 0 where that is not recorded, and is now, then NaN.  told: (K,) positions of which it is.  (Positions, not
    a mask: a GPU would have to be asked how many there are.)  meaning: (B, n) of the sentence, as a teacher of language
    has it, if any.  f_gen: camera -> (B, N, G), the world simulator's tokens, where there is one.
    """

    images: dict[str, Tensor]
    ids: Tensor
    proprio: Tensor
    actions: Tensor
    points: dict[str, Tensor]
    pointed: dict[str, Tensor]
    target: Tensor
    before: Tensor
    progress: Tensor
    told: Tensor
    meaning: Tensor | None = None
    f_gen: dict[str, Tensor] | None = None

    def to(self, device: torch.device) -> Batch:
        """On another device."""

        def moved(value: Tensor | dict[str, Tensor] | None) -> Tensor | dict[str, Tensor] | None:
            if isinstance(value, dict):
                return {name: tensor.to(device) for name, tensor in value.items()}
            return None if value is None else value.to(device)

        return Batch(**{f.name: moved(getattr(self, f.name)) for f in dataclasses.fields(self)})  # type: ignore[arg-type]


class WorldTokens(Protocol):
    """The generative tokens of all frames, computed before training (`policies/training/nano/world_tokens.py`)."""

    def batch(self, index: NDArray[np.int64], rng: np.random.Generator, *, augment: bool) -> dict[str, Tensor]:
        """f_gen of frames `index`: camera -> (B, N, G)."""
        ...


@dataclass
class Wordings:
    """How each sentence may be put.  texts: all of them; of[sentence]: positions of its own, itself first."""

    texts: list[str] = field(default_factory=list)
    of: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def make(cls, sentences: Sequence[str], seed: int = 0) -> Wordings:
        found = cls()
        rng = np.random.default_rng(seed)
        for sentence in dict.fromkeys(sentences):
            own = list(dict.fromkeys([sentence, *(paraphrase(sentence, rng) for _ in range(WORDINGS - 1))]))
            found.of[sentence] = list(range(len(found.texts), len(found.texts) + len(own)))
            found.texts += own
        return found


class Demonstrations:
    """All rows of some datasets, one frame of each camera in a row.

    cameras: how the policy sees.  cache: folder for the frames in that size, decoded once.  steps_per_row: control
    steps from one row's pictures to the next's, of each dataset.  datasets: the rows of each.  fingerprint: tells them
    from others.  left_out: episodes that did not end in success, from which nothing is learned.  base: position of the
    arm's base in the world, m, for datasets that do not say it; told_base: whether there are such.
    Raises VegaError for a dataset without these cameras, with another robot's numbers, or of failures alone, and for
    one of which nobody says where the base stands.
    """

    def __init__(
        self, folders: Sequence[Path], cameras: Mapping[str, CameraConfig], cache: Path,
        space: ActionSpace = SPACE, chunk_length: int = 8, base: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        if not folders:
            raise VegaError("There are no demonstrations: give LeRobot v3 datasets as --data.")
        self.cameras = dict(cameras)
        self.meanings: NDArray[np.float32] | None = None
        self.world_tokens: WorldTokens | None = None
        recordings = [Recording(folder) for folder in folders]
        self.told_base = not all(recording.has(BASE) for recording in recordings)
        parts = [_numbers(recording, self.cameras, space, chunk_length, base) for recording in recordings]
        self.data = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "episode"}
        firsts = np.cumsum([0, *(len(recording.episodes) for recording in recordings)])
        self.episode = np.concatenate([part["episode"] + first for part, first in zip(parts, firsts, strict=False)])
        solved = np.concatenate([recording.solved() for recording in recordings])
        self.left_out, self._solved = int(np.sum(~solved)), solved[self.episode]
        self.steps_per_row = tuple(round(space.rate_hz / recording.fps) for recording in recordings)
        self.sentences = [sentence for recording in recordings for sentence in recording.instructions()]
        self.wordings = Wordings.make(self.sentences)
        cache.mkdir(parents=True, exist_ok=True)
        self.frames_of = {
            name: [_decoded(recording, name, camera, cache) for recording in recordings]
            for name, camera in self.cameras.items()
        }
        self.fingerprint = fingerprint(recordings, self.cameras)
        self._first_row = np.cumsum([0, *map(len, recordings)])
        ends = self._first_row.tolist()
        self.datasets = [slice(begin, end) for begin, end in pairwise(ends)]

    def __len__(self) -> int:
        return len(self.episode)

    def split(self, hold_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows to learn from, and rows of every `hold_out`-th episode (none for 0); of episodes that succeeded."""
        held = self.episode % hold_out == hold_out - 1 if hold_out else np.zeros(len(self), bool)
        return np.flatnonzero(~held & self._solved), np.flatnonzero(held & self._solved)

    def told(self) -> str:
        """What is left out, for people."""
        return f"{self.left_out} episodes did not end in success and are left out"

    def windows(self, index: NDArray[np.int64], count: int, stride: int) -> NDArray[np.int64]:
        """(B, count) rows whose pictures a policy sees that decides at rows `index`, oldest first.

        stride: control steps from one to the next.  Before an episode's first row there is only that, as at run time
        (`sim.worlds.frames`).  Raises VegaError where no row lies at such a distance.
        """
        if count > 1 and any(stride % steps for steps in self.steps_per_row):
            raise VegaError(
                f"Rows are {' or '.join(map(str, sorted(set(self.steps_per_row))))} control steps apart, so windows of "
                f"frames {stride} apart cannot be made of them: give --data of which all rows are equally far apart "
                "(--every of collect_skills), or take another arm than a window."
            )
        _, first, episode = np.unique(self.episode, return_index=True, return_inverse=True)
        per_row = np.repeat(self.steps_per_row, np.diff(self._first_row))[index]
        back = np.arange(count)[::-1] * stride // per_row[:, None]
        return np.maximum(index[:, None] - back, first[episode[index]][:, None])

    def frames(
        self, camera: str, index: NDArray[np.int64], rng: np.random.Generator, *, augment: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """What the encoder sees of rows `index`, (B, H, W, 3), and the teacher's point there in px, (B, 2).

        With `augment` each is shifted by up to SHIFT px.
        """
        config = self.cameras[camera]
        height, width = config.output_size
        views = np.empty((len(index), height, width, 3), np.uint8)
        most = SHIFT if augment else 0
        shifts = rng.integers(-most, most + 1, (len(index), 2))
        part = np.searchsorted(self._first_row, index, side="right") - 1
        for view, row, where, (y, x) in zip(views, index, part, shifts + most, strict=True):
            stored = self.frames_of[camera][where][row - self._first_row[where]]
            padded = np.pad(stored, ((most, most), (most, most), (0, 0)), mode="edge") if most else stored
            view[:] = padded[y : y + height, x : x + width]
        top, left, bottom, right = config.crop or (0, 0, *config.image_size)
        scale = np.array([height / (bottom - top), width / (right - left)])
        # Older datasets have points half a pixel too far down and to the right: 0.3 px here, of tokens of 8 px and
        # pictures that are shifted by up to SHIFT px, so they are read as they are.
        points = (self.data[f"pixel.{camera}"][index] - [top, left] + 0.5) * scale - 0.5 - shifts
        return views, points

    def batch(
        self, index: NDArray[np.int64], vocabulary: Vocabulary, rng: np.random.Generator, *, augment: bool
    ) -> Batch:
        """Rows `index`; with `augment` shifted, recoloured, in another wording, and unsure of what was believed."""
        images, points, pointed = {}, {}, {}
        for camera in self.cameras:
            views, at = self.frames(camera, index, rng, augment=augment)
            images[camera] = recolour(torch.from_numpy(views), rng, augment)
            points[camera] = torch.from_numpy(at.astype(np.float32))
            pointed[camera] = torch.from_numpy(np.flatnonzero(self.data[f"pointed.{camera}"][index]))
        options = [self.wordings.of[self.sentences[row]] for row in index]
        said = np.array([own[int(rng.integers(len(own)))] if augment else own[0] for own in options])
        ids = [self._words(self.wordings.texts[text], vocabulary, rng, augment) for text in said]
        longest = max(map(len, ids))
        proprio, before, progress = (self.data[name][index] for name in ("proprio", "before", "progress"))
        if augment:
            proprio = proprio + rng.normal(0, 1, proprio.shape).astype(np.float32) * PROPRIO_NOISE
            before = np.clip(before + rng.normal(0, PROGRESS_NOISE, before.shape), 0, 1)
            before = np.where(rng.random(before.shape) < PROGRESS_LOST, 0.0, before)
        return Batch(
            images=images,
            ids=torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids]),
            proprio=torch.from_numpy(proprio),
            actions=torch.from_numpy(self.data["actions"][index]),
            points=points,
            pointed=pointed,
            target=torch.from_numpy(self.data["target"][index]),
            before=torch.from_numpy(before.astype(np.float32)),
            progress=torch.from_numpy(progress),
            told=torch.from_numpy(np.flatnonzero(np.isfinite(progress))),
            meaning=None if self.meanings is None else torch.from_numpy(self.meanings[said]),
            f_gen=self.world_tokens.batch(index, rng, augment=augment) if self.world_tokens else None,
        )

    def _words(self, text: str, vocabulary: Vocabulary, rng: np.random.Generator, augment: bool) -> list[int]:
        ids = vocabulary.encode(text)
        kept = [i for i in ids if not augment or rng.random() > 0.03]
        return kept or ids


def _numbers(
    recording: Recording, cameras: Collection[str], space: ActionSpace, chunk_length: int,
    base_position: Sequence[float] | None,
) -> dict[str, NDArray[np.generic]]:  # fmt: skip
    """What is learned from each row, pictures apart; of the policy's cameras, whatever others a dataset has.

    base_position: see `Demonstrations`.
    """
    steps = recording.actions(space.dim, space.rate_hz)
    count, per_row = steps.shape[:2]
    flat = steps.reshape(count * per_row, -1)
    begins, ends, episode = (np.empty(count, np.int64) for _ in range(3))
    for number, span in enumerate(recording.episodes):
        rows = slice(span.begin, span.end)
        begins[rows], ends[rows], episode[rows] = span.begin, span.end, number
    at = np.arange(count)
    chunk = np.minimum(at[:, None] * per_row + np.arange(chunk_length), ends[:, None] * per_row - 1)
    base = recording.base(base_position)
    position, quaternion, fingers = recording.arm(base)

    def told(name: str, width: int, otherwise: float) -> NDArray[np.float64]:
        """(rows, width) of a column that others' datasets lack."""
        found = recording.column(name).reshape(count, -1) if recording.has(name) else np.full((count, width), otherwise)
        return found[:, :width]

    progress = told("teacher.progress", 1, np.nan)[:, 0]
    last = np.maximum(at - max(chunk_length // per_row, 1), begins)
    numbers = {
        "actions": flat[chunk],
        "proprio": proprioception(position, quaternion, fingers),
        "target": seen_from(base, told("teacher.point", 3, np.nan)),
        "progress": progress,
        "before": np.nan_to_num(progress[last]),  # as one that has just begun, or has forgotten
    }
    for camera in cameras:
        pixel = told(f"teacher.pixel.{camera}", 2, np.nan)
        numbers[f"pixel.{camera}"] = np.where(pixel < 0, np.nan, pixel)
    recorded = {f"pointed.{c}": np.full(count, recording.has(f"teacher.pixel.{c}")) for c in cameras}
    return {key: value.astype(np.float32) for key, value in numbers.items()} | recorded | {"episode": episode}


def _decoded(recording: Recording, name: str, camera: CameraConfig, cache: Path) -> NDArray[np.uint8]:
    """(rows, H, W, 3) of one camera in the policy's size, from a file in `cache` that is made once."""
    digest = hashlib.sha256(repr((name, camera)).encode())
    recording.tell(digest, name)

    def decode(partial: Path) -> None:
        frames = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(recording), *camera.output_size, 3))
        for row, picture in recording.pictures(name):
            frames[row] = prepare_image(picture, camera, name)
        frames.flush()  # type: ignore[attr-defined]

    path = made_once(cache / f"frames_{name}_{digest.hexdigest()[:12]}.npy", decode)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def recolour(image: Tensor, rng: np.random.Generator, augment: bool) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float in [-1, 1]; recoloured at random if `augment`."""
    x = image.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    if not augment:
        return x
    n = len(x)
    gain = rng.uniform(0.8, 1.2, (n, 1, 1, 1)) * rng.uniform(0.93, 1.07, (n, 3, 1, 1))
    bias = rng.uniform(-0.12, 0.12, (n, 1, 1, 1))
    return x.mul_(torch.from_numpy(gain.astype(np.float32))).add_(torch.from_numpy(bias.astype(np.float32)))
