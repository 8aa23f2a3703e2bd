"""Stamped camera frames, sampled at the newest time that all cameras have in common.  NumPy only.

One ring per camera.  A sample is a window of real frames for every camera: nothing is interpolated or
filled in, and every frame that is thrown away is counted with the reason.  A robot waits until the window
is full.  Only where the world itself waits for us (lockstep) it cannot fill: before the first step nothing
moves, so there the first frame also shows what was before it (`from_rest`).
Used from one thread.  Times are integer nanoseconds on the clock of the image headers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from policies.types import Image, VegaError


class Pushed(Enum):
    """What became of a frame."""

    KEPT = "kept"
    DROPPED = "dropped"
    JUMPED_BACK = "jumped back"  # the camera's clock was set back; its older frames are gone, this one is kept


@dataclass(frozen=True)
class FrameSet:
    """Windows of all cameras around one time.

    images: camera -> (T, H, W, 3) uint8 RGB, oldest first.
    stamps_ns: camera -> (T,) int64, strictly increasing but for a first frame that `from_rest` repeats.
    stamp_ns: the common time, that is the oldest of the cameras' newest frames.
    """

    images: dict[str, Image]
    stamps_ns: dict[str, NDArray[np.int64]]
    stamp_ns: int


@dataclass
class _Frame:
    stamp_ns: int
    image: Image
    used: bool = False


class FrameBuffer:
    """Rings of frames for `cameras`.

    window: frames per camera in a sample; stride_ns: distance of two of them.
    max_skew_ns: how far a frame may lie from the time it stands for; frames of different cameras
        in one sample are never further apart than this.
    max_age_ns: frames older than this on arrival are dropped as late; None where the sender's
        clock is not ours (a simulator that waits for us).
    service: of the node, after which a camera may have another size.
    capacity: frames kept per camera; by default enough for the window at 120 frames a second.
    drops: (camera, reason) -> count.  Reasons: late, before_start, out_of_order, stamp_jumped_back,
        wrong_size, wrong_encoding, overwritten (left the ring without having been in a sample),
        skew (passed over because no other camera had a frame near it), cleared.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        window: int = 1,
        stride_ns: int = 50_000_000,
        max_skew_ns: int = 60_000_000,
        max_age_ns: int | None = None,
        capacity: int | None = None,
        service: str = "~/start",
    ) -> None:
        if not cameras or len(set(cameras)) != len(cameras):
            raise VegaError(f"The cameras {list(cameras)} are empty or not distinct: name each camera once.")
        if window < 1 or stride_ns < 1 or max_skew_ns < 0:
            raise VegaError(
                f"A window of {window} frames, {stride_ns} ns apart, with a skew of {max_skew_ns} ns cannot be "
                "sampled: give a window and stride of at least 1 and a skew of at least 0."
            )
        span_ns = (window - 1) * stride_ns + 2 * max_skew_ns
        self.cameras = tuple(cameras)
        self.window = window
        self.stride_ns = stride_ns
        self.max_skew_ns = max_skew_ns
        self.max_age_ns = max_age_ns
        self._service = service
        self.capacity = capacity or max(8, window, span_ns * 120 // 1_000_000_000 + 1)
        if self.capacity < window:
            raise VegaError(f"A ring of {self.capacity} frames cannot hold a window of {window}: raise the capacity.")
        self.drops: Counter[tuple[str, str]] = Counter()
        self.received: Counter[str] = Counter()
        self.waiting_for = "No camera frame has arrived yet."
        self._rings: dict[str, list[_Frame]] = {camera: [] for camera in self.cameras}
        self._first_ns: dict[str, int | None] = {}  # since the last `clear`; None after a jump back
        self._not_before_ns: int | None = None
        self._last_skew_ns: int | None = None

    def push(self, camera: str, stamp_ns: int, image: Image, now_ns: int | None = None) -> Pushed:
        """Add a (H, W, 3) uint8 RGB frame; `now_ns` is the time on the clock of the stamps, if known.

        Raises VegaError, after counting the drop, if the camera changed its image size.
        """
        ring = self._ring(camera)
        self.received[camera] += 1
        if self._not_before_ns is not None and stamp_ns < self._not_before_ns:
            return self._drop(camera, "before_start")
        if self.max_age_ns is not None and now_ns is not None and now_ns - stamp_ns > self.max_age_ns:
            return self._drop(camera, "late")
        result = Pushed.KEPT
        if ring and stamp_ns <= ring[-1].stamp_ns:
            if ring[-1].stamp_ns - stamp_ns <= self.max_skew_ns:
                return self._drop(camera, "out_of_order")
            self._forget(camera, ring, "stamp_jumped_back")
            ring.clear()
            self._first_ns[camera] = None
            result = Pushed.JUMPED_BACK
        if ring and ring[-1].image.shape != image.shape:
            self._drop(camera, "wrong_size")
            raise VegaError(
                f"Camera '{camera}' changed from {_size(ring[-1].image)} to {_size(image)}: keep the size while the "
                f"node is active, or call {self._service} again."
            )
        if len(ring) == self.capacity:
            self._forget(camera, [ring.pop(0)], "overwritten")
        ring.append(_Frame(stamp_ns, image))
        self._first_ns.setdefault(camera, stamp_ns)
        return result

    def reject(self, camera: str, reason: str) -> None:
        """Count a frame that could not even be read, such as one of a wrong encoding."""
        self._ring(camera)
        self.received[camera] += 1
        self._drop(camera, reason)

    def sample(
        self, at_ns: int | None = None, tolerance_ns: int | None = None, from_rest: bool = False
    ) -> FrameSet | None:
        """Windows at the newest common time, or at `at_ns`; None, and `waiting_for`, if there are none.

        tolerance_ns tightens `max_skew_ns` for this sample: half a control period makes the choice
        among periodic frames unique, which a world that waits for us needs to be reproducible.
        from_rest: what came before a camera's first frame since `clear` looked like that frame.
        """
        tolerance = self.max_skew_ns if tolerance_ns is None else min(tolerance_ns, self.max_skew_ns)
        silent = [camera for camera in self.cameras if not self._rings[camera]]
        if silent:
            self.waiting_for = f"No frame from {_names(silent)}: start the driver or correct the topic."
            return None
        time_ns = min(self._rings[camera][-1].stamp_ns for camera in self.cameras) if at_ns is None else at_ns
        chosen = {camera: self._window(camera, time_ns, tolerance, from_rest) for camera in self.cameras}
        missing = [camera for camera, frames in chosen.items() if frames is None]
        if missing:
            self.waiting_for = (
                f"{_names(missing, capital=True)} gave no {self._window_text()} within {tolerance / 1e6:.0f} ms of the "
                "common time: check rates and clocks, or raise max_skew_s."
            )
            self._count_skew(missing, time_ns)
            return None
        windows = {camera: frames for camera, frames in chosen.items() if frames is not None}
        newest = [frames[-1].stamp_ns for frames in windows.values()]
        if max(newest) - min(newest) > self.max_skew_ns:
            apart_ms = (max(newest) - min(newest)) / 1e6
            self.waiting_for = f"The cameras are {apart_ms:.0f} ms apart: synchronise them or raise max_skew_s."
            self._count_skew(self.cameras, time_ns)
            return None
        for frames in windows.values():
            for frame in frames:
                frame.used = True
        self.waiting_for = ""
        return FrameSet(
            images={camera: _stack(frames) for camera, frames in windows.items()},
            stamps_ns={
                camera: np.array([frame.stamp_ns for frame in frames], dtype=np.int64)
                for camera, frames in windows.items()
            },
            stamp_ns=min(newest),
        )

    def newest_ns(self, camera: str) -> int | None:
        """Stamp of the newest frame held, None if there is none."""
        ring = self._ring(camera)
        return ring[-1].stamp_ns if ring else None

    def held(self, camera: str) -> int:
        """Frames in the ring now."""
        return len(self._ring(camera))

    def clear(self, not_before_ns: int | None = None) -> None:
        """Forget all frames; from now on refuse those stamped before `not_before_ns`."""
        for camera, ring in self._rings.items():
            self._forget(camera, ring, "cleared")
            ring.clear()
        self._first_ns.clear()
        self._not_before_ns = not_before_ns
        self._last_skew_ns = None
        self.waiting_for = "No camera frame has arrived since the start."

    def _window(self, camera: str, time_ns: int, tolerance_ns: int, from_rest: bool) -> list[_Frame] | None:
        ring, first_ns = self._rings[camera], self._first_ns.get(camera) if from_rest else None
        frames: list[_Frame] = []
        stamps = [frame.stamp_ns for frame in ring]
        for k in range(self.window - 1, -1, -1):
            wanted_ns = time_ns - k * self.stride_ns
            if first_ns is not None:
                wanted_ns = max(wanted_ns, first_ns)
            nearest = _nearest(stamps, wanted_ns)
            repeats = bool(frames) and stamps[nearest] <= frames[-1].stamp_ns
            far = abs(stamps[nearest] - wanted_ns) > tolerance_ns
            if far or (repeats and stamps[nearest] != first_ns):
                return None
            frames.append(ring[nearest])
        return frames

    def _window_text(self) -> str:
        return "frame" if self.window == 1 else f"{self.window} frames {self.stride_ns / 1e6:.0f} ms apart, each"

    def _count_skew(self, cameras: Iterable[str], time_ns: int) -> None:
        if time_ns == self._last_skew_ns:  # the same wish, asked again, is one loss
            return
        self._last_skew_ns = time_ns
        for camera in cameras:
            self.drops[camera, "skew"] += 1

    def _drop(self, camera: str, reason: str) -> Pushed:
        self.drops[camera, reason] += 1
        return Pushed.DROPPED

    def _forget(self, camera: str, frames: Iterable[_Frame], reason: str) -> None:
        unused = sum(not frame.used for frame in frames)
        if unused:
            self.drops[camera, reason] += unused

    def _ring(self, camera: str) -> list[_Frame]:
        if camera not in self._rings:
            raise VegaError(f"There is no camera '{camera}': the policy uses {_names(self.cameras)}.")
        return self._rings[camera]


def _nearest(stamps: Sequence[int], wanted_ns: int) -> int:
    """Index of the stamp nearest to it, of two the earlier; stamps rise and there is one."""
    after = bisect_left(stamps, wanted_ns)
    if after == len(stamps):
        return after - 1
    return after - 1 if after and wanted_ns - stamps[after - 1] <= stamps[after] - wanted_ns else after


def _stack(frames: Sequence[_Frame]) -> Image:
    # A policy may write into what it is given.
    return frames[0].image[None].copy() if len(frames) == 1 else np.stack([frame.image for frame in frames])


def _names(cameras: Iterable[str], capital: bool = False) -> str:
    quoted = ", ".join(f"'{camera}'" for camera in cameras)
    return f"{'Camera' if capital else 'camera'} {quoted}"


def _size(image: Image) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
