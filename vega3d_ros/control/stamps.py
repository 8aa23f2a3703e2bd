"""How the stamps of one input relate to this node's clock: how far off, whether that grows, and what helps; and two
clocks read as one.

NumPy only; used from one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WINDOW_S = 0.5
MOST_WINDOWS = 512
SHORTEST_S = 2.0  # over less, growth cannot be told from jitter
LEAST_GROWTH_S = 0.002
STEADY = 0.3  # share of the whole slope that each half must have
EPOCH_NS = 10**18  # a clock that shows less (September 2001) does not count from 1970
BOOT_NEAR_S = 5.0
READINGS, CLOSE_NS = 8, 20_000
_BOOT_CLOCKS = ("CLOCK_MONOTONIC", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW")


def read_at_once(other_ns: Callable[[], int]) -> tuple[int, int]:
    """time.monotonic_ns() and another clock at the same time.

    A thread that is interrupted between the two would shift the stamp of a trajectory against its path, and the
    controller would join that with a jump: at 1 rad/s of 0.1 mrad for 0.1 ms.
    """
    readings = []
    for _ in range(READINGS):
        before = time.monotonic_ns()
        other = other_ns()
        apart = time.monotonic_ns() - before
        readings.append((apart, before + apart // 2, other))
        if apart < CLOSE_NS:
            break
    return min(readings)[1:]


@dataclass
class _Window:
    """The least offset of the messages that came within a short time: what is left is not the network's."""

    begun_s: float
    offset_s: float


class StampWatch:
    """Offsets of an input's stamps: now minus stamp, s; positive where the stamps are behind, as they should be."""

    def __init__(self) -> None:
        self._windows: list[_Window] = []
        self._width_s = WINDOW_S
        self._last_ns: int | None = None
        self._now_ns = 0
        self.repeats = 0

    def seen(self, stamp_ns: int, now_ns: int, now_s: float) -> None:
        """A message with this stamp came at now_ns of the node's clock, now_s of a steady one."""
        self.repeats = self.repeats + 1 if stamp_ns == self._last_ns else 0
        self._last_ns, self._now_ns = stamp_ns, now_ns
        if self.repeats and stamp_ns:
            return  # a driver that hangs says nothing about clocks
        offset_s = (now_ns - stamp_ns) / 1e9
        last = self._windows[-1] if self._windows else None
        if last is not None and abs(offset_s - last.offset_s) > max(1.0, 2 * (now_s - last.begun_s)):
            self._windows.clear()  # one of the clocks was set
            last = None
        if last is not None and now_s - last.begun_s < self._width_s:
            last.offset_s = min(last.offset_s, offset_s)
            return
        self._windows.append(_Window(now_s, offset_s))
        if len(self._windows) > MOST_WINDOWS:
            pairs = zip(self._windows[::2], self._windows[1::2], strict=False)
            self._windows = [_Window(a.begun_s, min(a.offset_s, b.offset_s)) for a, b in pairs]
            self._width_s *= 2.0

    @property
    def offset_s(self) -> float:
        """Now minus stamp, s; NaN before the first message."""
        return self._windows[-1].offset_s if self._windows else float("nan")

    @property
    def growth(self) -> float:
        """s per s by which the offset grows (negative: it falls), 0 where it does not or this cannot be told yet."""
        windows = self._windows[:-1]  # the last one has not ended
        if len(windows) < 4 or windows[-1].begun_s - windows[0].begun_s < SHORTEST_S:
            return 0.0
        times = np.array([window.begun_s - windows[0].begun_s for window in windows])
        offsets = np.array([window.offset_s for window in windows])
        slope, start = np.polyfit(times, offsets, 1)
        noise = float(np.median(np.abs(offsets - (start + slope * times))))
        if abs(slope) * times[-1] <= max(LEAST_GROWTH_S, 6.0 * noise):
            return 0.0
        # A clock that was set is a step in one half; one that ticks differently goes on in both.
        middle = len(times) // 2
        halves = [np.polyfit(times[part], offsets[part], 1)[0] for part in (slice(middle), slice(middle, None))]
        return float(slope) if min(half / slope for half in halves) > STEADY else 0.0

    def sentence(self, what: str, of_camera: bool = True) -> str:
        """What is wrong with the stamps of `what`, and what helps; of_camera: or of another input."""
        stamp_ns = self._last_ns or 0
        if stamp_ns == 0:
            return f"{what} has stamps of zero: its driver sets none; use one that does (docs/deploying.md, cameras)."
        behind = self.offset_s
        size = f"{abs(behind):.2f} s {'behind' if behind >= 0 else 'ahead of'} this node's clock"
        if stamp_ns < EPOCH_NS <= self._now_ns:
            boot = any(abs(_clock_s(name) - stamp_ns / 1e9) < BOOT_NEAR_S for name in _BOOT_CLOCKS)
            origin = (
                "the clock that counts from this machine's boot" if boot else "a clock that does not count from 1970"
            )
            return (
                f"{what} is stamped by {origin}, {size}: have its driver stamp with ROS time (docs/deploying.md, "
                "cameras), or set use_sim_time if it is simulated."
            )
        if self._now_ns < EPOCH_NS <= stamp_ns:
            return f"{what} is stamped {size}, which is simulated: set use_sim_time to match the robot."
        return f"{what} is stamped {size}, {self._course()}: {self._remedy(of_camera)}."

    def _course(self) -> str:
        growth = self.growth
        if not growth:
            return "which does not grow"
        per_hour_s = abs(growth) * 3600.0
        amount = f"{1e3 * per_hour_s:.0f} ms an hour" if per_hour_s < 10.0 else f"{1e3 * abs(growth):.1f} ms a second"
        return f"which {'grows' if growth * self.offset_s > 0 else 'shrinks'} by {amount}"

    def _remedy(self, of_camera: bool) -> str:
        growth, behind = self.growth, self.offset_s
        if growth > 0.5:
            return "it is falling behind or repeats old messages; restart its driver, or lower its rate"
        if growth:
            option = "with v4l2_camera set use_v4l2_buffer_timestamps: false, " if of_camera else ""
            return f"its driver takes stamps from another clock than ROS; {option}on another machine run chrony on both"
        if behind >= 0 and of_camera:
            return (
                "synchronise the clocks (chrony), restart a driver that took its offset before they were set "
                "(usb_cam), or raise max_age_s if it is the camera's own delay"
            )
        if behind >= 0:
            return "synchronise the clocks (chrony), restart its driver, or raise max_age_s if the delay is its own"
        return "synchronise the clocks, or set use_sim_time to match the robot"

    def values(self) -> dict[str, object]:
        """For /diagnostics."""
        if not self._windows:
            return {}
        return {
            "stamp_offset_ms": f"{1e3 * self.offset_s:.1f}",
            "stamp_growth_ms_per_hour": f"{3.6e6 * self.growth:.0f}",
        }


def _clock_s(name: str) -> float:
    number = getattr(time, name, None)
    return time.clock_gettime(number) if number is not None else float("nan")
