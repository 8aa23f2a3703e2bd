"""A stream of positions keeps the path's timing and limits, and its jerk within what was asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from policies.types import FloatArray, VegaError
from vega3d_ros.control.guard.motion import Cubic, Motion, braking
from vega3d_ros.control.guard.smoothing import PathStream

N = 3
ACCELERATION, JERK = np.array([5.0, 4.0, 10.0]), np.array([200.0, 100.0, 500.0])
PERIOD_NS, STEP_NS, STEP_S = 50_000_000, 10_000_000, 0.01


def command(start_ns: int, q: FloatArray, v: FloatArray, q1: FloatArray, v1: FloatArray) -> Motion:
    rest, seconds = braking(q1, v1, ACCELERATION)
    return Motion(
        start_ns, np.array([0.0, 0.05, 0.05 + seconds]), np.array([q, q1, rest]), np.array([v, v1, np.zeros(N)])
    )


def stream_of(goals: list[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, PathStream]:
    """The stream for commands (position, velocity) one period apart, to its rest; (k, N)."""
    motion = Motion(0, np.array([0.0, 0.05]), np.zeros((2, N)), np.zeros((2, N)))
    stream = PathStream(motion, ACCELERATION, JERK, STEP_S)
    sent, now = [], 0
    for number, (q1, v1) in enumerate(goals):
        q, v = stream.motion.at(number * PERIOD_NS)
        stream.motion = command(number * PERIOD_NS, q, v, q1, v1)
        for _ in range(PERIOD_NS // STEP_NS):
            sent.append(stream.step(now))
            now += STEP_NS
    while not stream.at_rest:
        sent.append(stream.step(now))
        now += STEP_NS
        assert len(sent) < 5000
    return np.array(sent), stream


def test_a_smooth_motion_is_followed_smoothly_and_never_backwards() -> None:
    """Half a radian in 2 s by a fifth-order polynomial, which needs 0.72 rad/s^2."""
    s = np.linspace(0.0, 1.0, 41)[1:]
    position = 0.5 * s**3 * (10 - 15 * s + 6 * s**2)
    velocity = 0.25 * 30 * s**2 * (1 - s) ** 2
    sent, _ = stream_of([(np.full(N, q), np.full(N, v)) for q, v in zip(position, velocity, strict=True)])
    assert np.all(np.diff(sent, axis=0) >= 0.0)
    assert np.abs(np.diff(sent, 2, axis=0)).max() / STEP_S**2 < 1.1 * 0.72
    np.testing.assert_allclose(sent[-1], 0.5, atol=1e-9)
    assert len(sent) <= 200 + 12, "no later than half a window behind"


def test_a_ramp_from_rest_never_runs_backwards() -> None:
    rate, goals, v = 0.5, [], 0.0
    q = 0.0
    for _ in range(20):
        faster = min(rate, v + 0.5 * ACCELERATION.min() * 0.05)
        q += 0.5 * (v + faster) * 0.05
        v = faster
        goals.append((np.full(N, q), np.full(N, v)))
    sent, _ = stream_of(goals)
    assert np.all(np.diff(sent, axis=0) >= -1e-12)


@settings(deadline=None, max_examples=60)
@given(changes=st.lists(hnp.arrays(np.float64, N, elements=st.floats(-1.0, 1.0)), min_size=1, max_size=25))
def test_whatever_the_path_its_limits_and_the_jerk_hold(changes) -> None:
    q, v, goals = np.zeros(N), np.zeros(N), []
    for change in changes:
        faster = np.clip(v + change * ACCELERATION * 0.05, -1.0, 1.0)
        q = q + 0.5 * (v + faster) * 0.05
        v = faster
        goals.append((q, v))
    sent, stream = stream_of(goals)
    steps = np.concatenate([np.zeros((3, N)), sent])
    room = 1.0 + 1e-6
    assert np.all(np.abs(np.diff(steps, axis=0)) / STEP_S <= 1.0 * room)
    assert np.all(np.abs(np.diff(steps, 2, axis=0)) / STEP_S**2 <= ACCELERATION * room)
    assert np.all(np.abs(np.diff(steps, 3, axis=0)) / STEP_S**3 <= JERK * room)
    np.testing.assert_allclose(sent[-1], stream.motion.positions[-1], atol=1e-12)


def test_limits_that_are_none_are_refused() -> None:
    motion = Motion(0, np.array([0.0, 0.05]), np.zeros((2, N)), np.zeros((2, N)))
    for bad in (np.zeros(N), np.full(N, np.nan), np.ones(2)):
        with pytest.raises(VegaError, match="positive numbers"):
            PathStream(motion, ACCELERATION, bad, STEP_S)


numbers = hnp.arrays(np.float64, 1, elements=st.floats(-3.0, 3.0))


@settings(deadline=None, max_examples=300)
@given(q0=numbers, v0=numbers, q1=numbers, v1=numbers, seconds=st.floats(0.01, 2.0))
def test_the_extremes_of_a_cubic_are_those_of_fine_samples(q0, v0, q1, v1, seconds) -> None:
    cubic = Cubic(q0, v0, q1, v1, seconds)
    places = np.array([cubic.at(t) for t in np.linspace(0.0, seconds, 400)])[:, :, 0]
    low, high = cubic.extent()
    bend = cubic.largest_acceleration()[0]
    room = 1e-9 + bend * (seconds / 399) ** 2
    assert low[0] <= places[:, 0].min() + 1e-9 and high[0] >= places[:, 0].max() - 1e-9
    assert low[0] >= places[:, 0].min() - room and high[0] <= places[:, 0].max() + room
    speed = np.abs(places[:, 1]).max()
    assert speed - 1e-9 <= cubic.largest_velocity()[0] <= speed + 1e-9 + bend * seconds / 399
    np.testing.assert_allclose([cubic.at(seconds)[0], cubic.at(seconds)[1]], [q1, v1], atol=1e-9)


# In time, not quite in time, late, and after a pause.
CALLS_MS = st.one_of(st.just(10.0), st.floats(5.0, 15.0), st.floats(15.0, 25.0), st.floats(26.0, 400.0))


@settings(deadline=None, max_examples=60)
@given(
    jerk=st.sampled_from([20.0, 100.0, 2000.0]),
    speed=st.sampled_from([0.1, 0.7, 2.0]),
    calls_ms=st.lists(CALLS_MS, min_size=50, max_size=200),
)
def test_whatever_the_pauses_the_limits_hold_and_the_path_is_followed_to_its_end(jerk, speed, calls_ms) -> None:
    """An arm that is at once where it is told to be stands while it is told nothing, and begins again from there."""
    still = np.zeros((2, N))
    stream = PathStream(Motion(0, np.array([0.0, 0.05]), still, still), ACCELERATION, np.full(N, jerk), STEP_S)
    now_ns, due_ns, way = 0, 0, 1.0
    sent, before = np.zeros(N), np.zeros(N)
    room = 1e-9 * np.ones(N)

    def step(pause_ns: int) -> None:
        nonlocal sent, before
        stood = pause_ns > 2.5 * STEP_NS
        moved = stream.step(now_ns, stood) - sent
        assert np.all(np.abs(moved) <= 1.1 * speed * STEP_S + room)
        assert np.all(np.abs(moved - (0.0 if stood else before)) <= 1.25 * ACCELERATION * STEP_S**2 + room)
        sent, before = sent + moved, moved

    for call_ms in calls_ms:
        now_ns += round(1e6 * call_ms)
        if now_ns >= due_ns:  # to and fro along all limits; after a pause one command alone
            q, v = stream.motion.at(now_ns)
            faster = np.clip(v + way * ACCELERATION * 0.05, -speed, speed)
            way = -way if np.all(np.abs(faster) >= speed) else way
            stream.motion = command(now_ns, q, v, q + 0.5 * (v + faster) * 0.05, faster)
            due_ns = (now_ns // PERIOD_NS + 1) * PERIOD_NS
        step(round(1e6 * call_ms))
    late_s = 1e-3 * sum(calls_ms)
    for _ in range(round(25 * late_s / STEP_S) + 1000):
        now_ns += STEP_NS
        step(STEP_NS)
        if stream.at_rest:
            break
    np.testing.assert_allclose(sent, stream.motion.positions[-1], atol=1e-9)


def straight(rate: float, end_s: float) -> Motion:
    """From rest to rest at one velocity, rad/s."""
    return Motion(
        0, np.array([0.0, 0.1, end_s, end_s + 0.1]),
        np.outer([0.0, 0.05 * rate, rate * (end_s - 0.05), rate * end_s], np.ones(N)),
        np.outer([0.0, rate, rate, 0.0], np.ones(N)),
    )  # fmt: skip


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
def test_a_stream_that_was_late_is_in_time_again(pause_s) -> None:
    """Along a path of one velocity, with samples of one place each, it is where the path is."""
    rate = 0.2
    ramp = straight(rate, 20.0)
    stream = PathStream(ramp, ACCELERATION, 2000.0 * ACCELERATION, STEP_S)
    now_ns = 0
    for call in range(1500):
        paused = call == 200 and pause_s > 0.0
        now_ns += STEP_NS + (round(1e9 * pause_s) if paused else 0)
        sent = stream.step(now_ns, paused)
        late = ramp.at(now_ns)[0] - sent
        if paused:
            assert np.all(late >= 0.9 * rate * pause_s), "it does not jump"
    assert np.all(np.abs(late) <= 1.01 * rate * STEP_S)


@pytest.mark.parametrize("factor", [0.2, 0.5, 1.0, 2.0])
def test_a_simulated_clock_is_followed_however_fast_it_goes(factor) -> None:
    """Each command begins where the clock is; between two of them the stream's own clock goes on."""
    still = np.zeros((2, N))
    motion = Motion(0, np.array([0.0, 0.05]), still, still)
    stream = PathStream(motion, ACCELERATION, 2000.0 * ACCELERATION, STEP_S, evenly=False)
    q, v, speed, sent = np.zeros(N), np.zeros(N), 0.2, np.zeros(N)
    for period in range(100):
        now_ns = period * PERIOD_NS
        faster = np.minimum(v + 0.5 * ACCELERATION * 0.05, speed)
        stream.motion = command(now_ns, q, v, q + 0.5 * (v + faster) * 0.05, faster)
        for step in range(round(5 / factor)):
            sent = stream.step(min(now_ns + step * STEP_NS, now_ns + 2 * PERIOD_NS))
        q, v = stream.motion.at(now_ns + PERIOD_NS)
    assert np.all(np.abs(sent - q) <= 3 * speed * 0.05)


@pytest.mark.parametrize("missed", [30, 3])
def test_a_machine_that_misses_few_steps_keeps_up_and_one_that_misses_many_goes_no_faster(missed) -> None:
    """Whatever it was used to, no step is longer than those of a stream that catches up."""
    rate = 0.2
    ramp = straight(rate, 30.0)
    stream = PathStream(ramp, ACCELERATION, 2000.0 * ACCELERATION, STEP_S)
    sent, late = [], []
    for call in range(1, 2000):
        if call > 1500 or call % missed:
            sent.append(stream.step(call * STEP_NS))
            late.append(np.max(ramp.at(call * STEP_NS)[0] - sent[-1]) / rate)
    assert np.abs(np.diff(sent, axis=0)).max() <= 1.06 * rate * STEP_S
    assert np.abs(np.diff(sent, 2, axis=0)).max() <= 1.25 * ACCELERATION.min() * STEP_S**2
    assert max(late) <= 5 * STEP_S if missed == 30 else late[1000] > 3.0


@pytest.mark.parametrize(
    ("period_s", "speed", "acceleration"), [(0.001, 0.6, 5.0), (0.01, 2.0, 1.0), (0.008, 3.1, 3.1)]
)
def test_after_a_pause_it_goes_on_however_slowly_it_has_to_begin(period_s, speed, acceleration) -> None:
    """A path that is left at high speed is taken up by an arm at rest in very small steps."""
    ends = np.array([0.0, speed / acceleration, 30.0, 30.0 + speed / acceleration])
    places = speed * np.array([0.0, ends[1] / 2, 30.0 - ends[1] / 2, 30.0])
    path = Motion(0, ends, np.outer(places, np.ones(N)), np.outer([0.0, speed, speed, 0.0], np.ones(N)))
    stream = PathStream(path, np.full(N, acceleration), np.full(N, 1000.0 * acceleration), period_s)
    now_ns, sent = round(1e9 * 10.0), []
    stream.step(now_ns - 10**9)  # far behind, and at rest on the path's way
    for call in range(round(2.0 / period_s)):
        now_ns += round(1e9 * period_s)
        sent.append(stream.step(now_ns, call == 0))
    moved = np.diff(sent, axis=0) / period_s
    assert np.all(moved[-1] >= min(speed, 2.0 * acceleration))
    assert np.all(np.abs(np.diff(moved, axis=0)) <= 1.25 * acceleration * period_s + 1e-6)
