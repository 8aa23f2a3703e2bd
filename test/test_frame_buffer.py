"""The frame buffer never invents, never mixes times, and accounts for every frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.types import VegaError
from vega3d_ros.control.frame_buffer import FrameBuffer, Pushed

MS = 1_000_000
CAMERAS = ("a", "b")


def frame(value: int, size: int = 2) -> np.ndarray:
    return np.full((size, size, 3), value % 256, dtype=np.uint8)


def filled(window: int = 1, stride: int = 50 * MS, **kw: int) -> FrameBuffer:
    return FrameBuffer(CAMERAS, window=window, stride_ns=stride, max_skew_ns=20 * MS, **kw)


events = st.lists(st.tuples(st.sampled_from(CAMERAS), st.integers(0, 2000), st.booleans()), min_size=1, max_size=120)


@given(events, st.integers(1, 4), st.integers(1, 120), st.integers(0, 80), st.integers(4, 12))
def test_samples_hold_real_frames_near_their_time(events, window, stride_ms, skew_ms, capacity):
    buffer = FrameBuffer(CAMERAS, window, stride_ms * MS, skew_ms * MS, capacity=capacity)
    pushed: dict[tuple[str, int], list[np.ndarray]] = {}
    for number, (camera, ms, look) in enumerate(events):
        image = frame(number)
        buffer.push(camera, ms * MS, image)
        pushed.setdefault((camera, ms * MS), []).append(image)
        if not look:
            continue
        result = buffer.sample()
        if result is None:
            assert buffer.waiting_for.endswith(".")
            continue
        newest = [result.stamps_ns[c][-1] for c in CAMERAS]
        assert max(newest) - min(newest) <= skew_ms * MS
        common = min(buffer.newest_ns(c) for c in CAMERAS)
        for c in CAMERAS:
            stamps = result.stamps_ns[c]
            assert len(stamps) == window and np.all(np.diff(stamps) > 0)
            targets = common - stride_ms * MS * np.arange(window - 1, -1, -1)
            assert np.all(np.abs(stamps - targets) <= skew_ms * MS)
            for stamp, image in zip(stamps, result.images[c], strict=True):
                assert any(np.array_equal(image, real) for real in pushed[c, int(stamp)])


@given(events, st.integers(1, 3), st.integers(3, 8))
def test_every_frame_is_held_used_or_counted(events, window, capacity):
    buffer = FrameBuffer(CAMERAS, window, 50 * MS, 20 * MS, capacity=capacity)
    used: dict[str, set[int]] = {c: set() for c in CAMERAS}
    kept: dict[int, int] = {}
    for identity, (camera, ms, look) in enumerate(events, start=1):
        image = np.full((1, 1, 3), 0, dtype=np.uint8)
        image[0, 0] = [identity % 256, identity // 256, 0]
        if buffer.push(camera, ms * MS, image) is not Pushed.DROPPED:
            kept[identity] = ms
        result = buffer.sample() if look else None
        if result is not None:
            for c in CAMERAS:
                used[c] |= {int(i[0, 0, 0]) + 256 * int(i[0, 0, 1]) for i in result.images[c]}
    reasons = ("out_of_order", "stamp_jumped_back", "overwritten", "cleared")
    buffer.clear()
    for c in CAMERAS:
        lost = sum(buffer.drops[c, reason] for reason in reasons)
        assert buffer.received[c] == lost + len(used[c])
        assert buffer.held(c) == 0


def test_newest_common_time_wins_over_a_newer_frame_of_one_camera():
    buffer = filled()
    for stamp in (0, 50, 100):
        buffer.push("a", stamp * MS, frame(stamp))
    buffer.push("b", 52 * MS, frame(7))
    result = buffer.sample()
    assert result is not None and result.stamp_ns == 50 * MS
    assert result.stamps_ns["a"].tolist() == [50 * MS] and result.stamps_ns["b"].tolist() == [52 * MS]


def test_window_is_strided_and_oldest_first():
    buffer = filled(window=3, stride=100 * MS)
    for stamp in range(0, 301, 50):
        for camera in CAMERAS:
            buffer.push(camera, stamp * MS, frame(stamp // 50))
    result = buffer.sample()
    assert result is not None
    assert result.images["a"][:, 0, 0, 0].tolist() == [2, 4, 6]


def test_too_short_a_history_is_not_padded():
    buffer = filled(window=2)
    for camera in CAMERAS:
        buffer.push(camera, 0, frame(1))
    assert buffer.sample() is None
    assert "2 frames 50 ms apart" in buffer.waiting_for


def test_only_a_world_that_waited_may_take_the_first_frame_for_those_before_it():
    buffer = filled(window=3)
    for camera in CAMERAS:
        buffer.push(camera, 1000 * MS, frame(1))
        buffer.push(camera, 1050 * MS, frame(2))
    assert buffer.sample() is None and "3 frames" in buffer.waiting_for
    found = buffer.sample(from_rest=True)
    assert found is not None
    assert found.images["a"][:, 0, 0, 0].tolist() == [1, 1, 2]
    # A frame lost later is never made up for, nor what a clock that was set back has hidden.
    for camera in CAMERAS:
        buffer.push(camera, 1200 * MS, frame(3))
    assert buffer.sample(from_rest=True) is None
    for camera in CAMERAS:
        assert buffer.push(camera, 500 * MS, frame(4)) is Pushed.JUMPED_BACK
    assert buffer.sample(from_rest=True) is None
    buffer.clear()
    for camera in CAMERAS:
        buffer.push(camera, 600 * MS, frame(5))
    assert buffer.sample(from_rest=True) is not None


def test_half_a_period_keeps_the_previous_step_out():
    buffer = FrameBuffer(CAMERAS, max_skew_ns=60 * MS)
    for camera in CAMERAS:
        buffer.push(camera, 50 * MS, frame(1))
    assert buffer.sample(100 * MS, 25 * MS) is None
    assert buffer.sample(100 * MS) is not None


def test_skew_is_refused_and_counted_once_per_wish():
    buffer = filled()
    buffer.push("a", 0, frame(1))
    buffer.push("a", 100 * MS, frame(2))
    buffer.push("b", 60 * MS, frame(3))
    assert buffer.sample() is None and buffer.sample() is None
    assert buffer.drops["a", "skew"] == 1
    assert "max_skew_s" in buffer.waiting_for


def test_frames_on_either_side_of_the_common_time_may_not_be_too_far_apart():
    buffer = filled()
    buffer.push("a", 85 * MS, frame(1))
    buffer.push("b", 115 * MS, frame(2))
    assert buffer.sample(100 * MS) is None
    assert "30 ms apart" in buffer.waiting_for


@pytest.mark.parametrize(
    ("reason", "stamp", "now"), [("late", 0, 300), ("out_of_order", 95, 100), ("before_start", 5, 10)]
)
def test_drops_are_counted_by_reason(reason, stamp, now):
    buffer = filled(max_age_ns=250 * MS)
    if reason == "before_start":
        buffer.clear(not_before_ns=10 * MS)
    elif reason == "out_of_order":
        buffer.push("a", 100 * MS, frame(0), 100 * MS)
    assert buffer.push("a", stamp * MS, frame(1), now * MS) is Pushed.DROPPED
    assert buffer.drops["a", reason] == 1


def test_a_clock_set_back_empties_the_ring_and_says_so():
    buffer = filled()
    buffer.push("a", 5000 * MS, frame(1))
    assert buffer.push("a", 10 * MS, frame(2)) is Pushed.JUMPED_BACK
    assert buffer.drops["a", "stamp_jumped_back"] == 1
    assert buffer.newest_ns("a") == 10 * MS


def test_a_camera_that_changes_its_size_is_refused_in_one_sentence():
    buffer = filled()
    buffer.push("a", 0, frame(1))
    with pytest.raises(VegaError, match=r"Camera 'a' changed from 2x2 to 3x3: .*\.$"):
        buffer.push("a", 50 * MS, frame(2, size=3))
    assert buffer.drops["a", "wrong_size"] == 1


def test_samples_do_not_share_memory_with_the_ring():
    buffer = filled()
    for camera in CAMERAS:
        buffer.push(camera, 0, frame(9))
    first = buffer.sample()
    assert first is not None
    first.images["a"][:] = 0
    second = buffer.sample()
    assert second is not None and (second.images["a"] == 9).all()


@pytest.mark.parametrize(("cameras", "window"), [((), 1), (("a", "a"), 1), (("a",), 0)])
def test_impossible_settings_are_refused(cameras, window):
    with pytest.raises(VegaError):
        FrameBuffer(cameras, window=window)


def test_an_unknown_camera_is_named():
    with pytest.raises(VegaError, match=r"'c'.*'a', 'b'"):
        filled().push("c", 0, frame(0))
