"""Stamps that are off: the sentence says by how much, whether that grows, and what helps."""

from __future__ import annotations

import time

import numpy as np
import pytest

from vega3d_ros.control.stamps import StampWatch, read_at_once

NOW_NS = 1_790_000_000 * 10**9


def watched(offset_s, seconds: float = 10.0, rate_hz: float = 30.0, now_ns: int = NOW_NS) -> StampWatch:
    """Of a stream with some network delay; offset_s(t): now minus stamp without it."""
    watch, rng = StampWatch(), np.random.default_rng(0)
    for step in range(int(seconds * rate_hz)):
        t = step / rate_hz
        delay_s = 0.001 + rng.exponential(0.003)
        now = now_ns + round(t * 1e9)
        watch.seen(now - round((offset_s(t) + delay_s) * 1e9), now, 100.0 + t)
    return watch


@pytest.mark.parametrize("offset_s", [3600.0, 0.4])
def test_old_stamps_of_a_clock_that_is_not_set(offset_s):
    watch = watched(lambda t: offset_s)
    sentence = watch.sentence("Camera 'wrist'")
    assert f"{offset_s:.2f} s behind this node's clock, which does not grow" in sentence
    assert "chrony" in sentence and watch.growth == 0.0
    assert watch.offset_s == pytest.approx(offset_s, abs=0.01)


@pytest.mark.parametrize("offset_s", [lambda t: 0.4, lambda t: -0.4 - 0.001 * t])
def test_what_helps_a_camera_is_not_told_of_joint_states(offset_s):
    sentence = watched(offset_s).sentence("joint_states", of_camera=False)
    assert "chrony" in sentence and not any(word in sentence for word in ("camera", "usb_cam", "v4l2"))


def test_stamps_that_run_ahead_name_the_driver_option_that_helps():
    """The two monotonic clocks of a v4l2 camera: 0.14 s in two hours, here in one."""
    watch = watched(lambda t: -0.14 * t / 3600.0, seconds=3600.0, rate_hz=4.0)
    sentence = watch.sentence("Camera 'wrist'")
    assert "0.14 s ahead of this node's clock, which grows by 140 ms an hour" in sentence
    assert "use_v4l2_buffer_timestamps: false" in sentence


def test_a_fast_drift_is_known_within_seconds_and_jitter_is_none():
    assert watched(lambda t: -0.02 * t, seconds=5.0).growth == pytest.approx(-0.02, rel=0.2)
    assert "grows by 20" in watched(lambda t: -0.02 * t, seconds=5.0).sentence("joint_states")
    assert watched(lambda t: 0.0, seconds=60.0).growth == 0.0


def test_stamps_of_zero_and_of_the_boot_clock():
    watch = StampWatch()
    for step in range(5):
        watch.seen(0, NOW_NS + step, float(step))
    assert "stamps of zero" in watch.sentence("Camera 'wrist'")
    boot_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    watch.seen(boot_ns, NOW_NS, 1.0)
    sentence = watch.sentence("Camera 'wrist'")
    assert "boot" in sentence and f"{(NOW_NS - boot_ns) / 1e9:.2f} s behind" in sentence
    watch.seen(boot_ns + 10**15, NOW_NS, 2.0)
    assert "does not count from 1970" in watch.sentence("Camera 'wrist'")


def test_a_clock_that_is_simulated_here_only():
    watch = watched(lambda t: -1.79e9, now_ns=10**9)
    assert "set use_sim_time" in watch.sentence("joint_states")


def test_a_camera_that_falls_behind():
    assert "falling behind" in watched(lambda t: 0.8 * t).sentence("Camera 'wrist'")


def test_a_clock_that_is_set_begins_anew():
    watch = watched(lambda t: 3600.0 if t < 5 else 0.0)
    assert watch.growth == 0.0 and watch.offset_s < 0.01


@pytest.mark.parametrize("when_s", [2.0, 5.0, 8.0])
def test_a_clock_that_is_set_by_a_little_is_no_drift(when_s):
    watch = watched(lambda t: 0.0 if t < when_s else 0.4)
    assert watch.growth == 0.0 and "which does not grow" in watch.sentence("Camera 'wrist'")


def test_two_clocks_are_read_at_the_same_time_though_the_thread_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000]

    def passes(nanoseconds: int) -> int:
        clock[0] += nanoseconds
        return clock[0]

    interrupted = iter((30_000_000, 5_000_000, 2_000, 0))
    monkeypatch.setattr(time, "monotonic_ns", lambda: passes(500))
    here, there = read_at_once(lambda: NOW_NS + passes(next(interrupted)))
    assert abs(there - NOW_NS - here) <= 1_500
    # Where it is interrupted at every reading, the shortest counts.
    always = iter((9_000_000, 400_000, *[3_000_000] * 6))
    here, there = read_at_once(lambda: NOW_NS + passes(next(always)))
    assert abs(there - NOW_NS - here) <= 201_000
