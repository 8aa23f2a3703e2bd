"""The simulated arm obeys what a joint_trajectory_controller obeys, and refuses what it refuses, in its words."""

from __future__ import annotations

import numpy as np
import pytest
from driver_node import cubic
from hypothesis import given
from hypothesis import strategies as st
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from policies.types import VegaError
from vega3d_ros.driver.trajectory import TrajectoryController
from vega3d_ros.ros.conversions import duration_message, time_message

HERE, STILL = np.array([0.0, 1.0, 0.04]), np.zeros(3)


def trajectory(*points: dict, names=("a", "b"), stamp_s: float = 0.0) -> JointTrajectory:
    message = JointTrajectory(joint_names=list(names))
    message.header.stamp = time_message(round(stamp_s * 1e9))
    for fields in points:
        fields = dict(fields)
        point = JointTrajectoryPoint(time_from_start=duration_message(fields.pop("t")))
        for name, values in fields.items():
            setattr(point, name, [float(value) for value in values])
        message.points.append(point)
    return message


def controller(**allowed: bool) -> TrajectoryController:
    arm = TrajectoryController(("a", "b"), ("finger",), **allowed)
    arm.hold(HERE)
    return arm


def at(arm: TrajectoryController, now_s: float) -> list[float]:
    return np.round(arm.at(now_s)[0], 9).tolist()


def test_a_stamp_of_zero_starts_on_arrival_and_positions_alone_are_joined_by_lines():
    arm = controller()
    arm.accept(trajectory({"t": 1.0, "positions": [1, 2]}, {"t": 3.0, "positions": [2, 2]}), 5.0, HERE, STILL)
    assert at(arm, 5.5) == [0.5, 1.5, 0.04] and at(arm, 6.0) == [1, 2, 0.04] and at(arm, 7.0) == [1.5, 2, 0.04]
    assert arm.at(7.0)[1].tolist() == [0.5, 0, 0]
    assert at(arm, 9.0) == [2, 2, 0.04] and not arm.at(9.0)[1].any()


def test_one_that_began_in_the_past_is_joined_under_way_and_one_of_the_future_waited_for():
    arm = controller()
    points = [{"t": 1.0, "positions": [1, 1]}, {"t": 2.0, "positions": [2, 1]}]
    arm.accept(trajectory(*points, stamp_s=4.0), 5.5, HERE, STILL)
    assert at(arm, 6.0) == [2, 1, 0.04] and at(arm, 5.75) == [1, 1, 0.04]
    arm.accept(trajectory({"t": 1.0, "positions": [1, 1]}, stamp_s=6.0), 5.0, HERE, STILL)
    assert at(arm, 6.0) == [0.5, 1, 0.04]


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.floats(0.05, 0.95))
def test_velocities_make_cubics(numbers, share):
    p0, v0, p1, v1 = numbers[0], numbers[1], numbers[2], numbers[3]
    arm = controller(allow_motion_at_end=True)
    start, speed = np.array([p0, 0.0, 0.0]), np.array([v0, 0.0, 0.0])
    arm.accept(trajectory({"t": 2.0, "positions": [p1, 0], "velocities": [v1, 0]}), 1.0, start, speed)
    position, velocity = cubic(p0, v0, p1, v1, 2.0, 2.0 * share)
    seen = arm.at(1.0 + 2.0 * share)
    np.testing.assert_allclose([seen[0][0], seen[1][0]], [position, velocity], atol=1e-9)


def test_accelerations_make_quintics_that_meet_all_six_conditions():
    arm = controller()
    first = {"t": 1.0, "positions": [1, 0], "velocities": [0.5, 0], "accelerations": [2, 0]}
    last = {"t": 2.0, "positions": [2, 0], "velocities": [0, 0], "accelerations": [0, 0]}
    arm.accept(trajectory(first, last), 0.0, HERE, STILL)
    h = 1e-4
    speed = (arm.at(1 + h)[1] - arm.at(1 + 1e-12)[1]) / h
    np.testing.assert_allclose(arm.at(1 + 1e-12)[1][0], 0.5, atol=1e-6)
    np.testing.assert_allclose(speed[0], 2.0, atol=0.01)


def test_a_trajectory_takes_the_place_of_the_one_under_way_at_the_measured_state():
    arm = controller()
    arm.accept(trajectory({"t": 10.0, "positions": [10, 1]}), 0.0, HERE, STILL)
    arm.accept(trajectory({"t": 1.0, "positions": [0, 1]}), 2.0, np.array([1.5, 1.0, 0.04]), STILL)
    assert at(arm, 2.5) == [0.75, 1, 0.04]


def test_the_gripper_may_be_named_and_partial_goals_only_where_allowed():
    arm = controller()
    arm.accept(trajectory({"t": 1.0, "positions": [0, 1, 0]}, names=("a", "b", "finger")), 0.0, HERE, STILL)
    assert at(arm, 1.0)[2] == 0.0 and arm.at(1.0)[2].tolist() == [True, True, True]
    arm = controller(allow_partial=True)
    arm.accept(trajectory({"t": 1.0, "positions": [3]}, names=("b",)), 0.0, HERE, STILL)
    assert at(arm, 1.0) == [0, 3, 0.04] and arm.at(1.0)[2].tolist() == [False, True, False]


GOOD = {"t": 1.0, "positions": [0, 1]}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (trajectory({"t": 1.0, "positions": [1]}, names=("a",)), "Joints on incoming trajectory don't match"),
        (trajectory(GOOD, names=("a", "c")), "don't match the controller joints"),
        (trajectory({"t": 1.0, "positions": [0, 1, 2]}, names=("a", "b", "c")), "Incoming joint 'c' doesn't match"),
        (trajectory(), "Empty trajectory received"),
        (trajectory(GOOD, stamp_s=3.0), "non-zero start time (3.000000) that ends in the past (4.000000)"),
        (trajectory({**GOOD, "velocities": [0, 0.1]}), "Velocity of last trajectory point of joint b is not zero: 0.1"),
        (trajectory(GOOD, GOOD), "Time between points 0 and 1 is not strictly increasing, it is 1.000000 and 1.000000"),
        (trajectory({"t": 1.0}), "Mismatch between joint_names size (2) and positions (0) at point #0"),
        (trajectory({**GOOD, "velocities": [0]}), "Mismatch between joint_names size (2) and velocities (1)"),
        (trajectory({**GOOD, "effort": [1, 1]}), "Trajectories with effort fields are currently not supported"),
        (trajectory({"t": 1.0, "positions": [float("nan"), 1]}), "NaN"),
    ],
)
def test_what_it_refuses_it_refuses_in_its_words_and_stays_on_its_way(message, words):
    arm = controller()
    arm.accept(trajectory({"t": 10.0, "positions": [10, 1]}), 0.0, HERE, STILL)
    with pytest.raises(VegaError) as refused:
        arm.accept(message, 5.0, HERE, STILL)
    assert words in str(refused.value) and str(refused.value).endswith(".")
    assert at(arm, 6.0) == [6, 1, 0.04]


def test_what_is_allowed_by_a_parameter_is_obeyed():
    arm = controller(allow_motion_at_end=True)
    arm.accept(trajectory({**GOOD, "velocities": [0, 0.1]}), 5.0, HERE, STILL)
    assert arm.at(6.0)[1].tolist() == [0, 0.1, 0] and not arm.at(6.1)[1].any()
