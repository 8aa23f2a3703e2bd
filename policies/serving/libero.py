"""What a LIBERO client's request means: from data set pictures and world poses to an `Observation`.

Clients (openpi's `examples/libero/main.py`, vla-eval) send both cameras mirrored left to right, as the data sets hold
them, the TCP in the *world* frame as position and rotation vector, and MuJoCo's two finger joints.  Where the base
stands they do not say, and policies whose proprioception is in the base frame need it: `base_position`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from policies.openvla.preprocessing import mirror
from policies.types import FloatArray, Image, Observation, PolicySpec, RobotState, VegaError

STATE_WIDTH = 8
FLOOR_BASE = (-0.6, 0.0, 0.0)  # m; LIBERO's base in scenes on the floor, those of libero_object


def check_served(spec: PolicySpec) -> None:
    """Raise VegaError unless one request without a memory is all that the policy needs."""
    if spec.action_space.kind != "eef_delta" or spec.action_space.dim != 7:
        raise VegaError(
            f"Policy {spec.name} gives {spec.action_space.dim} numbers ({spec.action_space.kind}): only LIBERO "
            "policies (eef_delta, 7) can be served, serve one of those."
        )
    if spec.window != 1:
        raise VegaError(
            f"Policy {spec.name} looks at {spec.window} frames of each camera: a request carries one, serve a policy "
            "with a window of 1."
        )
    unknown = [camera for camera in spec.cameras if camera not in ("agentview", "wrist")]
    if unknown:
        raise VegaError(f"Policy {spec.name} needs camera '{unknown[0]}', which LIBERO has not: serve another policy.")


def observation(
    spec: PolicySpec, pictures: Any, state: Any, prompt: Any, base_position: FloatArray
) -> Observation:
    """pictures: camera -> (H, W, 3) uint8, mirrored; state (8,); base_position (3,) m in the world.

    Pictures are scaled to what the policy wants (openpi's clients send 224).  Raises VegaError on what is no request.
    """
    if not isinstance(pictures, Mapping):
        raise VegaError("The request has no map of pictures: send those of both cameras by their names.")
    images = {}
    for camera in spec.cameras:
        if camera not in pictures:
            raise VegaError(f"The request lacks the picture of camera '{camera}': send both cameras of LIBERO.")
        images[camera] = _upright(pictures[camera], camera, spec)[None]
    if not isinstance(prompt, str):
        raise VegaError("The request has no prompt: send the instruction as text.")
    return Observation(images, _state(state, base_position), prompt, 0, base_position)


def _upright(picture: Any, camera: str, spec: PolicySpec) -> Image:
    image = np.asarray(picture)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise VegaError(
            f"The picture of camera '{camera}' is {image.dtype} {image.shape}: send uint8 RGB of shape (height, width, "
            "3)."
        )
    upright = mirror(image)
    wanted = spec.image_sizes.get(camera, upright.shape[:2])
    if upright.shape[:2] == tuple(wanted):
        return upright
    from PIL import Image as Picture

    small = Picture.fromarray(upright).resize((wanted[1], wanted[0]), Picture.Resampling.BICUBIC)
    return np.asarray(small)


def _state(values: Any, base_position: FloatArray) -> RobotState:
    state = np.asarray(values)
    if state.shape != (STATE_WIDTH,) or state.dtype.kind not in "fiu" or not np.isfinite(state).all():
        raise VegaError(
            f"The state has shape {state.shape}: send 8 finite numbers, the TCP's position and rotation vector in the "
            "world and both fingers."
        )
    state = state.astype(np.float64)
    nobody = np.zeros(0)  # a request says nothing of the joints
    return RobotState(0, (), nobody, nobody, np.abs(state[6:]), state[:3] - base_position, quaternion(state[3:6]))


def quaternion(rotation_vector: FloatArray) -> FloatArray:
    """(3,) rad -> (4,) xyzw."""
    angle = float(np.linalg.norm(rotation_vector))
    half = angle / 2.0
    scale = np.sin(half) / angle if angle > 1e-12 else 0.5
    return np.append(scale * rotation_vector, np.cos(half))
