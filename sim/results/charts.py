"""Line and bar charts as inline SVG.  Strings in, strings out; colours come from the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from policies.types import FloatArray

WIDTH, HEIGHT = 360, 132
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22


@dataclass(frozen=True)
class Series:
    """One line: x (n,), y (n,); style is the class that the page's CSS colours; steps draws held values."""

    x: FloatArray
    y: FloatArray
    style: str
    steps: bool = False


def line_chart(
    series: Sequence[Series], label: str, x_unit: str = "s", smallest_span: float = 0.0,
    y_range: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """A chart with ticks at round numbers.

    label: said to screen readers.  smallest_span: the y axis covers at least this much, so that noise stays small.
    y_range: what the y axis shows, where it is known.
    """
    lines = [line for line in series if line.x.size]
    if not lines:
        return '<p class="none">no data</p>'
    x_low, x_high = min(line.x.min() for line in lines), max(line.x.max() for line in lines)
    y_low, y_high = min(line.y.min() for line in lines), max(line.y.max() for line in lines)
    missing = max(smallest_span - (y_high - y_low), 1e-9, 0.08 * (y_high - y_low))
    y_low, y_high = y_low - missing / 2, y_high + missing / 2
    y_low, y_high = y_range or (y_low, y_high)
    x_high = max(x_high, x_low + 1e-9)

    def x_of(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return TOP + (y_high - value) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for value in ticks(y_low, y_high, 4):
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_number(value)}</text>')
    marks = ticks(x_low, x_high, 6)
    for i, value in enumerate(marks):
        unit = f" {x_unit}" if i == len(marks) - 1 else ""
        parts.append(
            f'<text class="tick" x="{x_of(value):.1f}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{_number(value)}{unit}</text>"
        )
    for line in lines:
        points = [(x_of(x), y_of(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts.append(f'<path class="{line.style}" d="{_path(points, line.steps)}"/>')
    return "".join([*parts, "</svg>"])


def bar_chart(rows: Sequence[tuple[str, Sequence[float]]], styles: Sequence[str], label: str, unit: str) -> str:
    """Horizontal bars over each other, one group a row, on one logarithmic axis.

    rows: (name, values in the order of `styles`), values above 0; larger values are drawn first, the first is written
    beside its bar.
    """
    values = [value for _, group in rows for value in group if value > 0]
    if not values:
        return '<p class="none">no data</p>'
    low = 10.0 ** math.floor(math.log10(min(values)) - 0.3)
    high = 10.0 ** math.ceil(math.log10(max(values)))
    left, width, height = 4, 360, 34 * len(rows) + 26
    span = width - left - 84

    def x_of(value: float) -> float:
        return left + span * (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))

    parts = [f'<svg class="chart bars" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    decade = low
    while decade <= high * 1.001:
        x = x_of(decade)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 20}"/>')
        anchor = "start" if decade == low else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - 6}" text-anchor="{anchor}">{_number(decade)} {unit}</text>'
        )
        decade *= 10.0
    for i, (name, group) in enumerate(rows):
        y = 34 * i + 4
        parts.append(f'<text class="name" x="{left}" y="{y + 11}">{escape(name)}</text>')
        for value, style in sorted(zip(group, styles, strict=True), reverse=True):
            length = max(x_of(value) - left, 1.0)
            parts.append(f'<rect class="{style}" x="{left}" y="{y + 15}" width="{length:.1f}" height="9" rx="2"/>')
        end = x_of(max(group)) + 5
        parts.append(f'<text class="tick" x="{end:.1f}" y="{y + 23}">{styles[0]} {_number(group[0])} {unit}</text>')
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(np.round(n * step, 12)) for n in range(first, last + 1)]


def _path(points: Sequence[tuple[float, float]], steps: bool) -> str:
    (x, y), *rest = points
    parts = [f"M{x:.1f} {y:.1f}"]
    for x, y in rest:
        parts.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def _number(value: float) -> str:
    """Short and without noise: 0.25, 12, 1.5."""
    if abs(value) < 1e-12:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
