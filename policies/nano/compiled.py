"""The stages of a small policy as graphs for the CPU, for one episode at a time: what `see` and `decide` do, and looks.

What stays in torch is light: frames onto their canvases, and the fusion, whose gates are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from policies.fusion.world_view import WorldView
from policies.nano.config import PROPRIO_DIM, VegaConfig
from policies.nano.cpu_graph import CpuGraph
from policies.nano.layers import Decision, SemanticEncoder
from policies.types import VegaError
from policies.world_simulator.simulator import LatentWorldSimulator


class Decides(Protocol):
    """The rest of a policy behind its fusion."""

    def decision(self, tokens: Mapping[str, Tensor], text: Tensor, proprio: Tensor, progress: Tensor) -> Decision: ...


class See(nn.Module):
    """text (1, D), and each camera's image (1, 3, H, W) in [-1, 1] -> each camera's f_sem."""

    def __init__(self, encoder: SemanticEncoder) -> None:
        super().__init__()
        self.encoder, self.cameras = encoder, tuple(encoder.encoders)

    def forward(self, text: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(dict(zip(self.cameras, images, strict=True)), text).values())


class Look(nn.Module):
    """Each camera's canvas (1, 3, 1, rows, columns) in [-1, 1] -> each camera's f_gen.

    sizes: of their frames, (H, W) px.
    """

    def __init__(self, simulators: list[LatentWorldSimulator], sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.simulators, self.sizes = nn.ModuleList(simulators), sizes

    def forward(self, *canvases: Tensor) -> tuple[Tensor, ...]:
        simulators: list[LatentWorldSimulator] = list(self.simulators)  # type: ignore[arg-type]
        latents = [own.encoder.frames(canvas) for own, canvas in zip(simulators, canvases, strict=True)]
        return tuple(simulators[0].of_latents(simulators[1:], latents, self.sizes))


class Decide(nn.Module):
    """text, proprioception (1, 11) not normalised, progress (1,), each camera's tokens -> actions, and progress."""

    def __init__(self, rest: Decides, cameras: tuple[str, ...]) -> None:
        super().__init__()
        self.rest, self.cameras = rest, cameras

    def forward(self, text: Tensor, proprio: Tensor, progress: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
        decision = self.rest.decision(dict(zip(self.cameras, tokens, strict=True)), text, proprio, progress)
        return decision.actions, *(() if decision.progress is None else (decision.progress,))


class CompiledStages:
    """A small policy's stages, compiled; the policy asks them for batches of one."""

    def __init__(
        self, config: VegaConfig, encoder: SemanticEncoder, rest: Decides, world: WorldView | None, device: torch.device
    ) -> None:
        """Raises VegaError on another device than the CPU, and for a source of tokens that cannot be compiled."""
        if device.type != "cpu":
            raise VegaError(f"Policy {config.name} can be compiled for the CPU alone: leave compiled as configured.")
        sizes = {name: camera.output_size for name, camera in config.cameras.items()}
        if world is not None:
            world.look_by(CompiledLook(world, sizes))
        text, proprio, progress = torch.zeros(1, config.text_dim), torch.zeros(1, PROPRIO_DIM), torch.zeros(1)
        images = [torch.zeros(1, 3, *size) for size in sizes.values()]
        self._see = CpuGraph(See(encoder), [text, *images])
        with torch.no_grad():
            tokens = list(See(encoder)(text, *images))
        self._decide = CpuGraph(Decide(rest, tuple(config.cameras)), [text, proprio, progress, *tokens])

    def see(self, images: Mapping[str, Tensor], text: Tensor) -> dict[str, Tensor]:
        """See `See`."""
        return dict(zip(images, self._see(text, *images.values()), strict=True))

    def decide(
        self, tokens: Mapping[str, Tensor], text: Tensor, proprio: Tensor, progress: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `Decide`."""
        actions, *believed = self._decide(text, proprio, progress, *tokens.values())
        return actions, believed[0] if believed else None


class CompiledLook:
    """What every camera's newest frame shows the world simulator: (1, T, H, W, 3) uint8 -> (1, N, G)."""

    def __init__(self, world: WorldView, sizes: Mapping[str, tuple[int, int]]) -> None:
        self._simulators: dict[str, LatentWorldSimulator] = {}
        for camera in world.cameras:
            own = world.source_of(camera)
            if not isinstance(own, LatentWorldSimulator) or own.config.mode != "per_frame":
                raise VegaError(
                    "Of what gives generative tokens only a world simulator that looks at single frames can be "
                    "compiled: leave compiled as configured."
                )
            self._simulators[camera] = own
        frames = {camera: torch.zeros((1, 1, *sizes[camera], 3), dtype=torch.uint8) for camera in world.cameras}
        network = Look(list(self._simulators.values()), [sizes[camera] for camera in world.cameras])
        self._graph = CpuGraph(network, self._canvases(frames))

    def _canvases(self, frames: Mapping[str, Tensor]) -> list[Tensor]:
        return [own.to_canvas(frames[camera][:, -1:]).contiguous() for camera, own in self._simulators.items()]

    def __call__(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._simulators, self._graph(*self._canvases(frames)), strict=True))
