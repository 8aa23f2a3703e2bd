"""Hiding the picture from the semantic encoder, now and then, so that it pays to use what else is seen.

The generative tokens are those of the whole picture.  Auxiliary depth would be another way; datasets of this package
carry none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 16  # px of the encoder's pictures
BLUR = 16  # px that become one colour
GREY = 0.0


def hidden(images: Mapping[str, Tensor], rng: np.random.Generator, drop: float, mask: float) -> dict[str, Tensor]:
    """camera -> (B, 3, H, W) in [-1, 1], sides multiples of 16, with some of it hidden.

    drop: probability that all pictures of a row are, half of the time behind a blur and else behind grey.  mask:
    probability that a patch is grey.  Nothing is drawn from `rng` where both are 0.
    """
    if not drop and not mask:
        return dict(images)
    count = len(next(iter(images.values())))
    dropped = torch.from_numpy(rng.random(count) < drop)
    blurred = torch.from_numpy(rng.random(count) < 0.5)
    found = {}
    for camera, image in images.items():
        image = image.clone()
        soft = F.interpolate(F.avg_pool2d(image[dropped & blurred], BLUR), image.shape[2:], mode="bilinear")
        image[dropped & blurred] = soft
        image[dropped & ~blurred] = GREY
        rows, columns = (side // PATCH for side in image.shape[2:])
        masked = torch.from_numpy(rng.random((count, 1, rows, columns)) < mask)
        masked = masked.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        found[camera] = image.masked_fill(masked, GREY)
    return found
