"""`config.json` of a full-size policy: which published parts it is composed of, and how.

The folder that holds it has nothing else but our own weights, the fusion's, in `model.safetensors`; OpenVLA-OFT and
Wan stay where they are and are named by folder (relative to this one, or absolute) or hub id.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from policies.files.json_config import POSITIVE, read_config, read_json, write_config
from policies.files.paths import is_folder
from policies.files.weight_files import CHECKPOINT_FILES, resolve_folder
from policies.fusion.fused_policy import CONFIG_FILE, no_world_simulator
from policies.openvla.preprocessing import action_width
from policies.openvla.robots import platform
from policies.openvla.statistics import Choice, choose, read_statistics
from policies.types import WORLD_SPEED, SpeedOptions, VegaError
from policies.world_simulator.experts import transformer_folder
from policies.world_simulator.prompt import PROMPT_FILE
from policies.world_simulator.simulator import CONFIG_FILE as WORLD_CONFIG_FILE
from policies.world_simulator.simulator import HUB_PATTERNS as WAN_PATTERNS
from policies.world_simulator.simulator import check_noise, noise_level

POLICY_TYPE = "openvla"  # by which load_policy knows these folders, as by `model_type` the published ones
DTYPES = ("bfloat16", "float32")
WEIGHTS = ("plain", "int8")


@dataclass(frozen=True)
class WorldPart:
    """The world simulator of a policy and how its tokens enter.

    source: a Wan folder in diffusers layout, or a hub id.  prompt_embedding: a file, default that in the Wan folder.
    tap, noise_index, shift, seed, canvas (rows, columns px), mode, window, framing: see WorldSimulatorConfig.
    stride: control periods between two frames of a window.  stream: how windows are looked at: "joint" and "causal"
    encode only what has come since the last query (see `WorldStream`), "off" encodes every window whole.
    refresh_every: it runs on every n-th query.  refresh_change: 0, or the change of a picture, in levels of 255, at
    which it runs earlier.
    fusion: a name that `gated_fusion.build_fusion` knows.  unchanged_start: with the learned residual that starts at
    0, so that an untrained fusion leaves OpenVLA-OFT as it is, bit for bit.
    """

    source: str
    prompt_embedding: str | None = None
    tap: int = 20
    noise_index: int = 300
    shift: float = 5.0
    seed: int = 0
    canvas: tuple[int, int] = field(default=(480, 480), metadata=POSITIVE)
    mode: str = "per_frame"
    window: int = 17
    stride: int = 1
    stream: str = "joint"
    framing: str = "registered"
    refresh_every: int = 1
    refresh_change: float = 0.0
    fusion: str = "token_gate"
    unchanged_start: bool = True

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise VegaError(f"Frames of a window cannot be {self.stride} control periods apart: give stride 1 or more.")
        check_noise(self.noise_index, self.shift, self.seed)


@dataclass(frozen=True)
class VegaOpenVLAConfig:
    """Everything about a full-size policy except weights.

    openvla: OpenVLA-OFT checkpoint folder or hub id.  statistics_key: data set in its statistics; None leaves it to the
    suite that is evaluated, or to the robot (statistics.choose).  robot: a name of robots.PLATFORMS.  cameras: names in
    the checkpoint's order.
    open_loop_horizon: actions executed before the next query when the world waits; None for the whole chunk.
    chunk_length, normalization: only where the checkpoint does not say them.  attention: kernel of the language model.
    compiled: kernels made for the device, on a GPU by torch's compiler at the first call.  weights: "plain", or "int8"
    for those of the blocks (see `acceleration` for both).
    synchronise_stages: on a GPU each stage is waited for, so that it is timed alone; false lets stages overlap.
    world_simulator: None for OpenVLA-OFT alone.
    """

    name: str
    openvla: str
    robot: str
    cameras: tuple[str, ...]
    statistics_key: str | None = None
    open_loop_horizon: int | None = field(default=None, metadata=POSITIVE)
    chunk_length: int | None = field(default=None, metadata=POSITIVE)
    normalization: str | None = None
    attention: str = "sdpa"
    dtype: str = "bfloat16"
    compiled: bool = False
    weights: str = "plain"
    synchronise_stages: bool = True
    world_simulator: WorldPart | None = None

    def __post_init__(self) -> None:
        platform(self.robot)
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise VegaError(f"Cameras {list(self.cameras)} cannot be told apart: name each image's camera once.")
        if self.dtype not in DTYPES:
            raise VegaError(f"The dtype '{self.dtype}' is unknown: choose one of {list(DTYPES)}.")
        if self.weights not in WEIGHTS:
            raise VegaError(f"Weights '{self.weights}' are unknown: choose one of {list(WEIGHTS)}.")

    def save(self, folder: Path) -> None:
        write_config(folder / CONFIG_FILE, self, policy_type=POLICY_TYPE)

    def with_speed(self, speed: SpeedOptions) -> VegaOpenVLAConfig:
        """With these options in place of its own.  VegaError for one of a world simulator where there is none."""
        own = speed.given("compiled", "weights")
        world = speed.given(*WORLD_SPEED)
        if not world:
            return replace(self, **own)  # type: ignore[arg-type]
        if self.world_simulator is None:
            raise no_world_simulator(self.name, world)
        return replace(self, world_simulator=replace(self.world_simulator, **world), **own)  # type: ignore[arg-type]


def read_policy_config(folder: Path) -> VegaOpenVLAConfig:
    """What a folder says about its policy; a published OpenVLA-OFT folder is a policy without a world simulator.

    Raises VegaError with the file for a setting that is unknown, missing or of the wrong kind.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    if values.get("model_type") == "openvla":
        return published_config(folder)
    if values.pop("policy_type", None) != POLICY_TYPE:
        raise VegaError(f"File '{path}' describes no policy with OpenVLA-OFT: give a folder made by save_pretrained.")
    return read_config(VegaOpenVLAConfig, values, path)


def published_config(checkpoint: Path, robot: str | None = None) -> VegaOpenVLAConfig:
    """A published OpenVLA-OFT folder as a policy of its own, with the robot's cameras; one camera without proprio.

    robot: by default LIBERO's for statistics of 7 actions and ALOHA's for 14, as published.
    """
    if robot is None:
        robots = {7: "libero", 14: "aloha"}
        widths = {action_width(entry) for entry in read_statistics(checkpoint).values()}
        if len(widths) != 1 or not widths <= set(robots):
            raise VegaError(
                f"The statistics in '{checkpoint}' are of {sorted(widths)} actions, which is no published robot's: "
                "compose a policy with `python -m policies.compose --robot NAME`."
            )
        robot = robots[widths.pop()]
    cameras = platform(robot).cameras
    if not any(checkpoint.glob("proprio_projector--*_checkpoint.pt")):
        cameras = cameras[:1]
    return VegaOpenVLAConfig(name=checkpoint.resolve().name, openvla=".", robot=robot, cameras=cameras)


def openvla_folder(folder: Path, config: VegaOpenVLAConfig) -> Path:
    """OpenVLA-OFT of the policy in `folder`: relative to it or absolute, or downloaded once.  VegaError without it."""
    return _part(folder, config.openvla, CHECKPOINT_FILES)


def chosen_statistics(folder: Path, config: VegaOpenVLAConfig, suite: str | None) -> Choice:
    """The statistics of the policy in `folder`; suite: what is evaluated, or a key.  VegaError where none fits."""
    statistics = read_statistics(openvla_folder(folder, config))
    return choose(statistics, config.robot, config.name, config.statistics_key, suite)


def wan_folder(folder: Path, part: WorldPart) -> Path:
    """Wan of the policy in `folder`, likewise."""
    return _part(folder, part.source, WAN_PATTERNS)


def _part(folder: Path, source: str, patterns: Iterable[str]) -> Path:
    local = folder / Path(source).expanduser()
    return local if is_folder(str(local)) else resolve_folder(source, patterns)


def prompt_file(folder: Path, part: WorldPart) -> Path | None:
    """The prompt's embedding that a policy names; None for that in the Wan folder."""
    return None if part.prompt_embedding is None else folder / Path(part.prompt_embedding).expanduser()


def part_files(folder: Path) -> list[Path]:
    """Folders and files elsewhere that the policy in `folder` is made of.  Raises VegaError for one that is missing."""
    config = read_policy_config(folder)
    found = [openvla_folder(folder, config)]
    if (part := config.world_simulator) is not None:
        wan = wan_folder(folder, part)
        prompt = prompt_file(folder, part) or wan / PROMPT_FILE
        chosen = transformer_folder(wan, noise_level(part.noise_index, part.shift)[0])
        found += [wan / "vae", chosen, wan / WORLD_CONFIG_FILE, prompt]
    return found
