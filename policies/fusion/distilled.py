"""A small encoder that says what a world simulator would, in its place: learned by `policies.training.distil`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from policies.files.json_config import read_config, read_json, write_config
from policies.files.paths import refuse_pointer
from policies.files.tensor_sources import check_numbers
from policies.files.weight_files import write_tensors
from policies.fusion.frame_tokens import FrameTokens
from policies.types import VegaError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclass(frozen=True)
class DistilledConfig:
    """dim: width of the tokens.  frames: that one call looks at.  width: of the layers, a multiple of 16."""

    dim: int
    frames: int = 1
    width: int = 96

    def __post_init__(self) -> None:
        """Raises VegaError for sizes that no encoder has."""
        if min(self.dim, self.frames, self.width) < 1 or self.width % 16:
            raise VegaError(
                f"A distilled encoder has no dim {self.dim}, frames {self.frames}, width {self.width}: give numbers "
                "from 1 on, and a width that is a multiple of 16."
            )


class Mix(nn.Module):
    """x + convolutions of it, on the tokens' own grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class DistilledEncoder(FrameTokens):
    """mean, std: (G,) of the tokens that it learned from, channel by channel; its layers give them normalised."""

    what = "a distilled encoder's"
    mean: Tensor
    std: Tensor

    def __init__(self, config: DistilledConfig) -> None:
        super().__init__(config.dim, config.frames)
        self.config, width = config, config.width
        self.layers = nn.Sequential(
            nn.Conv2d(3 * config.frames, width // 2, 4, stride=4), nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            Mix(width), Mix(width),
            nn.GroupNorm(8, width), nn.GELU(), nn.Conv2d(width, config.dim, 1),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("std", torch.ones(config.dim))

    def normalised(self, pictures: Tensor) -> Tensor:
        """(B, 3, T, canvas rows, canvas columns) in [-1, 1] -> (B, G, rows, columns), mean 0 and deviation 1."""
        result: Tensor = self.layers(pictures.flatten(1, 2))
        return result

    def features(self, pictures: Tensor) -> Tensor:
        return self.normalised(pictures) * self.std[:, None, None] + self.mean[:, None, None]

    @classmethod
    def from_pretrained(cls, folder: Path, device: torch.device | str = "cpu") -> DistilledEncoder:
        """Raises VegaError for a folder without one, or with another's weights."""
        encoder = cls(read_config(DistilledConfig, read_json(folder / CONFIG_FILE), folder / CONFIG_FILE))
        try:
            weights = load_file(folder / WEIGHTS_FILE)
            check_numbers(weights, folder / WEIGHTS_FILE)
            encoder.load_state_dict(weights)
        except (OSError, RuntimeError, SafetensorError) as error:
            refuse_pointer(folder / WEIGHTS_FILE)
            reason = str(error).splitlines()[0]
            raise VegaError(f"The distilled encoder in '{folder}' is none ({reason}): get the folder again.") from None
        encoder.folder = folder
        # Channels last: a third less time for pictures as small as these.
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return encoder.to(device).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write its configuration and weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder / CONFIG_FILE, self.config)
        write_tensors(self.state_dict(), folder / WEIGHTS_FILE)
        self.folder = folder
