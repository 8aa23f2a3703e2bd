"""What is reached without looking: the most frequent answer of a kind, and what the question alone tells.

Both learn from other scenes: the training split where there is one, else the benchmark's own other scenes, asked about
or not.  What no other scene tells is not answered, nor counted.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from policies.spatial.scores.vsi import CHOICES, relative_accuracies
from sim.results.spatial.answers import AnswerRecord, figures
from sim.results.spatial.items import Answer, Grounding, Item, score

NEIGHBOURS = 25  # at most, and an eighth of what there is
CANDIDATES = 60  # answers tried for the one that scores best
NAMES = ("most frequent answer", "question only")
Known = Mapping[tuple[str, str], Sequence[Item]]  # by group, the questions whose answers are known


def baselines(items: Sequence[Item], training: Sequence[Item], every: Sequence[Item]) -> dict[str, Any]:
    """Name -> {"scores": ..., "corrected": ...} as of any run, per cent.

    items: what is asked.  every: all that the benchmark asks, those among them.
    """
    known, own = _groups(training), _groups(every)
    by_key = {item.key: item for item in items}
    found = {}
    for name, guess in zip(NAMES, (_frequent, _question_only), strict=True):
        records = []
        for item, answer in guess(items, {group: known.get(group) or own[group] for group in _groups(items)}):
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


def _frequent(items: Sequence[Item], known: Known) -> Iterable[tuple[Item, Answer]]:
    for group, asked in _groups(items).items():
        for some, others in _without_own_scenes(asked, known[group]):
            answer = _usual(others)
            yield from ((item, answer) for item in some)


def _without_own_scenes(asked: Sequence[Item], pool: Sequence[Item]) -> Iterable[tuple[list[Item], list[Item]]]:
    """In five parts, as the usual answer hardly changes from scene to scene; scene by scene where a part is all."""
    for part in range(5):
        some = [item for item in asked if item.task % 5 == part]
        parts = [some] if _others(some, pool) else [[i for i in some if i.scene == s] for s in {i.scene for i in some}]
        for each in parts:
            if each and (others := _others(each, pool)):
                yield each, others


def _others(asked: Sequence[Item], pool: Sequence[Item]) -> list[Item]:
    """What is known of other scenes than those."""
    scenes = {item.scene for item in asked}
    return [item for item in pool if item.scene not in scenes]


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
    best = max(tried, key=lambda guess: relative_accuracies(guess, values).mean())
    return f"{best:.4g}"


def _question_only(items: Sequence[Item], known: Known) -> Iterable[tuple[Item, Answer]]:
    """From the questions most like it in words, of other scenes."""
    for group, asked in _groups(items).items():
        pool = known[group]
        words = {word: i for i, word in enumerate(sorted({w for item in pool for w in _words(item)}))}
        table = _table(pool, words)
        sizes = table.sum(axis=1)
        count = min(NEIGHBOURS, max(len(pool) // 8, 3))
        scenes = np.array([item.scene for item in pool])
        for item in asked:
            mine = _table([item], words)[0]
            shared = table @ mine
            alike = shared / np.maximum(sizes + mine.sum() - shared, 1.0)
            order = np.argsort(-alike, kind="stable")
            nearest = [pool[i] for i in order[scenes[order] != item.scene][:count]]
            if nearest:
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


