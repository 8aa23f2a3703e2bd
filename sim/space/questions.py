"""Questions in VSI-Bench's eight kinds (arXiv 2412.14171) with true answers, ambiguous ones left out.

Wordings are the benchmark's; its room is a table here, and the margins are those of a table: gaps from 5 cm, a nearest
thing nearer by 4 cm and a fifth, directions 10 degrees from a border.  What is asked for is visible (facts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np

from sim.space.assets import plural
from sim.space.directions import LEVELS, QUADRANTS, TURNS, relative_direction, turn
from sim.space.facts import SceneFacts

MIN_GAP = 0.05  # between things that a question relates, m
NEARER, NEARER_SHARE = 0.04, 0.2  # by which the nearest thing is nearer than the next, m and of its own gap
MOST = 3  # questions of a kind about one film
LETTERS = "ABCD"

WHERE = "If I am standing by the {stand} and facing the {face}, is the {ask} "
HOW = {
    "easy": "to the left or the right of the {face}?",
    "medium": "to my left, right, or back? An object is to my back if I would have to turn at least 135 degrees in "
    "order to face it.",
    "hard": "to my front-left, front-right, back-left, or back-right? The directions refer to the quadrants of a "
    "Cartesian plane (if I am standing at the origin and facing along the positive y-axis).",
}
ROUTE = (
    "You are a robot beginning at the {start} facing the {first}. You want to navigate to the {goal}. You will perform "
    "the following actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' or 'turn "
    "right.'): {steps} You have reached the final destination."
)


def questions(facts: SceneFacts, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows in VSI-Bench's fields, without ids; at most `MOST` of a kind."""
    rows: list[dict[str, Any]] = []
    for kind, make in KINDS.items():
        found = list(make(facts, rng))
        for index in sorted(rng.permutation(len(found))[:MOST]):
            text, truth, options = found[index]
            rows.append(
                {
                    "dataset": facts.dataset, "scene_name": facts.scene, "question_type": kind, "question": text,
                    "ground_truth": truth, "options": options,
                }
            )  # fmt: skip
    return rows


Found = tuple[str, str, list[str] | None]


def _choice(text: str, right: str, answers: Sequence[str], rng: np.random.Generator) -> Found:
    """Answers in a random order behind their letters; the letter is the truth."""
    shuffled = [answers[i] for i in rng.permutation(len(answers))]
    options = [f"{letter}. {answer}" for letter, answer in zip(LETTERS, shuffled, strict=False)]
    return text, LETTERS[shuffled.index(right)], options


def _count(facts: SceneFacts, rng: np.random.Generator) -> Iterator[Found]:
    for said, which in facts.kinds.items():
        if len(which) > 1:
            yield f"How many {plural(said)} are in this scene?", str(len(which)), None


def _absolute_distance(facts: SceneFacts, rng: np.random.Generator) -> Iterator[Found]:
    for (one, i), (other, j) in combinations(facts.single.items(), 2):
        if facts.gaps[i, j] >= MIN_GAP:
            yield (
                "Measuring from the closest point of each object, what is the distance between the "
                f"{one} and the {other} (in meters)?", f"{facts.gaps[i, j]:.3f}", None,
            )  # fmt: skip


def _size(facts: SceneFacts, rng: np.random.Generator) -> Iterator[Found]:
    for said, index in facts.single.items():
        yield (
            f"What is the length of the longest dimension (length, width, or height) of the {said}, measured in "
            "centimeters?", f"{100 * facts.things[index].size.max():.1f}", None,
        )  # fmt: skip


def _table(facts: SceneFacts, rng: np.random.Generator) -> Iterator[Found]:
    if facts.table_area is not None:
        yield "What is the size of the table top (in square meters)?", f"{facts.table_area:.2f}", None


def _nearest(facts: SceneFacts, rng: np.random.Generator) -> Iterator[Found]:
    for said, index in facts.single.items():
        others = [kind for kind in facts.kinds if kind != said]
        if len(others) < 4:
            continue
        some = [others[i] for i in rng.permutation(len(others))[:4]]
        gaps = np.array([facts.gap([index], facts.kinds[kind]) for kind in some])
        order = np.argsort(gaps)
        nearest, next_one = gaps[order[0]], gaps[order[1]]
        if next_one - nearest < max(NEARER, NEARER_SHARE * nearest):
            continue
        text = (
            f"Measuring from the closest point of each object, which of these objects ({', '.join(some)}) is the "
            f"closest to the {said}? If there are multiple instances of an object category, measure to the closest."
        )
        yield _choice(text, some[order[0]], some, rng)


def _triples(facts: SceneFacts) -> Iterator[tuple[str, str, str]]:
    for triple in permutations(facts.single, 3):
        if all(facts.gaps[facts.single[a], facts.single[b]] >= MIN_GAP for a, b in combinations(triple, 2)):
            yield triple


def _direction(level: str) -> Callable[[SceneFacts, np.random.Generator], Iterator[Found]]:
    def make(facts: SceneFacts, rng: np.random.Generator) -> Iterator[Found]:
        answers = LEVELS.get(level, QUADRANTS)
        for stand, face, ask in _triples(facts):
            here, there, asked = (facts.things[facts.single[said]] for said in (stand, face, ask))
            right = relative_direction(here.centre, there.centre, asked.centre, asked.corners, level)
            if right is not None:
                text = (WHERE + HOW[level]).format(stand=stand, face=face, ask=ask)
                yield _choice(text, right, answers, rng)

    return make


def _order(facts: SceneFacts, rng: np.random.Generator) -> Iterator[Found]:
    names = [facts.single[said] for said in facts.single]
    for four in combinations(names, 4):
        order = sorted(four, key=lambda index: facts.things[index].first_clear)
        if not all(facts.things[a].first_clear < facts.things[b].first_trace for a, b in pairwise(order)):
            continue
        said = [facts.things[index].said for index in order]
        asked = [said[i] for i in rng.permutation(4)]
        wrong = [list(other) for other in permutations(said) if list(other) != said]
        answers = [", ".join(said), *(", ".join(wrong[i]) for i in rng.permutation(len(wrong))[:3])]
        text = (
            "What will be the first-time appearance order of the following categories in the video: "
            f"{', '.join(asked)}?"
        )
        yield _choice(text, answers[0], answers, rng)


def _route(facts: SceneFacts, rng: np.random.Generator) -> Iterator[Found]:
    for triple in _triples(facts):
        stops = [facts.things[facts.single[said]].centre for said in triple]
        found = turn(*stops)
        if found is None:
            continue
        yield _one_route(triple, [found], TURNS, rng)
        for said, index in facts.single.items():
            goal = facts.things[index].centre
            second = None if said in triple else turn(stops[1], stops[2], goal)
            if second is not None and facts.gaps[facts.single[triple[2]], index] >= MIN_GAP:
                turns = [found, second]
                every = [f"{a}, {b}" for a in TURNS for b in TURNS]
                wrong = [pair for pair in every if pair != ", ".join(turns)]
                answers = [", ".join(turns), *(wrong[i] for i in rng.permutation(len(wrong))[:3])]
                yield _one_route((*triple, said), turns, answers, rng)
                break


def _one_route(stops: Sequence[str], turns: Sequence[str], answers: Sequence[str], rng: np.random.Generator) -> Found:
    steps, number = [f"1. Go forward until the {stops[1]}."], 2
    for said in stops[2:]:
        steps += [f"{number}. [please fill in]", f"{number + 1}. Go forward until the {said}."]
        number += 2
    text = ROUTE.format(start=stops[0], first=stops[1], goal=stops[-1], steps=" ".join(steps))
    return _choice(text, ", ".join(turns).title(), [answer.title() for answer in answers], rng)


KINDS: dict[str, Callable[[SceneFacts, np.random.Generator], Iterator[Found]]] = {
    "object_counting": _count,
    "object_abs_distance": _absolute_distance,
    "object_size_estimation": _size,
    "room_size_estimation": _table,
    "object_rel_distance": _nearest,
    "object_rel_direction_easy": _direction("easy"),
    "object_rel_direction_medium": _direction("medium"),
    "object_rel_direction_hard": _direction("hard"),
    "obj_appearance_order": _order,
    "route_planning": _route,
}

