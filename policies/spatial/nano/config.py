"""The one readable file of a vega-nano-spatial checkpoint, `config.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from policies.files.json_config import read_config, read_json, write_config
from policies.types import VegaError

CONFIG_FILE = "config.json"
KIND = "vega-nano-spatial"  # stands in the file as `scene_type`


@dataclass(frozen=True)
class SpatialConfig:
    """Everything about the model except its weights.

    things: categories that it was shown, as they are called.  image_size: (H, W) px of the picture that the encoder
    gets, multiples of 16.  fovy_deg: vertical angle of view of that picture; frames of other cameras are scaled so.
    canvas: (rows, columns) px of the world simulator's picture.  world_simulator: its folder in the checkpoint.
    world_control: "on", or "off" for a model whose gate is closed to it.  score: from which a thing counts as seen.
    mirrored: look at every frame in a mirror too, and take the mean.
    """

    name: str
    things: tuple[str, ...]
    image_size: tuple[int, int] = (192, 256)
    fovy_deg: float = 55.0
    canvas: tuple[int, int] = (96, 128)
    world_simulator: str = "world_simulator"
    world_control: str = "on"
    fusion: str = "token_gate"
    channels: int = 64
    text_dim: int = 64
    encoder_blocks: int = 2
    width: int = 128
    layers: int = 2
    heads: int = 4
    score: float = 0.25
    mirrored: bool = False
    scene_type: str = field(default=KIND)

    def __post_init__(self) -> None:
        if self.scene_type != KIND:
            raise VegaError(f"A scene model of type '{self.scene_type}' is unknown here: give a {KIND} checkpoint.")
        if any(side % 16 for side in self.image_size):
            raise VegaError(f"An image_size of {self.image_size} does not divide into tokens: give multiples of 16.")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of tokens."""
        return self.image_size[0] // 8, self.image_size[1] // 8

    @property
    def focal(self) -> float:
        """Of the encoder's picture, px."""
        return 0.5 * self.image_size[0] / math.tan(0.5 * math.radians(self.fovy_deg))

    def save(self, folder: Path) -> None:
        write_config(folder / CONFIG_FILE, self, indent=1)

    @classmethod
    def load(cls, folder: Path) -> SpatialConfig:
        """VegaError with the file for a setting that is wrong."""
        return read_config(cls, read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)


def is_spatial_nano(folder: Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    path = folder / CONFIG_FILE
    try:
        return path.is_file() and f'"{KIND}"' in path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False  # loading it says what is wrong
