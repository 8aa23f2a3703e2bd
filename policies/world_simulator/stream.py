"""A stream of frames through the world simulator, and tokens that are refreshed on every n-th query.

The VAE remembers, so that one more frame costs the same however long the stream has run, and ends a latent frame
(`frame_encoder`); those of a window are it and every fourth before.  The transformer either sees all of them anew
("joint", as on a window), or remembers what it made of the earlier ones ("causal": they do not see the new one, and it
alone is computed).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F

from policies.types import VegaError
from policies.world_simulator.frame_encoder import Past
from policies.world_simulator.transformer import TrunkMemory, WanTrunk
from policies.world_simulator.vae import WanEncoder

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
        """attention: "joint" or "causal", whether the transformer sees the window's latent frames anew."""
        if attention not in ("joint", "causal"):
            raise VegaError(f"A stream's attention '{attention}' is unknown: choose joint or causal.")
        self._simulator, self._causal = simulator, attention == "causal"
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame begins a new video."""
        window, self._stride = self._simulator.latent_window, self._simulator.encoder.temporal_stride
        self._past = Past()
        self._shape: tuple[int, int, int] | None = None
        self._latents: deque[torch.Tensor] = deque(maxlen=self._stride * (window - 1) + 1)
        # Each way of grouping frames has a memory of its own, with the number of the last frame in it.
        self._memories: dict[int, tuple[TrunkMemory, int]] = {}
        self._features: torch.Tensor | None = None

    def fork(self) -> WorldStream:
        """A stream with the same past and a future of its own; costs nothing, what is remembered is shared."""
        twin = copy.copy(self)
        twin._latents, twin._memories = self._latents.copy(), self._memories.copy()
        return twin

    @property
    def news(self) -> bool:
        """Whether a frame has come that no tokens have been made of."""
        return self._features is None and bool(self._latents)

    @property
    def latents(self) -> torch.Tensor:
        """The latent frames of the newest window, oldest first: (B, C, T, h, w)."""
        return torch.cat(self._window(), dim=2)

    def _window(self) -> list[torch.Tensor]:
        if not self._latents:
            raise VegaError("The stream has seen no frame yet: push one first.")
        return list(self._latents)[:: -self._stride][::-1]

    @torch.no_grad()
    def push(self, frames: torch.Tensor) -> None:
        """Add frames (B, n, H, W, 3) uint8 RGB in order of time; where one cannot be encoded, those before it stay."""
        shape = (frames.shape[0], frames.shape[2], frames.shape[3])
        if self._shape not in (None, shape):
            raise VegaError(
                f"The stream holds (batch, height, width) {self._shape}, these are {shape}: reset the stream first."
            )
        for frame in self._simulator.to_canvas(frames).split(1, dim=2):
            latent, self._past = self._simulator.encoder.step(frame, self._past)
            self._latents.append(latent)
            self._features, self._shape = None, shape

    @torch.no_grad()
    def tokens(self) -> torch.Tensor:
        """f_gen (B, rows * columns, D) of the newest frame, in the light of those kept."""
        window = self._window()
        assert self._shape is not None, "latents exist only after a push"
        if self._features is None:
            whole = torch.cat(window, dim=2)
            self._features = self._remembered(window) if self._causal else self._simulator.tokens(whole)[:, -1:]
        return self._simulator.pool(self._features, self._shape[1:])[:, 0]

    def _remembered(self, window: list[torch.Tensor]) -> torch.Tensor:
        """The newest latent frame's features (B, 1, rows, columns, D), from the transformer's memory if it has one."""
        trunk, now, kept = self._simulator.trunk, self._past.frames - 1, self._simulator.latent_window - 1
        memory, last = self._memories.get(now % self._stride, (None, now))
        new = (now - last) // self._stride
        first = len(window) - new
        if memory is None or first < 1 or memory.frames + new > trunk.positions_in_time:
            memory, first = None, 0
            parts = [torch.cat(window, dim=2)]
        else:
            parts = window[first:]
        for part in parts:
            # Noise by the place in the window, which the newest frame of a full one never leaves.
            features, memory = trunk.remember(self._simulator.noised(part, first), memory, kept)
            first += part.shape[2]
        assert memory is not None
        self._memories[now % self._stride] = memory, now
        rows, columns = (n // p for n, p in zip(window[-1].shape[3:], trunk.patch_size[1:], strict=True))
        return features.unflatten(1, (-1, rows, columns))[:, -1:]


class WindowStream:
    """A camera's windows of frames as they come query by query; only frames that the last one did not have are encoded.

    What is remembered reaches farther back than a window: encoding the window anew gives somewhat other tokens.
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
        """Whether a frame has come that no tokens have been made of yet."""
        return self._stream.news

    def see(self, window: torch.Tensor) -> None:
        """Take a window (1, T, H, W, 3) uint8 RGB, oldest frame first.

        Wholly or not at all: where a frame cannot be encoded (no memory), the next window brings it again.
        """
        new = window.shape[1] if self._seen is None else new_frames(self._seen, window)
        if new == window.shape[1]:
            self.reset()
        stream = self._stream.fork()
        if new:
            stream.push(window[:, window.shape[1] - new :])
        self._stream, self._seen = stream, window.clone()

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
