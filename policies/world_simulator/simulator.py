"""LatentWorldSimulator: a video generator's inner view of what the cameras see, as tokens (VEGA-3D's f_gen).

    frames ─► canvas ─► causal VAE ─► latents ─► + noise (k = 300) ─► Wan blocks 0..tap ─► pooled on the semantic grid

Wan2.1-T2V-1.3B as published for diffusers, any other Wan of that layout (Wan2.2-TI2V-5B, whose tokens have a timestep
each, here all the same; Wan2.2-T2V-A14B, of whose two transformers the one for this noise is read), or a small one with
the same classes.  Frozen, deterministic (the noise is drawn once from a
seed), and without the text encoder: the prompt's embedding is exported once, with
`python -m policies.world_simulator export-prompt FOLDER`.

Reference: VEGA-3D, arXiv 2603.19235, section 3, and the tower `wan_t2v_online` of its code.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn

from policies.files.json_config import POSITIVE, read_config, read_json, write_config
from policies.files.tensor_sources import DictSource, TensorSource
from policies.files.weight_files import resolve_folder
from policies.types import WORLD_CONTROLS, VegaError
from policies.world_simulator.canvas import draw, place, pool_official, pool_registered
from policies.world_simulator.experts import HIGH, INDEX_FILE, LOW, transformer_folder
from policies.world_simulator.prompt import PROMPT_FILE, read_prompt, save_prompt
from policies.world_simulator.stream import WorldStream
from policies.world_simulator.transformer import WanTrunk, load_transformer, open_transformer, save_transformer
from policies.world_simulator.vae import WanEncoder, load_encoder, open_vae, save_encoder

CONFIG_FILE = "world_simulator.json"
HUB_PATTERNS = ("vae/*", f"{HIGH}/*", f"{LOW}/*", INDEX_FILE, CONFIG_FILE, PROMPT_FILE)


@dataclass(frozen=True)
class WorldSimulatorConfig:
    """What is read from the video generator, and how.

    tap: block whose output is read, 0-based.  noise_index: k of the paper; shift: of Wan's schedule.
    seed: of the noise.  canvas: (rows, columns) px that frames are placed on.  grid: (rows, columns) of
    the semantic tokens.  view: part of the frame under them, (top, left, bottom, right) in [0, 1].
    mode: "per_frame" (the newest frame as its own video, as the official code does) or "window" (all
    frames through the causal VAE and joint attention).  window: frames in it, newest last.
    framing: "registered", or "official" for comparison.
    """

    tap: int = 20
    noise_index: int = 300
    shift: float = 5.0
    seed: int = 0
    canvas: tuple[int, int] = field(default=(480, 480), metadata=POSITIVE)
    grid: tuple[int, int] = field(default=(16, 16), metadata=POSITIVE)
    view: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mode: str = "per_frame"
    window: int = 17
    framing: str = "registered"

    def __post_init__(self) -> None:
        for name, known in (("mode", ("per_frame", "window")), ("framing", ("registered", "official"))):
            if getattr(self, name) not in known:
                raise VegaError(f"World simulator {name} '{getattr(self, name)}' is unknown: choose one of {known}.")
        top, left, bottom, right = self.view
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise VegaError(f"View {self.view} is no part of a frame: give (top, left, bottom, right) in [0, 1].")
        check_noise(self.noise_index, self.shift, self.seed)

    @classmethod
    def from_dict(cls, values: dict[str, Any], path: Path = Path(CONFIG_FILE)) -> WorldSimulatorConfig:
        """From the JSON object in `path`; VegaError for a key that does not exist, or a value of another kind."""
        return read_config(cls, values, path)


def check_noise(noise_index: int, shift: float, seed: int) -> None:
    """Raise VegaError for noise that cannot be drawn."""
    noise_level(noise_index, shift)
    if not -(2**63) <= seed < 2**64:  # what torch takes
        raise VegaError(f"A world simulator's seed {seed} is out of range: give one from 0 to {2**63 - 1}.")


def noise_level(k: int, shift: float = 5.0, steps: int = 1000) -> tuple[int, float]:
    """Timestep and sigma of the entry nearest to k in Wan's shifted flow-matching schedule (300 -> 299, 0.29992).

    k = 0 is no noise at all, which the schedule itself never reaches.
    Source: the schedule of `steps` steps in Wan's fm_solvers_unipc, sigma' = s sigma / (1 + (s - 1) sigma).
    """
    if not 0.0 < shift < math.inf:
        raise VegaError(f"A world simulator's shift {shift} gives no schedule of noise: give a number above 0.")
    sigmas = np.linspace(1.0 - 1.0 / steps, 0.0, steps + 1)[:-1].astype(np.float32)
    shifted = shift * sigmas / (1.0 + (shift - 1.0) * sigmas)
    timesteps = (shifted * steps).astype(np.int64)
    if not 0 <= k <= steps:
        raise VegaError(f"Noise index {k} is outside the schedule: choose 0 to {steps}.")
    if k == 0:
        return 0, 0.0
    nearest = int(np.abs(timesteps - k).argmin())
    return int(timesteps[nearest]), float(shifted[nearest])


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Flow matching's straight line from data to noise: (1 - sigma) latents + sigma noise."""
    return (1.0 - sigma) * latents + sigma * noise


class LatentWorldSimulator(nn.Module):
    """Frames to geometry-aware tokens.  Inference only; used from one thread at a time."""

    what = "a world simulator's"
    stand_ins = WORLD_CONTROLS  # what makes sense in the place of its tokens

    def __init__(
        self,
        encoder: WanEncoder,
        transformer: WanTransformer3DModel,
        prompt: torch.Tensor,
        config: WorldSimulatorConfig,
    ):
        """Take `transformer` apart: blocks 0..config.tap are used up, the others dropped.  prompt: (n, text width)."""
        super().__init__()
        if not 0 <= config.tap < len(transformer.blocks):
            raise VegaError(f"Block {config.tap} is not among the {len(transformer.blocks)} blocks: choose one.")
        transformer.blocks = transformer.blocks[: config.tap + 1]
        self.config, self.prompt = config, prompt
        self.timestep, self.sigma = noise_level(config.noise_index, config.shift)
        self.folder: Path | None = None
        self.encoder = encoder
        self.trunk = trunk = WanTrunk(transformer, prompt, self.timestep)
        self.token_px = encoder.spatial_stride * trunk.patch_size[1]
        self._noises: dict[tuple[object, ...], torch.Tensor] = {}
        self._check_canvas(config.canvas)
        if config.mode == "window":
            encoder.latent_frames(config.window)

    def _check_canvas(self, canvas: tuple[int, int]) -> None:
        if any(side < self.token_px or side % self.token_px for side in canvas):
            raise VegaError(
                f"Canvas {canvas} does not divide into tokens: give sides that are multiples of {self.token_px}."
            )

    def looking(
        self, *, canvas: tuple[int, int], grid: tuple[int, int], view: tuple[float, float, float, float]
    ) -> LatentWorldSimulator:
        """The same video generator, weights shared, for a camera with another canvas, grid and view."""
        self._check_canvas(canvas)
        other = copy.copy(self)
        other.config = replace(self.config, canvas=canvas, grid=grid, view=view)
        return other

    @property
    def dim(self) -> int:
        """Width of the tokens."""
        return self.trunk.dim

    @property
    def frames_needed(self) -> int:
        """Frames of a camera that one call looks at."""
        return self.config.window if self.config.mode == "window" else 1

    @property
    def latent_window(self) -> int:
        """Latent frames of a window."""
        return self.encoder.latent_frames(self.config.window)

    @property
    def device(self) -> torch.device:
        return self.encoder.mean.device

    @torch.no_grad()
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """f_gen (B, rows * columns, D), row-major, of the newest frame.

        frames: (B, T, H, W, 3) uint8 RGB, oldest first; T = 1 or more per frame, T = config.window in a window.
        """
        return self.pool(self.native(frames)[:, None], frames.shape[2:4])[:, 0]

    @torch.no_grad()
    def beside(self, others: Sequence[LatentWorldSimulator], frames: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`forward` of this simulator and of `others`, made from it by `looking`, each on its own frames; one pass."""
        latents = [own.latents(seen) for own, seen in zip((self, *others), frames, strict=True)]
        return self.of_latents(others, latents, [seen.shape[2:4] for seen in frames])

    def of_latents(
        self, others: Sequence[LatentWorldSimulator], latents: Sequence[torch.Tensor], sizes: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """`beside` from what `latents` made of each one's frames.  sizes: of those, (H, W) px."""
        group = (self, *others)
        noised = [own.noised(video) for own, video in zip(group, latents, strict=True)]
        found = []
        for own, video, features, size in zip(group, latents, self.trunk.several(noised), sizes, strict=True):
            found.append(own.pool(own.on_grid(features, video)[:, -1:], size)[:, 0])
        return found

    @torch.no_grad()
    def embedded(self, frames: torch.Tensor) -> torch.Tensor:
        """The same without noise and without any block: what Wan's patch embedding makes of the latents."""
        return self.pool(self.native_embedded(frames)[:, None], frames.shape[2:4])[:, 0]

    @torch.no_grad()
    def native(self, frames: torch.Tensor) -> torch.Tensor:
        """`forward` before it is pooled: (B, rows, columns, D) of the whole canvas."""
        return self.tokens(self.latents(frames))[:, -1]

    @torch.no_grad()
    def native_embedded(self, frames: torch.Tensor) -> torch.Tensor:
        """`embedded` before it is pooled: (B, rows, columns, D)."""
        latents = self.latents(frames).to(self.trunk.patch_embedding.weight.dtype)
        return self.trunk.patch_embedding(latents)[:, :, -1].permute(0, 2, 3, 1)

    def latents(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames as `forward` takes them -> normalised latents (B, C, T', h, w), without noise."""
        if self.config.mode == "per_frame":
            return self.encoder.frames(self.to_canvas(frames[:, -1:]))
        return self.encoder.window(self.to_canvas(frames))

    def to_canvas(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W, 3) uint8 RGB -> (B, 3, T, canvas rows, canvas columns) in [-1, 1]."""
        return draw(frames.to(self.device), self.config.canvas, self.config.framing, torch.float32)

    def noise(self, latents: torch.Tensor) -> torch.Tensor:
        """(1, C, T, h, w): the same for every call and sample; frame t's noise does not depend on T."""
        _, channels, time, height, width = latents.shape
        key = (channels, time, height, width, latents.device)
        if key not in self._noises:
            generator = torch.Generator().manual_seed(self.config.seed)
            drawn = torch.randn((time, channels, height, width), generator=generator)
            self._noises[key] = drawn.transpose(0, 1)[None].to(latents.device)
        return self._noises[key]

    def noised(self, latents: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Latents (B, C, T, h, w) with the noise that latent frames `first` and later of a window have."""
        count = latents.shape[2]
        whole = latents.new_empty(()).expand(1, latents.shape[1], first + count, *latents.shape[3:])
        return add_noise(latents, self.noise(whole)[:, :, first:], self.sigma)

    @torch.no_grad()
    def tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, T, h, w) without noise -> the tapped block's output (B, T, rows, columns, D)."""
        return self.on_grid(self.trunk(self.noised(latents))[0], latents)

    def on_grid(self, features: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The trunk's tokens (B, N, D) of latents (B, C, T, h, w) -> (B, T, rows, columns, D)."""
        time, rows, columns = (n // p for n, p in zip(latents.shape[2:], self.trunk.patch_size, strict=True))
        return features.unflatten(1, (time, rows, columns))

    def pool(self, tokens: torch.Tensor, frame: Sequence[int]) -> torch.Tensor:
        """Tokens (B, T, rows, columns, D) of a frame (H, W) px -> (B, T, grid rows * grid columns, D)."""
        if self.config.framing == "official":
            return pool_official(tokens, self.config.grid)
        spot = place((frame[0], frame[1]), self.config.canvas, "registered")
        return pool_registered(tokens, spot, self.token_px, self.config.grid, self.config.view)

    def open_stream(self, attention: str = "joint") -> WorldStream:
        """A stream of frames that remembers what it has encoded; attention: see `WorldStream`."""
        return WorldStream(self, attention)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        prompt_embedding: torch.Tensor | str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> LatentWorldSimulator:
        """Load a diffusers Wan folder or hub id: `vae/`, `transformer/`, the prompt's embedding; no text encoder.

        prompt_embedding: (n, text width) or a file of it; default: `prompt_embedding.safetensors` in the folder.
        overrides: fields of WorldSimulatorConfig, over those in the folder's `world_simulator.json`.
        """
        folder = resolve_folder(path_or_id, HUB_PATTERNS)
        path = folder / CONFIG_FILE
        config = WorldSimulatorConfig.from_dict((read_json(path) if path.is_file() else {}) | overrides, path)
        prompt = read_prompt(folder, prompt_embedding)
        device = torch.device(device)
        encoder = load_encoder(folder / "vae", device, dtype)
        chosen = transformer_folder(folder, noise_level(config.noise_index, config.shift)[0])
        transformer = load_transformer(chosen, config.tap, device, dtype)
        if transformer.config.in_channels != encoder.channels:
            raise VegaError(
                f"The VAE in '{folder}' has {encoder.channels} channels and its transformer reads "
                f"{transformer.config.in_channels}: they are of different Wans, download the whole folder of one."
            )
        width = transformer.config.text_dim
        if prompt.ndim != 2 or prompt.shape[1] != width:
            raise VegaError(
                f"The prompt embedding has shape {tuple(prompt.shape)} but this Wan reads {width} numbers per row: "
                f"export it again with `python -m policies.world_simulator export-prompt {folder}`."
            )
        simulator = cls(encoder, transformer, prompt, config).eval()
        simulator.folder = folder
        return simulator

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write what this simulator needs, and no more: encoder, blocks up to the tap, prompt, config.

        The tensors are copied from the folder it was loaded from: those in memory are folded.
        """
        if self.folder is None:
            raise VegaError("This world simulator was not loaded from a folder: use save_world_simulator on its parts.")
        vae, transformer = self.folder / "vae", transformer_folder(self.folder, self.timestep)
        _save(
            Path(folder),
            (read_json(vae / "config.json"), open_vae(vae)),
            (read_json(transformer / "config.json"), open_transformer(transformer)),
            self.prompt,
            self.config,
        )


def _save(
    folder: Path,
    vae: tuple[Mapping[str, Any], TensorSource],
    transformer: tuple[Mapping[str, Any], TensorSource],
    prompt: torch.Tensor,
    config: WorldSimulatorConfig,
) -> None:
    save_encoder(*vae, folder / "vae")
    save_transformer(*transformer, config.tap, folder / "transformer")
    save_prompt(prompt, folder / PROMPT_FILE)
    write_config(folder / CONFIG_FILE, config)


def save_world_simulator(
    folder: str | os.PathLike[str],
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    prompt_embedding: torch.Tensor,
    config: WorldSimulatorConfig,
) -> None:
    """Write a folder that `LatentWorldSimulator.from_pretrained` loads, from plain diffusers models (after training).

    Only what runs is written: the VAE's encoder and the blocks up to the tap.  prompt_embedding: (n, text width).
    """
    _save(
        Path(folder),
        (vae.config, DictSource("the VAE", vae.state_dict())),
        (transformer.config, DictSource("the transformer", transformer.state_dict())),
        prompt_embedding,
        config,
    )
