"""`VegaPolicy`: semantic encoder, world simulator, gated fusion, trunk and action head, composed from a config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from policies.fusion.fused_policy import FusedPolicy, read_weights, write_policy
from policies.fusion.gated_fusion import build_fusion
from policies.fusion.sources import TokenSource, keep_inside, open_source
from policies.fusion.world_view import CameraView, WorldView
from policies.nano.compiled import CompiledStages
from policies.nano.config import PROPRIO_DIM, CameraConfig, VegaConfig
from policies.nano.layers import TEXT_ENCODERS, Decision, L1Head, SemanticEncoder, Trunk
from policies.nano.vocabulary import Vocabulary
from policies.types import (
    AS_CONFIGURED,
    FloatArray,
    Image,
    Observation,
    PolicySpec,
    RobotState,
    SpeedOptions,
    VegaError,
)


def prepare_image(image: Image, camera: CameraConfig, name: str) -> Image:
    """Upright (H, W, 3) uint8 -> the encoder's pixels, uint8.  Raises VegaError on another size."""
    if image.shape[:2] != camera.image_size:
        height, width = camera.image_size
        raise VegaError(
            f"Camera '{name}' gives {image.shape[1]}x{image.shape[0]} pixels: this policy was trained on "
            f"{width}x{height}, set the camera to that."
        )
    if camera.crop:
        top, left, bottom, right = camera.crop
        image = image[top:bottom, left:right]
    if camera.resize and camera.resize != image.shape[:2]:
        image = cv2.resize(image, camera.resize[::-1], interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return image


def proprioception(position: FloatArray, quaternion: FloatArray, gripper: FloatArray) -> FloatArray:
    """(..., 3) m, (..., 4) xyzw, (..., 2) m -> (..., 11): position, first two columns of the rotation, openings.

    Rotation columns are continuous where quaternions flip sign (Zhou et al. 2019).
    """
    x, y, z, w = np.moveaxis(quaternion, -1, 0)
    first = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)], axis=-1)
    second = np.stack([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)], axis=-1)
    return np.concatenate([position, first, second, gripper], axis=-1)


@dataclass(frozen=True)
class NanoInputs:
    """A batch as tensors.

    frames: camera -> (B, T, H, W, 3) uint8.  text: (B, D).  proprio: (B, 11), not normalised.  progress: (B,) believed
    at the last decision.
    """

    frames: dict[str, Tensor]
    text: Tensor
    proprio: Tensor
    progress: Tensor


class VegaPolicy(FusedPolicy[NanoInputs]):
    """A policy in the sense of `policies.types.Policy`; also the module that training optimises."""

    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, config: VegaConfig, source: TokenSource | None = None) -> None:
        """source: of the generative tokens, where the config names one."""
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config.words, config.things)
        grids = {
            name: (camera.output_size[0] // SemanticEncoder.stride, camera.output_size[1] // SemanticEncoder.stride)
            for name, camera in config.cameras.items()
        }
        self.text = TEXT_ENCODERS[config.text_encoder](len(self.vocabulary), config.text_dim)
        self.semantic_encoder = SemanticEncoder(
            tuple(config.cameras), config.channels, config.text_dim, config.encoder_blocks
        )
        self.world = build_world_view(config, grids, source)
        self.trunk = Trunk(
            grids,
            config.channels,
            config.text_dim,
            PROPRIO_DIM + config.remembers,
            config.keypoints,
            config.trunk_width,
            config.trunk_layers,
        )
        self.head = L1Head(config.trunk_width, config.chunk_length, config.action_space.dim)
        self.progress = nn.Linear(config.trunk_width, 1) if config.remembers else None
        self._believed, self._task = 0.0, ""
        self._compiled: CompiledStages | None = None
        self.register_buffer("proprio_mean", torch.tensor(config.proprio_mean), persistent=False)
        self.register_buffer("proprio_std", torch.tensor(config.proprio_std), persistent=False)

    @property
    def spec(self) -> PolicySpec:
        if self.world is None:
            return self.config.spec
        assert self.config.world_simulator is not None
        return replace(
            self.config.spec, window=self.world.source.frames_needed, stride=self.config.world_simulator.stride
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, images: Mapping[str, Tensor], ids: Tensor, proprio: Tensor, progress: Tensor,
        f_gen: Mapping[str, Tensor] | None = None,
    ) -> Decision:  # fmt: skip
        """The way of training.  images: camera -> (B, 3, H, W) in [-1, 1]; ids (B, L); proprio (B, 11), not normalised.

        progress: (B,) believed before.  f_gen: camera -> (B, N, G), what `self.world` saw, needed where there is a
        world simulator.
        """
        text = self.text(ids)
        tokens = self.semantic_encoder(images, text)
        if self.world is not None:
            assert f_gen is not None, "a policy with a world simulator needs its tokens"
            tokens, _ = self.world.fuse(tokens, f_gen)
        return self.decision(tokens, text, proprio, progress)

    def decision(self, tokens: Mapping[str, Tensor], text: Tensor, proprio: Tensor, progress: Tensor) -> Decision:
        """From fused tokens.  text (B, D), the rest as `forward` has it."""
        body = (proprio - self.proprio_mean) / self.proprio_std
        if self.progress is None:
            hidden, grounding = self.trunk(tokens, text, body)
            return Decision(self.head(hidden), hidden, grounding, None)
        hidden, grounding = self.trunk(tokens, text, torch.cat([body, 2 * progress[:, None] - 1], dim=1))
        return Decision(self.head(hidden), hidden, grounding, self.progress(hidden).squeeze(1))

    def prepare(self, observations: Sequence[Observation]) -> NanoInputs:
        if self.config.remembers:
            self._turn_to(observations)
        words = [self.vocabulary.encode(observation.instruction) for observation in observations]
        longest = max(map(len, words))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in words], device=self.device)
        frames = {
            name: torch.from_numpy(
                np.stack([[prepare_image(image, camera, name) for image in o.images[name]] for o in observations])
            ).to(self.device)
            for name, camera in self.config.cameras.items()
        }
        proprio = torch.from_numpy(
            np.stack([_proprio(o.state, self.config.spec.fingers) for o in observations])
        ).float()
        believed = torch.full((len(observations),), self._believed, device=self.device)
        return NanoInputs(frames, self.text(ids), proprio.to(self.device), believed)

    def _turn_to(self, observations: Sequence[Observation]) -> None:
        """Another instruction is another task, of which nothing is done yet.  Raises VegaError for several episodes."""
        if len(observations) > 1:
            raise VegaError(
                f"Policy {self.config.name} remembers how far it is in an episode, so it serves one at a time: leave "
                "--share-policy out."
            )
        if observations[0].instruction != self._task:
            self._believed, self._task = 0.0, observations[0].instruction

    def reset(self) -> None:
        super().reset()
        self._believed, self._task = 0.0, ""

    def see(self, inputs: NanoInputs) -> dict[str, Tensor]:
        newest = {name: video[:, -1].permute(0, 3, 1, 2) for name, video in inputs.frames.items()}
        images = {name: image.float() / 127.5 - 1.0 for name, image in newest.items()}
        if self._compiled is not None and len(inputs.text) == 1:
            return self._compiled.see(images, inputs.text)
        return self.semantic_encoder(images, inputs.text)

    def decide(self, inputs: NanoInputs, tokens: Mapping[str, Tensor]) -> FloatArray:
        known = tokens, inputs.text, inputs.proprio, inputs.progress
        if self._compiled is not None and len(inputs.text) == 1:
            found, progress = self._compiled.decide(*known)
        else:
            found, progress = (decision := self.decision(*known)).actions, decision.progress
        if progress is not None:
            self._believed = float(progress[0].sigmoid())
        actions = found.double().cpu().numpy()
        if self.config.action_space.kind == "eef_delta":
            actions[..., :6] = np.clip(actions[..., :6], -1.0, 1.0)
        actions[..., -1] = np.where(actions[..., -1] > 0, 1.0, -1.0)
        return actions

    def compile_for_cpu(self) -> None:
        """Let graphs of OpenVINO's decide for batches of one, with the weights as they are now; takes seconds."""
        self._compiled = CompiledStages(self.config, self.semantic_encoder, self, self.world, self.device)

    def semantic_view(self, camera: str) -> tuple[float, float, float, float]:
        return self.config.cameras[camera].view

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json`, `model.safetensors`, and the world simulator's folder, if there is one, inside it."""
        folder, config = Path(folder), self.config
        if self.world is not None and (world := config.world_simulator) is not None:
            kept = keep_inside(self.world.source, world.source, folder)
            config = replace(config, world_simulator=replace(world, source=kept))
        write_policy(folder, config, self.state_dict())


def load_vega_policy(
    folder: Path, device: torch.device | str = "cpu", speed: SpeedOptions = AS_CONFIGURED
) -> VegaPolicy:
    """The small policy in a folder.  Raises VegaError on a missing or corrupt file."""
    config = VegaConfig.load(folder).with_speed(speed)
    source = None
    if (world := config.world_simulator) is not None:
        local = folder / world.source
        if world.encoder != "imagenet" and not local.is_dir() and "/" not in world.source:
            raise VegaError(f"The checkpoint {folder} has no folder {world.source}/: get the checkpoint again.")
        source = open_source(world.encoder, local if local.is_dir() else world.source, device)
    policy = VegaPolicy(config, source)
    read_weights(policy, folder, "policy")
    policy.to(device).eval()
    if speed.compiled:
        policy.compile_for_cpu()
    return policy


def build_world_view(
    config: VegaConfig, grids: Mapping[str, tuple[int, int]], source: TokenSource | None
) -> WorldView | None:
    """What the config says about the world simulator, composed.  grids: camera -> (rows, columns) of f_sem."""
    world = config.world_simulator
    if world is None:
        return None
    if source is None:
        raise VegaError(f"Policy {config.name} needs a world simulator: load it with policies.checkpoints.load_policy.")
    if missing := sorted(set(grids) - set(world.canvas)):
        raise VegaError(f"The world simulator of policy {config.name} has no canvas for '{missing[0]}': add one.")
    cameras = {name: CameraView(world.canvas[name], grid) for name, grid in grids.items()}
    fusion = build_fusion(world.fusion, config.channels, source.dim)
    return WorldView(source, cameras, fusion, world.refresh_every, world.refresh_change, world.stream)


def _proprio(state: RobotState, fingers: int) -> FloatArray:
    """Raises VegaError for a hand with another number of fingers, and for what is not finite."""
    if state.gripper_positions.shape != (fingers,):
        raise VegaError(
            f"The gripper reports {state.gripper_positions.size} fingers: this policy was trained with {fingers}, set "
            "gripper.joints to them."
        )
    found = proprioception(state.eef_position, state.eef_quaternion, state.gripper_positions)
    if not np.isfinite(found).all():
        raise VegaError("The robot's pose or its gripper's openings are not finite: check what its driver reports.")
    return found
