"""What OpenVLA-OFT checkpoints expect of a robot: which cameras, how they are turned, what its state and actions mean.

One `RobotPlatform` per published data set, always chosen by name: nothing in a checkpoint says which robot it is of.
NumPy and Pillow only.  Sources: OpenVLA-OFT run_libero_eval.py, run_aloha_eval.py and constants.py, as summarised in
the facts on OpenVLA-OFT, sections 3 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage

from policies.openvla.preprocessing import libero_gripper, libero_state, mirror
from policies.types import ActionSpace, FloatArray, Image, Observation, VegaError

ALOHA_IMAGE = 256  # px, the side its client sends


@dataclass(frozen=True)
class RobotPlatform:
    """How one robot's observations become a checkpoint's inputs, and its outputs actions.

    cameras: names in the checkpoint's order; the first is the one of single-image checkpoints.  Their images reach
    `see` upright, (H, W, 3) uint8, and leave it as the data set has them.  see_gate turns a (rows, columns) map over
    such an image back.  state: Observation -> (proprio_dim,) float64 before normalisation.  act: (H, A) actions in the
    data set's units -> those of `action_space`.  fingers: how many openings `state` reads.
    """

    cameras: tuple[str, ...]
    proprio_dim: int
    action_space: ActionSpace
    see: Callable[[Image], Image]
    see_gate: Callable[[np.ndarray], np.ndarray]
    state: Callable[[Observation], FloatArray]
    act: Callable[[FloatArray], FloatArray]
    fingers: int = 0


def rotate(quaternion: FloatArray, vector: FloatArray) -> FloatArray:
    """(3,) turned by a unit quaternion (4,) xyzw."""
    axis, w = quaternion[:3], quaternion[3]
    cross = np.cross(axis, vector)
    return vector + 2.0 * (w * cross + np.cross(axis, cross))


def multiply(first: FloatArray, second: FloatArray) -> FloatArray:
    """Hamilton product of two quaternions (4,) xyzw: the turn `second`, then `first`."""
    a, b = first[:3], second[:3]
    return np.append(first[3] * b + second[3] * a + np.cross(a, b), first[3] * second[3] - a @ b)


def libero_quaternion(quaternion: FloatArray) -> FloatArray:
    """The one of q and -q, (4,) xyzw, that MuJoCo gives for the Panda's hand in LIBERO: x >= 0.

    Checkpoints saw the rotation vector of that one.  With the hand pointing down its angle is near pi, where the
    other sign, which most libraries give, yields the opposite vector.
    """
    return -quaternion if quaternion[0] < 0 else quaternion


def libero_proprio(observation: Observation) -> FloatArray:
    """LIBERO's state (8,): TCP in the *world* frame (m, rotation vector in rad), finger joints of opposite sign (m)."""
    state, base = observation.state, observation.base_quaternion
    if len(state.gripper_positions) not in (1, 2):
        raise VegaError(
            f"The gripper reports {len(state.gripper_positions)} fingers: LIBERO checkpoints need 1 or 2, set "
            "gripper.joints to them."
        )
    position = observation.base_position + rotate(base, state.eef_position)
    quaternion = libero_quaternion(multiply(base, state.eef_quaternion))
    fingers = np.array([state.gripper_positions[0], -state.gripper_positions[-1]])
    return libero_state(position, quaternion, fingers)


def aloha_proprio(observation: Observation) -> FloatArray:
    """ALOHA's state (14,): both arms' joints (rad), each arm's gripper behind it, as its driver reports them."""
    positions = np.asarray(observation.state.joint_positions, dtype=np.float64)
    if positions.shape != (14,):
        raise VegaError(
            f"The robot reports {positions.size} joints: ALOHA checkpoints need 14, 6 and a gripper for each arm."
        )
    return positions


def aloha_image(image: Image) -> Image:
    """(H, W, 3) uint8 in the size ALOHA's client sends, by bicubic resampling, aspect ignored."""
    return np.asarray(PILImage.fromarray(image).resize((ALOHA_IMAGE, ALOHA_IMAGE), PILImage.Resampling.BICUBIC))


def _unchanged(value: np.ndarray) -> np.ndarray:
    return value


PLATFORMS = {
    "libero": RobotPlatform(
        ("agentview", "wrist"), 8, ActionSpace("eef_delta"), mirror, mirror, libero_proprio, libero_gripper, fingers=2
    ),
    # Absolute positions of both arms as in `aloha_proprio`; policy_node drives one arm and refuses them.
    "aloha": RobotPlatform(
        ("high", "left_wrist", "right_wrist"),
        14,
        ActionSpace("joint_position", dim=14, rate_hz=25.0),
        aloha_image,
        _unchanged,
        aloha_proprio,
        _unchanged,
    ),
}


def platform(name: str) -> RobotPlatform:
    """A platform by name, or VegaError with the names there are."""
    if name not in PLATFORMS:
        raise VegaError(f"Robot '{name}' is unknown: choose one of {sorted(PLATFORMS)}.")
    return PLATFORMS[name]
