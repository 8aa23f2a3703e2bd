"""Models for tests of run_spatial, found by name as a user's own would be."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policies.types import FloatArray, Image, VegaError


class Seeing:
    """Answers from what it sees: the frames' shade is the number, and the letter of the option that holds it.

    A file named `deadly` in the folder of the environment variable makes the process end at the next question, once.
    """

    def watch(self, frames: Sequence[Image]) -> None:
        self.shade = int(np.mean([frame.mean() for frame in frames]).round())
        self.count = len(frames)

    def answer(self, prompt: str, max_tokens: int) -> str:
        mark = Path(os.environ.get("SPATIAL_TEST_MARKS", "/nowhere")) / "deadly"
        if mark.exists():
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if "refuse" in prompt:
            raise VegaError("That cannot be asked: ask something else.")
        letter = re.search(rf"([A-D])\. {self.shade}\n", prompt)
        return letter[1] if letter else f"{self.shade}"


class Breathing(Seeing):
    """A word begins with a space, as many tokenizers have it."""

    def answer(self, prompt: str, max_tokens: int) -> str:
        return f" {super().answer(prompt, max_tokens)}\n"


class Pointing(Seeing):
    """Points at a box whose side is the shade, in centimetres, and knows what is not there."""

    def ground(self, prompt: str) -> tuple[FloatArray, FloatArray]:
        side = self.shade / 100
        boxes = np.array([[0.5, 0.5, 0.5, side, side, side], [5.0, 5.0, 5.0, 1.0, 1.0, 1.0]])
        return boxes, np.array([0.1, 0.0, 0.9]) if "nothing" in prompt else np.array([0.9, 0.0, 0.1])
