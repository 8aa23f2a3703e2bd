"""The world simulator's part of a policy: what every camera's tokens f_gen are, how old, and how they are fused.

    frames of a camera ─► LatentWorldSimulator (on that camera's canvas) ─► f_gen ─┐
                                                                          f_sem ─┴► fusion ─► tokens, gate

One video generator serves all cameras, and one fusion too, as in VEGA-3D; a camera has its own canvas and grid.  Where
it looks at windows, each camera has a stream, so that only frames which have come since the last query are encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policies.fusion.controls import WorldControl
from policies.fusion.gated_fusion import Fusion
from policies.fusion.sources import TokenSource
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator
from policies.world_simulator.stream import TokenRefresh, WindowStream

STREAMS = ("off", "joint", "causal")
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class CameraView:
    """How the world simulator sees one camera.

    canvas: (rows, columns) px.  grid: (rows, columns) of the camera's semantic tokens.  view: the part of the frame
    under them, (top, left, bottom, right) in [0, 1].
    """

    canvas: tuple[int, int]
    grid: tuple[int, int]
    view: tuple[float, float, float, float] = WHOLE


class WorldView(nn.Module):
    """A frozen source of generative tokens, most often a world simulator, and the fusion that is trained.

    The source is no part of this module's parameters or state: it comes from a folder of its own.
    Used from one thread at a time.
    """

    def __init__(
        self,
        source: TokenSource,
        cameras: Mapping[str, CameraView],
        fusion: Fusion,
        refresh_every: int = 1,
        refresh_change: float = 0.0,
        stream: str = "off",
    ) -> None:
        """refresh_every, refresh_change: see `TokenRefresh`.  stream: how windows are looked at, one of STREAMS."""
        super().__init__()
        if stream not in STREAMS:
            raise VegaError(f"A stream '{stream}' is unknown: choose one of {', '.join(STREAMS)}.")
        self.fusion = fusion
        self.cameras = dict(cameras)
        self._sources = {
            camera: source.looking(canvas=view.canvas, grid=view.grid, view=view.view)
            for camera, view in cameras.items()
        }
        self._refresh: TokenRefresh[dict[str, Tensor]] = TokenRefresh(refresh_every, refresh_change)
        self._streams: dict[str, WindowStream] = {}
        if stream != "off":
            self._streams = {
                camera: WindowStream(own, stream)
                for camera, own in self._sources.items()
                if isinstance(own, LatentWorldSimulator) and own.config.mode == "window"
            }
        self._control = WorldControl("on", fusion)
        self._compiled: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    def look_by(self, compiled: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
        """Let `compiled` compute the tokens of batches of one: what `tokens` gives, up to rounding."""
        self._compiled = compiled

    @property
    def control(self) -> str:
        """What stands in for the simulator's tokens, "on" for nothing: one of WORLD_CONTROLS."""
        return self._control.name

    @control.setter
    def control(self, name: str) -> None:
        control = WorldControl(name, self.fusion)
        if name not in self.source.stand_ins:
            raise VegaError(
                f"Where a policy's generative tokens are {self.source.what}, nothing can be '{name}': set "
                f"world_simulator to one of {', '.join(self.source.stand_ins)}."
            )
        self._control = control
        self.reset()

    @property
    def source(self) -> TokenSource:
        """That of the first camera; the others share its weights."""
        return next(iter(self._sources.values()))

    @property
    def simulator(self) -> LatentWorldSimulator:
        """The same, where it is a world simulator and nothing else; VegaError where it is not."""
        return self.simulator_of(next(iter(self._sources)))

    def check_memoryless(self, policy: str) -> None:
        """Raise VegaError if tokens of earlier queries are used again: such a policy serves one episode at a time."""
        if self._refresh.every > 1 or self._streams:
            raise VegaError(
                f"Policy {policy} reuses what it saw at earlier queries of an episode, so it serves one at a time: set "
                "refresh_every to 1 and stream to off, or leave --share-policy out."
            )

    def source_of(self, camera: str) -> TokenSource:
        return self._sources[camera]

    def simulator_of(self, camera: str) -> LatentWorldSimulator:
        """See `simulator`."""
        source = self._sources[camera]
        if not isinstance(source, LatentWorldSimulator):
            raise VegaError(f"This policy's generative tokens are {source.what}: give one with a world simulator.")
        return source

    def reset(self) -> None:
        """A new episode: tokens are computed at the next query, whatever their age."""
        self._refresh.reset()
        for stream in self._streams.values():
            stream.reset()

    def look(self, frames: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """f_gen of every camera and its age in queries, 0 unless the simulator runs on every n-th query only.

        frames: camera -> (B, T, H, W, 3) uint8 RGB, oldest first.  Returns camera -> (B, rows * columns, G); nothing
        where the gate is closed, and nothing is computed then.
        """
        if self._control.closed:
            return {}, 0
        newest = {camera: frames[camera][0, -1] for camera in self.cameras if camera in frames}
        # What stands in for the tokens is made of whole windows.
        if not self._streams or self._control.name != "on":
            return self._refresh(lambda: self.tokens(frames), newest)
        self._check(frames)
        for camera, stream in self._streams.items():
            stream.see(frames[camera])
        news = any(stream.news for stream in self._streams.values())
        return self._refresh(lambda: {c: stream.tokens() for c, stream in self._streams.items()}, newest, news)

    def _check(self, frames: Mapping[str, Tensor]) -> None:
        for camera in self.cameras:
            if camera not in frames:
                raise VegaError(f"The world simulator needs camera '{camera}', which is missing: give its frames.")

    def tokens(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """f_gen of every camera, computed now; cameras that are seen alike go through the simulator together."""
        self._check(frames)
        if self._compiled is not None and self._control.name == "on" and all(len(v) == 1 for v in frames.values()):
            return self._compiled(frames)
        alike: dict[tuple[object, ...], list[str]] = {}
        for camera, view in self.cameras.items():
            alike.setdefault((view, tuple(frames[camera].shape)), []).append(camera)
        groups = list(alike.values())
        seen = [torch.cat([frames[name] for name in names]) for names in groups]
        sources = [self._sources[names[0]] for names in groups]
        simulators = [source for source in sources if isinstance(source, LatentWorldSimulator)]
        alone = self._control.name not in ("on", "off") or len(simulators) < len(sources)
        if not alone and len({len(group) for group in seen}) == 1 < len(groups):
            tokens = simulators[0].beside(simulators[1:], seen)
        else:
            tokens = [self._control.look(*pair) for pair in zip(sources, seen, strict=True)]
        found: dict[str, Tensor] = {}
        for names, part in zip(groups, tokens, strict=True):
            found.update(zip(names, part.chunk(len(names)), strict=True))
        return {camera: found[camera] for camera in self.cameras}

    def fuse(
        self, f_sem: Mapping[str, Tensor], f_gen: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """camera -> (B, N, D) and camera -> (B, N, G) -> fused tokens (B, N, D), and gates (B, rows, columns) if any.

        A gate is the share of f_sem, in [0, 1].
        """
        sizes = [f_sem[camera].shape[1] for camera in self.cameras]
        semantic = torch.cat([f_sem[camera] for camera in self.cameras], dim=1)
        if self._control.closed:
            fused, gate = self.fusion.closed(semantic)
        else:
            fused, gate = self.fusion(semantic, torch.cat([f_gen[camera] for camera in self.cameras], dim=1))
        tokens = dict(zip(self.cameras, fused.split(sizes, dim=1), strict=True))
        if gate is None:
            return tokens, {}
        parts = zip(self.cameras.items(), gate[..., 0].split(sizes, dim=1), strict=True)
        return tokens, {camera: part.unflatten(1, view.grid) for (camera, view), part in parts}
