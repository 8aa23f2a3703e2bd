"""A camera's frame as the encoder gets it: of the angle of view that the model was trained with, whatever the camera's.

A frame is scaled until its focal length is the model's, and laid in the middle; what hangs over is cut, the rest grey.
"""

from __future__ import annotations

import cv2
import numpy as np

from policies.spatial.nano.config import SpatialConfig
from policies.types import FloatArray, Image, VegaError

GREY = 128
SMALLEST, LARGEST = 32, 8192  # sides of a frame, px


def fitted(frame: Image, config: SpatialConfig, intrinsics: FloatArray | None = None) -> Image:
    """(H, W, 3) uint8 RGB -> the encoder's picture (*image_size, 3).

    intrinsics: (3, 3) px of the camera, whose middle is taken to be the picture's; None: the frame's height is taken to
    span the model's angle of view.  Raises VegaError for a frame that is no such array, or of an impossible size.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise VegaError(f"A frame is {frame.dtype} {frame.shape}: give uint8 RGB of shape (height, width, 3).")
    height, width = frame.shape[:2]
    if not all(SMALLEST <= side <= LARGEST for side in (height, width)):
        raise VegaError(f"A frame has {width}x{height} pixels: give sides of {SMALLEST} to {LARGEST}.")
    focal = config.focal * height / config.image_size[0] if intrinsics is None else float(intrinsics[1, 1])
    scale = config.focal / focal
    rows, columns = max(round(scale * height), 1), max(round(scale * width), 1)
    if (rows, columns) != (height, width):
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        frame = cv2.resize(frame, (columns, rows), interpolation=way)  # type: ignore[assignment]
    if (rows, columns) == config.image_size:
        return frame
    return _laid(frame, config.image_size)


def _laid(frame: Image, size: tuple[int, int]) -> Image:
    """In the middle of a grey picture, or its own middle."""
    picture = np.full((*size, 3), GREY, np.uint8)
    take, put = [], []
    for have, want in zip(frame.shape[:2], size, strict=True):
        part = min(have, want)
        take.append(slice((have - part) // 2, (have - part) // 2 + part))
        put.append(slice((want - part) // 2, (want - part) // 2 + part))
    picture[put[0], put[1]] = frame[take[0], take[1]]
    return picture
