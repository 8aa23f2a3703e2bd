"""The emergency stop lets go only of an arm that is seen at rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.types import VegaError
from vega3d_ros.control.stop_latch import COOLDOWN_S, FRESH_S, REST_RAD_S, StopLatch

REST = np.zeros(7)


def test_what_is_not_set_cannot_be_cleared():
    with pytest.raises(VegaError, match="not set"):
        StopLatch().clear(10.0)


def test_the_first_reason_stands_and_a_second_stop_begins_the_cooldown_anew():
    latch = StopLatch()
    assert latch.set("a button", 0.0)
    assert not latch.set("another", 1.0)
    latch.observe(REST, 1.1)
    with pytest.raises(VegaError, match="ago"):
        latch.clear(1.0 + 0.9 * COOLDOWN_S)
    assert latch.reason == "a button"
    latch.observe(REST, 1.0 + COOLDOWN_S)
    latch.clear(1.0 + COOLDOWN_S)
    assert latch.reason == ""


def test_an_arm_that_nobody_sees_is_not_known_to_rest():
    latch = StopLatch()
    latch.set("a button", 0.0)
    with pytest.raises(VegaError, match="joint_states"):
        latch.clear(100.0)
    latch.observe(REST, 100.0)
    latch.clear(100.1)
    # What was seen before the stop says nothing about the arm after it.
    latch.set("a button", 100.2)
    with pytest.raises(VegaError, match="joint_states"):
        latch.clear(100.3)


velocities = st.lists(st.floats(-1.0, 1.0) | st.just(float("nan")), min_size=1, max_size=7)


@settings(max_examples=50)
@given(st.lists(st.tuples(velocities, st.floats(0.001, 0.3)), min_size=1, max_size=30), st.floats(0.0, 1.0))
def test_it_never_lets_go_of_an_arm_that_moved_within_the_cooldown(history, wait_s):
    latch = StopLatch()
    now = moved = 0.0
    latch.set("a button", now)
    for values, gap in history:
        now += gap
        latch.observe(np.array(values), now)
        if not np.all(np.abs(values) <= REST_RAD_S):
            moved = now
    seen, now = now, now + wait_s
    try:
        latch.clear(now)
    except VegaError:
        assert latch.reason and (now - moved < COOLDOWN_S or now - seen > FRESH_S)
    else:
        assert now - moved >= COOLDOWN_S and now - seen <= FRESH_S and not latch.reason
