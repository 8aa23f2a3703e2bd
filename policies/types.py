"""The values that pass between cameras, policy and robot.

NumPy only: the robot side imports this module without importing torch.

Frames and units, everywhere in this package: SI; quaternions xyzw; the arm's *base* frame is the
frame of its first link; the tool centre point (TCP) lies between the fingertips and has the
orientation of the hand flange.  Images are uint8 RGB and upright, as a person standing behind the
camera sees the scene (mirroring, where a data set has it, is the policy's own preprocessing).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]

_POSITIVE = {"positive": True}  # as `policies.files.json_config` reads it
MAX_INSTRUCTION_CHARS = 512
MAX_QUESTION_CHARS = 4096
DEFAULT_POLICY = "vega-nano-prior"  # where none is named; its card says why it is this one
# What can stand in for a world simulator's tokens; `fusion/controls.py` says what each is.
WORLD_CONTROLS = ("on", "off", "noise", "shuffled", "untrained", "vae")


class VegaError(Exception):
    """Something a user can mend; the text is one sentence that says what is wrong and what to do."""


@dataclass(frozen=True)
class RobotState:
    """One sample of an arm's own sensors.

    joint_positions, joint_velocities: (n,) rad, rad/s, in the order of `joint_names`.
    gripper_positions: (m,) m, opening of each finger, 0 = closed.
    eef_position (3,) m and eef_quaternion (4,) xyzw: the TCP in the base frame.
    stamp_ns: time of the sample on the robot's clock.
    """

    stamp_ns: int
    joint_names: tuple[str, ...]
    joint_positions: FloatArray
    joint_velocities: FloatArray
    gripper_positions: FloatArray
    eef_position: FloatArray
    eef_quaternion: FloatArray


@dataclass(frozen=True)
class Observation:
    """What a policy sees when it decides.

    images: camera name -> (T, H, W, 3) uint8 RGB, oldest frame first, T = PolicySpec.window.
    state: the arm at `stamp_ns`.
    base_position (3,) m, base_quaternion (4,) xyzw: the base frame in the world frame, for
        policies whose proprioception is in world coordinates (OpenVLA-OFT on LIBERO).
    stamp_ns: the newest time all inputs have in common.
    """

    images: Mapping[str, Image]
    state: RobotState
    instruction: str
    stamp_ns: int
    base_position: FloatArray = field(default_factory=lambda: np.zeros(3))
    base_quaternion: FloatArray = field(default_factory=lambda: np.array([0.0, 0.0, 0.0, 1.0]))


@dataclass(frozen=True)
class ActionSpace:
    """What the numbers of an action mean; declared by the checkpoint, never guessed.

    eef_delta: (dx, dy, dz, rx, ry, rz, gripper); +-1 is +-position_scale metres and
        +-rotation_scale radians (rotation vector), in axes parallel to the base frame, as the goal
        of a critically damped impedance law  a = kp (goal - x) - 2 sqrt(kp) v  that acts for one
        control period from the measured pose (robosuite 1.4 OSC_POSE).
    joint_position: n absolute joint angles (rad), then the gripper.
    gripper: > 0 closes, < 0 opens, 0 keeps.
    """

    kind: Literal["eef_delta", "joint_position"]
    dim: int = field(default=7, metadata=_POSITIVE)
    rate_hz: float = field(default=20.0, metadata=_POSITIVE)
    position_scale: float = field(default=0.05, metadata=_POSITIVE)
    rotation_scale: float = field(default=0.5, metadata=_POSITIVE)
    kp: float = field(default=150.0, metadata=_POSITIVE)
    kp_null: float = 10.0


@dataclass(frozen=True)
class PolicySpec:
    """What a policy needs and gives; enough to wire a robot to it.

    cameras: names in the order the policy wants them.
    window: frames per camera; stride: distance of two frames of a window in control periods.
    chunk_length: actions in a chunk; open_loop_horizon: how many of them are executed before the
        next query when the world waits for the policy; where it does not, before the next chunk takes
        over, if that comes in time.
    image_sizes: camera -> (H, W) px that it must deliver; cameras that may have any size are left out.
    fingers: how many finger openings its proprioception reads; 0: none, or as many as there are.
    finger_open: opening of a finger that is wide open in its training data, m.
    """

    name: str
    cameras: tuple[str, ...]
    action_space: ActionSpace
    chunk_length: int = 8
    open_loop_horizon: int = 8
    window: int = 1
    stride: int = 1
    image_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    fingers: int = 0
    finger_open: float = 0.04


@dataclass(frozen=True)
class SpeedOptions:
    """What a policy gives for speed or memory, in place of what its configuration says; None: as that says.

    refresh_every, refresh_change, stream: of its world simulator.  compiled: kernels made for the device.
    weights: "plain" or "int8".
    """

    refresh_every: int | None = None
    refresh_change: float | None = None
    stream: str | None = None
    compiled: bool | None = None
    weights: str | None = None

    def given(self, *names: str) -> dict[str, int | float | str | bool]:
        """Those of `names` that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


AS_CONFIGURED = SpeedOptions()
WORLD_SPEED = ("refresh_every", "refresh_change", "stream")


@dataclass(frozen=True)
class ActionChunk:
    """A policy's answer to one observation.

    actions: (H, dim) float64 in the units of the policy's ActionSpace, finite.
    stamp_ns, instruction: those of the observation.
    timings_ms: stage name -> milliseconds.
    gates: camera -> float32 in [0, 1] over the camera's frame, (H, W) px, the share of f_sem in the token that
        looks there, 1 where none does; if there is a world simulator with a gate.
    world_age: queries since the world simulator's tokens were computed, 0 where they are new.
    """

    actions: FloatArray
    stamp_ns: int
    instruction: str
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    gates: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    world_age: int = 0


@runtime_checkable
class Policy(Protocol):
    """Anything that turns an observation into a chunk of actions.  Used from one thread at a time."""

    @property
    def spec(self) -> PolicySpec: ...

    def act(self, observation: Observation) -> ActionChunk:
        """Decide.  Raises VegaError on an observation it cannot use."""
        ...

    def reset(self) -> None:
        """Forget everything about the current episode."""
        ...


@runtime_checkable
class BatchPolicy(Policy, Protocol):
    """A policy that several episodes can share."""

    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Decide for several episodes at once: what `act` says to each, up to the rounding of another batch size.

        Raises VegaError where the policy remembers something of its episode between queries.
        """
        ...


@dataclass(frozen=True)
class SceneView:
    """A camera's frame, for questions about a scene, and where its pixels lie as far as that is known.

    image: (H, W, 3) uint8 RGB at `stamp_ns`.
    depth: (H, W) float32 m along the optical axis, of the same pixels, NaN where nothing was measured; or None.
    intrinsics: (3, 3) px, or None.
    camera_to_world: (4, 4) the optical frame (x right, y down, z into the picture) in the world frame, m; or None.
    """

    camera: str
    stamp_ns: int
    image: Image
    depth: NDArray[np.float32] | None = None
    intrinsics: FloatArray | None = None
    camera_to_world: FloatArray | None = None


@dataclass(frozen=True)
class SceneAnswer:
    """A sentence, a word, a number or a letter; confidence in [0, 1], of the model itself."""

    text: str
    confidence: float


@dataclass(frozen=True)
class SceneObject:
    """An axis-parallel box in the world frame: centre (3,) m, size (3,) m; confidence in [0, 1]."""

    centre: FloatArray
    size: FloatArray
    confidence: float


@runtime_checkable
class SceneModel(Protocol):
    """Anything that answers questions about frames.  Used from one thread at a time.

    What `see` returns is the model's own; `answer` and `ground` get several of it, in the order in which it was seen.
    Every method raises VegaError on what it cannot use.
    """

    @property
    def name(self) -> str: ...

    @property
    def grounds(self) -> bool:
        """Whether it places objects at all, in the world frame."""
        ...

    @property
    def timings_ms(self) -> Mapping[str, float]:
        """Stages of the last call -> milliseconds."""
        ...

    def see(self, view: SceneView) -> Any: ...

    def answer(self, seen: Sequence[Any], question: str) -> SceneAnswer: ...

    def ground(self, seen: Sequence[Any], expression: str) -> SceneObject | None:
        """The object that an expression means, None where the model finds that there is none."""
        ...

    def forget(self) -> None:
        """Drop whatever is kept of what was seen."""
        ...


@dataclass(frozen=True)
class SceneReply:
    """What became of a view, a question or an expression.

    frames: (camera, stamp_ns) of every frame that it rests on, in the order in which they were seen.
    """

    value: SceneAnswer | SceneObject | None
    frames: tuple[tuple[str, int], ...]
    timings_ms: Mapping[str, float]


def _plain(text: str, what: str) -> str:
    """Without outer white space and what nobody sees (zero-width characters, marks of direction), so that what is
    obeyed is what is read; raises VegaError on other control characters."""
    kinds = {character: unicodedata.category(character) for character in set(text)}
    text = "".join(character for character in text if kinds[character] != "Cf").strip()
    control = next((c for c in text if kinds[c] == "Cc" and not c.isspace()), "")
    if control:
        raise VegaError(f"The {what} has the control character U+{ord(control):04X} in it: give plain text.")
    return text


def check_question(text: str) -> str:
    """Return the question stripped of outer white space, or raise VegaError."""
    text = _plain(text, "question")
    if not text:
        raise VegaError("The question is empty: ask for instance 'How far is the milk from the basket?'.")
    if len(text) > MAX_QUESTION_CHARS:
        raise VegaError(f"The question has {len(text)} characters: shorten it to {MAX_QUESTION_CHARS}.")
    return text


def check_instruction(text: str) -> str:
    """Return the instruction in one line, its words one space apart, or raise VegaError."""
    text = " ".join(_plain(text, "instruction").split())
    if not text:
        raise VegaError(
            "The instruction is empty: publish a sentence such as 'pick up the milk and place it in the basket'."
        )
    if len(text) > MAX_INSTRUCTION_CHARS:
        raise VegaError(f"The instruction has {len(text)} characters: shorten it to at most {MAX_INSTRUCTION_CHARS}.")
    return text


def check_images(images: Mapping[str, Image], spec: PolicySpec) -> None:
    """Raise VegaError unless every camera of `spec` has a (window, H, W, 3) uint8 array."""
    for camera in spec.cameras:
        if camera not in images:
            raise VegaError(
                f"Policy {spec.name} needs camera '{camera}', which is missing: map one of {sorted(images)} to it."
            )
        image = images[camera]
        fits = image.dtype == np.uint8 and image.ndim == 4 and image.shape[0] == spec.window and image.shape[3] == 3
        if not fits or not image.size:
            raise VegaError(
                f"Camera '{camera}' gave {image.dtype} {image.shape}: policy {spec.name} needs uint8 RGB of shape "
                f"({spec.window}, height, width, 3)."
            )
