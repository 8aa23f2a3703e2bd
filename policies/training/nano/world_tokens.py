"""The generative tokens of all demonstrations, computed once before training and kept on disk.

Their source is frozen, so its tokens of a frame do not change while the policy learns.  Besides those of the frames as
they are, `VARIANTS - 1` sets come from shifted and recoloured frames, so that the policy does not rely on exact ones.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.checkpoints import checkpoint_sha256
from policies.files.made_once import made_once
from policies.fusion.controls import noise_like, seeds_of
from policies.fusion.sources import NoiseTokens, TokenSource
from policies.fusion.world_view import WorldView
from policies.training.dataset import Demonstrations, recolour
from policies.world_simulator.simulator import LatentWorldSimulator

VARIANTS = 2
BLOCK = 32  # frames at a time


class CachedWorldTokens:
    """Tokens before pooling, float16, as memory maps of one file per camera and variant.

    folder: of the files, which several trainings may share.  seed: of shifts and colours.  stride: of a window, in
    control steps.  blank: nothing is computed and all tokens are 0, to measure what training with them costs.
    """

    def __init__(
        self, world: WorldView, demos: Demonstrations, folder: Path, seed: int, stride: int = 1, blank: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._world, self._demos, self._seed, self._stride = world, demos, seed, stride
        self._tokens: dict[str, list[NDArray[np.float16]]] = {}
        self._seeds: dict[str, list[NDArray[np.int64]]] = {}
        for camera in world.cameras:
            source = world.source_of(camera)
            key = f"{_name(source)} {world.cameras[camera]} {len(demos)} {seed}"
            if source.frames_needed > 1:
                key += f" {source.frames_needed} frames {stride} apart"
            digest = hashlib.sha256((key + _fingerprint(demos, camera)).encode()).hexdigest()[:12]
            self._tokens[camera], self._seeds[camera] = [], []
            for variant in range(VARIANTS):
                if blank:
                    shape = (len(demos), *source.native(self.pictures(camera, variant, 0)[:1]).shape[1:])
                    self._tokens[camera].append(np.zeros(shape, np.float16))
                    self._seeds[camera].append(np.arange(len(demos)))
                    continue
                path = folder / f"world_tokens_{camera}_{variant}_{digest}.npy"
                made_once(path, partial(self._compute, camera, variant))
                self._tokens[camera].append(np.load(path, mmap_mode="r"))
                if isinstance(source, NoiseTokens):
                    path = folder / f"noise_seeds_{camera}_{variant}_{digest}.npy"
                    made_once(path, partial(self._compute_seeds, camera, variant))
                    self._seeds[camera].append(np.load(path))

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

    @property
    def blocks(self) -> int:
        return -(-len(self._demos) // BLOCK)

    def _compute(self, camera: str, variant: int, target: Path) -> None:
        source = self._world.source_of(camera)
        result: NDArray[np.float16] | None = None
        for block in range(self.blocks):
            tokens = source.native(self.pictures(camera, variant, block))
            if result is None:
                shape = (len(self._demos), *tokens.shape[1:])
                result = np.lib.format.open_memmap(target, "w+", np.float16, shape)
            result[block * BLOCK : block * BLOCK + len(tokens)] = tokens.half().numpy()
            if block % 20 == 0:
                done = f"{block * BLOCK}/{len(self._demos)}"
                print(f"tokens of {camera}, set {variant + 1} of {VARIANTS}: {done}", flush=True)
        assert result is not None
        result.flush()  # type: ignore[attr-defined]

    def compute_block(self) -> None:
        """A block of every camera, and nothing is kept: to measure how long all of them take."""
        for camera in self._tokens:
            self._world.source_of(camera).native(self.pictures(camera, VARIANTS - 1, 0))

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
