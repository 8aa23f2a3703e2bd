"""A camera's frame as the encoder gets it: of the angle of view that the model was trained with, whatever the camera's.

A frame is scaled until its focal lengths, of rows and of columns, are the model's, and laid in the middle; what hangs
over is cut, the rest grey.
"""

from __future__ import annotations

import cv2
import numpy as np

from policies.spatial.nano.config import SpatialConfig
from policies.types import FloatArray, Image, VegaError

GREY = 128
SMALLEST, LARGEST = 32, 8192  # sides of a frame, px
# Focal lengths, in sides of the picture: of the widest fisheye, and of a camera that would show a line or two.
SHORTEST_FOCAL, LONGEST_FOCAL = 0.05, 100.0
MOST_OBLONG = 4.0  # times that a pixel may be longer than wide, or wider than long


def fitted(frame: Image, config: SpatialConfig, intrinsics: FloatArray | None = None) -> Image:
    """(H, W, 3) uint8 RGB -> the encoder's picture (*image_size, 3).

    intrinsics: (3, 3) px of the camera, whose middle is taken to be the picture's; None: the frame's height is taken to
    span the model's angle of view.  Raises VegaError for a frame that is no such array, or of an impossible size, and
    for intrinsics that no camera has.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise VegaError(f"A frame is {frame.dtype} {frame.shape}: give uint8 RGB of shape (height, width, 3).")
    height, width = frame.shape[:2]
    if not all(SMALLEST <= side <= LARGEST for side in (height, width)):
        raise VegaError(f"A frame has {width}x{height} pixels: give sides of {SMALLEST} to {LARGEST}.")
    spanned = config.focal * height / config.image_size[0]
    down, across = (spanned, spanned) if intrinsics is None else _focals(intrinsics, height, width)
    sides = max(round(config.focal / down * height), 1), max(round(config.focal / across * width), 1)
    frame = _resized(frame, sides)
    return frame if sides == config.image_size else _laid(frame, config.image_size)


def _resized(frame: Image, sides: tuple[int, int]) -> Image:
    """To these rows and columns; pixels that are not square may have it shrink one way and grow the other."""
    shrunk = min(sides[0], frame.shape[0]), min(sides[1], frame.shape[1])
    for (rows, columns), way in ((shrunk, cv2.INTER_AREA), (sides, cv2.INTER_LINEAR)):
        if (rows, columns) != frame.shape[:2]:
            frame = cv2.resize(frame, (columns, rows), interpolation=way)  # type: ignore[assignment]
    return frame


def _focals(intrinsics: FloatArray, height: int, width: int) -> tuple[float, float]:
    """Of rows and of columns, px, of what may be the matrix of a camera with a picture of this size."""
    matrix = finite_matrix(intrinsics, 3)
    if matrix is not None:
        across, down = float(matrix[0, 0]), float(matrix[1, 1])
        lengths = ((across, width), (down, height))
        possible = all(SHORTEST_FOCAL * side <= focal <= LONGEST_FOCAL * side for focal, side in lengths)
        if possible and 1 / MOST_OBLONG <= across / down <= MOST_OBLONG:
            return down, across
    said = " ".join(str(intrinsics).split())[:200]
    raise VegaError(
        f"No camera with {width}x{height} pixels has the intrinsics {said}: give a (3, 3) matrix with its focal "
        "lengths in pixels of this picture, or none."
    )


def finite_matrix(values: object, side: int) -> FloatArray | None:
    """The values as numbers, where they are a square matrix of that side and all finite; else None."""
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return matrix if matrix.shape == (side, side) and np.isfinite(matrix).all() else None


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
