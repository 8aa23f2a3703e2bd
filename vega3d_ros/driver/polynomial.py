"""The polynomial between two states of a path, and how far and how fast it goes: NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.types import FloatArray

SHORTEST_S = 1e-9  # two states closer together than a message can say make a speed that no arm has
NEGLIGIBLE = 1e-12  # share of the largest coefficient


class Polynomial:
    """That of least degree from one state to another in `seconds`, of n joints: linear, cubic or quintic.

    ends: what both give, (before, after) (n,) each: positions; velocities; accelerations.
    """

    def __init__(self, seconds: float, ends: Sequence[tuple[FloatArray, FloatArray]]) -> None:
        self.seconds = max(SHORTEST_S, seconds)
        degree = 2 * len(ends) - 1
        rows = [_powers(np.array([s]), degree, order)[0] for order in range(len(ends)) for s in (0.0, 1.0)]
        wanted = [values * self.seconds**order for order, pair in enumerate(ends) for values in pair]
        # In shares of the time: in seconds the system would be singular for the shortest.
        self._coefficients = np.linalg.solve(np.array(rows), np.array(wanted))

    def at(self, since_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Positions and velocities (m, n) at times (m,) s from its beginning."""
        degree = len(self._coefficients) - 1
        shares = since_s / self.seconds
        positions, velocities = (_powers(shares, degree, order) @ self._coefficients for order in (0, 1))
        return positions, velocities / self.seconds

    def extremes(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Lowest and highest position, and the largest speed, (n,) each: at an end, or where what it changes with is
        zero inside."""
        places = self._where_turning(0)
        return places.min(axis=0), places.max(axis=0), np.abs(self._where_turning(1)).max(axis=0) / self.seconds

    def _where_turning(self, order: int) -> FloatArray:
        """The derivative of that order at both ends, and where it may turn, (k, n)."""
        derived = _derive(self._coefficients, order)
        ends = np.stack([np.zeros(derived.shape[1]), np.ones(derived.shape[1])])
        shares = np.vstack([ends, _roots(_derive(derived, 1))])
        return sum((c * shares**k for k, c in enumerate(derived)), np.zeros_like(shares))


def _powers(t: FloatArray, degree: int, order: int) -> FloatArray:
    """Row i r with r @ coefficients = the derivative of that order, at t[i], of the polynomial sum c_k t^k."""
    rows = np.zeros((len(t), degree + 1))
    for k in range(order, degree + 1):
        rows[:, k] = np.prod(np.arange(k - order + 1, k + 1)) * t ** (k - order)
    return rows


def _derive(coefficients: FloatArray, order: int) -> FloatArray:
    for _ in range(order):
        coefficients = coefficients[1:] * np.arange(1, len(coefficients))[:, None]
    return coefficients


def _roots(coefficients: FloatArray) -> FloatArray:
    """Real parts, brought into 0 to 1, of the roots of n polynomials sum c_k s^k: (degree, n) of (degree + 1, n).

    What is no real root inside is a place like any other, at which looking does no harm.
    """
    degree, n = len(coefficients) - 1, coefficients.shape[1]
    if degree < 1:
        return np.zeros((0, n))
    largest = np.abs(coefficients).max(axis=0)
    least = np.where(largest > 0.0, NEGLIGIBLE * largest, 1.0)
    leading = np.where(np.abs(coefficients[-1]) < least, least, coefficients[-1])
    companions = np.zeros((n, degree, degree))
    companions[:, np.arange(1, degree), np.arange(degree - 1)] = 1.0
    companions[:, :, -1] = -(coefficients[:-1] / leading).T
    found: FloatArray = np.linalg.eigvals(companions).real.clip(0.0, 1.0).T
    return found
