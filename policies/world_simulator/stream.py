"""A stream of frames through the world simulator, and tokens that are refreshed on every n-th query.

The causal VAE keeps its memory between calls, so one more latent frame costs the same however long the
stream has run, and the latents are those of encoding the whole stream at once.  The transformer either sees all
latents that are kept anew ("joint", as on a window), or remembers what it made of the earlier ones ("causal": they do
not see the new one, and it alone is computed).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F

from policies.types import VegaError
from policies.world_simulator.transformer import TrunkMemory, WanTrunk
from policies.world_simulator.vae import EncoderState, WanEncoder

CELLS = 8  # along each side of a picture whose change is looked at


class Streamed(Protocol):
    """What a stream needs of a world simulator; see `LatentWorldSimulator` for each."""

    encoder: WanEncoder
    trunk: WanTrunk

    @property
    def latent_window(self) -> int:
        """Latent frames that are kept."""
        ...

    def to_canvas(self, frames: torch.Tensor) -> torch.Tensor: ...

    def tokens(self, latents: torch.Tensor) -> torch.Tensor: ...

    def noised(self, latents: torch.Tensor, first: int = 0) -> torch.Tensor: ...

    def pool(self, tokens: torch.Tensor, frame: Sequence[int]) -> torch.Tensor: ...


class WorldStream:
    """Frames in, tokens of the newest moment out.  Memory is bounded by the simulator's window.

    Used from one thread at a time; any number of streams share one simulator.
    """

    def __init__(self, simulator: Streamed, attention: str = "joint"):
        """attention: "joint" or "causal", what the newest latent frame costs the transformer."""
        if attention not in ("joint", "causal"):
            raise VegaError(f"A stream's attention '{attention}' is unknown: choose joint or causal.")
        self._simulator, self._causal = simulator, attention == "causal"
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame begins a new video."""
        encoder = self._simulator.encoder
        self._state: EncoderState = encoder.start()
        self._started = False
        self._waiting: torch.Tensor | None = None
        self._shape: tuple[int, int, int] | None = None
        self._latents: deque[torch.Tensor] = deque(maxlen=self._simulator.latent_window)
        self._memory: TrunkMemory | None = None
        self._features: torch.Tensor | None = None
        self.unseen = 0  # latent frames that no tokens have been made of

    def fork(self) -> WorldStream:
        """A stream with the same past and a future of its own; costs nothing, what is remembered is shared."""
        twin = copy.copy(self)
        twin._latents = self._latents.copy()
        return twin

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
            self.unseen += 1
            video = video[:, :, need:]
        self._waiting = video
        return made

    @torch.no_grad()
    def tokens(self) -> torch.Tensor:
        """f_gen (B, rows * columns, D) of the newest latent frame, in the light of those kept."""
        latents = self.latents
        assert self._shape is not None, "latents exist only after a push"
        if self._features is None or self.unseen:
            self._features = self._remembered() if self._causal else self._simulator.tokens(latents)[:, -1:]
            self.unseen = 0
        return self._simulator.pool(self._features, self._shape[1:])[:, 0]

    def _remembered(self) -> torch.Tensor:
        """The newest latent frame's features (B, 1, rows, columns, D), from the transformer's memory if it has one."""
        trunk, latents, kept = self._simulator.trunk, list(self._latents), self._simulator.latent_window - 1
        memory, first = self._memory, len(latents) - self.unseen
        if memory is None or first < 1 or memory.frames + self.unseen > trunk.positions_in_time:
            memory, first = None, 0
            parts = [torch.cat(latents, dim=2)]
        else:
            parts = latents[first:]
        for part in parts:
            # Noise by the place in the window, which the newest frame of a full one never leaves.
            features, memory = trunk.remember(self._simulator.noised(part, first), memory, kept)
            first += part.shape[2]
        self._memory = memory
        rows, columns = (n // p for n, p in zip(latents[-1].shape[3:], trunk.patch_size[1:], strict=True))
        return features.unflatten(1, (-1, rows, columns))[:, -1:]


class WindowStream:
    """A camera's windows of frames as they come query by query; only frames that the last one did not have are encoded.

    Latent frames come in groups of frames, so the tokens are up to a group older than the newest frame, and what is
    remembered reaches farther back than a window: encoding the window anew gives somewhat other tokens.
    """

    def __init__(self, simulator: Streamed, attention: str):
        self._stream = WorldStream(simulator, attention)
        self.reset()

    def reset(self) -> None:
        """The next window begins a new video."""
        self._stream.reset()
        self._seen: torch.Tensor | None = None

    @property
    def news(self) -> bool:
        """Whether a latent frame has come that no tokens have been made of yet."""
        return self._stream.unseen > 0

    def see(self, window: torch.Tensor) -> None:
        """Take a window (1, T, H, W, 3) uint8 RGB, oldest frame first."""
        new = window.shape[1] if self._seen is None else new_frames(self._seen, window)
        if new == window.shape[1]:
            self._stream.reset()
        self._seen = window.clone()
        if new:
            self._stream.push(window[:, window.shape[1] - new :])

    def tokens(self) -> torch.Tensor:
        """f_gen (1, rows * columns, D)."""
        return self._stream.tokens()


def new_frames(before: torch.Tensor, now: torch.Tensor) -> int:
    """By how many frames a window (1, T, H, W, 3) has moved on; T where it shares nothing with the one before."""
    count = now.shape[1]
    if before.shape != now.shape:
        return count
    return next((n for n in range(count) if torch.equal(before[:, n:], now[:, : count - n])), count)


T = TypeVar("T")


class TokenRefresh(Generic[T]):
    """Tokens (a tensor, or one per camera) computed on every `every`-th query and reused between.

    change: 0, or how much a picture may change before they are computed earlier, in levels of 255 (`CELLS`).
    """

    def __init__(self, every: int = 1, change: float = 0.0):
        if every < 1:
            raise VegaError(f"The world simulator cannot run on every {every}th query: give 1 or more.")
        if not 0 <= change < 256:
            raise VegaError(f"A picture cannot change by {change} levels: give refresh_change from 0 to 255.")
        self.every, self.change = every, change
        self.reset()

    def reset(self) -> None:
        """Compute at the next query."""
        self._tokens: T | None = None
        self._pictures: dict[str, torch.Tensor] = {}
        self._age = 0

    def __call__(
        self, compute: Callable[[], T], pictures: Mapping[str, torch.Tensor] | None = None, news: bool = True
    ) -> tuple[T, int]:
        """The tokens and their age in queries, 0 where `compute` has just made them.

        pictures: camera -> what it sees now, (H, W, 3) uint8.  news: false where `compute` would say the same again.
        """
        cells = (
            {} if self.change == 0 or pictures is None else {name: _cells(image) for name, image in pictures.items()}
        )
        if self._tokens is None or (news and (self._age + 1 >= self.every or self._changed(cells))):
            self._tokens, self._age, self._pictures = compute(), 0, cells
        else:
            self._age += 1
        return self._tokens, self._age

    def _changed(self, cells: Mapping[str, torch.Tensor]) -> bool:
        """Whether any cell of any camera's picture is another than where the tokens were computed."""
        return any(
            name not in self._pictures or bool((now - self._pictures[name]).abs().max() >= self.change)
            for name, now in cells.items()
        )


def _cells(picture: torch.Tensor) -> torch.Tensor:
    """Mean colour of a picture (H, W, 3) uint8 in 8 x 8 cells, in which a moving arm shows and noise does not."""
    return F.adaptive_avg_pool2d(picture.permute(2, 0, 1).float(), CELLS)
