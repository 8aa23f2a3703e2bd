"""From camera images, robot state and text to the numbers OpenVLA-OFT was trained on, and back.

NumPy, Pillow and simplejpeg only: the training data went through TensorFlow's image operators, and these
functions reproduce them without TensorFlow.  Source of every step: OpenVLA-OFT run_libero_eval.py,
libero_utils.py and openvla_utils.py, as summarised in the facts on OpenVLA-OFT, section 3.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as PILImage

from policies.types import FloatArray, Image, VegaError

JPEG_QUALITY = 95
CROP_AREA = 0.9
LANCZOS_RADIUS = 3.0
EMPTY_TOKEN = 29871  # Llama's lone word-start; training data always had it just before the actions

# Means and deviations of published preprocessors (rounded to bf16 there), RGB in [0, 1].
DINOV2_MEAN_STD = ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375))
SIGLIP_MEAN_STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def check_image(image: Any, name: str = "image") -> Image:
    """Return `image` if it is (H, W, 3) uint8 RGB, or raise VegaError."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise VegaError(f"The {name} is {found}: give an RGB array of dtype uint8 and shape (height, width, 3).")
    if min(image.shape[:2]) < 1:
        raise VegaError(f"The {name} is empty ({image.shape}): give at least one pixel.")
    return image


def rotate_180(image: Image) -> Image:
    """The view LIBERO data sets hold, from the renderer's raw (H, W, 3) output (bottom row first)."""
    return np.ascontiguousarray(image[::-1, ::-1])


def mirror(image: Image) -> Image:
    """The view LIBERO data sets hold, from an upright (H, W, 3) image: they are mirrored left to right."""
    return np.ascontiguousarray(image[:, ::-1])


def jpeg_round_trip(image: Image) -> Image:
    """Encode and decode (H, W, 3) uint8 as the training data was: quality 95, 4:2:0, fast inverse DCT.

    Pillow's encoder and simplejpeg's decoder each give TensorFlow's bits; the other two do not.
    """
    data = io.BytesIO()
    PILImage.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=2)
    return simplejpeg.decode_jpeg(data.getvalue(), colorspace="RGB", fastdct=True, fastupsample=False)


@lru_cache(maxsize=64)
def _lanczos_matrix(source: int, target: int) -> NDArray[np.float32]:
    """(target, source) weights of an antialiased Lanczos-3 resize along one axis, rows summing to 1."""
    scale = max(source / target, 1.0)
    centres = (np.arange(target) + 0.5) * source / target
    distance = (np.arange(source)[None, :] + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(distance) < LANCZOS_RADIUS, np.sinc(distance) * np.sinc(distance / LANCZOS_RADIUS), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=64)
def _crop_matrix(source: int, target: int, fraction: float, start: float) -> NDArray[np.float32]:
    """(target, source) weights of a bilinear resize of `fraction` of an axis from `start` on, corners aligned."""
    positions = (start + np.linspace(0.0, 1.0, target) * fraction) * (source - 1)
    low = np.clip(np.floor(positions).astype(int), 0, max(source - 2, 0))
    weights = np.zeros((target, source))
    weights[np.arange(target), low] = 1.0 - (positions - low)
    weights[np.arange(target), np.minimum(low + 1, source - 1)] += positions - low
    return weights.astype(np.float32)


def _separable(image: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray:
    """Apply (h, H) weights to the rows and (w, W) weights to the columns of an (H, W, 3) float image."""
    height, width, channels = image.shape
    tall = rows @ image.reshape(height, width * channels)
    return np.matmul(columns, tall.reshape(-1, width, channels))


def resize_lanczos(image: Image, size: int) -> Image:
    """Antialiased Lanczos-3 resize of (H, W, 3) uint8 to (size, size, 3), aspect ignored, rounded to uint8."""
    height, width = image.shape[:2]
    resized = _separable(image.astype(np.float32), _lanczos_matrix(height, size), _lanczos_matrix(width, size))
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def centre_crop(image: Image, area: float = CROP_AREA) -> Image:
    """Central `area` share of a (S, S, 3) uint8 image, bilinearly resized back to (S, S, 3).

    Training cropped at random with this share of the area; the centre is its mean.
    """
    side = float(np.sqrt(area))
    return crop(image, 0.5 - side / 2, 0.5 - side / 2, side)


def crop(image: Image, top: float, left: float, side: float) -> Image:
    """The part of an (H, W, 3) uint8 image from (top, left), of `side` of its sides, resized back to (H, W, 3)."""
    height, width = image.shape[:2]
    unit = image.astype(np.float32) / np.float32(255)
    cropped = _separable(
        unit, _crop_matrix(height, height, side, float(top)), _crop_matrix(width, width, side, float(left))
    )
    return np.floor(np.clip(cropped, 0, 1) * np.float32(255.5)).astype(np.uint8)


def policy_image(image: Image, size: int = 224) -> Image:
    """The (size, size, 3) uint8 image the network sees, from an (H, W, 3) uint8 one in the data set's orientation."""
    return centre_crop(resize_lanczos(jpeg_round_trip(check_image(image)), size))


def pixel_values(
    images: Sequence[Image],
    mean_std: Sequence[tuple[Sequence[float], Sequence[float]]] = (DINOV2_MEAN_STD, SIGLIP_MEAN_STD),
) -> NDArray[np.float32]:
    """(6 n, S, S) float32 from n policy images (S, S, 3) uint8: per image 3 channels for DINOv2, 3 for SigLIP."""
    planes = []
    for image in images:
        unit = check_image(image).astype(np.float32).transpose(2, 0, 1) / np.float32(255)
        for mean, std in mean_std:
            planes.append(
                (unit - np.asarray(mean, np.float32)[:, None, None]) / np.asarray(std, np.float32)[:, None, None]
            )
    return np.concatenate(planes)


def axis_angle(quaternion: FloatArray) -> FloatArray:
    """Rotation vector (3,) rad of a unit quaternion (4,) xyzw; angle in [0, 2 pi), as robosuite gives it.

    The quaternion's sign is kept (q and -q give different vectors): the training data was made so.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return np.asarray(quaternion[:3], dtype=np.float64) * 2.0 * np.arccos(w) / sine


def libero_state(position: FloatArray, quaternion: FloatArray, gripper_qpos: FloatArray) -> FloatArray:
    """LIBERO's proprioception (8,): TCP position (m) and rotation vector (rad) in the world, finger joints (m).

    `gripper_qpos` is MuJoCo's: the second finger's joint is negative when open.
    """
    return np.concatenate([position, axis_angle(quaternion), gripper_qpos]).astype(np.float64)


def statistics_for(statistics: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The entry of a checkpoint's statistics for one data set, or VegaError with the keys there are."""
    if key not in statistics:
        raise VegaError(f"The checkpoint has no statistics '{key}': choose one of {sorted(statistics)}.")
    return statistics[key]


def action_width(statistics: Mapping[str, Any]) -> int:
    """How many numbers an action of one data set has."""
    return len(_numbers(statistics, "action", "q01"))


def _numbers(statistics: Mapping[str, Any], what: str, name: str) -> FloatArray:
    """One list of `statistics[what]`, or VegaError if it is missing or holds no numbers."""
    try:
        numbers = np.asarray(statistics[what][name], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise VegaError(f"The {what} statistics lack '{name}': use the checkpoint's own dataset_statistics.json.")
    return numbers


def _bounds(statistics: Mapping[str, Any], kind: str, size: int, what: str) -> tuple[FloatArray, FloatArray]:
    names = {"bounds_q99": ("q01", "q99"), "bounds": ("min", "max")}
    if kind not in names:
        raise VegaError(f"Normalisation '{kind}' is unknown: choose one of {sorted(names)}.")
    low, high = (_numbers(statistics, what, name) for name in names[kind])
    for name, numbers in zip(names[kind], (low, high), strict=True):
        if numbers.shape != (size,):
            raise VegaError(
                f"The {what} has {size} numbers but '{name}' of its statistics {numbers.size}: choose the statistics "
                "of this robot."
            )
    if (low > high).any():
        at = int(np.argmax(low > high))
        raise VegaError(
            f"The {what} statistics have '{names[kind][0]}' above '{names[kind][1]}' in number {at}: use the "
            "checkpoint's own dataset_statistics.json."
        )
    return low, high


def _mask(statistics: Mapping[str, Any], what: str, size: int) -> NDArray[np.bool_]:
    """Which of `size` numbers are scaled: all where nothing says it."""
    mask = np.asarray(statistics[what].get("mask", np.ones(size, bool)))
    if mask.shape != (size,) or mask.dtype != bool:
        raise VegaError(f"The {what} statistics have a mask {mask.tolist()}: give {size} times true or false.")
    return mask


def normalize_proprio(state: FloatArray, statistics: Mapping[str, Any], kind: str = "bounds_q99") -> FloatArray:
    """Map a state (n,) to [-1, 1] by the bounds in `statistics["proprio"]`; what their mask leaves out is clipped."""
    low, high = _bounds(statistics, kind, len(state), "proprio")
    scaled = 2.0 * (state - low) / (high - low + 1e-8) - 1.0
    return np.clip(np.where(_mask(statistics, "proprio", low.size), scaled, state), -1.0, 1.0)


def unnormalize_actions(actions: FloatArray, statistics: Mapping[str, Any], kind: str = "bounds_q99") -> FloatArray:
    """Map (..., n) from [-1, 1] to the units of the training data; dimensions masked out stay as they are."""
    actions = np.asarray(actions, dtype=np.float64)
    low, high = _bounds(statistics, kind, actions.shape[-1], "action")
    mask = _mask(statistics, "action", low.size)
    return np.where(mask, 0.5 * (actions + 1.0) * (high - low + 1e-8) + low, actions)


def libero_gripper(actions: FloatArray) -> FloatArray:
    """LIBERO's gripper command from the data set's: the last of (..., n), 0 = close and 1 = open, becomes +1 and -1."""
    converted = np.array(actions, dtype=np.float64)
    converted[..., -1] = -np.sign(2.0 * converted[..., -1] - 1.0)
    return converted


def prompt(instruction: str) -> str:
    """The text OpenVLA was trained to continue with an action."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def with_empty_token(input_ids: Sequence[int]) -> list[int]:
    """Token ids of a prompt, BOS first, ending in the token that training had before the actions."""
    ids = [int(token) for token in input_ids]
    return ids if ids[-1] == EMPTY_TOKEN else [*ids, EMPTY_TOKEN]
