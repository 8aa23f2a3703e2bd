"""Evaluations on the same initial states: which of two solved what the other did not, and of two arms with seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Any

import numpy as np

from policies.types import FloatArray

Z_95 = 1.959964
SAMPLES = 1000  # drawn again for an interval (bootstrap, percentiles)


@dataclass(frozen=True)
class Pair:
    """Counts over the initial states that both runs tried.

    by_task: of each task, by how many states the second solved more.  difference: second minus first, percentage
    points; interval_95: of it, as `of_disagreements` has it.  p_value: exact two-sided McNemar, every state by itself;
    p_over_tasks: what a task's states made of it goes together, as in many suites they are one layout moved a little.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    by_task: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        return 100.0 * (self.only_second - self.only_first) / self.count if self.count else 0.0

    @property
    def interval_95(self) -> tuple[float, float]:
        return of_disagreements(self.only_first, self.only_second, self.count)

    @property
    def p_value(self) -> float:
        return mcnemar_exact(self.only_first, self.only_second)

    @property
    def p_over_tasks(self) -> float:
        return sign_flips_exact(self.by_task)


def of_disagreements(worse: float, better: float, count: int) -> tuple[float, float]:
    """95 % of the difference of `count` pairs, of which so many lost and so many gained, percentage points.

    Bonett and Price 2012: a pair is added to each kind of disagreement.  With few pairs that agree it is wide, as it
    should be; the plain Wald interval would have no width at all.
    """
    lost, won = (worse + 1) / (count + 2), (better + 1) / (count + 2)
    half = Z_95 * sqrt((lost + won - (won - lost) ** 2) / (count + 2))
    return 100.0 * max(won - lost - half, -1.0), 100.0 * min(won - lost + half, 1.0)


def sign_flips_exact(gained: Sequence[int]) -> float:
    """Two-sided p of the sum of what tasks gained, each as likely lost (Fisher's randomisation test, all outcomes).

    With one state a task it is `mcnemar_exact`.
    """
    sizes = [abs(each) for each in gained if each]
    middle, most = sum(sizes), abs(sum(gained))
    chance = np.zeros(2 * middle + 1)  # of each sum from -middle on
    chance[middle] = 1.0
    for size in sizes:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    return min(1.0, float(chance[np.abs(np.arange(-middle, middle + 1)) >= most].sum()))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of `only_first` against `only_second` discordant pairs: a binomial test at 1/2 (McNemar 1947)."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def compare_pair(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Pair:
    """Pair the episodes of two summaries by task and trial; those that only one run has are left out."""
    outcomes = [{(e["task"], e["trial"]): bool(e["success"]) for e in run} for run in (first, second)]
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    gained: dict[int, int] = {}
    for key in sorted(outcomes[0].keys() & outcomes[1].keys()):
        a, b = outcomes[0][key], outcomes[1][key]
        counts[a, b] += 1
        gained[key[0]] = gained.get(key[0], 0) + b - a
    both, neither = counts[True, True], counts[False, False]
    return Pair(both, counts[True, False], counts[False, True], neither, tuple(gained.values()))


@dataclass(frozen=True)
class ArmDifference:
    """Of two arms with as many seeds each, percentage points, second less first; seeds: of each of them.

    states: initial states that all runs tried, of so many tasks.  interval_95: percentiles over tasks and seeds, both
    drawn again with replacement; what both arms and all seeds made of all of a task's states goes together.  A task's
    states are often one layout moved a little, solved all or none: drawn one by one they would pass for much more than
    was tried.  Where all tasks gained alike there is nothing to draw: it is then `of_disagreements`, of tasks.
    """

    states: int
    tasks: int
    difference: float
    interval_95: tuple[float, float]
    seeds: tuple[float, ...]


Episodes = Sequence[Mapping[str, Any]]


def compare_arms(first: Sequence[Episodes], second: Sequence[Episodes]) -> ArmDifference:
    """The episodes of a run for every seed of two arms, in the same order of seeds; as many of each, at least one.

    States that not all runs have without an error are left out.  Of one task nothing is known of others: -100 to 100.
    """
    runs = [{(e["task"], e["trial"]): float(e["success"]) for e in run if not e["error"]} for run in (*first, *second)]
    states = sorted(set.intersection(*(set(run) for run in runs)))
    if not states:
        return ArmDifference(0, 0, 0.0, (-100.0, 100.0), (0.0,) * len(first))
    table = np.array([[run[state] for state in states] for run in runs]).reshape(2, len(first), len(states))
    gained = table[1] - table[0]  # (seeds, states)
    each = tuple(100 * float(value) for value in gained.mean(axis=1))
    _, begins, counts = np.unique([task for task, _ in states], return_index=True, return_counts=True)
    interval = (-100.0, 100.0)
    if len(counts) > 1:
        rng = np.random.default_rng(0)
        by_task, by_seed = drawn_again(rng, len(counts)), drawn_again(rng, len(first))
        sums = np.add.reduceat(gained, begins, axis=1)  # (seeds, tasks): a task's states stand side by side
        samples = np.einsum("kr,kf,rf->k", by_seed, by_task, sums, optimize=True) / (by_task @ counts) / len(first)
        interval = percentiles(samples)
        if interval[0] == interval[1]:  # alike in all tasks: drawn again it is always the same, and would look certain
            gain = len(counts) * float(gained.mean())
            interval = of_disagreements(max(-gain, 0.0), max(gain, 0.0), len(counts))
    return ArmDifference(len(states), len(counts), 100 * float(gained.mean()), interval, each)


def drawn_again(rng: np.random.Generator, count: int) -> FloatArray:
    """(SAMPLES, count) how often each of so many is drawn in as many draws with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), SAMPLES).astype(np.float64)


def percentiles(values: FloatArray) -> tuple[float, float]:
    """The middle 95 % of samples, as per cent."""
    low, high = np.nanpercentile(100 * values, (2.5, 97.5))
    return round(float(low), 2), round(float(high), 2)
