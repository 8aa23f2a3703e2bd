"""Samples as tensors.  What is drawn for a place in a step's batch depends on seed, step and place alone, so that a run
that goes on, and one on another number of processes, sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.openvla.policy import VegaOpenVLA
from policies.openvla.preprocessing import normalize_proprio, pixel_values
from policies.training.vega.demonstrations import Samples, normalized_actions
from policies.training.vega.pictures import training_image
from policies.training.vega.tokens import TokenCache


@dataclass(frozen=True)
class Batch:
    """pixels (B, 6 n, S, S); input_ids: a prompt per sample; proprio (B, P) in [-1, 1] or None; actions (B, chunk, A).

    The actions are as the head says them.  f_gen: camera -> (B, N, G), empty without a world simulator.
    """

    pixels: Tensor
    input_ids: list[list[int]]
    proprio: Tensor | None
    actions: Tensor
    f_gen: dict[str, Tensor]


class Batches:
    """Batches of samples for a policy.  augment: random crops and colours, as OpenVLA-OFT trains."""

    def __init__(
        self, policy: VegaOpenVLA, samples: Samples, tokens: TokenCache | None, seed: int, augment: bool
    ) -> None:
        self._policy, self._samples, self._tokens = policy, samples, tokens
        self._seed, self._augment = seed, augment
        self._ids: dict[str, list[int]] = {}

    def drawn(self, step: int, places: Sequence[int]) -> Batch:
        """The samples at `places` of the batch of `step`."""
        rngs = [np.random.default_rng([self._seed, step, place]) for place in places]
        return self._batch([int(rng.integers(len(self._samples))) for rng in rngs], rngs)

    def seed(self, step: int, place: int) -> int:
        """For what torch's own generator draws for the samples from `place` of the batch of `step` on."""
        return int(np.random.SeedSequence([self._seed, step, place]).generate_state(1, np.uint64)[0])

    def fixed(self, count: int, size: int) -> list[Batch]:
        """Batches of `size` of so many samples spread over all, as the policy sees them: for validation."""
        chosen = np.unique(np.linspace(0, len(self._samples) - 1, count).round().astype(int))
        return [self._batch([int(i) for i in part], None) for part in np.split(chosen, range(size, len(chosen), size))]

    def _batch(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None) -> Batch:
        info, cameras = self._policy.model.info, self._policy.config.cameras
        pixels: list[NDArray[np.float32]] = []
        tokens: dict[str, list[Tensor]] = {camera: [] for camera in cameras if self._tokens is not None}
        for row, index in enumerate(indices):
            shown = []
            for camera in cameras:
                picture = self._samples.picture(camera, index)
                rng = rngs[row] if rngs is not None and self._augment else None
                image, view = training_image(picture, info.image_size, rng, self._samples.was_jpeg(index))
                shown.append(image)
                if self._tokens is not None:
                    tokens[camera].append(self._tokens.tokens(camera, index, picture.shape[:2], view))
            pixels.append(pixel_values(shown, info.image_mean_std))
        entry, kind = self._policy.statistics, info.normalization
        proprio = None
        if info.proprio_dim:
            states = [normalize_proprio(self._samples.state(i), entry, kind) for i in indices]
            proprio = torch.from_numpy(np.stack(states)).float()
        actions = np.stack([normalized_actions(self._samples.actions(i), entry, kind) for i in indices])
        return Batch(
            torch.from_numpy(np.stack(pixels)),
            [self._prompt(self._samples.instruction(i)) for i in indices],
            proprio,
            torch.from_numpy(actions),
            {camera: torch.stack(rows) for camera, rows in tokens.items()},
        )

    def _prompt(self, sentence: str) -> list[int]:
        if sentence not in self._ids:
            self._ids[sentence] = self._policy.model.encode_prompt(sentence)
        return self._ids[sentence]
