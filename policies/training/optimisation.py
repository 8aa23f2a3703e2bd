"""What every training here shares: the course of the learning rate, and states that survive being killed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer


def set_learning_rate(optimizer: Optimizer, step: int, steps: int, peak: float, warm_up: int, floor: float) -> None:
    """Linear over `warm_up` steps, then a cosine from `peak` to `floor` times it."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    rate = peak * min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) * cosine)
    for group in optimizer.param_groups:
        group["lr"] = rate


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    partial.rename(path)
