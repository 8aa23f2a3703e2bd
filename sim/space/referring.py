"""Descriptions of things with their boxes, in the layout in which VEGA-3D reads ScanRefer and Multi3DRefer.

A description names a category, and where there are several of one, how it stands to another thing, told by clear
margins.  Multi3DRefer's asks for all of a kind, or for what is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sim.space.assets import plural
from sim.space.facts import SceneFacts
from sim.space.questions import MIN_GAP, NEARER, NEARER_SHARE

MOST = 4  # descriptions about one film
PROMPT = "<image>Identify the object according to the following description.\n{description}"


def descriptions(facts: SceneFacts, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One thing each; "unique" where it is the only one of its category, else "multiple"."""
    found = list(_unique(facts)) + list(_multiple(facts))
    rows = []
    for index in sorted(rng.permutation(len(found))[:MOST]):
        text, thing, kind = found[index]
        rows.append(_row(facts, text, kind, [thing]) | {"box": _box(facts, thing)})
    return rows


def groups(facts: SceneFacts, known: Sequence[str], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Multi3DRefer's: one thing ("st"), several ("mt"), or none ("zt"), of `known`, what could stand there."""
    present = {thing.said for thing in facts.things}
    absent = [said for said in known if said not in present]
    rows = []
    for said, which in facts.kinds.items():
        kind = "st" if len(which) == 1 else "mt"
        rows.append(_row(facts, f"All {plural(said)} in the scene.", kind, which))
    for index in rng.permutation(len(absent))[:1]:
        rows.append(_row(facts, f"All {plural(absent[index])} in the scene.", "zt", []))
    chosen = sorted(rng.permutation(len(rows))[:MOST])
    return [rows[i] | {"box": [_box(facts, thing) for thing in rows[i]["metadata"]["object_id"]]} for i in chosen]


def _unique(facts: SceneFacts) -> Iterator[tuple[str, int, str]]:
    for said, index in facts.single.items():
        yield f"This is the {said}.", index, "unique"


def _multiple(facts: SceneFacts) -> Iterator[tuple[str, int, str]]:
    for said, which in facts.kinds.items():
        if len(which) < 2:
            continue
        for anchor, there in facts.single.items():
            gaps = facts.gaps[there, which]
            order = np.argsort(gaps)
            if gaps.min() < MIN_GAP:
                continue
            for word, first, second in (("closest to", order[0], order[1]), ("farthest from", order[-1], order[-2])):
                near = min(gaps[first], gaps[second])
                if abs(gaps[first] - gaps[second]) >= max(NEARER, NEARER_SHARE * near):
                    yield f"This is the {said} that is {word} the {anchor}.", which[int(first)], "multiple"


def _row(facts: SceneFacts, text: str, kind: str, things: Sequence[int]) -> dict[str, Any]:
    return {
        "video": f"{facts.dataset}/{facts.scene}",
        "conversations": [
            {"from": "human", "value": PROMPT.format(description=text)},
            {"from": "gpt", "value": "<ground>"},
        ],
        "metadata": {"dataset": "libero_space", "question_type": kind, "object_id": [int(i) for i in things]},
    }


def _box(facts: SceneFacts, index: int) -> list[float]:
    return [round(float(value), 4) for value in facts.things[index].box]
