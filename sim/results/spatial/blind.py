"""What is reached without looking: the most frequent answer of a kind, and what the question alone tells.

Both learn from other scenes: the training split where there is one, else the benchmark's own other scenes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from policies.spatial.scores.vsi import CHOICES, mean_relative_accuracy
from sim.results.spatial.answers import AnswerRecord, figures
from sim.results.spatial.items import Answer, Grounding, Item, score

NEIGHBOURS = 25
CANDIDATES = 60  # answers tried for the one that scores best
NAMES = ("most frequent answer", "question only")


def baselines(items: Sequence[Item], training: Sequence[Item]) -> dict[str, Any]:
    """Name -> {"scores": ..., "corrected": ...} as of any run, per cent."""
    by_key = {item.key: item for item in items}
    found = {}
    for name, guess in zip(NAMES, (_frequent, _question_only), strict=True):
        records = []
        for item, answer in guess(items, training):
            scores, corrected = score(item, answer)
            words = answer if isinstance(answer, str) else ""
            records.append(AnswerRecord(item.task, item.trial, item.kind, words, (), scores, corrected))
        found[name] = {which: figures(by_key, records, which) for which in ("scores", "corrected")}
    return found


def _groups(items: Iterable[Item]) -> dict[tuple[str, str], list[Item]]:
    found: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        found[item.part, item.kind if item.part == "question" else ""].append(item)
    return found


def _frequent(items: Sequence[Item], training: Sequence[Item]) -> Iterable[tuple[Item, Answer]]:
    known = _groups(training)
    for group, asked in _groups(items).items():
        if known.get(group):
            answer = _usual(known[group])
            yield from ((item, answer) for item in asked)
            continue
        for item, others in _without_own_scene(asked):
            yield item, _usual(others)


def _without_own_scene(items: Sequence[Item]) -> Iterable[tuple[Item, list[Item]]]:
    """In five parts, as the usual answer hardly changes from scene to scene."""
    for part in range(5):
        others = [item for item in items if item.task % 5 != part]
        yield from ((item, others or list(items)) for item in items if item.task % 5 == part)


def _usual(items: Sequence[Item]) -> Answer:
    """The answer that most of these have: a letter, a number that scores best, words, a middle box."""
    first = items[0]
    if first.part in ("one_box", "boxes"):
        every = [box for item in items for box in item.boxes]
        middle = np.median(np.array(every), axis=0) if every else np.zeros(6)
        return Grounding(middle[None], np.array([1.0, 0.0]))
    if first.question is None:
        return Counter(text for item in items for text in item.references).most_common(1)[0][0]
    truths = [item.question.ground_truth for item in items if item.question is not None]
    if first.kind in CHOICES:
        return Counter(truths).most_common(1)[0][0]
    return _best_number([float(truth) for truth in truths])


def _best_number(truths: Sequence[float]) -> str:
    values = np.array(truths)
    tried = np.quantile(values, np.linspace(0.02, 0.98, CANDIDATES))
    best = max(tried, key=lambda guess: np.mean([mean_relative_accuracy(guess, truth) for truth in values[:400]]))
    return f"{best:.4g}"


def _question_only(items: Sequence[Item], training: Sequence[Item]) -> Iterable[tuple[Item, Answer]]:
    """From the questions most like it in words, of other scenes."""
    known = _groups(training)
    for group, asked in _groups(items).items():
        pool = known.get(group) or asked
        own = pool is asked
        words = {word: i for i, word in enumerate(sorted({w for item in pool for w in _words(item)}))}
        table = _table(pool, words)
        sizes = table.sum(axis=1)
        scenes = np.array([item.task for item in pool])
        for item in asked:
            mine = _table([item], words)[0]
            shared = table @ mine
            alike = shared / np.maximum(sizes + mine.sum() - shared, 1.0)
            if own:
                alike = np.where(scenes == item.task, -1.0, alike)
            nearest = [pool[i] for i in np.argsort(-alike, kind="stable")[:NEIGHBOURS]]
            yield item, _from_neighbours(item, nearest)


def _from_neighbours(item: Item, nearest: Sequence[Item]) -> Answer:
    if item.question is None or item.kind not in CHOICES:
        return _usual(nearest)
    votes: Counter[str] = Counter()
    for rank, other in enumerate(nearest):
        assert other.question is not None
        for option in other.question.options:
            if option.startswith(f"{other.question.ground_truth}."):
                votes[option[2:].strip()] += NEIGHBOURS - rank  # type: ignore[assignment]
    best = max(item.question.options, key=lambda option: votes[option[2:].strip()])
    return best[0]


def _words(item: Item) -> list[str]:
    return re.findall(r"[a-z0-9]+", item.text.lower())


def _table(items: Sequence[Item], words: dict[str, int]) -> Any:
    table = np.zeros((len(items), len(words)), np.float32)
    for row, item in enumerate(items):
        table[row, [words[word] for word in _words(item) if word in words]] = 1.0
    return table


