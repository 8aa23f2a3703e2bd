"""What every policy of this package does alike, whatever its encoder and trunk: from observations to chunks.

    observations ─► prepare ─► see = f_sem ─┐
                       └─► world.look = f_gen ─┴► world.fuse ─► decide ─► ActionChunk

A policy brings `prepare`, `see` and `decide`; batches, the world simulator's part, gates over the frames, the clock of
the stages and files are here.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from policies.files.paths import refuse_pointer
from policies.files.quantised import Dequantised
from policies.files.tensor_names import Renamed
from policies.files.tensor_sources import DictSource, check_numbers
from policies.files.weight_files import as_published, write_tensors
from policies.fusion.gated_fusion import gate_image
from policies.fusion.world_view import WorldView
from policies.types import ActionChunk, FloatArray, Observation, PolicySpec, VegaError, check_images

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class PolicyConfig(Protocol):
    """What a policy is composed of, as far as files go."""

    def save(self, folder: Path) -> None: ...


class Inputs(Protocol):
    """A batch of observations as tensors; frames: camera -> (B, T, H, W, 3) uint8, as the world simulator gets them."""

    @property
    def frames(self) -> Mapping[str, Tensor]: ...


I = TypeVar("I", bound=Inputs)  # noqa: E741


class StageClock:
    """Milliseconds between laps.

    synchronise: on a GPU the work of a stage is waited for, so that it is not booked on the next; without it stages
    may overlap, and a lap says only how long the stage took to be launched.
    """

    def __init__(self, device: torch.device, synchronise: bool) -> None:
        self._device, self._wait = device, synchronise and device.type == "cuda"
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The stage `name` is over."""
        if self._wait:
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1e3
        self._last = now


class FusedPolicy(nn.Module, ABC, Generic[I]):
    """A `policies.types.BatchPolicy`.  Used from one thread at a time.

    world: the world simulator and the fusion, None where the policy has none.  synchronise_stages: see StageClock.
    """

    world: WorldView | None
    synchronise_stages: bool = True

    @property
    @abstractmethod
    def spec(self) -> PolicySpec:
        """See `policies.types.Policy`."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def prepare(self, observations: Sequence[Observation]) -> I:
        """Checked observations as tensors.  Raises VegaError on an instruction or a state that it cannot use."""

    @abstractmethod
    def see(self, inputs: I) -> dict[str, Tensor]:
        """f_sem: camera -> (B, N, D)."""

    @abstractmethod
    def decide(self, inputs: I, tokens: Mapping[str, Tensor]) -> FloatArray:
        """Fused tokens (camera -> (B, N, D)) to actions (B, chunk, dim) float64 in the units of the action space."""

    @abstractmethod
    def semantic_view(self, camera: str) -> tuple[float, float, float, float]:
        """Part of the camera's upright frame under f_sem: (top, left, bottom, right) in [0, 1]."""

    def upright(self, gate: NDArray[np.float32]) -> NDArray[np.float32]:
        """A gate (rows, columns) as f_sem has it, as a person sees the frame."""
        return gate

    def act(self, observation: Observation) -> ActionChunk:
        """A chunk of actions in the units of the action space."""
        return self.act_batch([observation])[0]

    @torch.inference_mode()
    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """See `policies.types.BatchPolicy`.  The images of a camera must have one size."""
        clock, spec = StageClock(self.device, self.synchronise_stages), self.spec
        if len(observations) > 1 and self.world is not None:
            self.world.check_memoryless(spec.name)
        if not observations:
            raise VegaError("The batch holds no observation: give one or more.")
        for observation in observations:
            check_images(observation.images, spec)
        _check_alike(observations, spec)
        inputs = self.prepare(observations)
        clock.lap("preprocess")
        tokens = self.see(inputs)
        clock.lap("semantic_encoder")
        gates: dict[str, Tensor] = {}
        age = 0
        if self.world is not None:
            f_gen, age = self.world.look(inputs.frames)
            clock.lap("world_simulator")
            tokens, gates = self.world.fuse(tokens, f_gen)
            clock.lap("fusion")
        actions = self.decide(inputs, tokens)
        if not np.isfinite(actions).all():
            raise VegaError(f"Policy {spec.name} gives actions that are not finite: check the robot's state.")
        clock.lap("trunk_and_head")
        maps = {camera: gate.float().cpu().numpy() for camera, gate in gates.items()}
        return [
            ActionChunk(
                actions[row],
                observation.stamp_ns,
                observation.instruction,
                timings_ms=clock.laps,
                gates={camera: self._over_frame(camera, gate[row], observation) for camera, gate in maps.items()},
                world_age=age,
            )
            for row, observation in enumerate(observations)
        ]

    def _over_frame(self, camera: str, gate: NDArray[np.float32], observation: Observation) -> NDArray[np.float32]:
        """A gate (rows, columns) over the camera's frame: (H, W)."""
        _, height, width, _ = observation.images[camera].shape
        return gate_image(self.upright(gate), (height, width), self.semantic_view(camera))

    def reset(self) -> None:
        """Forget the tokens of the last episode."""
        if self.world is not None:
            self.world.reset()

    @abstractmethod
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder from which `policies.checkpoints.load_policy` makes this policy again."""


def _check_alike(observations: Sequence[Observation], spec: PolicySpec) -> None:
    """Raise VegaError unless a camera's images have one size; what size it must have, if any, the policy checks."""
    for camera in spec.cameras:
        sizes = [observation.images[camera].shape[1:3] for observation in observations]
        other = next((size for size in sizes if size != sizes[0]), None)
        if other is not None and camera not in spec.image_sizes:
            raise VegaError(
                f"Camera '{camera}' gave {sizes[0][1]}x{sizes[0][0]} and {other[1]}x{other[0]} pixels in one batch: "
                "decide for each size apart."
            )


def no_world_simulator(policy: str, options: Iterable[str]) -> VegaError:
    """For options that are a world simulator's, of which a policy has none."""
    return VegaError(f"Policy {policy} has no world simulator: leave {next(iter(options))} as configured.")


def write_policy(folder: Path, config: PolicyConfig, weights: Mapping[str, Tensor] | None) -> None:
    """Write a policy's folder: its own weights if it has any, and last its configuration, without which it is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        write_tensors(weights, folder / WEIGHTS_FILE)
    config.save(folder)


def read_weights(module: nn.Module, folder: Path, what: str) -> None:
    """Fill `module` with the weights in a policy's folder; VegaError, which says whose they are, unless all fit."""
    path = folder / WEIGHTS_FILE
    try:
        source = Dequantised(Renamed(DictSource(str(path), load_file(path)), as_published))
        weights = {name: source.read(name) for name in source.names()}
        check_numbers(weights, path)
        module.load_state_dict(weights)
    except FileNotFoundError:
        raise VegaError(f"File '{path}' with the {what}'s weights is missing: get the folder again.") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        refuse_pointer(path)
        reason = " ".join(str(error).split("\n")[:2]).replace("\t", "")
        raise VegaError(
            f"The {what}'s weights in '{path}' are corrupt or of another shape ({reason}): get the folder again."
        ) from None
