"""The frozen world simulator's tokens of all demonstrations, computed once and kept on disk.

They are kept on the simulator's own grid, before pooling, since what they are pooled over is the part of the frame
that the other stream sees, which in training is drawn at random.  A file holds so many frames of a camera, numbered
over all steps, so that policies with other chunks find the same; what is there is not computed again, and several
processes share the work.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.checkpoints import checkpoint_sha256
from policies.fusion.world_view import WorldView
from policies.training.kept_tokens import as_kept
from policies.training.vega.demonstrations import Samples
from policies.training.vega.pictures import View
from policies.types import Image, VegaError
from policies.world_simulator.canvas import place, pool_registered
from policies.world_simulator.prompt import PROMPT_FILE, read_prompt
from policies.world_simulator.simulator import LatentWorldSimulator

SHARD = 256  # frames a file
BATCH = 8  # frames at a time


class TokenCache:
    """Tokens (frames, rows, columns, G) `as_kept`, of every camera, in files under `folder`/<hash>.

    The hash is of the world simulator's weights and prompt, of the precision that it computes in, of block, noise,
    canvas and framing, and of the demonstrations.
    """

    def __init__(self, world: WorldView, samples: Samples, folder: Path) -> None:
        simulator = world.simulator
        if simulator.config.mode != "per_frame" or simulator.config.framing != "registered":
            raise VegaError(
                "Tokens are cached of single frames that are registered: set the world simulator's mode to per_frame "
                "and its framing to registered."
            )
        if simulator.folder is None:
            raise VegaError("This world simulator was not loaded from a folder, so its tokens cannot be cached.")
        self._world, self._samples, self._step_of = world, samples.every_step(), samples.step
        self._folders: dict[str, Path] = {}
        weights = checkpoint_sha256(str(simulator.folder)) + _own_prompt(simulator.folder, simulator.prompt)
        shown = samples.fingerprint(tuple(world.cameras))
        for camera in world.cameras:
            config = asdict(world.simulator_of(camera).config)
            decides = {name: config[name] for name in ("tap", "noise_index", "shift", "seed", "canvas", "framing")}
            decides["dtype"] = str(simulator.trunk.patch_embedding.weight.dtype)
            key = json.dumps([weights, decides, shown, camera], sort_keys=True)
            self._folders[camera] = folder / hashlib.sha256(key.encode()).hexdigest()[:16] / camera

    def gigabytes(self) -> float:
        """Size of the whole on disk."""
        numbers = 0
        for camera in self._folders:
            simulator = self._world.simulator_of(camera)
            rows, columns = (side // simulator.token_px for side in simulator.config.canvas)
            numbers += len(self._samples) * rows * columns * simulator.dim
        return numbers * 2 / 1e9

    def compute(self, process: int = 0, processes: int = 1) -> int:
        """Write the files that are missing, of every `processes`-th the `process`-th; returns how many."""
        written = 0
        firsts = range(0, len(self._samples), SHARD)
        for camera, folder in self._folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            for number, first in enumerate(firsts):
                path = self._path(camera, first)
                if number % processes == process and not path.is_file():
                    self._write(camera, first, path)
                    written += 1
        return written

    def _path(self, camera: str, first: int) -> Path:
        return self._folders[camera] / f"{first // SHARD:06d}.npy"

    def _write(self, camera: str, first: int, path: Path) -> None:
        simulator = self._world.simulator_of(camera)
        last = min(first + SHARD, len(self._samples))
        parts = []
        for begin in range(first, last, BATCH):
            pictures = [self._samples.picture(camera, i) for i in range(begin, min(begin + BATCH, last))]
            parts.append(as_kept(native_tokens(simulator, pictures), camera))
        partial = path.with_suffix(f".{os.getpid()}.partial")  # another run may write the same file
        with partial.open("wb") as file:
            np.save(file, np.concatenate(parts))
        partial.rename(path)

    def tokens(self, camera: str, index: int, frame: tuple[int, int], view: View) -> Tensor:
        """f_gen (cells, G) float32 of a sample's frame (H, W) px under `view`."""
        step = self._step_of(index)
        # Opened each time, and closed as it is left: there are more files than a process may have open.
        stored: NDArray[np.floating] = np.load(self._path(camera, step - step % SHARD), mmap_mode="r")
        native = torch.from_numpy(np.array(stored[step % SHARD])).float()
        return pooled(self._world.simulator_of(camera), native[None], frame, view)[0]


def _own_prompt(folder: Path, prompt: Tensor) -> str:
    """Tells a prompt's embedding that a policy brings from others; "" for that in the world simulator's folder."""
    if (folder / PROMPT_FILE).is_file() and torch.equal(read_prompt(folder).float(), prompt.float()):
        return ""
    return hashlib.sha256(prompt.float().cpu().contiguous().numpy().tobytes()).hexdigest()


@torch.no_grad()
def native_tokens(simulator: LatentWorldSimulator, pictures: list[Image]) -> Tensor:
    """Tokens (n, rows, columns, G) of single frames (H, W, 3) uint8 of one size."""
    frames = torch.from_numpy(np.stack(pictures))[:, None]
    return simulator.tokens(simulator.latents(frames))[:, 0]


def pooled(simulator: LatentWorldSimulator, native: Tensor, frame: tuple[int, int], view: View) -> Tensor:
    """Native tokens (n, rows, columns, G) of frames (H, W) px, over the part `view` of them: (n, cells, G)."""
    config = simulator.config
    spot = place(frame, config.canvas, config.framing)
    return pool_registered(native[:, None], spot, simulator.token_px, config.grid, view)[:, 0]
