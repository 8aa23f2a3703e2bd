"""The world simulator's tokens of all demonstrations, computed once before training and kept on disk.

It is frozen, so its tokens of a frame do not change while the policy learns.  Besides those of the frames as they are,
`VARIANTS - 1` sets come from shifted and recoloured frames, so that the policy does not rely on exact ones.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.checkpoints import checkpoint_sha256
from policies.fusion.world_view import WorldView
from policies.training.dataset import Demonstrations, recolour

VARIANTS = 2
BLOCK = 32  # frames at a time


class CachedWorldTokens:
    """Tokens before pooling, float16, as memory maps of one file per camera and variant."""

    def __init__(self, world: WorldView, demos: Demonstrations, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._world, self._cameras = world, demos.cameras
        self._sizes: dict[str, tuple[int, int]] = {}
        self._tokens: dict[str, list[NDArray[np.float16]]] = {}
        assert world.simulator.folder is not None
        for camera in world.cameras:
            self._tokens[camera] = []
            for variant in range(VARIANTS):
                key = f"{checkpoint_sha256(str(world.simulator.folder))} {world.cameras[camera]} {len(demos)} {seed}"
                digest = hashlib.sha256((key + _fingerprint(demos, camera)).encode()).hexdigest()[:12]
                path = folder / f"world_tokens_{camera}_{variant}_{digest}.npy"
                if not path.exists():
                    self._compute(demos, camera, variant, path, seed)
                self._tokens[camera].append(np.load(path, mmap_mode="r"))

    def _compute(self, demos: Demonstrations, camera: str, variant: int, path: Path, seed: int) -> None:
        simulator = self._world.simulator_of(camera)
        partial = path.with_suffix(".partial")
        result: NDArray[np.float16] | None = None
        for first in range(0, len(demos), BLOCK):
            index = np.arange(first, min(first + BLOCK, len(demos)))
            rng = np.random.default_rng([seed, variant, first])
            views, _ = demos.frames(camera, index, rng, augment=variant > 0)
            pixels = recolour(torch.from_numpy(views), rng, variant > 0)
            frames = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)[:, None]
            tokens = simulator.tokens(simulator.encoder.frames(simulator.to_canvas(frames)))[:, 0]
            if result is None:
                shape = (len(demos), *tokens.shape[1:])
                result = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            result[index] = tokens.half().numpy()
            if first // BLOCK % 20 == 0:
                print(f"tokens of {camera}, set {variant + 1} of {VARIANTS}: {first}/{len(demos)}", flush=True)
        assert result is not None
        result.flush()  # type: ignore[attr-defined]
        partial.rename(path)

    def batch(self, index: NDArray[np.int64], rng: np.random.Generator, *, augment: bool) -> dict[str, Tensor]:
        """f_gen of frames `index`, of a variant drawn per frame if `augment`: camera -> (B, N, G)."""
        pooled = {}
        for camera, variants in self._tokens.items():
            drawn = rng.integers(VARIANTS, size=len(index)) if augment else np.zeros(len(index), int)
            tokens = np.stack([variants[v][i] for v, i in zip(drawn, index, strict=True)])
            simulator = self._world.simulator_of(camera)
            frame = self._cameras[camera].output_size
            pooled[camera] = simulator.pool(torch.from_numpy(tokens).float()[:, None], frame)[:, 0]
        return pooled


def _fingerprint(demos: Demonstrations, camera: str) -> str:
    """Tells one set of demonstrations from another, from some of its pixels."""
    digest = hashlib.sha256()
    for frames in demos.frames_of[camera]:
        digest.update(np.ascontiguousarray(frames[::97]).tobytes())
    return digest.hexdigest()
