"""The emergency stop lets go only of an arm that is seen at rest."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.types import VegaError
from vega3d_ros.control.stop_latch import COOLDOWN_S, FRESH_S, REST_RAD_S, StopLatch

NAMES = ("a", "b")
REST = dict.fromkeys(NAMES, (0.5, 0.0))


def test_what_is_not_set_cannot_be_cleared():
    with pytest.raises(VegaError, match="not set"):
        StopLatch().clear(NAMES, 10.0)


def test_the_first_reason_stands_and_a_second_stop_begins_the_cooldown_anew():
    latch = StopLatch()
    assert latch.set("a button", 0.0)
    latch.observe(REST, 0.1)
    assert not latch.set("another", 1.0)
    latch.observe(REST, 1.1)
    with pytest.raises(VegaError, match="ago"):
        latch.clear(NAMES, 1.0 + 0.9 * COOLDOWN_S)
    assert latch.reason == "a button"
    latch.observe(REST, 1.0 + COOLDOWN_S)
    latch.clear(NAMES, 1.0 + COOLDOWN_S)
    assert latch.reason == ""


def test_an_arm_that_nobody_sees_is_not_known_to_rest():
    latch = StopLatch()
    latch.set("a button", 0.0)
    with pytest.raises(VegaError, match="joint_states come with a, b"):
        latch.clear(NAMES, 100.0)
    with pytest.raises(VegaError, match="joint_names"):
        latch.clear((), 100.0)
    latch.observe(REST, 100.0)
    with pytest.raises(VegaError, match="first seen"):
        latch.clear(NAMES, 100.1)  # one place is no rest
    latch.observe(REST, 100.0 + COOLDOWN_S)
    latch.clear(NAMES, 100.0 + COOLDOWN_S)
    # What was seen before the stop says nothing about the arm after it.
    latch.set("a button", 101.0)
    with pytest.raises(VegaError, match="joint_states"):
        latch.clear(NAMES, 101.1)
    latch.observe({"a": (0.5, 0.0)}, 102.0)
    with pytest.raises(VegaError, match="joint_states come with b"):
        latch.clear(NAMES, 102.0 + FRESH_S)


seen = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.floats(-1.0, 1.0) | st.just(math.nan), st.sampled_from((0.0, math.nan)) | st.floats(-0.05, 0.05)),
)


@settings(max_examples=50)
@given(st.lists(st.tuples(seen, st.floats(0.001, 0.3)), min_size=1, max_size=30), st.floats(0.0, 1.0))
def test_it_never_lets_go_of_an_arm_that_moved_within_the_cooldown(history, wait_s):
    latch = StopLatch()
    now = 0.0
    latch.set("a button", now)
    places: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    moved = 0.0
    for joints, gap in history:
        now += gap
        latch.observe(joints, now)
        for name, (position, velocity) in joints.items():
            places[name].append((now, position))
            if abs(velocity) > REST_RAD_S or math.isnan(position):
                moved = now
    now += wait_s
    try:
        latch.clear(NAMES, now)
    except VegaError:
        assert latch.reason
    else:
        assert now - moved >= COOLDOWN_S and not latch.reason
        for told in places.values():
            assert now - told[0][0] >= COOLDOWN_S and now - told[-1][0] <= FRESH_S
            # Where it was at the beginning of the cooldown, and since.
            since = [p for at, p in told if now - at < COOLDOWN_S]
            assert all(abs(a - b) <= REST_RAD_S * COOLDOWN_S for a in since for b in since)


@pytest.mark.parametrize("velocity", [0.0, math.nan])
@pytest.mark.parametrize("period_s", [0.001, 0.02, 0.24])
@pytest.mark.parametrize("speed", [1.05 * REST_RAD_S, -3.0])
def test_it_never_lets_go_of_an_arm_that_is_faster_than_rest_whatever_its_driver_tells(speed, period_s, velocity):
    latch = StopLatch()
    latch.set("a button", 0.0)
    for step in range(1, round(2.0 / period_s)):
        now = step * period_s
        latch.observe({"a": (math.remainder(speed * now, 2 * math.pi), velocity), "b": (0.0, 0.0)}, now)
        with pytest.raises(VegaError):
            latch.clear(NAMES, now)


@settings(max_examples=50)
@given(st.lists(st.floats(-0.002, 0.002), min_size=12, max_size=12), st.sampled_from((0.0, math.nan, 0.015)))
def test_it_lets_go_of_an_arm_that_wavers_about_one_place(wavering, velocity):
    latch = StopLatch()
    latch.set("a button", 0.0)
    for step, off in enumerate(wavering):
        latch.observe(dict.fromkeys(NAMES, (math.pi + off, velocity)), 0.05 * step)
    latch.clear(NAMES, 0.05 * len(wavering))
