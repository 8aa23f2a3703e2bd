"""What the node knows about itself, as diagnostic_msgs: rates, staleness, latencies, counts of everything dropped.

The counters are plain Python, updated from the executor's thread; `diagnostic_array` turns them into a message.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from vega3d_ros.ros.conversions import time_message

_NUMBER = re.compile(r"(?<![\w.])-?\d+(\.\d+)?(?!\w)")  # standing alone, no part of a name


class Level(IntEnum):
    """Levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Status:
    """One line of a diagnostic report: a level, one sentence, and named values."""

    name: str
    level: Level
    sentence: str
    values: Mapping[str, object] = field(default_factory=dict)


class Stream:
    """Arrivals of one input: how many, how fast, how long ago.  Times are seconds of time.monotonic()."""

    def __init__(self, window_s: float = 5.0) -> None:
        self.count = 0
        self.problem = ""
        self._window_s = window_s
        self._arrivals: deque[float] = deque(maxlen=4096)
        self._last_s = float("-inf")

    def arrived(self, now_s: float | None = None) -> None:
        self.count += 1
        self._last_s = time.monotonic() if now_s is None else now_s
        self._arrivals.append(self._last_s)

    def rate_hz(self, now_s: float) -> float:
        """Mean rate over the last seconds; 0 after silence."""
        while self._arrivals and now_s - self._arrivals[0] > self._window_s:
            self._arrivals.popleft()
        if len(self._arrivals) < 2:
            return 0.0
        return (len(self._arrivals) - 1) / max(1e-9, now_s - self._arrivals[0])

    def age_s(self, now_s: float) -> float:
        """Seconds since the last arrival; infinite before the first."""
        return now_s - self._last_s

    def values(self, now_s: float) -> dict[str, object]:
        return {
            "received": self.count,
            "rate_hz": f"{self.rate_hz(now_s):.2f}",
            "age_s": f"{self.age_s(now_s):.3f}",
        }


class Latencies:
    """Percentiles of each stage over its last `window` occurrences, in milliseconds."""

    def __init__(self, window: int = 1000) -> None:
        self._window = window
        self._stages: dict[str, deque[float]] = {}

    def add(self, stage: str, milliseconds: float) -> None:
        self._stages.setdefault(stage, deque(maxlen=self._window)).append(milliseconds)

    def add_all(self, timings_ms: Mapping[str, float], prefix: str = "") -> None:
        for stage, milliseconds in timings_ms.items():
            self.add(prefix + stage, float(milliseconds))

    def values(self) -> dict[str, object]:
        """`<stage>_ms_p50`, `_p95`, `_p99` and `<stage>_count` (of the window) for every stage seen."""
        values: dict[str, object] = {}
        for stage, samples in sorted(self._stages.items()):
            percents = (50, 95, 99)
            found = np.percentile(np.fromiter(samples, dtype=np.float64, count=len(samples)), percents)
            values |= {f"{stage}_ms_p{percent}": f"{value:.3f}" for percent, value in zip(percents, found, strict=True)}
            values[f"{stage}_count"] = len(samples)
        return values


def counts(counter: Mapping[str, int] | Counter[str]) -> dict[str, object]:
    """Counters as values, in a stable order."""
    return {name: counter[name] for name in sorted(counter)}


def diagnostic_array(statuses: Iterable[Status], node_name: str, hardware_id: str, now_ns: int) -> DiagnosticArray:
    """The message for /diagnostics; every status carries `hardware_id` and is named `<node>: <name>`."""
    message = DiagnosticArray()
    message.header.stamp = time_message(max(0, now_ns))
    for status in statuses:
        item = DiagnosticStatus()
        item.level = bytes([status.level])
        item.name = f"{node_name}: {status.name}"
        item.message = status.sentence
        item.hardware_id = hardware_id
        item.values = [KeyValue(key=key, value=str(value)) for key, value in status.values.items()]
        message.status.append(item)
    return message


def is_news(sentence: str, said: str) -> bool:
    """Whether a sentence is worth a line in the log after the last: with other numbers alone it is not."""
    return _NUMBER.sub("", sentence) != _NUMBER.sub("", said)


def say(logger: Any, level: Level, sentence: str, waiting: bool) -> None:
    """Log what /diagnostics says, in the severity it deserves; waiting for a first input is no error."""
    # Three statements: rclpy ties a severity to the line that logs.
    if waiting:
        logger.info(f"Waiting: {sentence}")
    elif level is Level.ERROR:
        logger.error(sentence)
    else:
        logger.warning(sentence)
