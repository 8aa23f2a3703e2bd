"""The full-size policy: OpenVLA-OFT whose visual tokens carry what Wan sees, composed from published parts.

    frames ─► DINOv2 + SigLIP ─► projector = f_sem ─┐
    frames ─► world simulator ─────────────► f_gen ─┴► fusion ─► Llama ─► L1 head ─► actions

The fusion stands behind the vision projector, where the official code has it.  Both streams see the same pixels: the
world simulator gets the frames as they are, and is pooled over the part of them that OpenVLA's centre crop keeps.

`python -m policies.compose` writes the folder of a policy from published parts, with a fusion that is not trained yet
and changes nothing.  A published OpenVLA-OFT folder is a policy as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from policies.files.weight_files import (
    CHECKPOINT_FILES,
    SafetensorsSource,
    check_free,
    resolve_folder,
    shape_of,
    stored_count,
    write_tensors,
)
from policies.fusion.gated_fusion import Fusion, build_fusion, gate_image
from policies.fusion.world_view import CameraView, WorldView
from policies.openvla.config import VegaOpenVLAConfig, openvla_folder, prompt_file, read_config, wan_folder
from policies.openvla.loading import read_statistics, weight_count
from policies.openvla.model import OpenVLAOFT
from policies.openvla.preprocessing import (
    CROP_AREA,
    normalize_proprio,
    pixel_values,
    policy_image,
    statistics_for,
    unnormalize_actions,
)
from policies.openvla.robots import platform
from policies.types import ActionChunk, Observation, PolicySpec, VegaError, check_images, check_instruction
from policies.world_simulator import transformer as wan_transformer
from policies.world_simulator import vae as wan_vae
from policies.world_simulator.simulator import LatentWorldSimulator

WEIGHTS_FILE = "model.safetensors"
_MARGIN = (1.0 - CROP_AREA**0.5) / 2.0
SEMANTIC_VIEW = (_MARGIN, _MARGIN, 1.0 - _MARGIN, 1.0 - _MARGIN)  # of a frame, what the centre crop keeps


class VegaOpenVLA:
    """A policy in the sense of `policies.types.Policy`.  Inference; used from one thread at a time.

    model: OpenVLA-OFT.  world: the world simulator and the fusion, None for OpenVLA-OFT alone.
    """

    def __init__(self, config: VegaOpenVLAConfig, model: OpenVLAOFT, world: WorldView | None = None) -> None:
        self.config, self.model, self.world = config, model, world
        self._robot = robot = platform(config.robot)
        info = model.info
        if info.action_dim != robot.action_space.dim or info.proprio_dim not in (0, robot.proprio_dim):
            raise VegaError(
                f"Checkpoint '{info.folder}' has {info.action_dim} actions and {info.proprio_dim} numbers of robot "
                f"state, robot '{config.robot}' {robot.action_space.dim} and {robot.proprio_dim}: name its own robot."
            )
        horizon = config.open_loop_horizon or info.chunk_length
        if not 1 <= horizon <= info.chunk_length:
            raise VegaError(
                f"An open-loop horizon of {horizon} does not fit a chunk of {info.chunk_length}: set open_loop_horizon "
                f"to 1 to {info.chunk_length}."
            )
        self._statistics = choose_statistics(info.statistics, config)
        unnormalize_actions(np.zeros(info.action_dim), self._statistics, info.normalization)
        if info.proprio_dim:
            normalize_proprio(np.zeros(info.proprio_dim), self._statistics, info.normalization)
        self.spec = PolicySpec(
            name=config.name,
            cameras=config.cameras,
            action_space=robot.action_space,
            chunk_length=info.chunk_length,
            open_loop_horizon=horizon,
            window=1 if world is None else world.simulator.frames_needed,
            stride=1 if config.world_simulator is None else config.world_simulator.stride,
        )

    def act(self, observation: Observation) -> ActionChunk:
        """A chunk of actions in the units of the robot's action space."""
        return self.act_batch([observation])[0]

    @torch.inference_mode()
    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """See `policies.types.BatchPolicy`.  The images of a camera must have one size."""
        clock = _StageClock(self.model.device)
        if len(observations) > 1 and self.world is not None:
            self.world.check_memoryless(self.config.name)
        for observation in observations:
            check_images(observation.images, self.spec)
        input_ids = [self.model.encode_prompt(check_instruction(o.instruction)) for o in observations]
        frames = {
            camera: np.stack([[self._robot.see(frame) for frame in o.images[camera]] for o in observations])
            for camera in self.config.cameras
        }
        info = self.model.info
        newest = [[policy_image(video[row, -1], info.image_size) for video in frames.values()]
                  for row in range(len(observations))]  # fmt: skip
        pixels = torch.from_numpy(np.stack([pixel_values(images, info.image_mean_std) for images in newest]))
        proprio = None
        if info.proprio_dim:
            states = [
                normalize_proprio(self._robot.state(o), self._statistics, info.normalization) for o in observations
            ]
            proprio = torch.from_numpy(np.stack(states)).float()
        clock.lap("preprocess")
        f_sem = self.model.project(self.model.vision_tokens(pixels, input_ids))
        clock.lap("semantic_encoder")
        gates: dict[str, torch.Tensor] = {}
        age = 0
        if self.world is not None:
            f_gen, age = self.world.look({camera: torch.from_numpy(video) for camera, video in frames.items()})
            clock.lap("world_simulator")
            parts = dict(zip(self.config.cameras, f_sem.split(info.patches, dim=1), strict=True))
            fused, gates = self.world.fuse(parts, f_gen)
            f_sem = torch.cat([fused[camera] for camera in self.config.cameras], dim=1)
            clock.lap("fusion")
        normalized = self.model.head(self.model.action_hidden(input_ids, f_sem, proprio)).float().cpu().numpy()
        actions = [
            self._robot.act(unnormalize_actions(chunk, self._statistics, info.normalization)) for chunk in normalized
        ]
        clock.lap("trunk_and_head")
        return [
            ActionChunk(
                actions[row],
                observation.stamp_ns,
                observation.instruction,
                timings_ms=clock.laps,
                gates={name: self._over_frame(gate[row], observation.images[name]) for name, gate in gates.items()},
                world_age=age,
            )
            for row, observation in enumerate(observations)
        ]

    def _over_frame(self, gate: torch.Tensor, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A gate (rows, columns) of what the model saw, over the camera's upright frame: (H, W)."""
        upright = self._robot.see_gate(gate.float().cpu().numpy())
        return gate_image(upright, (images.shape[1], images.shape[2]), SEMANTIC_VIEW)

    def reset(self) -> None:
        """Forget the tokens of the last episode."""
        if self.world is not None:
            self.world.reset()

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str], device: str = "cpu") -> VegaOpenVLA:
        """Load a folder of `save_pretrained`, or a published OpenVLA-OFT checkpoint; a folder here or a hub id.

        Raises VegaError for a missing or damaged file, and before anything is loaded if it does not fit on `device`.
        """
        folder = resolve_folder(path_or_id, CHECKPOINT_FILES)
        config = read_config(folder)
        if config.openvla == ".":
            config = replace(config, name=Path(path_or_id).resolve().name)  # not that of a download's folder
        dtype = getattr(torch, config.dtype)
        checkpoint = openvla_folder(folder, config)
        choose_statistics(read_statistics(checkpoint), config)  # what can fail early fails early
        check_free(memory_needed(folder, config), torch.device(device), f"Policy '{folder}'")
        world = None if config.world_simulator is None else load_world_view(folder, config, device, dtype)
        model = OpenVLAOFT.from_pretrained(
            checkpoint,
            device=device,
            dtype=dtype,
            chunk_length=config.chunk_length,
            normalization=config.normalization,
            attention=config.attention,
        )
        return cls(config, model, world)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and the fusion's weights; published parts are named, not copied."""
        config = replace(self.config, openvla=str(Path(self.model.info.folder).resolve()))
        if self.world is not None and config.world_simulator is not None and self.world.simulator.folder is not None:
            source = str(self.world.simulator.folder.resolve())
            config = replace(config, world_simulator=replace(config.world_simulator, source=source))
        write_policy(Path(folder), config, None if self.world is None else self.world.fusion)


class _StageClock:
    """Milliseconds between laps; on a GPU the work of a stage is waited for, so that it is not booked on the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1e3
        self._last = now


def choose_statistics(statistics: Mapping[str, Any], config: VegaOpenVLAConfig) -> Mapping[str, Any]:
    """The statistics of the data set that `config` names; it need not where there is one.  VegaError lists the keys."""
    if config.statistics_key is not None:
        return statistics_for(statistics, config.statistics_key)
    if len(statistics) != 1:
        raise VegaError(
            f"Checkpoint '{config.openvla}' has statistics of {sorted(statistics)}: choose one with `python -m "
            "policies.compose --statistics KEY`."
        )
    return next(iter(statistics.values()))


def grid_and_width(model_folder: Path) -> tuple[tuple[int, int], int]:
    """Semantic grid of one image, and the width of its tokens, from a checkpoint's tensor shapes."""
    source = SafetensorsSource(model_folder)
    side = round(shape_of(source, "vision_backbone.featurizer.pos_embed")[1] ** 0.5)
    return (side, side), shape_of(source, "language_model.model.embed_tokens.weight")[1]


def memory_needed(folder: Path, config: VegaOpenVLAConfig) -> int:
    """Bytes of all weights of a policy on its device, told from file headers; activations come on top."""
    count = weight_count(openvla_folder(folder, config))
    part = config.world_simulator
    if part is not None:
        wan = wan_folder(folder, part)
        vae, transformer, fusion = (SafetensorsSource(path) for path in (wan / "vae", wan / "transformer", folder))
        count += stored_count(vae, wan_vae.kept_names(vae)) + stored_count(fusion, fusion.names())
        count += stored_count(transformer, wan_transformer.kept_names(transformer, part.tap))
    return count * getattr(torch, config.dtype).itemsize


def load_world_view(folder: Path, config: VegaOpenVLAConfig, device: str, dtype: torch.dtype) -> WorldView:
    """The world simulator that `config` names, with the fusion's weights in `folder`."""
    part = config.world_simulator
    assert part is not None
    grid, width = grid_and_width(openvla_folder(folder, config))
    simulator = LatentWorldSimulator.from_pretrained(
        wan_folder(folder, part),
        device=device,
        dtype=dtype,
        prompt_embedding=prompt_file(folder, part),
        tap=part.tap,
        noise_index=part.noise_index,
        shift=part.shift,
        seed=part.seed,
        canvas=part.canvas,
        grid=grid,
        view=SEMANTIC_VIEW,
        mode=part.mode,
        window=part.window,
        framing=part.framing,
    )
    fusion = build_fusion(part.fusion, width, simulator.dim, grid=grid, unchanged=part.unchanged_start)
    path = folder / WEIGHTS_FILE
    try:
        fusion.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise VegaError(f"File '{path}' with the fusion's weights is missing: get the folder again.") from None
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split("\n")[:2]).replace("\t", "")
        raise VegaError(
            f"The fusion's weights in '{path}' are corrupt or of another shape ({reason}): get the folder again."
        ) from None
    fusion = fusion.to(device, dtype).eval().requires_grad_(False)
    views = {camera: CameraView(part.canvas, grid, SEMANTIC_VIEW) for camera in config.cameras}
    return WorldView(simulator, views, fusion, part.refresh_every)


def write_policy(folder: Path, config: VegaOpenVLAConfig, fusion: Fusion | None) -> None:
    """Write a policy's folder: `config.json`, and the fusion's weights if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder)
    if fusion is not None:
        write_tensors(fusion.state_dict(), folder / WEIGHTS_FILE)
