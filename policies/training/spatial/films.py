"""Films of libero_space as arrays: every frame's picture, camera and things; and the world simulator's tokens of them.

Read once and kept in the output folder, mirrored ones too: a scene seen in a mirror is as true as the scene, and twice
as many are learned from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from policies.checkpoints import checkpoint_sha256
from policies.files.json_config import read_json
from policies.spatial.nano.config import SpatialConfig
from policies.spatial.nano.pictures import fitted
from policies.training.kept_tokens import KeptFile, as_kept, keep
from policies.types import FloatArray, Image, VegaError
from policies.world_simulator.simulator import LatentWorldSimulator

BLOCK = 32  # frames at a time
MOST_THINGS = 16  # of a scene


@dataclass(frozen=True)
class Films:
    """All frames of a split, film by film.

    pictures: (F, H, W, 3) uint8, as the encoder gets them.  film: (F,) which film.  camera_to_world: (F, 4, 4).
    centre, height, longest, widths, angles, kind, share: of the things in a frame, (F, MOST_THINGS, ...), m and rad;
    kind -1 where there is none.  widths: along `angles`, directions in the world.  table: (F,) m^2, NaN where there is
    none.  names: of the films.  key: tells these pictures from all others.
    """

    pictures: NDArray[np.uint8]
    film: NDArray[np.int64]
    camera_to_world: FloatArray
    centre: FloatArray
    height: FloatArray
    longest: FloatArray
    widths: FloatArray
    angles: FloatArray
    kind: NDArray[np.int64]
    share: FloatArray
    table: FloatArray
    names: tuple[str, ...]
    key: str

    @cached_property
    def chances(self) -> FloatArray:
        """(F,) with which frames are drawn, so that every stage is seen as often: things are of one size in a stage."""
        stages = [name.rsplit("_", 1)[0] for name in self.names]
        _, stage, counts = np.unique([stages[film] for film in self.film], return_inverse=True, return_counts=True)
        return np.asarray(1.0 / (counts[stage] * len(counts)))


def film_files(folders: Sequence[Path], split: str) -> list[Path]:
    """The JSON files of a split's films.  Raises VegaError where there are none."""
    found = sorted((p for f in folders for p in f.glob(f"*/{split}_*.json")), key=lambda p: (p.parent.parent, p.name))
    if not found:
        raise VegaError(f"There are no films of '{split}' in {folders[0]}: make some with sim.space.collect.")
    return found


def categories(files: Sequence[Path]) -> tuple[str, ...]:
    """What the things of these films are called."""
    return tuple(sorted({thing["category"] for path in files for thing in read_json(path)["things"]}))


def video_digests(files: Sequence[Path]) -> dict[Path, bytes]:
    """Of each film, named by its JSON file, a digest of its video.  Raises VegaError for one that is not there."""
    found = {}
    for file in files:
        path = file.with_suffix(".mp4")
        try:
            found[file] = hashlib.sha256(path.read_bytes()).digest()
        except OSError as error:
            raise VegaError(f"Film '{path}' cannot be read ({error.strerror}): collect it again.") from error
    return found


def films_sha256(digests: Iterable[bytes]) -> str:
    """Of all that the videos of these digests hold."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def read_films(files: Sequence[Path], config: SpatialConfig, cache: Path, digests: Mapping[Path, bytes]) -> Films:
    """Things that the config does not name are left out.  cache: folder in which pictures are kept.  digests: of at
    least these films, from `video_digests`."""
    scenes = [read_json(path) for path in files]
    counts = [len(scene["camera_to_world"]) for scene in scenes]
    shape = (sum(counts), *config.image_size, 3)
    # All that `fitted` makes the pictures of: films that were made anew have the old ones' names.
    videos, intrinsics = films_sha256(digests[file] for file in files), [scene["intrinsics"] for scene in scenes]
    made_of = [videos, counts, intrinsics, config.image_size, config.focal]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]
    path = cache / f"pictures_{key}.npy"
    if not path.exists():
        partial = path.with_suffix(".partial")
        kept = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        at = 0
        for file, scene in zip(files, scenes, strict=True):
            for picture in _frames(file.with_suffix(".mp4"), len(scene["camera_to_world"])):
                kept[at] = fitted(picture, config, np.array(scene["intrinsics"]))
                at += 1
        kept.flush()  # type: ignore[attr-defined]
        partial.rename(path)
    rows = [_things(scene, config.things) for scene in scenes]
    each = {
        name: np.concatenate([np.broadcast_to(r[name], (n, *r[name].shape)) for r, n in zip(rows, counts, strict=True)])
        for name in ("centre", "height", "longest", "widths", "angles", "kind")
    }
    return Films(
        pictures=np.load(path, mmap_mode="r"),
        film=np.repeat(np.arange(len(scenes)), counts),
        camera_to_world=np.concatenate([np.array(scene["camera_to_world"]) for scene in scenes]),
        share=np.concatenate([row["seen"].T for row in rows]),
        table=np.repeat([scene["table_area_m2"] or np.nan for scene in scenes], counts),
        names=tuple(f"{file.parent.parent.name}/{file.parent.name}/{file.stem}" for file in files),
        key=key,
        **each,
    )


def _things(scene: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    things = [thing for thing in scene["things"] if thing["category"] in known][:MOST_THINGS]
    frames = len(scene["camera_to_world"])
    found = {
        "centre": np.zeros((MOST_THINGS, 3)), "height": np.ones(MOST_THINGS), "longest": np.ones(MOST_THINGS),
        "widths": np.ones((MOST_THINGS, 4)), "angles": np.zeros((MOST_THINGS, 4)),
        "kind": np.full(MOST_THINGS, -1), "seen": np.zeros((MOST_THINGS, frames)),
    }  # fmt: skip
    for i, thing in enumerate(things):
        size, box, corners = (np.array(thing[name]) for name in ("size", "box", "corners"))
        sides = corners[[2, 1]] - corners[0]  # its length and its width
        yaw = np.arctan2(sides[0][1], sides[0][0])
        found["centre"][i], found["height"][i], found["longest"][i] = thing["centre"], size[2], size.max()
        found["widths"][i] = [box[3], box[4], np.linalg.norm(sides[0]), np.linalg.norm(sides[1])]
        found["angles"][i] = [0.0, np.pi / 2, yaw, yaw + np.pi / 2]
        found["kind"][i], found["seen"][i] = known.index(thing["category"]), thing["seen"]
    return found


def _frames(path: Path, count: int) -> list[Image]:
    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(np.ascontiguousarray(read[1][:, :, ::-1], dtype=np.uint8))
    video.release()
    if len(frames) != count:
        raise VegaError(f"Film '{path}' has {len(frames)} frames and not {count}: remove it and collect it again.")
    return frames


class WorldTokens:
    """The frozen world simulator's tokens of all frames before pooling, as they are and mirrored, on disk."""

    def __init__(self, simulator: LatentWorldSimulator, films: Films, cache: Path) -> None:
        self._simulator = simulator
        self._frame = films.pictures.shape[1:3]
        if simulator.folder is None:
            raise VegaError("This world simulator was not loaded from a folder, so its tokens cannot be kept.")
        key = f"{checkpoint_sha256(str(simulator.folder))} {simulator.config} {films.key}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        self._kept = []
        for mirrored in (False, True):
            path = cache / f"world_tokens_{int(mirrored)}_{digest}.npy"
            if not path.exists():
                self._compute(films.pictures, mirrored, path)
            self._kept.append(np.load(path, mmap_mode="r"))

    def _compute(self, pictures: NDArray[np.uint8], mirrored: bool, path: Path) -> None:
        partial = path.with_suffix(".partial")
        kept: KeptFile | None = None
        for first in range(0, len(pictures), BLOCK):
            block = pictures[first : first + BLOCK]
            frames = torch.from_numpy(np.array(block[:, :, ::-1] if mirrored else block))
            tokens = self._simulator.tokens(self._simulator.latents(frames[:, None]))[:, 0]
            kept = keep(partial, kept, len(pictures), first, as_kept(tokens))
            if first // BLOCK % 20 == 0:
                print(f"world tokens{' of mirrored frames' * mirrored}: {first}/{len(pictures)}", flush=True)
        assert kept is not None
        kept.flush()
        partial.rename(path)

    def batch(self, index: NDArray[np.int64], mirrored: NDArray[np.bool_]) -> torch.Tensor:
        """f_gen of frames `index`, (B, N, G)."""
        tokens = np.stack([self._kept[int(m)][i] for i, m in zip(index, mirrored, strict=True)])
        return self._simulator.pool(torch.from_numpy(tokens).float()[:, None], self._frame)[:, 0]
