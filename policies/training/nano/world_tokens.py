"""The generative tokens of all demonstrations, computed once before training and kept on disk.

Their source is frozen, so its tokens of a frame do not change while the policy learns.  Each dataset has files of its
own, so that a training with more of them computes only what is new.  Besides those of the frames as they are,
`VARIANTS - 1` sets come from shifted and recoloured frames, so that the policy does not rely on exact ones.
Windows may take an hour: a file that a kill has left is gone on with, and processes that need the same share the work.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.checkpoints import checkpoint_sha256
from policies.files.made_once import all_made_once
from policies.fusion.controls import noise_like, seeds_of
from policies.fusion.sources import NoiseTokens, TokenSource
from policies.fusion.world_view import WorldView
from policies.training.dataset import Demonstrations, recolour
from policies.training.kept_tokens import KeptFile, as_kept, keep
from policies.world_simulator.simulator import LatentWorldSimulator

VARIANTS = 2
BLOCK = 32  # frames at a time
TOLD_EVERY = 20  # blocks
WINDOWS = 2  # at a time: what more of them leave in memory between two layers takes a CPU longer than it saves


class CachedWorldTokens:
    """Tokens before pooling, `as_kept`, as memory maps of one file per camera, variant and dataset.

    folder: of the files, which several trainings may share.  seed: of shifts and colours.  stride: of a window, in
    control steps.  blank: nothing is computed and all tokens are 0, to measure what training with them costs.
    """

    def __init__(
        self, world: WorldView, demos: Demonstrations, folder: Path, seed: int, stride: int = 1, blank: bool = False
    ) -> None:
        self._world, self._demos, self._seed, self._stride = world, demos, seed, stride
        # By camera, variant and dataset; one array stands for all datasets where nothing is computed.
        self._tokens: dict[str, list[list[NDArray[np.floating[Any]]]]] = {}
        self._seeds: dict[str, list[NDArray[np.int64]]] = {}
        self._first_rows = [span.start for span in demos.datasets]
        if blank:
            for camera in world.cameras:
                shape = world.source_of(camera).native(self.pictures(camera, 0, slice(0, 1))).shape[1:]
                self._tokens[camera] = [[np.zeros((len(demos), *shape), np.float16)] for _ in range(VARIANTS)]
                self._seeds[camera] = [np.arange(len(demos))] * VARIANTS
            self._first_rows = [0]
            return
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[Path, Callable[[Path], None]] = {}
        found: dict[tuple[str, str, int], list[Path]] = {}
        for camera, variant, dataset in product(world.cameras, range(VARIANTS), range(len(demos.datasets))):
            makers = {"world_tokens": self._compute}
            if isinstance(world.source_of(camera), NoiseTokens):
                makers["noise_seeds"] = self._compute_seeds
            digest = self._digest(camera, dataset)
            for kind, maker in makers.items():
                path = folder / f"{kind}_{camera}_{variant}_{digest}.npy"
                files[path] = partial(maker, camera, variant, dataset)
                found.setdefault((kind, camera, variant), []).append(path)
        all_made_once(files)
        for camera in world.cameras:
            for variant in range(VARIANTS):
                tokens = [np.load(path, mmap_mode="r") for path in found["world_tokens", camera, variant]]
                self._tokens.setdefault(camera, []).append(tokens)
                if seeds := found.get(("noise_seeds", camera, variant)):
                    self._seeds.setdefault(camera, []).append(np.concatenate([np.load(path) for path in seeds]))

    def _digest(self, camera: str, dataset: int) -> str:
        """Tells the tokens of this camera in a dataset from all others."""
        source, frames = self._world.source_of(camera), self._demos.frames_of[camera][dataset]
        key = f"{_name(source)} {self._world.cameras[camera]} {_kept_as(frames)} {self._seed}"
        if source.frames_needed > 1:
            key += f" {source.frames_needed} frames {self._stride} apart"
        return hashlib.sha256(key.encode()).hexdigest()[:12]

    def blocks(self, dataset: int) -> list[slice]:
        """The rows of each block of a dataset, among the rows of all."""
        span = self._demos.datasets[dataset]
        return [slice(first, min(first + BLOCK, span.stop)) for first in range(span.start, span.stop, BLOCK)]

    def pictures(self, camera: str, variant: int, block: slice) -> Tensor:
        """What the source sees of the rows of a block: (n, T, H, W, 3) uint8, oldest first."""
        demos = self._demos
        begin = demos.datasets[bisect_right(self._first_rows, block.start) - 1].start
        index = np.arange(block.start, block.stop)
        found = []
        for rows in demos.windows(index, self._world.source_of(camera).frames_needed, self._stride).T:
            # The same for every frame of a window, which is shifted and recoloured as a whole.
            rng = np.random.default_rng([self._seed, variant, block.start - begin])
            views, _ = demos.frames(camera, rows, rng, augment=variant > 0)
            pixels = recolour(torch.from_numpy(views), rng, variant > 0)
            found.append(((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1))
        return torch.stack(found, dim=1)

    def _seen(self, camera: str, variant: int, block: slice) -> Tensor:
        """Tokens of the rows of a block: (n, rows, columns, G)."""
        source, pictures = self._world.source_of(camera), self.pictures(camera, variant, block)
        at_once = BLOCK if source.frames_needed == 1 else WINDOWS
        return torch.cat([source.native(part) for part in pictures.split(at_once)])

    def _compute(self, camera: str, variant: int, dataset: int, target: Path) -> None:
        """Goes on with what a kill has left in `target`: how many blocks of it are whole is told beside it."""
        told, span = target.with_suffix(".blocks"), self._demos.datasets[dataset]
        result, whole = _left(target, told)
        for number, block in list(enumerate(self.blocks(dataset)))[whole:]:
            tokens = self._seen(camera, variant, block)
            if result is None:
                told.unlink(missing_ok=True)
            result = keep(target, result, span.stop - span.start, block.start - span.start, as_kept(tokens, camera))
            if number % TOLD_EVERY == 0:
                result.flush()
                told.write_text(str(number + 1))
                done = f"{block.start}/{len(self._demos)}"
                print(f"tokens of {camera}, set {variant + 1} of {VARIANTS}: {done}", flush=True)
        assert result is not None
        result.flush()
        told.unlink(missing_ok=True)

    def compute_block(self) -> None:
        """A block of every camera, and nothing is kept: to measure how long all of them take."""
        for camera in self._tokens:
            self._seen(camera, VARIANTS - 1, self.blocks(0)[0])

    def _compute_seeds(self, camera: str, variant: int, dataset: int, target: Path) -> None:
        blocks = self.blocks(dataset)
        seeds = [seed for block in blocks for seed in seeds_of(self.pictures(camera, variant, block))]
        with target.open("wb") as file:
            np.save(file, np.array(seeds))

    def _of(self, camera: str, variant: int, row: int) -> NDArray[np.floating[Any]]:
        dataset = bisect_right(self._first_rows, row) - 1
        return self._tokens[camera][variant][dataset][row - self._first_rows[dataset]]

    def native(self, camera: str, variant: int, rows: slice) -> Tensor:
        """Tokens of some rows before pooling: (n, rows, columns, G) float32."""
        found = [self._of(camera, variant, row) for row in range(*rows.indices(len(self._demos)))]
        return torch.from_numpy(np.stack(found)).float()

    def batch(self, index: NDArray[np.int64], rng: np.random.Generator, *, augment: bool) -> dict[str, Tensor]:
        """f_gen of frames `index`, of a variant drawn per frame if `augment`: camera -> (B, N, G)."""
        pooled = {}
        for camera in self._tokens:
            drawn = rng.integers(VARIANTS, size=len(index)) if augment else np.zeros(len(index), int)
            tokens = np.stack([self._of(camera, int(v), int(i)) for v, i in zip(drawn, index, strict=True)])
            source, frame = self._world.source_of(camera), self._demos.cameras[camera].output_size
            pooled[camera] = source.pool(torch.from_numpy(tokens).float()[:, None], frame)[:, 0]
            if isinstance(source, NoiseTokens):
                seeds = [int(self._seeds[camera][v][i]) for v, i in zip(drawn, index, strict=True)]
                pooled[camera] = noise_like(pooled[camera], seeds)
        return pooled


def _left(target: Path, told: Path) -> tuple[KeptFile | None, int]:
    """The tokens that a kill has left, and of how many blocks they are."""
    try:
        blocks = int(told.read_text())
        return np.lib.format.open_memmap(target, "r+"), blocks
    except (OSError, ValueError):
        return None, 0


def _name(source: TokenSource) -> str:
    """Tells the tokens of one source from another's; noise has the statistics of the world simulator's own."""
    weights = "" if source.folder is None else checkpoint_sha256(str(source.folder))
    if isinstance(source, (LatentWorldSimulator, NoiseTokens)):
        return weights
    return f"{type(source).__name__} {weights}"


def _kept_as(frames: NDArray[np.uint8]) -> str:
    """Tells one dataset's frames of a camera from another's: the name of their file, which comes from the videos."""
    assert isinstance(frames, np.memmap) and frames.filename is not None
    return Path(frames.filename).stem
