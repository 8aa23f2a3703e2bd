"""The one readable file of a checkpoint, `config.json`: what a `VegaPolicy` is composed of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from policies.files.json_config import LATER, POSITIVE, read_config, read_json, write_config
from policies.fusion.fused_policy import CONFIG_FILE, no_world_simulator
from policies.fusion.sources import Kind
from policies.types import WORLD_SPEED, ActionSpace, PolicySpec, SpeedOptions, VegaError

PROPRIO_DIM = 11
EEF_DIM = 7  # of an eef_delta action: three of a translation, three of a rotation, the gripper
TOKEN_PX = 8  # of a side of a semantic token
CHANNEL_GROUPS = 8  # that the encoder normalises apart
# By which other libraries, and other models of this package, say what a config.json describes.
_KINDS = ("type", "model_type", "policy_type", "scene_type", "architectures", "_class_name")
POSE_NUMBERS = 9  # of the tool in the proprioception: position, two columns of the rotation


@dataclass(frozen=True)
class CameraConfig:
    """How a camera's image becomes the encoder's input.

    image_size: (H, W) that the camera must deliver.  crop: (top, left, bottom, right) in those pixels, or None.
    resize: (H, W) after the crop by area averaging, or None.
    """

    image_size: tuple[int, int] = field(metadata=POSITIVE)
    crop: tuple[int, int, int, int] | None = None
    resize: tuple[int, int] | None = field(default=None, metadata=POSITIVE)

    def __post_init__(self) -> None:
        """Raises VegaError for a crop that is no part of the image, and for a size that tokens do not cover."""
        (height, width), crop = self.image_size, self.crop
        if crop and not (0 <= crop[0] < crop[2] <= height and 0 <= crop[1] < crop[3] <= width):
            raise VegaError(
                f"A camera's crop {crop} is no part of its {height}x{width} pixels: give (top, left, bottom, right) in "
                "them."
            )
        rows, columns = self.output_size
        # Of an odd number of quarters the encoder keeps a half token more.
        if any(side < TOKEN_PX or side // (TOKEN_PX // 2) % 2 for side in (rows, columns)):
            raise VegaError(
                f"A camera's crop and resize leave {rows}x{columns} px: give sides that are multiples of {TOKEN_PX}."
            )

    @property
    def output_size(self) -> tuple[int, int]:
        if self.resize:
            return self.resize
        if self.crop:
            return self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]
        return self.image_size

    @property
    def view(self) -> tuple[float, float, float, float]:
        """The part of the camera's image that is used: (top, left, bottom, right) in [0, 1]."""
        if self.crop is None:
            return (0.0, 0.0, 1.0, 1.0)
        height, width = self.image_size
        return (self.crop[0] / height, self.crop[1] / width, self.crop[2] / height, self.crop[3] / width)


@dataclass(frozen=True)
class WorldViewConfig:
    """The world simulator of a policy, or what the policy was trained on in its place, and how that enters.

    source: folder relative to the checkpoint, or a hub id.  canvas: camera -> (rows, columns) px.  fusion: a name that
    `gated_fusion.build_fusion` knows.  refresh_every: the simulator runs on every n-th query, or earlier where a
    picture changes by refresh_change levels of 255, if that is not 0.  stride: distance of two frames of a window in
    control periods, if the simulator looks at a window; stream: how, one of `fusion.world_view.STREAMS`.  encoder: what
    gives the tokens, see `fusion.sources`; "imagenet" comes from its package and not from `source`.
    """

    source: str
    canvas: dict[str, tuple[int, int]] = field(metadata=POSITIVE)
    fusion: str = "token_gate"
    refresh_every: int = field(default=1, metadata=POSITIVE)
    refresh_change: float = field(default=0.0, metadata=LATER)
    stride: int = field(default=1, metadata=POSITIVE)
    stream: str = field(default="joint", metadata=LATER)
    encoder: Kind = field(default="wan", metadata=LATER)


@dataclass(frozen=True)
class VegaConfig:
    """Everything about a small VegaPolicy except its weights.

    words, things: the vocabulary and what it can name.  text_encoder: "bag" (of words) or "sequence".  remembers:
    whether the policy is told how far it believed to be when it decided last.  proprio_mean/std: of (eef position, two
    columns of the eef rotation, finger openings), base frame, m.  world_simulator: None where the policy has none.
    """

    name: str
    cameras: dict[str, CameraConfig]
    words: tuple[str, ...]
    things: tuple[str, ...]
    proprio_mean: tuple[float, ...]
    proprio_std: tuple[float, ...] = field(metadata=POSITIVE)
    action_space: ActionSpace = field(default_factory=lambda: ActionSpace("eef_delta"))
    chunk_length: int = field(default=8, metadata=POSITIVE)
    open_loop_horizon: int = field(default=8, metadata=POSITIVE)
    text_encoder: Literal["bag", "sequence"] = field(default="bag", metadata=LATER)
    remembers: bool = field(default=False, metadata=LATER)
    text_dim: int = field(default=64, metadata=POSITIVE)
    channels: int = field(default=64, metadata=POSITIVE)
    encoder_blocks: int = 1
    keypoints: int = field(default=32, metadata=POSITIVE)
    trunk_width: int = field(default=512, metadata=POSITIVE)
    trunk_layers: int = 2
    world_simulator: WorldViewConfig | None = None

    def __post_init__(self) -> None:
        if not self.cameras:
            raise VegaError(f"Policy {self.name} has no camera: name those it was trained with.")
        for name in self.cameras:
            # They name modules.
            if not name or "." in name or hasattr(nn.ModuleDict(), name):
                raise VegaError(
                    f"Camera '{name}' of policy {self.name} cannot be called that: give it another name, without dots."
                )
        space = self.action_space
        if space.kind == "eef_delta" and space.dim != EEF_DIM:
            raise VegaError(
                f"Policy {self.name} has actions 'eef_delta' of {space.dim} numbers: set its dim to {EEF_DIM}."
            )
        counts = (("encoder_blocks", self.encoder_blocks), ("trunk_layers", self.trunk_layers))
        for name, number in (*counts, ("kp_null", space.kp_null)):
            if number < 0:
                raise VegaError(f"Policy {self.name} has {name} {number}: give 0 or more.")
        for name, numbers in (("proprio_mean", self.proprio_mean), ("proprio_std", self.proprio_std)):
            if len(numbers) != PROPRIO_DIM:
                raise VegaError(
                    f"Policy {self.name} has {len(numbers)} numbers as '{name}': give the {PROPRIO_DIM} it was "
                    "trained with."
                )
        if self.channels % CHANNEL_GROUPS:
            raise VegaError(f"Policy {self.name} has {self.channels} channels: give a multiple of {CHANNEL_GROUPS}.")
        if self.open_loop_horizon > self.chunk_length:
            raise VegaError(
                f"Policy {self.name} has an open_loop_horizon of {self.open_loop_horizon} in chunks of "
                f"{self.chunk_length}: give at most as many."
            )

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec(
            name=self.name,
            cameras=tuple(self.cameras),
            action_space=self.action_space,
            chunk_length=self.chunk_length,
            open_loop_horizon=self.open_loop_horizon,
            image_sizes={name: camera.image_size for name, camera in self.cameras.items()},
            fingers=len(self.proprio_mean) - POSE_NUMBERS,
        )

    def with_speed(self, speed: SpeedOptions) -> VegaConfig:
        """With these options in place of its own.  VegaError for one that a small policy does not have."""
        if speed.weights is not None:
            raise VegaError(f"Policy {self.name} is a small one: leave weights as configured.")
        if not (world := speed.given(*WORLD_SPEED)):
            return self
        if self.world_simulator is None:
            raise no_world_simulator(self.name, world)
        return replace(self, world_simulator=replace(self.world_simulator, **world))  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        write_config(folder / CONFIG_FILE, self, indent=1)

    @classmethod
    def load(cls, folder: Path) -> VegaConfig:
        """What a folder says about its policy; VegaError with the file for a setting that is wrong."""
        path = folder / CONFIG_FILE
        values = read_json(path)
        _refuse_other_kinds(values, path)
        return read_config(cls, values, path)


def _refuse_other_kinds(values: Mapping[str, Any], path: Path) -> None:
    """Raise VegaError for the config.json of another library's checkpoint, or of a model here that is no policy."""
    for name in _KINDS:
        kind = values.get(name)
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind and isinstance(kind, str):
            raise VegaError(
                f"File '{path}' is of a checkpoint of kind '{kind}': the policies read here are vega-nano's kind, "
                "OpenVLA-OFT, and what `python -m policies.compose` makes of it."
            )
