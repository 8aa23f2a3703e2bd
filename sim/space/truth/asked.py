"""What is true where somebody asks in words of their own; the answers that `sim/ask.py` puts beside a model's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.spatial.nano.questions import Asked
from policies.types import FloatArray
from sim.space.truth.directions import bearing as angle_of
from sim.space.truth.directions import named, turn
from sim.space.truth.facts import SceneFacts

ASIDE_M = 0.02  # by which something is left of another


def truth(asked: Asked, names: Sequence[str], facts: SceneFacts, camera_to_world: FloatArray) -> str:
    """In the units of the answer; "" where the scene does not tell.

    names: categories that the question means, in its order.  camera_to_world: (4, 4) of the newest frame.
    """
    which = [facts.kinds.get(name, []) for name in names]
    if any(not group for group in which):
        return ""
    things = [facts.things[group[0]] for group in which]
    if asked.kind == "distance":
        return f"{facts.gap(which[0], which[1]):.2f} m"
    if asked.kind == "size":
        return f"{100 * (things[0].size[2] if asked.detail == 'height' else things[0].size.max()):.1f} cm"
    if asked.kind == "count":
        return str(len(which[0]))
    if asked.kind == "table":
        return "" if facts.table_area is None else f"{facts.table_area:.2f} m^2"
    if asked.kind == "nearest":
        others = list(names[1:]) or [name for name in facts.kinds if name != names[0]]
        return min(others, key=lambda name: facts.gap(which[0], facts.kinds[name]), default="")
    if asked.kind == "direction":
        return named(angle_of(*(thing.centre for thing in things)), asked.detail)[0]
    if asked.kind == "route":
        turns = [turn(*(thing.centre for thing in things[i : i + 3])) for i in range(len(things) - 2)]
        return ", ".join(one.title() for one in turns if one) if all(turns) else ""
    if asked.kind == "order":
        return ", ".join(thing.said for thing in sorted(things, key=lambda thing: thing.first_clear))
    if asked.kind == "beside":
        found = [t.said for t in facts.things if t.said != names[0] and t.visible
                 and _lies(t.centre, things[0].centre, camera_to_world, asked.detail)]  # fmt: skip
        return ", ".join(dict.fromkeys(found)) or "nothing"
    return "yes" if _lies(things[0].centre, things[1].centre, camera_to_world, asked.detail) else "no"


def _lies(centre: FloatArray, anchor: FloatArray, camera_to_world: FloatArray, side: str) -> bool:
    """Seen from above, along the axes of the picture."""
    away = (centre - anchor)[:2]
    right = camera_to_world[:2, 0] / np.linalg.norm(camera_to_world[:2, 0])
    ahead = camera_to_world[:2, 2] / np.linalg.norm(camera_to_world[:2, 2])
    return bool({"left": -right, "right": right, "in front": -ahead, "behind": ahead}[side] @ away > ASIDE_M)
