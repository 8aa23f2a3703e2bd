"""What is true of one filmed scene, as questions are made from it; NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from policies.types import FloatArray

CLEAR, TRACE = 0.0015, 0.0002  # shares of a picture: clearly seen, and seen at all
CLEAR_FRAMES = 2  # in so many frames a thing must be clearly seen to be asked for


@dataclass(frozen=True, eq=False)
class Thing:
    """said: its category.  centre (3,), corners (8, 3) of its upright box, size (3,): length >= width, height.

    box: (6,) centre and sides along the axes; all m, from the middle of the surface on which things stand, z up.
    seen: (frames,) share of each picture that shows it.
    """

    name: str
    said: str
    centre: FloatArray
    corners: FloatArray
    size: FloatArray
    box: FloatArray
    seen: FloatArray

    @property
    def visible(self) -> bool:
        return int((self.seen >= CLEAR).sum()) >= CLEAR_FRAMES

    @property
    def first_trace(self) -> int:
        """First frame that shows any of it; after the last where none does."""
        return self._first(TRACE)

    @property
    def first_clear(self) -> int:
        return self._first(CLEAR)

    def _first(self, share: float) -> int:
        found = np.flatnonzero(self.seen >= share)
        return int(found[0]) if len(found) else len(self.seen)


@dataclass(frozen=True, eq=False)
class SceneFacts:
    """dataset and scene: as in VSI-Bench, where the film lies.  gaps: (n, n) m between surfaces.

    table_area: m^2, None where there is no table.
    """

    dataset: str
    scene: str
    things: tuple[Thing, ...]
    gaps: FloatArray
    table_area: float | None = None

    @cached_property
    def kinds(self) -> dict[str, list[int]]:
        """Categories of which every instance is visible -> numbers of their things."""
        found: dict[str, list[int]] = {}
        for index, thing in enumerate(self.things):
            found.setdefault(thing.said, []).append(index)
        return {said: which for said, which in found.items() if all(self.things[i].visible for i in which)}

    @cached_property
    def single(self) -> dict[str, int]:
        """Categories with one instance, which is visible."""
        return {said: which[0] for said, which in self.kinds.items() if len(which) == 1}

    def gap(self, first: Sequence[int], second: Sequence[int]) -> float:
        """Of the closest instances of two categories."""
        return float(self.gaps[np.ix_(first, second)].min())


def as_row(thing: Thing) -> dict[str, Any]:
    """For a scene's JSON file."""
    return {
        "name": thing.name, "category": thing.said, "box": _round(thing.box), "size": _round(thing.size),
        "centre": _round(thing.centre), "corners": [_round(corner) for corner in thing.corners],
        "seen": [round(float(share), 5) for share in thing.seen],
    }  # fmt: skip


def from_row(row: Mapping[str, Any]) -> Thing:
    arrays = {key: np.asarray(row[key], dtype=np.float64) for key in ("centre", "corners", "size", "box", "seen")}
    return Thing(str(row["name"]), str(row["category"]), **arrays)


def _round(values: FloatArray) -> list[float]:
    return [round(float(value), 4) for value in values]
