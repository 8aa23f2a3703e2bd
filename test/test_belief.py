"""Joint states that no arm could have are not believed; those of a real, imperfect driver are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vega3d_ros.control.guard.belief import PATIENCE, Belief
from vega3d_ros.control.guard.limits import GuardLimits

NAMES = ("shoulder", "elbow", "wrist")
LIMITS = GuardLimits(np.full(3, -2.8), np.full(3, 2.8), np.full(3, 0.4), np.full(3, 5.0), arm_velocity=np.full(3, 2.0))
STEP_NS = 10_000_000
REST = np.array([0.3, -1.2, 0.8])


def swing(step: int, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """An arm that swings, with `share` of its greatest speed."""
    phase = 2.0 * step * STEP_NS * 1e-9 + np.arange(3)
    return REST + 0.5 * share * np.sin(phase), 1.0 * share * np.cos(phase)


def run(belief: Belief, steps: int, change=lambda step, q, v: (q, v), first: int = 0, number=lambda step: step) -> str:
    """Feeds joint states; the first problem."""
    found = ""
    for step in range(first, first + steps):
        said = belief.observe(step * STEP_NS, *change(step, *swing(step)), number(step))
        found = found or said
    return found


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), share=st.floats(0.0, 1.9), lag=st.integers(0, 5), lost=st.floats(0.0, 0.5))
def test_noise_lag_offset_and_lost_messages_are_believed(seed, share, lag, lost) -> None:
    rng = np.random.default_rng(seed)
    belief = Belief(NAMES, LIMITS)
    for step in range(300):
        if rng.random() < lost:
            continue
        q, _ = swing(step, share)
        _, v = swing(step - lag, share)  # a filter delays what it smooths
        q = q + 0.01 + rng.normal(0.0, 1e-3, 3)
        assert belief.observe(step * STEP_NS, q, v + rng.normal(0.0, 0.02, 3), step) == ""
    assert belief.rejected == 0


@settings(deadline=None, max_examples=100)
@given(every_ms=st.integers(28, 120), bend=st.floats(2.0, 25.0), share=st.floats(0.0, 1.0), phase=st.integers(0, 60))
def test_an_arm_that_turns_round_between_two_joint_states_is_believed(every_ms, bend, share, phase) -> None:
    """It trembles as fast as it tells: what it tells of its velocity is the opposite of where it went in between."""
    full = np.full(3, 2.0)
    belief = Belief(NAMES, GuardLimits(-1.4 * full, 1.4 * full, full, np.full(3, bend)))
    wave = min(0.25e-3 * bend * every_ms, 0.5)  # rad/s, the mean of what it gains and loses again
    sides = np.array([1.0, -1.0, 0.5])
    q = REST.copy()
    v = -share * wave * sides
    for ms in range(1500):
        if ms % every_ms == phase % every_ms:
            assert belief.observe(ms * 1_000_000, q, v) == "", ms
        up = 1.0 if (ms - phase) % every_ms < 0.5 * every_ms else -1.0
        before, v = v, v + up * 4.0 * wave / every_ms * sides
        q = q + 0.5e-3 * (before + v)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, q, v: (q + np.array([0.0, 0.5, 0.0]), v), "elbow went from"),
        (lambda s, q, v: (np.rad2deg(q), np.rad2deg(v)), "would be right in degrees"),
        (lambda s, q, v: (q + 20.0, v), "whose limits are"),
        (lambda s, q, v: (q, -v), "check the sign of their velocities"),
        (lambda s, q, v: (q, v - 0.8), "check their sign"),
        (lambda s, q, v: (q, 4.0 * v), "check their sign and unit"),
        (lambda s, q, v: (q, v + 50.0), "it can do 2.00"),
        (lambda s, q, v: (q if s % 2 else REST - 0.4, v), "went from"),
    ],
)
def test_what_no_arm_could_do_is_named_with_joint_numbers_and_remedy(change, says) -> None:
    belief = Belief(NAMES, LIMITS)
    assert run(belief, 100) == ""
    found = run(belief, 60, change, first=100)
    assert says in found and "~/start" in found and found.count(". ") == 0, found
    assert belief.rejected > 0


def test_a_sign_that_was_wrong_from_the_start_is_told_within_a_tenth_of_a_second_of_motion() -> None:
    belief = Belief(NAMES, LIMITS)
    for step in range(100):
        speed = min(0.3, 0.05 * max(0, step - 50))
        q = REST + 0.3 * STEP_NS * 1e-9 * max(0, step - 53)
        if belief.observe(step * STEP_NS, q, np.full(3, -speed)):
            break
    assert "check their sign" in belief.problem and step <= 60


def test_degrees_are_noticed_from_the_first_message() -> None:
    assert "degrees" in Belief(NAMES, LIMITS).observe(0, np.rad2deg(REST), np.zeros(3))


def test_it_believes_again_after_a_while_of_possible_states_and_at_once_after_a_reset() -> None:
    belief = Belief(NAMES, LIMITS)
    run(belief, 50)
    run(belief, 6, lambda s, q, v: (q + 0.5, v), first=50)
    assert belief.problem
    run(belief, 1, first=56)  # the jump back
    run(belief, PATIENCE - 1, first=57)
    assert belief.problem
    run(belief, 1, first=56 + PATIENCE)
    assert not belief.problem
    run(belief, 1, lambda s, q, v: (q + 0.5, v), first=80)
    belief.reset()
    assert run(belief, 20, first=100) == ""


def test_two_publishers_are_told_by_their_counting_even_where_they_agree() -> None:
    belief = Belief(NAMES, LIMITS)
    assert run(belief, 20, number=lambda s: 1000 + s) == ""
    assert run(belief, 1, first=20, number=lambda s: 3) == "", "a driver that was started anew"
    assert run(belief, 300, first=21, number=lambda s: s - 15) == ""
    found = run(belief, 10, first=330, number=lambda s: 5000 + s if s % 2 else 10 + s)
    assert found.startswith("Two publishers")
