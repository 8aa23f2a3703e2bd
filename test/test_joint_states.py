"""Joint states as drivers really send them, and grippers in units of their own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import JointState

from policies.types import VegaError
from vega3d_ros.ros.conversions import time_message
from vega3d_ros.ros.joint_states import FingerMap, JointReader


def states(stamp_s: float, velocities: bool = True, **positions: float) -> JointState:
    message = JointState(name=list(positions), position=list(positions.values()))
    message.velocity = [0.5] * len(positions) if velocities else []
    message.header.stamp = time_message(round(stamp_s * 1e9))
    return message


@pytest.mark.parametrize(
    ("opened", "closed"),
    [(0.04, 0.0), (0.0, 0.8), (0.085, 0.0), (100.0, 0.0), (0.0, 255.0), (-0.7, 0.1), (1.0, 0.5)],
)
def test_every_gripper_is_told_in_the_policys_own_metres(opened, closed):
    told = FingerMap(opened, closed, fingers=2)
    for share in (0.0, 0.25, 1.0):
        reading = np.array([closed + share * (opened - closed)])
        np.testing.assert_allclose(told(reading), [0.04 * share] * 2, atol=1e-12)


def test_the_policys_own_gripper_is_passed_on_bit_for_bit():
    readings = np.array([0.0399871, 0.0400213])
    assert np.array_equal(FingerMap(0.04, 0.0, fingers=2)(readings), readings)
    assert np.array_equal(FingerMap(0.04, 0.0, fingers=2)(readings * [1, -1]), readings)


def test_fingers_that_mirror_the_commanded_one_are_as_far_open():
    six = FingerMap(0.0, 0.8, main=0)(np.array([0.2, 0.2, -0.2, 0.2, -0.2, 0.2]))
    np.testing.assert_allclose(six, [0.03] * 6)
    np.testing.assert_allclose(FingerMap(0.0, 0.8, main=1, fingers=2)(np.array([0.7, 0.2, -0.2])), [0.03, 0.03])


def test_a_reading_in_another_unit_than_the_file_is_refused():
    FingerMap(0.04, 0.0).check(np.array([0.041]))
    with pytest.raises(VegaError, match="unit"):
        FingerMap(0.04, 0.0).check(np.array([85.0]))


@given(st.floats(0.001, 200), st.floats(-200, -0.001), st.floats(-500, 500))
def test_openings_lie_between_closed_and_open_whatever_the_joint_reads(opened, closed, reading):
    assert 0.0 <= FingerMap(opened, closed)(np.array([reading]))[0] <= 0.04


def test_arm_and_fingers_may_come_in_two_messages():
    reader = JointReader(["a", "b"], ["finger"])
    with pytest.raises(VegaError, match=r"lacks \['finger'\]"):
        reader.read(states(1.0, a=0.1, b=0.2), 1.0)
    assert reader.read(states(1.01, velocities=False, finger=0.03), 1.01) is None
    sample = reader.read(states(1.02, b=0.3, a=0.2), 1.02)
    assert sample is not None and sample.stamp_ns == 1_020_000_000
    assert sample.positions.tolist() == [0.2, 0.3] and sample.gripper_positions.tolist() == [0.03]
    # The gripper reports at 10 Hz, and then no more.
    assert reader.read(states(1.8, a=0.2, b=0.3), 1.8) is not None
    with pytest.raises(VegaError, match=r"lacks \['finger'\]"):
        reader.read(states(2.9, a=0.2, b=0.3), 2.9)


def test_in_a_world_that_waits_a_sample_is_of_one_moment():
    reader = JointReader(["a"], ["finger"], together=True)
    with pytest.raises(VegaError):
        reader.read(states(1.0, a=0.1), 1.0)
    assert reader.read(states(1.0, finger=0.04), 1.0) is not None
    assert reader.read(states(1.05, a=0.2), 1.05) is None
    sample = reader.read(states(1.05, finger=0.02), 1.05)
    assert sample is not None and sample.positions[0] == 0.2 and sample.gripper_positions[0] == 0.02


def test_other_devices_are_none_of_its_concern():
    reader = JointReader(["a"], [])
    assert not reader.concerns(states(1.0, lift=3.0)) and reader.concerns(states(1.0, lift=3.0, a=0.0))
    other = states(1.0, a=0.5, lift=float("nan"))
    assert reader.read(other, 1.0).positions.tolist() == [0.5]


def test_joints_that_turn_without_end_do_not_jump():
    reader = JointReader(["a", "b"], [], continuous={"a"})
    true = np.linspace(3.0, 16.0, 200)
    seen = []
    for step, angle in enumerate(true):
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        seen.append(reader.read(states(1 + 0.01 * step, a=wrapped, b=wrapped), 0.01 * step).positions)
    np.testing.assert_allclose(np.array(seen)[:, 0], true, atol=1e-9)
    assert np.abs(np.diff(np.array(seen)[:, 1])).max() > 6.0  # where the URDF has limits the driver is believed
    reader.clear()
    assert reader.read(states(9.0, a=16.0 - 6 * np.pi, b=0.0), 9.0).positions[0] == pytest.approx(16.0)


def test_a_driver_that_counts_turns_itself_is_believed_whatever_was_turned_unseen():
    """To fold what it says would send a controller that obeys it by whole turns."""
    reader = JointReader(["a"], [], continuous={"a"})
    assert reader.read(states(1.0, a=0.5), 1.0).positions[0] == 0.5
    reader.clear()
    assert reader.read(states(9.0, a=0.5 + 2 * np.pi + 0.2), 9.0).positions[0] == 0.5 + 2 * np.pi + 0.2
    # It began anew, and so did its controller.
    reader.clear()
    assert reader.read(states(19.0, a=0.7), 19.0).positions[0] == 0.7


def test_turns_are_forgotten_where_nobody_knows_where_the_controller_holds_the_arm():
    reader = JointReader(["a", "b"], [], continuous={"a"})
    for step, angle in enumerate((3.0, 3.1, -3.1)):
        sample = reader.read(states(1 + 0.1 * step, a=angle, b=0.0), 0.1 * step)
    assert sample.positions[0] == pytest.approx(2 * np.pi - 3.1)
    reader.forget_turns()
    assert reader.read(states(2.0, a=-3.1, b=0.0), 1.0).positions[0] == -3.1


@pytest.mark.parametrize("driver", ["none", "nan", "zeros"])
def test_velocities_come_from_filtered_differences_where_the_file_allows_it(driver):
    rng = np.random.default_rng(0)
    reader = JointReader(["a"], ["finger"], velocity_filter_s=0.03)
    speeds = []
    for step in range(200):
        now = 1 + 0.008 * step
        message = states(now, False, a=0.7 * now + rng.normal(0, 1e-4), finger=0.0)
        message.velocity = {"none": [], "nan": [float("nan")] * 2, "zeros": [0.0, 0.0]}[driver]
        sample = reader.read(message, now)
        assert (sample is None) == (step == 0)
        if step > 50:
            speeds.append(sample.velocities[0])
    assert np.mean(speeds) == pytest.approx(0.7, abs=0.002)
    assert np.std(speeds) < 0.5 * 1.4e-4 / 0.008  # half the noise of a plain difference
    # After a gap a difference is no velocity.
    assert reader.read(states(4.0, False, a=0.0, finger=0.0), 4.0) is None


def test_without_that_a_driver_without_velocities_is_refused_with_the_remedy():
    with pytest.raises(VegaError, match=r"0 velocities.*velocity_filter_s"):
        JointReader(["a"], []).read(states(1.0, False, a=0.0), 1.0)


def test_a_driver_that_has_velocities_is_believed():
    reader = JointReader(["a"], [], velocity_filter_s=0.03)
    assert reader.read(states(1.0, a=0.0), 1.0).velocities.tolist() == [0.5]
