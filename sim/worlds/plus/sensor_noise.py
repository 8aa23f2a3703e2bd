"""LIBERO-plus's five kinds of sensor noise, ten severities each, on a camera's picture.

Numbers 1-10 motion blur, 11-20 Gaussian blur, 21-30 zoom blur, 31-40 fog, 41-50 glass blur; the strengths are those of
`liberoplus/envs/env_wrapper.py` (0.1.5), the filters ImageNet-C's (Hendrycks & Dietterich 2019), written anew without
ImageMagick and scikit-image.  There the noise draws from NumPy's global generator at every step; here from one that is
given, so that the same step looks the same however often it is drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray, Image, VegaError

MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))
ZOOM = (
    (1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03), (1.36, 0.01), (1.41, 0.01), (1.46, 0.02),
    (1.51, 0.02), (1.56, 0.03),
)  # fmt: skip
FOG = ((0.5, 3), (1, 2.8), (1.5, 2.5), (2, 2.2), (2.5, 2), (3, 1.8), (3.5, 1.6), (4, 1.5), (4.5, 1.4), (5, 1.3))
GLASS = (
    (0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2), (1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1),
    (2.5, 5, 1),
)  # fmt: skip
GLASS_SIDE = 224  # px; further rows and columns are left alone, whatever the picture's size


def add_noise(picture: Image, number: int, generator: np.random.Generator) -> Image:
    """picture: (H, W, 3) uint8, as the simulator draws it (upside down).  Raises VegaError on an unknown number."""
    if not 1 <= number <= 50:
        raise VegaError(f"There is no sensor noise {number}: LIBERO-plus has 1 to 50.")
    kind, severity = divmod(number - 1, 10)
    if kind == 0:
        return motion_blur(picture, *MOTION[severity], generator.uniform(-45.0, 45.0))
    unit = picture / 255.0
    if kind == 1:
        noisy = _gaussian(unit, severity + 1)
    elif kind == 2:
        noisy = _zoom_blur(unit, np.arange(1.0, *ZOOM[severity]))
    elif kind == 3:
        strength, decay = FOG[severity]
        noisy = _fog(unit, strength, decay, generator)
    else:
        noisy = _glass(picture, *GLASS[severity], generator)
    return np.asarray((np.clip(noisy, 0.0, 1.0) * 255).astype(np.uint8))


def motion_blur(picture: Image, radius: float, sigma: float, angle: float) -> Image:
    """ImageMagick's MotionBlurImage: half a Gaussian along a line of `angle` degrees, edges continued."""
    width = 2 * int(np.ceil(radius)) + 1
    steps = np.arange(width)
    weights = np.exp(-(steps**2) / (2.0 * sigma**2))
    weights /= weights.sum()
    across, down = width * np.sin(np.radians(angle)), width * np.cos(np.radians(angle))
    length = np.hypot(across, down)
    columns = np.ceil(steps * down / length - 0.5).astype(int)
    rows = np.ceil(steps * across / length - 0.5).astype(int)
    height, breadth = picture.shape[:2]
    total = np.zeros(picture.shape)
    for weight, column, row in zip(weights, columns, rows, strict=True):
        source = picture[np.clip(np.arange(height) + row, 0, height - 1)]
        total += weight * source[:, np.clip(np.arange(breadth) + column, 0, breadth - 1)]
    return np.asarray(np.round(total).astype(np.uint8))


def _gaussian(unit: FloatArray, sigma: float) -> FloatArray:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(unit, (sigma, sigma, 0), mode="nearest", truncate=4.0))


def _zoom_blur(unit: FloatArray, factors: FloatArray) -> FloatArray:
    from scipy.ndimage import zoom

    total, side = unit.copy(), unit.shape[0]
    for factor in factors:
        inner = int(np.ceil(side / factor))
        top = (side - inner) // 2
        larger = zoom(unit[top : top + inner, top : top + inner], (factor, factor, 1), order=1)
        trim = (larger.shape[0] - side) // 2
        total += larger[trim : trim + side, trim : trim + side]
    return total / (len(factors) + 1)


def _fog(unit: FloatArray, strength: float, decay: float, generator: np.random.Generator) -> FloatArray:
    side = 1 << int(np.ceil(np.log2(max(unit.shape[:2]))))
    clouds = plasma(max(side, 256), decay, generator)[: unit.shape[0], : unit.shape[1], None]
    brightest = unit.max()
    return np.asarray((unit + strength * clouds) * brightest / (brightest + strength))


def plasma(side: int, decay: float, generator: np.random.Generator) -> FloatArray:
    """(side, side) in [0, 1], side a power of two: a height map by the diamond-square algorithm, which wraps around."""
    heights, wobble, step = np.zeros((side, side)), 100.0, side

    def mean_and_wobble(total: FloatArray) -> FloatArray:
        return total / 4 + wobble * generator.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        squares = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = mean_and_wobble(squares + np.roll(squares, -1, 1))
        middles = heights[half::step, half::step]
        below = middles + np.roll(middles, 1, 0)
        heights[::step, half::step] = mean_and_wobble(below + corners + np.roll(corners, -1, 1))
        beside = middles + np.roll(middles, 1, 1)
        heights[half::step, ::step] = mean_and_wobble(beside + corners + np.roll(corners, -1, 0))
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return np.asarray(heights / heights.max())


def _glass(picture: Image, sigma: float, distance: int, times: int, generator: np.random.Generator) -> FloatArray:
    blurred: NDArray[np.uint8] = (_gaussian(picture / 255.0, sigma) * 255).astype(np.uint8)
    side = min(GLASS_SIDE, *picture.shape[:2])
    places = [(h, w) for h in range(side - distance, distance, -1) for w in range(side - distance, distance, -1)]
    for _ in range(times):
        moves = generator.integers(-distance, distance, (len(places), 2)).tolist()
        for (h, w), (dx, dy) in zip(places, moves, strict=True):
            # Said to swap two pixels, but both names are views of one array: the first is overwritten, no more.
            blurred[h, w] = blurred[h + dy, w + dx]
    return _gaussian(blurred / 255.0, sigma)
