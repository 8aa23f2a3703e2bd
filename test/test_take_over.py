"""How an arm is taken over: a controller holds it beside where it is measured, and may not hear the first of it."""

from __future__ import annotations

import itertools
import signal
import sys

import numpy as np
import pytest
from ros_harness import COMMANDS, DEADLINE_S, REAL, Arm, Pace, node_environment, policy_node, start
from test_safety_guard import AXIS, INSIDE, JUDGED, LIMITS, PERIOD, PERIOD_NS, STILL, Follower, arm, guard

from benchmarks.wire_judge.controller import Controller
from policies.types import VegaError
from vega3d_ros.control.guard.safety_guard import AGAIN, LATE
from vega3d_ros.inference.process import ChildProcess


def test_an_arm_is_taken_over_slowly_and_where_it_was_told_to_be() -> None:
    checker = guard()
    lead, wait = checker.take_over(INSIDE, STILL, 0)
    assert lead is not None and "taken over" in wait
    # A controller that holds twice the tolerance beside the measured place is led there within limits.
    for side in (-1.0, 1.0):
        controller = Controller(JUDGED, INSIDE + side * 2 * LIMITS.tolerance)
        assert not controller.take(0.0, [(lead.motion.times_s[1], INSIDE, STILL)]).outside
    # Said again until it is heard, each time with all the time that it takes: whichever of them a controller hears
    # first, however late and however many of those that follow, it keeps its limits.
    led = [lead.motion]
    for period in range(1, 40):
        again, wait = checker.take_over(INSIDE - 0.001, STILL, period * PERIOD_NS + 7_000_000, heard=False)
        assert (again is None) == (period % AGAIN > 0) and "taken over" in wait
        led += [] if again is None else [again.motion]
    lasts_s = led[0].times_s[-1]
    assert {float(motion.times_s[-1]) for motion in led} == {lasts_s}
    for first, following, side, late in itertools.product((0, 1, 5), (1, 2, 9), (-1.0, 1.0), (0.003, 0.1, 1.0)):
        controller = Controller(JUDGED, INSIDE + side * 2 * LIMITS.tolerance)
        for motion in led[first : first + following]:
            assert not controller.take(motion.start_ns * 1e-9 + late, [(lasts_s, INSIDE, STILL)]).outside
    # Confirmed, it need not have been begun: whoever begins it in time stands where the first command expects it.
    ready_ns = led[-1].start_ns + round(lasts_s * 1e9) + LATE * PERIOD_NS
    controller = Controller(JUDGED, INSIDE + 2 * LIMITS.tolerance)
    controller.take(1e-9 * led[-1].start_ns + LATE * PERIOD, [(lasts_s, INSIDE, STILL)])
    np.testing.assert_allclose(controller.state(1e-9 * ready_ns)[0], INSIDE, atol=1e-9)
    assert checker.take_over(INSIDE, STILL, ready_ns - PERIOD_NS) == (None, wait)
    assert checker.take_over(INSIDE, STILL, ready_ns) == (None, "")
    # Somebody who begins to listen only now has to hear of it too.
    late_one, wait = checker.take_over(INSIDE, STILL, ready_ns + PERIOD_NS, heard=False)
    assert late_one is not None and "taken over" in wait
    assert checker.take_over(INSIDE, STILL, ready_ns + 2 * PERIOD_NS)[1] == wait
    follower = Follower(guard())
    follower.step(INSIDE + AXIS[6] * 0.002)
    follower.guard.reset()
    again, _ = follower.guard.take_over(INSIDE - 0.005, STILL, follower.time_ns + 10**9)
    assert again is not None
    np.testing.assert_allclose(again.positions, INSIDE + AXIS[6] * 0.002, atol=1e-9)
    follower.guard.reset()
    elsewhere, _ = follower.guard.take_over(INSIDE + AXIS[0] * 0.3, STILL, follower.time_ns + 2 * 10**9)
    assert elsewhere is not None
    np.testing.assert_array_equal(elsewhere.positions, INSIDE + AXIS[0] * 0.3)
    still_there = Controller(JUDGED, follower.controller.state(1e9)[0])
    assert not still_there.take(0.0, [(elsewhere.motion.times_s[1], elsewhere.positions, STILL)]).outside
    nothing, wait = guard().take_over(INSIDE, AXIS[2] * 0.3, 0)
    assert nothing is None and "panda_joint3 still moves" in wait
    with pytest.raises(VegaError, match=r"panda_joint7 is at .*, outside its limits"):
        guard().take_over(INSIDE + AXIS[6] * 5.0, STILL, 0)
    with pytest.raises(VegaError, match=r"begins outside .*workspace"):
        guard(workspace_upper=arm.forward(INSIDE)[0] - 0.01).take_over(INSIDE, STILL, 0)


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.06, 0.12])
def test_an_arm_that_is_measured_at_rest_on_its_way_is_not_taken_over_before_its_path_ends(after_s) -> None:
    """As one that lags, or turns round: led from there its controller would swing beyond the end that was judged."""
    bent = 0.9 * LIMITS.acceleration[0]
    follower = Follower(guard())
    for steps in (1, 2):
        follower.step(
            INSIDE + AXIS[0] * 0.5 * bent * (steps * PERIOD) ** 2, AXIS[0] * bent * steps * PERIOD, PERIOD * (steps < 2)
        )
    path, asked_ns = follower.controller.points, follower.time_ns + round(1e9 * after_s)
    ends_ns = follower.time_ns + round(1e9 * (path[-1][0] - path[0][0]))
    follower.guard.reset()
    place, rate = follower.controller.state(1e-9 * asked_ns)
    assert rate[0] > 0.1
    nothing, wait = follower.guard.take_over(place, STILL, asked_ns)
    assert nothing is None and "still on the path" in wait
    # A stream that is late is on it for longer.
    late_ns = 400_000_000
    assert follower.guard.take_over(place, STILL, ends_ns + 3 * PERIOD_NS, late_ns=late_ns) == (None, wait)
    lead, _ = follower.guard.take_over(path[-1][1], STILL, ends_ns + PERIOD_NS)
    assert lead is not None
    # A clock that was set back says nothing about a path of before.
    follower.guard.reset()
    assert follower.guard.take_over(path[-1][1], STILL, -(10**9))[0] is not None


def test_a_controller_that_obeys_at_once_is_not_sent_away_from_where_it_was_told_to_hold_the_arm() -> None:
    """It cannot be led, so that a place beyond the tolerance would be a step; one of the two places is wrong."""
    follower = Follower(guard())
    follower.guard.at_once = True
    told = INSIDE + AXIS[6] * 0.002
    follower.step(told)
    later_ns = follower.time_ns + 10**9
    follower.guard.reset()
    near, _ = follower.guard.take_over(told - 0.02, STILL, later_ns)
    assert near is not None
    np.testing.assert_allclose(near.positions, told, atol=1e-9)
    follower.guard.reset()
    with pytest.raises(VegaError, match=r"panda_joint1 .* clean up, configure and activate policy_node"):
        follower.guard.take_over(told + AXIS[0] * 0.3, STILL, later_ns + 10**9)
    # It may have heard the beginning of our path alone.
    follower.guard.reset(elsewhere=True, held=INSIDE)
    held, _ = follower.guard.take_over(INSIDE - 0.02, STILL, later_ns)
    assert held is not None
    np.testing.assert_array_equal(held.positions, INSIDE)
    # Where it may hold the arm anywhere, what is measured is all that is known; so at the very first.
    follower.guard.reset(elsewhere=True)
    for checker in (follower.guard, guard()):
        checker.at_once = True
        lead, _ = checker.take_over(told + AXIS[0] * 0.3, STILL, later_ns)
        assert lead is not None
        np.testing.assert_array_equal(lead.positions, told + AXIS[0] * 0.3)


LISTENER = f"""
import rclpy
from trajectory_msgs.msg import JointTrajectory
rclpy.init()
node = rclpy.create_node("listener")
node.create_subscription(JointTrajectory, "{COMMANDS}", lambda message: None, 10)
print("there", flush=True)
rclpy.spin(node)
"""


def test_the_policy_commands_only_when_all_who_listen_have_heard_that_the_arm_is_taken_over() -> None:
    with policy_node(**REAL) as (robot, _):
        environment = node_environment(robot.node.context.get_domain_id())
        with ChildProcess("listener", [sys.executable, "-c", LISTENER], environment=environment, on_line=None) as other:
            other.wait_for_line("there", DEADLINE_S)
            robot.bring_up()
            robot.send_instruction()
            # A controller that is there and hears nothing, as one that comes up or has died.
            topic = robot.node.resolve_topic_name(COMMANDS)
            assert robot.until(lambda: robot.node.count_subscribers(topic) == 2)
            other.signal(signal.SIGSTOP)
            with Pace(robot, 0.05, Arm(robot).tick):
                start(robot)
                assert robot.until(lambda: "has not confirmed" in robot.sentence()), robot.sentence()
                assert robot.commands and all(len(command.points) == 1 for command in robot.commands)
                other.signal(signal.SIGCONT)
                assert robot.until(lambda: any(len(command.points) > 1 for command in robot.commands)), robot.sentence()
                assert robot.shows(0), robot.sentence()
