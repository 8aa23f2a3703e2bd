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
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from policies.files.tensor_sources import SafetensorsSource, shape_of, stored_count
from policies.files.weight_files import check_free
from policies.fusion.fused_policy import CONFIG_FILE, WEIGHTS_FILE, FusedPolicy, read_weights, write_policy
from policies.fusion.gated_fusion import build_fusion
from policies.fusion.world_view import CameraView, WorldView
from policies.openvla.acceleration import prepare_kernels, quantise
from policies.openvla.checkpoint import open_checkpoint
from policies.openvla.config import (
    VegaOpenVLAConfig,
    chosen_statistics,
    openvla_folder,
    prompt_file,
    read_policy_config,
    wan_folder,
)
from policies.openvla.loading import load_openvla_oft, weight_count
from policies.openvla.model import OpenVLAOFT
from policies.openvla.preprocessing import (
    CROP_AREA,
    normalize_proprio,
    pixel_values,
    policy_image,
    unnormalize_actions,
)
from policies.openvla.robots import platform
from policies.openvla.statistics import choose
from policies.types import (
    AS_CONFIGURED,
    FloatArray,
    Observation,
    PolicySpec,
    SpeedOptions,
    VegaError,
    check_instruction,
)
from policies.world_simulator import transformer as wan_transformer
from policies.world_simulator import vae as wan_vae
from policies.world_simulator.experts import transformer_folder
from policies.world_simulator.prompt import PROMPT_FILE, save_prompt
from policies.world_simulator.simulator import LatentWorldSimulator, noise_level

_MARGIN = (1.0 - CROP_AREA**0.5) / 2.0
SEMANTIC_VIEW = (_MARGIN, _MARGIN, 1.0 - _MARGIN, 1.0 - _MARGIN)  # of a frame, what the centre crop keeps


@dataclass(frozen=True)
class OpenVLAInputs:
    """A batch as tensors, in the orientation of the data set.

    frames: camera -> (B, T, H, W, 3) uint8.  pixels: (B, 6 n, S, S) normalised.  input_ids: a prompt per sample.
    proprio: (B, P) in [-1, 1], None where the checkpoint takes none.
    """

    frames: dict[str, torch.Tensor]
    pixels: torch.Tensor
    input_ids: list[list[int]]
    proprio: torch.Tensor | None


class VegaOpenVLA(FusedPolicy[OpenVLAInputs]):
    """A policy in the sense of `policies.types.Policy`.  Inference; used from one thread at a time.

    model: OpenVLA-OFT.  world: the world simulator and the fusion, None for OpenVLA-OFT alone.
    """

    def __init__(
        self,
        config: VegaOpenVLAConfig,
        model: OpenVLAOFT,
        world: WorldView | None = None,
        suite: str | None = None,
    ) -> None:
        """suite: what is evaluated, or the key of the statistics, where the configuration leaves that open."""
        super().__init__()
        self.config, self.model, self.world = config, model, world
        self.synchronise_stages = config.synchronise_stages
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
        choice = choose(info.statistics, config.robot, config.name, config.statistics_key, suite)
        self.statistics_key, self._statistics = choice.key, choice.statistics
        unnormalize_actions(np.zeros(info.action_dim), self._statistics, info.normalization)
        if info.proprio_dim:
            normalize_proprio(np.zeros(info.proprio_dim), self._statistics, info.normalization)
        self._spec = PolicySpec(
            name=config.name,
            cameras=config.cameras,
            action_space=robot.action_space,
            chunk_length=info.chunk_length,
            open_loop_horizon=horizon,
            window=1 if world is None else world.simulator.frames_needed,
            stride=1 if config.world_simulator is None else config.world_simulator.stride,
            fingers=robot.fingers if info.proprio_dim else 0,
        )

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def statistics(self) -> Mapping[str, Any]:
        """Of the data set that actions and state are scaled by, `statistics_key`."""
        return self._statistics

    @property
    def device(self) -> torch.device:
        return self.model.device

    def prepare(self, observations: Sequence[Observation]) -> OpenVLAInputs:
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
        tensors = {camera: torch.from_numpy(video) for camera, video in frames.items()}
        return OpenVLAInputs(tensors, pixels, input_ids, proprio)

    def see(self, inputs: OpenVLAInputs) -> dict[str, torch.Tensor]:
        f_sem = self.model.project(self.model.vision_tokens(inputs.pixels, inputs.input_ids))
        return dict(zip(self.config.cameras, f_sem.split(self.model.info.patches, dim=1), strict=True))

    def decide(self, inputs: OpenVLAInputs, tokens: Mapping[str, torch.Tensor]) -> FloatArray:
        f_sem = torch.cat([tokens[camera] for camera in self.config.cameras], dim=1)
        hidden = self.model.action_hidden(inputs.input_ids, f_sem, inputs.proprio)
        normalized = self.model.head(hidden).float().cpu().numpy()
        normalization = self.model.info.normalization
        return np.stack(
            [self._robot.act(unnormalize_actions(chunk, self._statistics, normalization)) for chunk in normalized]
        )

    def semantic_view(self, camera: str) -> tuple[float, float, float, float]:
        return SEMANTIC_VIEW

    def upright(self, gate: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._robot.see_gate(gate)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json`, the fusion's weights and a prompt of its own; published parts are named, not copied."""
        config = replace(self.config, openvla=str(Path(self.model.info.folder).resolve()))
        self.write(Path(folder), config, None if self.world is None else self.world.fusion.state_dict())

    def write(self, folder: Path, config: VegaOpenVLAConfig, fusion: Mapping[str, torch.Tensor] | None) -> None:
        """Write `config` and the fusion's weights as a folder whose world simulator is this policy's.

        Its Wan is named by its absolute folder.  A prompt's embedding that the policy names is written into the folder:
        where it was read is told relative to another one.
        """
        if self.world is not None and config.world_simulator is not None and self.world.simulator.folder is not None:
            part = replace(config.world_simulator, source=str(self.world.simulator.folder.resolve()))
            if part.prompt_embedding is not None:
                part = replace(part, prompt_embedding=PROMPT_FILE)
                folder.mkdir(parents=True, exist_ok=True)
                save_prompt(self.world.simulator.prompt, folder / PROMPT_FILE)
            config = replace(config, world_simulator=part)
        write_policy(folder, config, fusion)


def load_vega_openvla(
    folder: Path,
    device: torch.device | str = "cpu",
    name: str | None = None,
    suite: str | None = None,
    speed: SpeedOptions = AS_CONFIGURED,
) -> VegaOpenVLA:
    """The policy in a folder of `save_pretrained`, or in a published OpenVLA-OFT checkpoint's.

    name: of a published checkpoint, default that of its folder.  suite: what is evaluated, or a key of the statistics;
    which of them is used is told on the terminal, unless the configuration says it.  Raises VegaError for a missing or
    damaged file, and before anything is loaded if it does not fit on `device`.
    """
    begun = _version(folder)
    config = read_policy_config(folder).with_speed(speed)
    if config.openvla == "." and name is not None:
        config = replace(config, name=name)
    choice = chosen_statistics(folder, config, suite)  # what can fail early fails early
    if config.statistics_key is None:
        state = takes_state(openvla_folder(folder, config))
        without = "" if state else "; it has no proprio_projector, so it acts without robot state"
        what = f"pictures of {', '.join(config.cameras)}; {'actions and state' if state else 'actions'}"
        told = f"{config.name}: {what} by the statistics '{choice.key}', chosen {choice.reason}{without}"
        print(told, file=sys.stderr, flush=True)
    policy = load_configured(folder, config, device, suite)
    if _version(folder) != begun:  # by a training that publishes on its way: parts of both may have been read
        raise VegaError(f"Policy '{folder}' was written anew while it was read: load it again.")
    return policy


def _version(folder: Path) -> tuple[int, int] | None:
    """Tells a policy's folder from one that takes its place; None while there is none."""
    try:
        found = (folder / CONFIG_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def takes_state(checkpoint: Path) -> bool:
    """Whether OpenVLA-OFT in this folder takes the robot's state."""
    return any(checkpoint.glob("proprio_projector--*_checkpoint.pt"))


def load_configured(
    folder: Path,
    config: VegaOpenVLAConfig,
    device: torch.device | str = "cpu",
    suite: str | None = None,
    statistics: Mapping[str, Any] | None = None,
) -> VegaOpenVLA:
    """The policy in a folder as `config` says it, not its file.

    statistics: data set -> its entry, in place of the checkpoint's.  Otherwise as `load_vega_openvla`.
    """
    checkpoint, dtype = openvla_folder(folder, config), getattr(torch, config.dtype)
    if statistics is not None:
        choose(statistics, config.robot, config.name, config.statistics_key, suite)  # before anything is loaded
    check_free(memory_needed(folder, config), torch.device(device), f"Policy '{folder}'")
    world = None if config.world_simulator is None else load_world_view(folder, config, device, dtype)
    model = load_openvla_oft(
        checkpoint,
        device=device,
        dtype=dtype,
        chunk_length=config.chunk_length,
        normalization=config.normalization,
        attention=config.attention,
    )
    if statistics is not None:
        model.info = replace(model.info, statistics=statistics)
    _ = model.tokenizer  # read now, so that the first instruction is not where a damaged one shows
    simulator = None if world is None else world.simulator
    if config.weights == "int8":
        quantise(model, simulator)
    if config.compiled:
        prepare_kernels(model, simulator)
    return VegaOpenVLA(config, model, world, suite)


def grid_and_width(model_folder: Path) -> tuple[tuple[int, int], int]:
    """Semantic grid of one image, and the width of its tokens, from a checkpoint's tensor shapes."""
    source = open_checkpoint(model_folder)
    side = round(shape_of(source, "vision_backbone.featurizer.pos_embed", 3)[1] ** 0.5)
    return (side, side), shape_of(source, "language_model.model.embed_tokens.weight", 2)[1]


def memory_needed(folder: Path, config: VegaOpenVLAConfig) -> int:
    """Bytes of all weights of a policy on its device, told from file headers; activations come on top."""
    count = weight_count(openvla_folder(folder, config))
    part = config.world_simulator
    if part is not None:
        wan = wan_folder(folder, part)
        chosen = transformer_folder(wan, noise_level(part.noise_index, part.shift)[0])
        vae, transformer = wan_vae.open_vae(wan / "vae"), wan_transformer.open_transformer(chosen)
        fusion = SafetensorsSource(folder, WEIGHTS_FILE)  # a prompt may lie beside it
        count += stored_count(vae, wan_vae.kept_names(vae)) + stored_count(fusion, fusion.names())
        count += stored_count(transformer, wan_transformer.kept_names(transformer, part.tap))
    return count * getattr(torch, config.dtype).itemsize


def load_world_view(
    folder: Path, config: VegaOpenVLAConfig, device: torch.device | str, dtype: torch.dtype
) -> WorldView:
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
    read_weights(fusion, folder, "fusion")
    fusion = fusion.to(device, dtype).eval().requires_grad_(False)
    views = {camera: CameraView(part.canvas, grid, SEMANTIC_VIEW) for camera in config.cameras}
    return WorldView(simulator, views, fusion, part.refresh_every, part.refresh_change, part.stream)
