"""A stream of frames through the world simulator, and tokens that are refreshed on every n-th query.

The causal VAE keeps its memory between calls, so one more latent frame costs the same however long the
stream has run, and the latents are those of encoding the whole stream at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from policies.types import VegaError
from policies.world_simulator.vae import EncoderState, WanEncoder


class Streamed(Protocol):
    """What a stream needs of a world simulator; see `LatentWorldSimulator` for each."""

    encoder: WanEncoder

    @property
    def latent_window(self) -> int:
        """Latent frames that are kept."""
        ...

    def to_canvas(self, frames: torch.Tensor) -> torch.Tensor: ...

    def tokens(self, latents: torch.Tensor) -> torch.Tensor: ...

    def pool(self, tokens: torch.Tensor, frame: Sequence[int]) -> torch.Tensor: ...


class WorldStream:
    """Frames in, tokens of the newest moment out.  Memory is bounded by the simulator's window.

    Used from one thread at a time; any number of streams share one simulator.
    """

    def __init__(self, simulator: Streamed):
        self._simulator = simulator
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame begins a new video."""
        encoder = self._simulator.encoder
        self._state: EncoderState = encoder.start()
        self._started = False
        self._waiting: torch.Tensor | None = None
        self._shape: tuple[int, int, int] | None = None
        self._latents: deque[torch.Tensor] = deque(maxlen=self._simulator.latent_window)

    def fork(self) -> WorldStream:
        """A stream with the same past and a future of its own; costs nothing, what is remembered is shared."""
        copy = WorldStream(self._simulator)
        copy._state, copy._started, copy._waiting, copy._shape = self._state, self._started, self._waiting, self._shape
        copy._latents = self._latents.copy()
        return copy

    @property
    def latents(self) -> torch.Tensor:
        """The latent frames kept, oldest first: (B, C, T, h, w)."""
        if not self._latents:
            raise VegaError("The stream has seen no frame yet: push one first.")
        return torch.cat(list(self._latents), dim=2)

    @torch.no_grad()
    def push(self, frames: torch.Tensor) -> int:
        """Add frames (B, n, H, W, 3) uint8 RGB in order of time; returns how many latent frames they completed.

        The first frame makes a latent frame alone, later ones in groups of the VAE's temporal stride.
        """
        video = self._simulator.to_canvas(frames)
        shape = (frames.shape[0], frames.shape[2], frames.shape[3])
        if self._shape not in (None, shape):
            raise VegaError(
                f"The stream holds (batch, height, width) {self._shape}, these are {shape}: reset the stream first."
            )
        self._shape = shape
        if self._waiting is not None:
            video = torch.cat([self._waiting, video], dim=2)
        encoder, made = self._simulator.encoder, 0
        while video.shape[2] >= (need := encoder.temporal_stride if self._started else 1):
            latent, self._state = encoder.step(video[:, :, :need], self._state)
            self._latents.append(latent)
            self._started, made = True, made + 1
            video = video[:, :, need:]
        self._waiting = video
        return made

    @torch.no_grad()
    def tokens(self) -> torch.Tensor:
        """f_gen (B, rows * columns, D) of the newest latent frame, in the light of those kept."""
        latents = self.latents
        assert self._shape is not None, "latents exist only after a push"
        return self._simulator.pool(self._simulator.tokens(latents)[:, -1:], self._shape[1:])[:, 0]


T = TypeVar("T")


class TokenRefresh(Generic[T]):
    """Tokens (a tensor, or one per camera) computed on every `every`-th query and reused between."""

    def __init__(self, every: int = 1):
        if every < 1:
            raise VegaError(f"The world simulator cannot run on every {every}th query: give 1 or more.")
        self.every = every
        self.reset()

    def reset(self) -> None:
        """Compute at the next query."""
        self._tokens: T | None = None
        self._age = 0

    def __call__(self, compute: Callable[[], T]) -> tuple[T, int]:
        """The tokens and their age in queries, 0 where `compute` has just made them."""
        if self._tokens is None or self._age + 1 >= self.every:
            self._tokens, self._age = compute(), 0
        else:
            self._age += 1
        return self._tokens, self._age
