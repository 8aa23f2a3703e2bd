"""Demonstrations as a full-size policy learns from them, whoever recorded them.

Images are in the orientation of the data set that OpenVLA-OFT was trained on, actions and state in its units: LIBERO's
gripper is 1 open and 0 closed there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.types import FloatArray, Image, VegaError

EVENLY, EVERY = "evenly", "every so-manieth"  # how episodes are chosen that are held out
LEARNED, ALL = "those learned", "all"  # whose steps a new data set's statistics are of
SHOWN = 5  # pictures of an episode by which it is told from another


@dataclass(frozen=True)
class Demonstration:
    """One episode.  actions (n, A), states (n, P); picture: (camera, step) -> (H, W, 3) uint8 RGB.

    jpeg: the pictures were JPEG files, as those that OpenVLA-OFT was trained on.
    """

    instruction: str
    actions: FloatArray
    states: FloatArray
    picture: Callable[[str, int], Image]
    jpeg: bool = False


class Samples:
    """Every step of the demonstrations that has a whole chunk before it, numbered from 0.

    The last chunk - 1 steps of an episode give no sample, as in OpenVLA-OFT.
    """

    def __init__(self, demonstrations: Sequence[Demonstration], chunk: int) -> None:
        self._demonstrations, self._chunk = list(demonstrations), chunk
        counts = [max(len(demo.actions) - chunk + 1, 0) for demo in demonstrations]
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        self._fingerprints: dict[tuple[str, ...], str] = {}
        self._first_step = np.cumsum([0, *(len(demo.actions) for demo in demonstrations)])
        if not len(self):
            raise VegaError(
                f"No demonstration has {chunk} steps, as many as a chunk of actions: give others with --data."
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    def _at(self, index: int) -> tuple[Demonstration, int]:
        episode = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._demonstrations[episode], index - int(self._first[episode])

    def instruction(self, index: int) -> str:
        return self._at(index)[0].instruction

    def state(self, index: int) -> FloatArray:
        """(P,)."""
        demo, step = self._at(index)
        return demo.states[step]

    def actions(self, index: int) -> FloatArray:
        """(chunk, A)."""
        demo, step = self._at(index)
        return demo.actions[step : step + self._chunk]

    def picture(self, camera: str, index: int) -> Image:
        """(H, W, 3) uint8 RGB."""
        demo, step = self._at(index)
        return demo.picture(camera, step)

    def was_jpeg(self, index: int) -> bool:
        """Whether its pictures were JPEG files."""
        return self._at(index)[0].jpeg

    def every_step(self) -> Samples:
        """All steps of the same episodes, numbered alike whatever the chunk."""
        return Samples(self._demonstrations, 1)

    def step(self, index: int) -> int:
        """The number of a sample among all steps."""
        episode = int(np.searchsorted(self._first, index, side="right")) - 1
        return index - int(self._first[episode]) + int(self._first_step[episode])

    def fingerprint(self, cameras: Sequence[str]) -> str:
        """See `fingerprint`; by SHOWN pictures of every episode, which are read once."""
        if (key := tuple(cameras)) not in self._fingerprints:
            self._fingerprints[key] = fingerprint(self._demonstrations, key, SHOWN)
        return self._fingerprints[key]


def fingerprint(demonstrations: Sequence[Demonstration], cameras: Sequence[str], pictures: int = 1) -> str:
    """Tells one set of demonstrations from another: by all numbers, and so many pictures spread over every episode.

    One is the first: all that states of trainings from before 2026-12 know of the pictures.
    """
    digest = hashlib.sha256()
    for demo in demonstrations:
        digest.update(demo.instruction.encode() + demo.actions.tobytes() + demo.states.tobytes())
        steps = np.unique(np.linspace(0, len(demo.actions) - 1, pictures).round().astype(int))
        for camera in cameras if len(demo.actions) else ():  # of one that idled all the time nothing is left
            for step in steps.tolist():
                digest.update(np.ascontiguousarray(demo.picture(camera, step)).tobytes())
    return digest.hexdigest()


def check_numbers(demonstrations: Sequence[Demonstration], actions: int, states: int) -> None:
    """Raise VegaError unless they are as many as the policy has (0 states: it takes none), and all finite."""
    for number, demo in enumerate(demonstrations):
        for name, values, wanted in (("actions", demo.actions, actions), ("states", demo.states, states)):
            if wanted and values.shape[1:] != (wanted,):
                raise VegaError(
                    f"The {name} of demonstration {number} have {values.shape[-1]} numbers and the policy's {wanted}: "
                    "give --data of its robot."
                )
            if not np.isfinite(values).all():
                raise VegaError(f"The {name} of demonstration {number} are not all finite: leave it out of --data.")


def statistics(demonstrations: Sequence[Demonstration]) -> dict[str, object]:
    """Of all steps, as a checkpoint's `dataset_statistics.json` has them; the gripper, the last, is left.

    Raises VegaError where there are none.
    """
    actions = np.concatenate([demo.actions for demo in demonstrations])
    if not len(actions):
        raise VegaError("No demonstration that is learned has a step: give others with --data.")
    states = np.concatenate([demo.states for demo in demonstrations])
    mask = [True] * (actions.shape[1] - 1) + [False]
    return {
        "action": _bounds(actions) | {"mask": mask},
        "proprio": _bounds(states),
        "num_transitions": len(actions),
        "num_trajectories": len(demonstrations),
    }


def _bounds(rows: FloatArray) -> dict[str, list[float]]:
    low, high = np.quantile(rows, 0.01, axis=0), np.quantile(rows, 0.99, axis=0)
    found = {"mean": rows.mean(0), "std": rows.std(0), "max": rows.max(0), "min": rows.min(0), "q01": low, "q99": high}
    return {name: value.tolist() for name, value in found.items()}


def normalized_actions(actions: FloatArray, entry: Mapping[str, object], kind: str) -> NDArray[np.float32]:
    """(..., A) in the data set's units -> what the head is to say: in [-1, 1] where the statistics' mask is true."""
    given = entry["action"]
    assert isinstance(given, Mapping)
    low, high = (np.asarray(given[name], dtype=np.float64) for name in
                 {"bounds_q99": ("q01", "q99"), "bounds": ("min", "max")}[kind])  # fmt: skip
    mask = np.asarray(given.get("mask", np.ones(low.shape, bool)))
    scaled = np.clip(2.0 * (actions - low) / (high - low + 1e-8) - 1.0, -1.0, 1.0)
    return np.where(mask, scaled, actions).astype(np.float32)


def without_idling(actions: FloatArray) -> NDArray[np.int64]:
    """Steps of LIBERO's actions (n, 7) that do something: move, or turn the gripper's command (OpenVLA-OFT's rule)."""
    kept: list[int] = []
    for step, action in enumerate(actions):
        before = actions[kept[-1], -1] if kept else None
        if np.linalg.norm(action[:-1]) >= 1e-4 or (before is not None and action[-1] != before):
            kept.append(step)
    return np.asarray(kept, dtype=np.int64)


def libero_data_set_actions(actions: FloatArray) -> FloatArray:
    """LIBERO's actions (n, 7), gripper -1 open and 1 closed, -> the data set's, 1 open and 0 closed."""
    changed = np.array(actions, dtype=np.float64)
    changed[:, -1] = 1.0 - np.clip(changed[:, -1], 0.0, 1.0)
    return changed


def held_out(
    demonstrations: Sequence[Demonstration], share: float, rule: str = EVENLY
) -> tuple[list[Demonstration], list[Demonstration]]:
    """(to learn from, to validate with): a share of the episodes is kept aside, none where it is 0.

    rule: EVENLY, or EVERY so-manieth, which is another share where 1 / share is no whole number: that of older states.
    """
    if not share:
        return list(demonstrations), []
    every = max(round(1 / share), 2)
    parts: tuple[list[Demonstration], list[Demonstration]] = [], []
    for number, demo in enumerate(demonstrations):
        evenly = _whole(share * (number + 1)) > _whole(share * number)
        parts[evenly if rule == EVENLY else number % every == every - 1].append(demo)
    return parts


def _whole(episodes: float) -> int:
    """Whole episodes, where rounding may have taken a little of the last."""
    return math.floor(episodes + 1e-9)
