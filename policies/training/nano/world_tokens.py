"""The generative tokens of all demonstrations, computed once before training and kept on disk.

Their source is frozen, so its tokens of a frame do not change while the policy learns.  Besides those of the frames as
they are, `VARIANTS - 1` sets come from shifted and recoloured frames, so that the policy does not rely on exact ones.
Windows may take an hour: a file that a kill has left is gone on with, and processes that need the same share the work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
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
    """Tokens before pooling, `as_kept`, as memory maps of one file per camera and variant.

    folder: of the files, which several trainings may share.  seed: of shifts and colours.  stride: of a window, in
    control steps.  blank: nothing is computed and all tokens are 0, to measure what training with them costs.
    """

    def __init__(
        self, world: WorldView, demos: Demonstrations, folder: Path, seed: int, stride: int = 1, blank: bool = False
    ) -> None:
        self._world, self._demos, self._seed, self._stride = world, demos, seed, stride
        self._tokens: dict[str, list[NDArray[np.floating[Any]]]] = {}
        self._seeds: dict[str, list[NDArray[np.int64]]] = {}
        if blank:
            for camera in world.cameras:
                shape = world.source_of(camera).native(self.pictures(camera, 0, 0)[:1]).shape[1:]
                self._tokens[camera] = [np.zeros((len(demos), *shape), np.float16) for _ in range(VARIANTS)]
                self._seeds[camera] = [np.arange(len(demos))] * VARIANTS
            return
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[Path, Callable[[Path], None]] = {}
        found: dict[tuple[str, str], list[Path]] = {}
        for camera in world.cameras:
            makers = {"world_tokens": self._compute}
            if isinstance(world.source_of(camera), NoiseTokens):
                makers["noise_seeds"] = self._compute_seeds
            digest = self._digest(camera)
            for kind, maker in makers.items():
                paths = [folder / f"{kind}_{camera}_{variant}_{digest}.npy" for variant in range(VARIANTS)]
                files |= {path: partial(maker, camera, variant) for variant, path in enumerate(paths)}
                found[kind, camera] = paths
        all_made_once(files)
        for camera in world.cameras:
            self._tokens[camera] = [np.load(path, mmap_mode="r") for path in found["world_tokens", camera]]
            self._seeds[camera] = [np.load(path) for path in found.get(("noise_seeds", camera), ())]

    def _digest(self, camera: str) -> str:
        """Tells the tokens of this camera from all others."""
        source = self._world.source_of(camera)
        key = f"{_name(source)} {self._world.cameras[camera]} {len(self._demos)} {self._seed}"
        if source.frames_needed > 1:
            key += f" {source.frames_needed} frames {self._stride} apart"
        return hashlib.sha256((key + _fingerprint(self._demos, camera)).encode()).hexdigest()[:12]

    def pictures(self, camera: str, variant: int, block: int) -> Tensor:
        """What the source sees of the rows of a block: (n, T, H, W, 3) uint8, oldest first."""
        first, demos = block * BLOCK, self._demos
        index = np.arange(first, min(first + BLOCK, len(demos)))
        found = []
        for rows in demos.windows(index, self._world.source_of(camera).frames_needed, self._stride).T:
            # The same for every frame of a window, which is shifted and recoloured as a whole.
            rng = np.random.default_rng([self._seed, variant, first])
            views, _ = demos.frames(camera, rows, rng, augment=variant > 0)
            pixels = recolour(torch.from_numpy(views), rng, variant > 0)
            found.append(((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1))
        return torch.stack(found, dim=1)

    def _seen(self, camera: str, variant: int, block: int) -> Tensor:
        """Tokens of the rows of a block: (n, rows, columns, G)."""
        source, pictures = self._world.source_of(camera), self.pictures(camera, variant, block)
        at_once = BLOCK if source.frames_needed == 1 else WINDOWS
        return torch.cat([source.native(part) for part in pictures.split(at_once)])

    @property
    def blocks(self) -> int:
        return -(-len(self._demos) // BLOCK)

    def _compute(self, camera: str, variant: int, target: Path) -> None:
        """Goes on with what a kill has left in `target`: how many blocks of it are whole is told beside it."""
        told = target.with_suffix(".blocks")
        result, begin = _left(target, told)
        for block in range(begin, self.blocks):
            tokens = self._seen(camera, variant, block)
            if result is None:
                told.unlink(missing_ok=True)
            result = keep(target, result, len(self._demos), block * BLOCK, as_kept(tokens, camera))
            if block % TOLD_EVERY == 0:
                result.flush()
                told.write_text(str(block + 1))
                done = f"{block * BLOCK}/{len(self._demos)}"
                print(f"tokens of {camera}, set {variant + 1} of {VARIANTS}: {done}", flush=True)
        assert result is not None
        result.flush()
        told.unlink(missing_ok=True)

    def compute_block(self) -> None:
        """A block of every camera, and nothing is kept: to measure how long all of them take."""
        for camera in self._tokens:
            self._seen(camera, VARIANTS - 1, 0)

    def _compute_seeds(self, camera: str, variant: int, target: Path) -> None:
        seeds = [seed for block in range(self.blocks) for seed in seeds_of(self.pictures(camera, variant, block))]
        with target.open("wb") as file:
            np.save(file, np.array(seeds))

    def native(self, camera: str, variant: int, rows: slice) -> Tensor:
        """Tokens of some rows before pooling: (n, rows, columns, G) float32."""
        return torch.from_numpy(np.array(self._tokens[camera][variant][rows])).float()

    def batch(self, index: NDArray[np.int64], rng: np.random.Generator, *, augment: bool) -> dict[str, Tensor]:
        """f_gen of frames `index`, of a variant drawn per frame if `augment`: camera -> (B, N, G)."""
        pooled = {}
        for camera, variants in self._tokens.items():
            drawn = rng.integers(VARIANTS, size=len(index)) if augment else np.zeros(len(index), int)
            tokens = np.stack([variants[v][i] for v, i in zip(drawn, index, strict=True)])
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


def _fingerprint(demos: Demonstrations, camera: str) -> str:
    """Tells one set of demonstrations from another, from some of its pixels."""
    digest = hashlib.sha256()
    for frames in demos.frames_of[camera]:
        digest.update(np.ascontiguousarray(frames[::97]).tobytes())
    return digest.hexdigest()
