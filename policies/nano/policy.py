"""`VegaPolicy`: semantic encoder, world simulator, gated fusion, trunk and action head, composed from a config."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from policies.files.weight_files import CHECKPOINT_FILES, read_json, resolve_folder, write_tensors
from policies.fusion.gated_fusion import build_fusion, gate_image
from policies.fusion.world_view import CameraView, WorldView
from policies.nano.config import CameraConfig, VegaConfig
from policies.nano.layers import BagOfWords, L1Head, SemanticEncoder, Trunk
from policies.nano.vocabulary import Vocabulary
from policies.types import (
    ActionChunk,
    FloatArray,
    Image,
    Observation,
    Policy,
    PolicySpec,
    RobotState,
    VegaError,
    check_images,
)
from policies.world_simulator.simulator import LatentWorldSimulator

WEIGHTS_FILE = "model.safetensors"
PROPRIO_DIM = 11


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


class Decision(NamedTuple):
    """actions (B, chunk, dim); hidden (B, width), the trunk's output; grounding: where each camera sees the target.

    gates: camera -> (B, rows, columns), the share of f_sem; empty without a world simulator or a gate.
    """

    actions: Tensor
    hidden: Tensor
    grounding: dict[str, dict[str, Tensor]]
    gates: dict[str, Tensor]


def _no_lap(stage: str) -> None:
    """Nobody measures."""


class VegaPolicy(nn.Module):
    """A policy in the sense of `policies.types.Policy`; also the module that training optimises."""

    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, config: VegaConfig, simulator: LatentWorldSimulator | None = None) -> None:
        """simulator: of the world, where the config names one."""
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config.words, config.things)
        grids = {
            name: (camera.output_size[0] // SemanticEncoder.stride, camera.output_size[1] // SemanticEncoder.stride)
            for name, camera in config.cameras.items()
        }
        self.text = BagOfWords(len(self.vocabulary), config.text_dim)
        self.semantic_encoder = SemanticEncoder(
            tuple(config.cameras), config.channels, config.text_dim, config.encoder_blocks
        )
        self.world = build_world_view(config, grids, simulator)
        self.trunk = Trunk(
            grids,
            config.channels,
            config.text_dim,
            PROPRIO_DIM,
            config.keypoints,
            config.trunk_width,
            config.trunk_layers,
        )
        self.head = L1Head(config.trunk_width, config.chunk_length, config.action_space.dim)
        self.register_buffer("proprio_mean", torch.tensor(config.proprio_mean), persistent=False)
        self.register_buffer("proprio_std", torch.tensor(config.proprio_std), persistent=False)

    @property
    def spec(self) -> PolicySpec:
        if self.world is None:
            return self.config.spec
        assert self.config.world_simulator is not None
        return replace(
            self.config.spec, window=self.world.simulator.frames_needed, stride=self.config.world_simulator.stride
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self,
        images: Mapping[str, Tensor],
        ids: Tensor,
        proprio: Tensor,
        f_gen: Mapping[str, Tensor] | None = None,
        lap: Callable[[str], None] = _no_lap,
    ) -> Decision:
        """images: camera -> (B, 3, H, W) in [-1, 1]; ids (B, L); proprio (B, 11), not normalised.

        f_gen: camera -> (B, N, G), what `self.world` saw, needed where there is a world simulator.  lap: called with
        a stage's name when it is over.
        """
        text = self.text(ids)
        tokens = self.semantic_encoder(images, text)
        lap("semantic_encoder")
        gates: dict[str, Tensor] = {}
        if self.world is not None:
            assert f_gen is not None, "a policy with a world simulator needs its tokens"
            tokens, gates = self.world.fuse(tokens, f_gen)
            lap("fusion")
        hidden, grounding = self.trunk(tokens, text, (proprio - self.proprio_mean) / self.proprio_std)
        actions = self.head(hidden)
        lap("trunk_and_head")
        return Decision(actions, hidden, grounding, gates)

    def act(self, observation: Observation) -> ActionChunk:
        return self.act_batch([observation])[0]

    @torch.inference_mode()
    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """See `policies.types.BatchPolicy`."""
        clock = _Clock()
        for observation in observations:
            check_images(observation.images, self.spec)
        if len(observations) > 1 and self.world is not None:
            self.world.check_memoryless(self.config.name)
        words = [self.vocabulary.encode(observation.instruction) for observation in observations]
        longest = max(map(len, words))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in words], device=self.device)
        frames = {
            name: torch.from_numpy(
                np.stack([[prepare_image(image, camera, name) for image in o.images[name]] for o in observations])
            ).to(self.device)
            for name, camera in self.config.cameras.items()
        }
        images = {name: video[:, -1].permute(0, 3, 1, 2).float() / 127.5 - 1.0 for name, video in frames.items()}
        proprio = torch.from_numpy(np.stack([_proprio(o.state) for o in observations])).float().to(self.device)
        clock.lap("preprocess")
        f_gen, age = None, 0
        if self.world is not None:
            f_gen, age = self.world.look(frames)
            clock.lap("world_simulator")
        decision = self(images, ids, proprio, f_gen, clock.lap)
        actions = decision.actions.double().cpu().numpy()
        if self.config.action_space.kind == "eef_delta":
            actions[..., :6] = np.clip(actions[..., :6], -1.0, 1.0)
        actions[..., -1] = np.where(actions[..., -1] > 0, 1.0, -1.0)
        gates = {name: gate.float().cpu().numpy() for name, gate in decision.gates.items()}
        return [
            ActionChunk(
                actions[row],
                observation.stamp_ns,
                observation.instruction,
                timings_ms=clock.laps,
                gates={
                    name: gate_image(gate[row], self.config.cameras[name].image_size, self.config.cameras[name].view)
                    for name, gate in gates.items()
                },
                world_age=age,
            )
            for row, observation in enumerate(observations)
        ]

    def reset(self) -> None:
        if self.world is not None:
            self.world.reset()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors`, and the world simulator's folder if there is one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder)
        if self.world is not None and self.config.world_simulator is not None:
            target = folder / self.config.world_simulator.source
            if self.world.simulator.folder != target:
                self.world.simulator.save_pretrained(target)
        write_tensors(self.state_dict(), folder / WEIGHTS_FILE)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str], device: str = "cpu") -> Policy:
        """The policy in a folder or of a hub id: a VegaPolicy, or at full size a `vega_openvla.VegaOpenVLA`.

        A published OpenVLA-OFT checkpoint is one too.  Raises VegaError on a missing or corrupt file.
        """
        folder = resolve_folder(path_or_id, CHECKPOINT_FILES)
        config = read_json(folder / "config.json")
        if "openvla" in (config.get("model_type"), config.get("policy_type")):
            from policies.openvla.policy import VegaOpenVLA  # transformers is imported for those who need it

            return VegaOpenVLA.from_pretrained(path_or_id, device)
        return cls._load(folder, device)

    @classmethod
    def _load(cls, folder: Path, device: str) -> VegaPolicy:
        config = VegaConfig.load(folder)
        simulator = None
        if config.world_simulator is not None:
            source = config.world_simulator.source
            local = folder / source
            if not local.is_dir() and "/" not in source:
                raise VegaError(f"The checkpoint {folder} has no folder {source}/: get the checkpoint again.")
            simulator = LatentWorldSimulator.from_pretrained(
                local if local.is_dir() else source, device=device, dtype=torch.float32
            )
        policy = cls(config, simulator)
        path = folder / WEIGHTS_FILE
        try:
            policy.load_state_dict(load_file(path))
        except FileNotFoundError as error:
            raise VegaError(f"The checkpoint {folder} has no {WEIGHTS_FILE}: get the folder again.") from error
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise VegaError(
                f"The weights in {path} are corrupt or of another shape ({reason}): get the folder again."
            ) from error
        return policy.to(device).eval()


def build_world_view(
    config: VegaConfig, grids: Mapping[str, tuple[int, int]], simulator: LatentWorldSimulator | None
) -> WorldView | None:
    """What the config says about the world simulator, composed.  grids: camera -> (rows, columns) of f_sem."""
    world = config.world_simulator
    if world is None:
        return None
    if simulator is None:
        raise VegaError(f"Policy {config.name} needs a world simulator: load it with VegaPolicy.from_pretrained.")
    cameras = {name: CameraView(world.canvas[name], grid) for name, grid in grids.items()}
    return WorldView(
        simulator, cameras, build_fusion(world.fusion, config.channels, simulator.dim), world.refresh_every
    )


def _proprio(state: RobotState) -> FloatArray:
    return proprioception(state.eef_position, state.eef_quaternion, state.gripper_positions)


class _Clock:
    """Milliseconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1e3
        self._last = now
