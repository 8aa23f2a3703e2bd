"""The stand-in driver follows a trajectory as joint_trajectory_controller does."""

from __future__ import annotations

import numpy as np
from driver_node import Path, cubic
from hypothesis import given, settings
from hypothesis import strategies as st

from vega3d_ros.control.guard.motion import braking

numbers = st.lists(st.floats(-2.0, 2.0), min_size=3, max_size=3).map(np.array)


@settings(max_examples=50)
@given(numbers, numbers, numbers, numbers, st.floats(0.01, 1.0))
def test_a_cubic_meets_both_ends(p0, v0, p1, v1, seconds):
    for at, position, velocity in ((0.0, p0, v0), (seconds, p1, v1)):
        found = cubic(p0, v0, p1, v1, seconds, at)
        np.testing.assert_allclose(found[0], position, atol=1e-9)
        np.testing.assert_allclose(found[1], velocity, atol=1e-6)


@settings(max_examples=50)
@given(numbers, numbers, st.floats(1.0, 20.0))
def test_the_second_point_of_a_command_is_even_braking(position, velocity, acceleration):
    limit = np.full(3, acceleration)
    rest, seconds = braking(position, velocity, limit)
    path = Path(0.0, [(0.0, position, velocity), (seconds, rest, np.zeros(3))])
    times = np.linspace(0.0, seconds, 20, endpoint=False)
    velocities = np.array([path.at(t)[1] for t in times])
    assert np.all(np.abs(np.diff(velocities, axis=0)) / (times[1] - times[0]) <= acceleration + 1e-6)
    end, still = path.at(seconds + 5.0)
    np.testing.assert_allclose(end, rest)
    assert not still.any()


def test_without_velocities_it_goes_straight():
    path = Path(10.0, [(0.0, np.zeros(1), np.ones(1)), (2.0, np.ones(1), None)])
    assert path.at(11.0)[0] == 0.5 and path.at(11.0)[1] == 0.5
    assert path.at(12.5)[0] == 1.0 and path.at(12.5)[1] == 0.0
