"""Two evaluations on the same initial states: which of them solved what the other did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Any

Z_95 = 1.959964


@dataclass(frozen=True)
class Pair:
    """Counts over the initial states that both runs tried.

    difference: second minus first, percentage points.  p_value: exact two-sided McNemar.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def count(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        return 100.0 * (self.only_second - self.only_first) / self.count if self.count else 0.0

    @property
    def interval_95(self) -> tuple[float, float]:
        """Of the difference, percentage points: Bonett and Price 2012, a pair added to each kind of disagreement.

        With few pairs that agree it is wide, as it should be; the plain Wald interval would have no width at all.
        """
        count = self.count + 2
        worse, better = (self.only_first + 1) / count, (self.only_second + 1) / count
        half = Z_95 * sqrt((worse + better - (better - worse) ** 2) / count)
        return 100.0 * max(better - worse - half, -1.0), 100.0 * min(better - worse + half, 1.0)

    @property
    def p_value(self) -> float:
        return mcnemar_exact(self.only_first, self.only_second)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of `only_first` against `only_second` discordant pairs: a binomial test at 1/2 (McNemar 1947)."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def compare_pair(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Pair:
    """Pair the episodes of two summaries by task and trial; those that only one run has are left out."""
    outcomes = [{(e["task"], e["trial"]): bool(e["success"]) for e in run} for run in (first, second)]
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for key in outcomes[0].keys() & outcomes[1].keys():
        counts[outcomes[0][key], outcomes[1][key]] += 1
    return Pair(counts[True, True], counts[True, False], counts[False, True], counts[False, False])
