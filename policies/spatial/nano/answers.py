"""From a map to an answer: numbers in the benchmark's units, options' letters, or words; and how sure.

How sure: the least score of the things that it rests on, times the share of `SAMPLES` maps, drawn as the bundle
adjustment says that things may lie, in which the answer is the same, or a number within a quarter of it.  Of a table:
the share of frames that agree so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product

import numpy as np

from policies.spatial.nano.nouns import Nouns
from policies.spatial.nano.questions import Asked, read_expression
from policies.spatial.nano.scene_map import Found, SceneMap, gap
from policies.types import FloatArray, VegaError

SAMPLES, AGREES = 64, 0.25
TURNS = ("Turn Left", "Turn Right", "Turn Back")
MOST_TURNS = 8  # of a route: every way to turn is a name
BESIDE_M = 0.02  # a thing is left of another if its centre is by so much
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Answerer:
    """Answers about one map.  Raises VegaError for what it cannot answer."""

    def __init__(self, scene: SceneMap, nouns: Nouns, threshold: float) -> None:
        """threshold: score from which a thing counts as there where nobody says that it is."""
        self.scene, self.nouns, self.threshold = scene, nouns, threshold

    def answer(self, asked: Asked) -> tuple[str, float]:
        """The answer, and the confidence in it, in [0, 1]."""
        return getattr(self, f"_{asked.kind}")(asked)

    def present(self, kind: int) -> list[Found]:
        """All things of a kind that are there; of one that is asked about at least the likeliest."""
        found = self.scene.of(kind)
        return [thing for i, thing in enumerate(found) if i == 0 or thing.score >= self.threshold]

    def means(self, prompt: str) -> list[tuple[Found, float]]:
        """The things that an expression may mean, and a score of each."""
        noun, _, which, other = read_expression(prompt)
        found = self.scene.of(self.nouns.find(noun))
        if not which or not found:
            # The thing for which most frames speak is meant, whatever single frames say of others.
            scores = np.minimum.accumulate([thing.score for thing in found])
            return [(thing, float(score)) for thing, score in zip(found, scores, strict=True)]
        there = [thing for i, thing in enumerate(found) if i == 0 or thing.score >= self.threshold]
        anchor = self._one(other)
        gaps = np.array([float(gap(thing, anchor, self.scene.places)) for thing in there])
        rank = np.argsort(np.argsort(gaps if which == "closest" else -gaps))
        return [(thing, thing.score / (1.0 + rank[i])) for i, thing in enumerate(there)]

    # Kinds of question

    def _distance(self, asked: Asked) -> tuple[str, float]:
        pair = [self._one(noun) for noun in asked.nouns]
        return self._number(lambda places: gap(pair[0], pair[1], places), pair, "{:.2f} m")

    def _size(self, asked: Asked) -> tuple[str, float]:
        thing = self._one(asked.nouns[0])
        value = thing.height if asked.detail == "height" else thing.longest
        return f"{100 * value:.1f} cm", thing.score

    def _count(self, asked: Asked) -> tuple[str, float]:
        found = self.scene.of(self.nouns.find(asked.nouns[0]))
        there = [thing.score for thing in found if thing.score >= self.threshold]
        rest = [thing.score for thing in found if thing.score < self.threshold]
        return str(len(there)), float(min([*there, *(1.0 - s for s in rest), 1.0]))

    def _table(self, asked: Asked) -> tuple[str, float]:
        told = self.scene.tables
        middle = float(np.median(told))
        return f"{middle:.2f} m^2", float((np.abs(told - middle) <= AGREES * middle).mean())

    def _nearest(self, asked: Asked) -> tuple[str, float]:
        target = self._one(asked.nouns[0])
        others = asked.nouns[1:] or tuple(
            self.nouns.things[kind] for kind in dict.fromkeys(t.kind for t in self.scene.things if self._is_there(t))
            if kind != target.kind
        )  # fmt: skip
        if not others:
            raise VegaError(f"Nothing else is seen beside '{asked.nouns[0]}': show more of the scene, then ask again.")
        groups = [self._some(noun) for noun in others]

        def choose(places: FloatArray) -> FloatArray:
            gaps = [np.min([gap(thing, target, places) for thing in group], axis=0) for group in groups]
            return np.argmin(gaps, axis=0)

        return self._choice(choose, [group[0] for group in groups] + [target], others, asked.options)

    def _direction(self, asked: Asked) -> tuple[str, float]:
        stand, face, there = (self._one(noun) for noun in asked.nouns)
        names = ["left", "right", "back", "front-left", "front-right", "back-left", "back-right"]

        def choose(places: FloatArray) -> FloatArray:
            angle = _bearing(*(places[..., thing.number, :] for thing in (stand, face, there)))
            left, back = angle >= 0, np.abs(angle) >= 90
            if asked.detail == "hard":
                return np.where(back, np.where(left, 5, 6), np.where(left, 3, 4))
            if asked.detail == "medium":
                back = np.abs(angle) >= 135
                return np.where(back, 2, np.where(left, 0, 1))
            return np.where(left, 0, 1)

        return self._choice(choose, (stand, face, there), names, asked.options)

    def _route(self, asked: Asked) -> tuple[str, float]:
        stops = [self._one(noun) for noun in asked.nouns]
        if len(stops) < 3:
            raise VegaError(
                "A route needs three things or more: say where it begins, what it passes and where it ends."
            )
        if len(stops) > MOST_TURNS + 2:
            raise VegaError(f"A route of {len(stops) - 2} turns is too long: ask about {MOST_TURNS} of them or fewer.")
        names = [", ".join(turns) for turns in product(TURNS, repeat=len(stops) - 2)]

        def choose(places: FloatArray) -> FloatArray:
            number: FloatArray = np.zeros(places.shape[:-2])  # in the order of the names
            for a, b, c in zip(stops, stops[1:], stops[2:], strict=False):
                come, here, goal = (places[..., thing.number, :] for thing in (a, b, c))
                angle = _bearing(here, 2 * here - come, goal)
                number = number * len(TURNS) + np.where(np.abs(angle) > 135, 2, np.where(angle > 0, 0, 1))
            return number

        return self._choice(choose, stops, names, asked.options)

    def _order(self, asked: Asked) -> tuple[str, float]:
        things = {noun: self._one(noun) for noun in asked.nouns}
        firsts = {noun: thing.first for noun, thing in things.items()}
        said = sorted(asked.nouns, key=lambda noun: firsts[noun])
        sure = min(thing.score for thing in things.values())
        if not asked.options:
            return ", ".join(said), sure
        orders = [[self._match(name, asked.nouns) for name in option.split(",")] for option in asked.options]
        wrong = [sum(max(firsts[a] - firsts[b], 0) + 0.5 * (firsts[a] == firsts[b]) for a, b in pairwise(order))
                 for order in orders]  # fmt: skip
        return LETTERS[int(np.argmin(wrong))], sure

    def _beside(self, asked: Asked) -> tuple[str, float]:
        anchor = self._one(asked.nouns[0])
        found = [t for t in self.scene.things if t.kind != anchor.kind and self._is_there(t)
                 and self._lies(t, anchor, asked.detail)]  # fmt: skip
        names = list(dict.fromkeys(self.nouns.things[thing.kind] for thing in found))
        return ", ".join(names) or "nothing", min([anchor.score, *(thing.score for thing in found)])

    def _is_beside(self, asked: Asked) -> tuple[str, float]:
        thing, anchor = (self._one(noun) for noun in asked.nouns)
        return "yes" if self._lies(thing, anchor, asked.detail) else "no", min(thing.score, anchor.score)

    # What they rest on

    def _is_there(self, thing: Found) -> bool:
        return thing.score >= self.threshold

    def _lies(self, thing: Found, anchor: Found, side: str) -> bool:
        """As the newest frame's camera sees it."""
        heading = self.scene.cameras[-1, 3]
        away = thing.centre[:2] - anchor.centre[:2]
        ahead = float(away @ [np.cos(heading), np.sin(heading)])
        right = float(away @ [np.sin(heading), -np.cos(heading)])
        return {"left": -right, "right": right, "in front": -ahead, "behind": ahead}[side] > BESIDE_M

    def _one(self, noun: str) -> Found:
        return self._some(noun)[0]

    def _some(self, noun: str) -> list[Found]:
        found = self.present(self.nouns.find(noun))
        if not found:
            raise VegaError(f"'{noun.strip()}' is not seen in any frame: show it, then ask again.")
        return found

    def _match(self, name: str, nouns: Sequence[str]) -> str:
        """Which of the nouns an option's name is."""
        return next((noun for noun in nouns if noun.strip().lower() == name.strip().lower()), nouns[0])

    def _sampled(self, things: Sequence[Found]) -> FloatArray:
        """(SAMPLES, M, 2) places that may be, of these things; the others stay."""
        which = np.array([[2 * thing.number, 2 * thing.number + 1] for thing in things]).ravel()
        spread = self.scene.covariance[np.ix_(which, which)]
        values, vectors = np.linalg.eigh((spread + spread.T) / 2)
        noise = np.random.default_rng(0).standard_normal((SAMPLES, len(values)))
        places = np.repeat(self.scene.places.reshape(1, -1), SAMPLES, axis=0)
        places[:, which] += (noise * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        return places.reshape(SAMPLES, -1, 2)

    def _number(
        self, measure: Callable[[FloatArray], FloatArray], things: Sequence[Found], text: str
    ) -> tuple[str, float]:
        value = float(measure(self.scene.places))
        agree = np.abs(measure(self._sampled(things)) - value) <= AGREES * value
        return text.format(value), float(agree.mean()) * min(thing.score for thing in things)

    def _choice(
        self, choose: Callable[[FloatArray], FloatArray], things: Sequence[Found], names: Sequence[str],
        options: Sequence[str],
    ) -> tuple[str, float]:  # fmt: skip
        """choose: places -> number of a name.  Of several options the one that most of the sampled maps choose."""
        best = int(choose(self.scene.places))
        drawn = choose(self._sampled(things))
        sure = float((drawn == best).mean()) * min(thing.score for thing in things)
        if not options:
            return names[best], sure
        lower = [option.strip().lower() for option in options]
        if names[best].strip().lower() in lower:
            return LETTERS[lower.index(names[best].strip().lower())], sure
        # None of the options: then the one that comes up most.
        counts = [int((drawn == i).sum()) if n.strip().lower() in lower else -1 for i, n in enumerate(names)]
        chosen = names[int(np.argmax(counts))].strip().lower()
        return (LETTERS[lower.index(chosen)] if chosen in lower else "A"), 0.0


def _bearing(standing: FloatArray, facing: FloatArray, there: FloatArray) -> FloatArray:
    """Degrees in [-180, 180] to the left of the way from `standing` to `facing` (..., 2) at which `there` lies."""
    ahead, away = facing - standing, there - standing
    cross = ahead[..., 0] * away[..., 1] - ahead[..., 1] * away[..., 0]
    return np.asarray(np.rad2deg(np.arctan2(cross, (ahead * away).sum(-1))))
