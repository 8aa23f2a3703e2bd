"""What does not arrive: control periods that were missed, clocks that stand or jump, values in the wrong order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vega3d_ros.node.watches import FASTEST, SKIP_S, STEP_S, ClockWatch, Gap, LastValue


def test_a_gap_of_more_than_n_periods_is_told_once():
    gap = Gap(0.05, 4)
    assert gap.tick(10.0) == "" and gap.tick(10.05) == "" and gap.tick(10.27) == ""
    assert "for 1.00 s, 20 control periods" in gap.tick(11.27)
    assert gap.tick(11.32) == ""
    gap.reset()
    assert gap.tick(50.0) == "", "what was before an episode is no gap"
    assert Gap(0.05, 0).tick(0.0) == ""


@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=30), st.integers(1, 20))
def test_a_gap_is_told_exactly_where_it_is(gaps, periods):
    watch, now = Gap(0.05, periods), 0.0
    assert watch.tick(now) == ""
    for length in gaps:
        now += length
        assert bool(watch.tick(now)) == (length > (periods + 0.5) * 0.05) or abs(length - (periods + 0.5) * 0.05) < 1e-9


def watched(simulated: bool, steps: list[tuple[float, float]], moving: bool = True, stand_s: float = 0.5) -> str:
    """The first sentence after these (step of the clock, step of the steady clock)."""
    watch, clock, steady = ClockWatch(simulated, stand_s), 1000.0, 5.0
    assert watch.observe(clock, steady, moving) == ""
    for passed, lasted in steps:
        clock, steady = clock + passed, steady + lasted
        sentence = watch.observe(clock, steady, moving)
        if sentence:
            return sentence
    return ""


@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize("moving", [False, True])
def test_a_clock_that_goes_with_the_world_is_well(simulated, moving):
    assert watched(simulated, [(0.1, 0.1)] * 50 + [(5.0, 5.0)], moving) == ""


@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize("moving", [False, True])
def test_a_clock_that_jumps_back_is_told_even_before_the_arm_moves(simulated, moving):
    assert "jumped back by 3600.00 s" in watched(simulated, [(0.1, 0.1), (-3600.0, 0.1)], moving)


def test_a_clock_that_jumps_ahead_is_told_while_the_arm_moves():
    assert "jumped ahead by 3600.00 s" in watched(False, [(0.1, 0.1), (3600.1, 0.1)])
    assert "jumped ahead by 59.90 s" in watched(True, [(0.1, 0.1), (60.0, 0.1)])
    assert watched(True, [(0.1, 0.1), (60.0, 0.1)], moving=False) == "", "a simulator that is being started"


def test_a_simulated_clock_may_be_slow_or_fast_but_may_not_stand():
    assert watched(True, [(0.01, 0.1)] * 20) == "" and watched(True, [(0.9, 0.1)] * 20) == ""
    assert "standing still for 0.60 s" in watched(True, [(0.1, 0.1)] + [(0.0, 0.1)] * 6)
    assert watched(True, [(0.0, 0.1)] * 100, moving=False) == ""
    assert watched(False, [(0.0, 0.1)] * 3) == "", "of the system's clock only steps are judged"


@given(st.lists(st.tuples(st.floats(0.0, 0.3), st.floats(0.001, 0.3)), max_size=40), st.booleans())
def test_what_lies_within_the_allowance_is_never_told(steps, simulated):
    within = [
        (min(passed, FASTEST * lasted + SKIP_S) if simulated else lasted + min(passed, 0.9 * STEP_S), lasted)
        for passed, lasted in steps
    ]
    assert watched(simulated, within, stand_s=1e9) == ""


MS, SECOND_NS = 10**6, 10**9


@pytest.mark.parametrize("safe", [True, False])
def test_the_value_that_was_sent_last_counts_whatever_comes_last(safe):
    switch = LastValue(safe)
    assert switch.value is None and switch.age_s(5.0) == float("inf")
    switch.take(safe, 20 * MS, 1.0)
    switch.take(not safe, 10 * MS, 2.0)
    assert switch.value is safe and switch.age_s(2.0) == 1.0
    switch.take(not safe, 30 * MS, 3.0)
    assert switch.value is not safe
    switch.take(safe, 0, 4.0)
    assert switch.value is safe, "without a time of sending, the order of arrival counts"


@pytest.mark.parametrize("safe", [True, False])
def test_the_safe_value_counts_in_doubt_until_the_next_that_was_sent_later(safe):
    switch = LastValue(safe)
    switch.take(not safe, 20 * MS, 1.0)
    switch.take(safe, 10 * MS, 2.0)
    assert switch.value is safe and switch.heard_s == 2.0
    switch.take(not safe, 15 * MS, 3.0)
    assert switch.value is safe, "what was sent before the last does not undo it"
    switch.take(not safe, 30 * MS, 4.0)
    assert switch.value is not safe


@pytest.mark.parametrize("safe", [True, False])
def test_a_switch_whose_clock_was_set_back_is_heard(safe):
    switch = LastValue(safe)
    switch.take(not safe, 200 * SECOND_NS, 1.0)
    for sent_s, value in ((100, safe), (101, not safe), (50, not safe), (51, safe), (1, not safe)):
        switch.take(value, sent_s * SECOND_NS, 200.0 + sent_s)
        assert switch.value is value and switch.heard_s == 200.0 + sent_s
