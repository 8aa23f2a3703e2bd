"""What OpenVLA-OFT sees in training: the path of `openvla/preprocessing.py` with a random crop, and other colours.

Order and ranges are those of its training (prismatic/vla/datasets, through dlimp): a crop of 0.9 of the area,
brightness +-0.2, contrast and saturation 0.8 to 1.2, hue +-0.05; every camera by itself.  Here each of them is drawn
by itself, too.  There one seed serves all of an image, so that one number between 0 and 1 decides where on the diagonal
the crop lies and, at once, how bright, rich in contrast, saturated and turned in hue it is.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from policies.openvla.preprocessing import (
    CROP_AREA,
    check_image,
    crop,
    jpeg_round_trip,
    resize_lanczos,
)
from policies.types import Image

SIDE = float(np.sqrt(CROP_AREA))
CENTRE = ((1.0 - SIDE) / 2.0, (1.0 - SIDE) / 2.0)
View = tuple[float, float, float, float]


def training_image(
    image: Image, size: int, rng: np.random.Generator | None, was_jpeg: bool = False
) -> tuple[Image, View]:
    """(H, W, 3) uint8 of the data set -> (size, size, 3) uint8, and the part of the frame that it shows.

    rng: draws crop and colours; None for the policy's own crop.  was_jpeg: it was a file of that kind, which it is
    not made a second time.  The part is (top, left, bottom, right) in [0, 1].
    """
    checked = check_image(image)
    small = resize_lanczos(checked if was_jpeg else jpeg_round_trip(checked), size)
    top, left = CENTRE if rng is None else rng.uniform(0.0, 1.0 - SIDE, 2)
    shown = crop(small, top, left, SIDE)
    if rng is not None:
        shown = recoloured(shown, rng)
    return shown, (float(top), float(left), float(top) + SIDE, float(left) + SIDE)


def recoloured(image: Image, rng: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and hue drawn at random, in this order, each clipped to what can be shown."""
    unit = image.astype(np.float32) / np.float32(255)
    unit = _clipped(unit + rng.uniform(-0.2, 0.2))
    mean = unit.mean(axis=(0, 1), keepdims=True)
    unit = _clipped((unit - mean) * rng.uniform(0.8, 1.2) + mean)
    hsv = cv2.cvtColor(unit, cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.8, 1.2), 0.0, 1.0)
    hsv[..., 0] = (hsv[..., 0] + 360.0 * rng.uniform(-0.05, 0.05)) % 360.0
    return np.rint(_clipped(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)) * 255).astype(np.uint8)


def _clipped(unit: NDArray) -> NDArray[np.float32]:
    return np.clip(unit, 0.0, 1.0).astype(np.float32)
