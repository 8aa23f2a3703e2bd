"""Camera frames as the reference gives them to both of its towers: cropped pictures, and Qwen's patches.

Source: `src/qwen_vl/data/utils.py` and `src/lmms_eval/models/vgllm.py` of VEGA-3D's branch spatial-reasoning (ca64583);
Qwen's own image processor in its slow form, whose pictures pass through Pillow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from policies.types import Image, VegaError

WIDTH = 518
PATCH, MERGE, TEMPORAL = 14, 2, 2
CELL = PATCH * MERGE
# CLIP's, which Qwen's processor uses.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
EVALUATION_PIXELS = (200_704, 1_605_632)
TRAINING_PIXELS = (12_544, 451_584)


class Patches(NamedTuple):
    """values: (rows * columns, 3 * 2 * 14 * 14) float32 in Qwen's order; grid: (rows, columns) of patches."""

    values: torch.Tensor
    grid: tuple[int, int]


def crop_frame(frame: Image) -> Image:
    """A camera's (H, W, 3) uint8 RGB -> the picture that both towers see, sides multiples of 28, at most 504.

    518 px wide, bicubic; rows beyond 518 are cut above and below, and what exceeds a multiple of 28 right and below.
    Raises VegaError for a frame that is no such array or far too flat.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise VegaError(f"A frame is {frame.dtype} {frame.shape}: give uint8 RGB of shape (height, width, 3).")
    height = round(frame.shape[0] * (WIDTH / frame.shape[1]) / PATCH) * PATCH
    if height < CELL:
        raise VegaError(
            f"A frame of {frame.shape[1]}x{frame.shape[0]} pixels is too flat for the model: crop it to less than 18:1."
        )
    picture = np.asarray(Picture.fromarray(frame).resize((WIDTH, height), Picture.Resampling.BICUBIC))
    if height > WIDTH:
        top = (height - WIDTH) // 2
        picture = picture[top : top + WIDTH]
    return picture[: picture.shape[0] // CELL * CELL, : picture.shape[1] // CELL * CELL]


def resized(size: tuple[int, int], pixels: tuple[int, int]) -> tuple[int, int]:
    """(height, width) to which Qwen's processor brings a picture: multiples of 28, between pixels[0] and pixels[1]."""
    sides = [round(side / CELL) * CELL for side in size]
    area = size[0] * size[1]
    if sides[0] * sides[1] > pixels[1]:
        shrink = math.sqrt(area / pixels[1])
        sides = [max(CELL, math.floor(side / shrink / CELL) * CELL) for side in size]
    elif sides[0] * sides[1] < pixels[0]:
        grow = math.sqrt(pixels[0] / area)
        sides = [math.ceil(side * grow / CELL) * CELL for side in size]
    return sides[0], sides[1]


def to_patches(picture: Image, pixels: tuple[int, int] | None = None) -> Patches:
    """A picture (H, W, 3) uint8, sides multiples of 28, as Qwen's vision tower reads it.

    pixels: (least, most) of them, to which the processor resizes; None leaves the picture as it is.
    """
    if pixels is not None:
        height, width = resized((picture.shape[0], picture.shape[1]), pixels)
        if (height, width) != picture.shape[:2]:
            picture = np.asarray(Picture.fromarray(picture).resize((width, height), Picture.Resampling.BICUBIC))
    mean, std = (torch.tensor(numbers) for numbers in (MEAN, STD))
    values = ((torch.from_numpy(picture.astype(np.float32)) / 255.0 - mean) / std).numpy()
    rows, columns = picture.shape[0] // PATCH, picture.shape[1] // PATCH
    # (rows / 2, 2, 14, columns / 2, 2, 14, C): the four patches of a cell stand together; a still counts twice in time.
    cells: NDArray[np.float32] = values.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    ordered = cells.transpose(0, 3, 1, 4, 6, 2, 5)[..., None, :, :].repeat(TEMPORAL, axis=-3)
    return Patches(torch.from_numpy(ordered.reshape(rows * columns, -1)), (rows, columns))
