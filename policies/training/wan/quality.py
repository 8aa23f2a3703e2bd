"""What a small world simulator knows of videos that it has not learned from: them again, and what comes next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policies.training.dataset import CANVAS
from policies.training.wan.clips import CLIP_FRAMES, Clips, picture
from policies.training.wan.networks import Generator

CLIPS, SHOWN, BATCH = 64, 2, 8  # of each camera; of them in the picture; at a time
JSON_FILE, PICTURE_FILE = "held_out.json", "held_out.png"
LEAST = 1e-10  # of a mean squared error: 100 dB


def decibels(found: Tensor, wanted: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratios of videos (B, ...) in [-1, 1], dB."""
    error = (found.clamp(-1, 1) - wanted).square().flatten(1).mean(dim=1) / 4
    return -10 * error.clamp_min(LEAST).log10()


@torch.no_grad()
def measure(
    generator: Generator, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], clips: Clips,
    output: Path,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """camera -> mean peak signal-to-noise ratio, dB, over the frames after the first of clips that are not learned.

    reconstruction: through the VAE.  prediction: the first frame is given, the transformer draws the rest and the VAE
    shows it.  repetition: the first frame again and again, which says how much moves.  encode, decode: clips
    (B, 3, T, H, W) in [-1, 1] to normalised latents, and back.  Writes both as JSON, and a picture: what was, what is
    shown again, what is predicted.
    """
    found: dict[str, dict[str, float]] = {}
    for camera in CANVAS:
        rng, drawn = np.random.default_rng(2), torch.Generator().manual_seed(2)
        ratios: dict[str, list[Tensor]] = {"reconstruction": [], "prediction": [], "repetition": []}
        for first in range(0, CLIPS, BATCH):
            wanted = clips.batch(BATCH, CLIP_FRAMES, rng, camera)
            latents = encode(wanted)
            ways = {
                "reconstruction": decode(latents),
                "prediction": decode(generator.sample(tuple(latents.shape), drawn, begun=encode(wanted[:, :, :1]))),
                "repetition": wanted[:, :, :1].expand_as(wanted),
            }
            for name, videos in ways.items():
                ratios[name].append(decibels(videos[:, :, 1:], wanted[:, :, 1:]))
            if not first and camera == "agentview":
                shown = (wanted, ways["reconstruction"], ways["prediction"])
                picture(output / PICTURE_FILE, *(videos[:SHOWN] for videos in shown))
        found[camera] = {name: float(torch.cat(parts).mean()) for name, parts in ratios.items()}
    (output / JSON_FILE).write_text(json.dumps({"clips": CLIPS, "psnr_db": found}, indent=1) + "\n")
    return found
