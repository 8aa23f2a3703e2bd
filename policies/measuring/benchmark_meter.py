"""Measuring: latencies side by side, memory, and rows `name value threshold ok|FAIL`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

NAME_WIDTH = 58


@dataclass(frozen=True)
class Latency:
    """One line of the table.  Times in milliseconds, memory in megabytes."""

    name: str
    median_ms: float
    p99_ms: float
    memory_mb: float
    repeats: int


@dataclass(frozen=True)
class Work:
    """Something to measure: `run`, with the modules it uses.  cycle: queries after which its work repeats."""

    name: str
    run: Callable[[], object]
    parts: Sequence[nn.Module]
    cycle: int = 1


@dataclass
class Meter:
    """Measures on one device and prints as it goes.

    seconds: how long each work is repeated, at least `least` times.  rows: (name, value, threshold, good) so far, good
    being None where there is no threshold.
    """

    device: torch.device
    seconds: float
    least: int = 3
    latencies: list[Latency] = field(default_factory=list)
    rows: list[tuple[str, float, str, bool | None]] = field(default_factory=list)

    def table_head(self) -> None:
        print(f"{'':<{NAME_WIDTH}}{'median ms':>11}{'p99 ms':>11}{'memory MB':>11}{'repeats':>9}")

    def measure(self, *works: Work) -> list[Latency]:
        """Latency of each; several are run in turn, so that what disturbs the machine disturbs all of them."""
        first = [self._warm_up(work) for work in works]
        times: list[list[float]] = [[] for _ in works]
        peaks = [0.0] * len(works)
        rounds = max(self.least, int(self.seconds * len(works) / sum(first)))
        rounds = min(rounds, 1000)
        for _ in range(rounds):
            for i, work in enumerate(works):
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                times[i] += [self.seconds_of(work.run) for _ in range(work.cycle)]
                peaks[i] = max(peaks[i], self._memory(work.parts))
        found = []
        for work, values, peak in zip(works, times, peaks, strict=True):
            # Of a cycle of unlike queries the mean is what one costs; of like ones the median is steadier.
            middle = float(np.median(np.reshape(values, (-1, work.cycle)).mean(1)))
            p99 = float(np.percentile(values, 99))
            found.append(Latency(work.name, middle * 1e3, p99 * 1e3, peak, len(values)))
            row = found[-1]
            numbers = f"{row.median_ms:>11.2f}{row.p99_ms:>11.2f}{row.memory_mb:>11.0f}{row.repeats:>9}"
            print(f"{row.name:<{NAME_WIDTH}}{numbers}", flush=True)
        self.latencies += found
        return found

    def seconds_of(self, run: Callable[[], object]) -> float:
        """How long one run takes, until the device is done."""
        start = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def at_least(self, name: str, value: float, threshold: float) -> None:
        self._row(name, value, f">={threshold:g}", value >= threshold)

    def at_most(self, name: str, value: float, threshold: float) -> None:
        self._row(name, value, f"<={threshold:g}", value <= threshold)

    def information(self, name: str, value: float) -> None:
        """A row that nothing is asked of."""
        self._row(name, value, "-", None)

    @property
    def status(self) -> int:
        """Exit status: 1 if a row failed."""
        return int(any(good is False for *_, good in self.rows))

    def _row(self, name: str, value: float, threshold: str, good: bool | None) -> None:
        self.rows.append((name, value, threshold, good))
        print(f"{name} {value:.4g} {threshold} {'FAIL' if good is False else 'ok'}", flush=True)

    def _warm_up(self, work: Work) -> float:
        """Seconds of a cycle, the second one: the first compiles, allocates and fills caches."""
        for _ in range(2):
            seconds = sum(self.seconds_of(work.run) for _ in range(work.cycle))
        return seconds

    def _memory(self, parts: Sequence[nn.Module]) -> float:
        """On a GPU the peak while the work ran, on a CPU the weights."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        tensors = {t.data_ptr(): t for part in parts for t in (*part.parameters(), *part.buffers())}
        return sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6


def added_gb(run: Callable[[], object]) -> float:
    """How much more memory this process holds at most while `run` works than before (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _resident_gb("VmRSS")
    run()
    return _resident_gb("VmHWM") - before


def _resident_gb(kind: str) -> float:
    """VmRSS, now, or VmHWM, the peak."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) * 1024 / 1e9
