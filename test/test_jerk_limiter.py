"""Position streams stay within velocity, acceleration and jerk, and come to rest without fresh targets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.types import VegaError
from vega3d_ros.control.jerk_limiter import JerkLimiter
from vega3d_ros.control.safety_guard import braking

N = 3
VELOCITY, ACCELERATION, JERK = np.full(N, 1.0), np.full(N, 5.0), np.full(N, 200.0)
PERIOD_S = 0.01


def limiter() -> JerkLimiter:
    return JerkLimiter(np.zeros(N), VELOCITY, ACCELERATION, JERK, PERIOD_S, patience_s=0.075)


numbers = st.lists(st.floats(-1.0, 1.0), min_size=N, max_size=N).map(np.array)


@settings(max_examples=40)
@given(st.lists(st.tuples(numbers, numbers, st.integers(1, 15)), min_size=1, max_size=8))
def test_no_step_exceeds_a_limit_and_it_rests_when_targets_end(targets):
    generator = limiter()
    path = [np.zeros(N)]
    for positions, velocities, steps in targets:
        generator.target(positions, velocities)
        path += [generator.step() for _ in range(steps)]
    for _ in range(200):
        path.append(generator.step())
    assert generator.at_rest
    velocity = np.diff(path, axis=0) / PERIOD_S
    acceleration = np.diff(velocity, axis=0) / PERIOD_S
    jerk = np.diff(acceleration, axis=0) / PERIOD_S
    assert np.all(np.abs(velocity) <= VELOCITY + 1e-6)
    assert np.all(np.abs(acceleration) <= ACCELERATION + 1e-6)
    assert np.all(np.abs(jerk) <= JERK + 1e-3)


def test_a_target_is_reached_and_a_stop_needs_no_longer_than_the_limits_do():
    generator = limiter()
    generator.target(np.full(N, 0.01), np.zeros(N))
    for _ in range(40):
        generator.target(np.full(N, 0.01), np.zeros(N))
        generator.step()
    np.testing.assert_allclose(generator.positions, 0.01, atol=1e-6)
    for _ in range(20):
        generator.target(np.full(N, 1.0), np.full(N, 0.5))
        generator.step()
    assert generator.velocities[0] > 0.3
    generator.brake()
    steps = 0
    while not generator.at_rest and steps < 1000:
        generator.step()
        steps += 1
    # v / a for the braking itself, and a / j twice to begin and to end it (a / j more if it was speeding up).
    assert steps * PERIOD_S <= 1.0 / 5.0 + 3 * 5.0 / 200.0 + PERIOD_S


@pytest.mark.parametrize("jerk", [np.zeros(N), np.full(N, -1.0), np.ones(2), np.full(N, np.nan)])
def test_limits_that_limit_nothing_are_refused(jerk):
    with pytest.raises(VegaError, match="positive"):
        JerkLimiter(np.zeros(N), VELOCITY, ACCELERATION, jerk, PERIOD_S, 0.1)


@given(numbers, numbers, st.lists(st.floats(0.1, 20.0), min_size=N, max_size=N).map(np.array))
def test_braking_needs_no_more_than_the_acceleration(position, velocity, acceleration):
    rest, seconds = braking(position, velocity, acceleration)
    assert np.all(np.abs(velocity) / seconds <= acceleration * (1 + 1e-9))
    # Even braking from v to 0 covers v t / 2.
    np.testing.assert_allclose(rest - position, velocity * seconds / 2, atol=1e-12)
