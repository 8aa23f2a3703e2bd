"""What stops a real arm and keeps it still, over real DDS: the emergency stop, faults that deactivate, the dry run."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_harness import COMMANDS, HOME, JOINTS, REAL, Arm, Pace, moving, policy_node, start
from std_msgs.msg import Bool, Float64MultiArray, Header, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from benchmarks.wire_judge.controller import Controller, Limits, points_of
from policies.types import VegaError
from vega3d_ros.control.stamps import CLOSE_NS
from vega3d_ros.ros.conversions import stamp_ns

WARN, ERROR = 1, 2
BRAKE_RAD_S2 = 1000.0  # of libero.yaml
FORWARD = {
    "command_interface": "forward_position", "controller": "forward", "forward_position__jerk": [5000.0],
    "gripper__command_joint": "",
}  # fmt: skip


def test_the_emergency_stop_holds_until_the_arm_is_seen_at_rest():
    with policy_node(**REAL) as (robot, _), moving(robot) as arm:
        robot.diagnostics.clear()
        robot.client.trigger("policy_node/e_stop")
        arm.speed = 0.5
        assert robot.state() == "inactive"
        assert robot.until(lambda: "emergency stop was set by the service ~/e_stop" in robot.sentence())
        assert robot.until(lambda: robot.node.count_publishers(COMMANDS) == 0)
        # It goes on telling, though it is inactive.
        assert robot.shows(ERROR, "emergency stop", "~/clear_stop")
        assert not robot.change("activate")
        with pytest.raises(VegaError, match="emergency stop"):
            start(robot)
        seen: list[str] = []

        def refused() -> str:
            return str(robot.client.call(Trigger, "policy_node/clear_stop", Trigger.Request(), 20.0).message)

        robot.until(lambda: False, 0.7)  # longer than the cooldown of the stop itself
        assert "the arm moved" in refused()
        arm.speed = 0.0
        assert robot.until(lambda: seen.append(refused()) or seen[-1].startswith("Cleared")), seen
        assert arm.rests(), "a cleared stop alone must not move the arm"
        assert robot.change("activate"), robot.log_text()
        assert arm.rests()
        start(robot)
        assert arm.moves(), robot.sentence()


@pytest.mark.parametrize(
    ("reliability", "durability"),
    [
        (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
    ],
)
def test_the_stop_topic_is_heard_whatever_its_qos_and_in_every_state(reliability, durability):
    with policy_node(**REAL) as (robot, _):
        button = robot.node.create_publisher(
            Bool, "e_stop", QoSProfile(depth=1, reliability=reliability, durability=durability)
        )
        assert robot.until(lambda: button.get_subscription_count() > 0)
        assert robot.change("configure"), robot.log_text()
        button.publish(Bool(data=False))
        assert robot.change("activate"), "false is no stop"
        assert robot.change("deactivate")
        pressed = "set by the topic e_stop"
        assert robot.until(lambda: pressed in robot.log_text(), again=lambda: button.publish(Bool(data=True)))
        assert not robot.change("activate")
        button.publish(Bool(data=False))
        assert not robot.change("activate"), "letting go of the button does not clear it"


def test_a_publisher_that_was_not_heard_holds_a_real_arm_and_says_so_until_a_cleanup():
    said = "A publisher of 'instruction' cannot be heard"

    def volatile() -> Any:
        return robot.node.create_publisher(String, "instruction", 1)  # where transient local is asked for

    def starts() -> str:
        return robot.client.trigger("policy_node/start")

    with policy_node(**REAL) as (robot, _):
        arm = Arm(robot)
        robot.bring_up()
        deaf = volatile()
        assert robot.until(lambda: robot.status("qos instruction") is not None)
        robot.node.destroy_publisher(deaf)
        robot.send_instruction()
        with Pace(robot, 0.05, arm.tick):
            assert starts().startswith(f"Started, and waiting: {said}")
            assert robot.shows(ERROR, said, "clean policy_node up and configure it again")
            assert arm.rests() and not robot.commands

            def anew() -> None:
                assert robot.change("cleanup"), robot.log_text()
                robot.bring_up()
                robot.send_instruction()
                assert robot.until(lambda: starts() == "Started.")
                assert arm.moves(), robot.sentence()

            assert robot.change("deactivate")
            anew()
            deaf = volatile()
            ways = "clean policy_node up and configure it again, then activate policy_node and call ~/start."
            assert robot.shows(ERROR, said, ways)
            assert robot.until(lambda: robot.state() == "inactive")
            robot.node.destroy_publisher(deaf)
            assert robot.change("activate"), robot.log_text()
            assert said in starts() and robot.shows(ERROR, said, "clean policy_node up")
            assert arm.rests()
            assert robot.change("deactivate")
            anew()


def test_a_silent_camera_deactivates_and_its_return_moves_nothing():
    beats: list[Header] = []
    with policy_node(**REAL) as (robot, _):
        robot.node.create_subscription(Header, "policy_node/heartbeat", beats.append, 10)
        arm = Arm(robot)
        robot.bring_up()
        robot.send_instruction()
        with Pace(robot, 0.05, arm.tick):
            assert robot.until(lambda: any(beat.frame_id == "still" for beat in beats))
            start(robot)
            assert arm.moves(), robot.sentence()
            assert robot.until(lambda: beats[-1].frame_id == "commanding")
            arm.silent = {"wrist"}
            assert robot.shows(ERROR, "Camera 'wrist' has been silent", "activate policy_node and call ~/start.")
            assert robot.until(lambda: robot.state() == "inactive")
            arm.silent = set()
            assert arm.rests()
            assert robot.change("activate")
            assert arm.rests()
            start(robot)
            assert arm.moves(), robot.sentence()


def test_a_committed_trajectory_starts_at_once_and_ends_at_rest():
    with policy_node(**REAL) as (robot, _), moving(robot):
        pass
    # The controller is led to where the arm is, before the first command of the policy.
    leads = [command for command in robot.commands if len(command.points) == 1]
    commands = robot.commands[len(leads) :]
    assert robot.commands[0] in leads
    for (place,) in (lead.points for lead in leads):
        np.testing.assert_allclose(place.positions[:7], HOME, atol=1e-9)
        assert not np.any(place.velocities) and place.time_from_start.nanosec >= 50_000_000
    for command in commands:
        assert stamp_ns(command.header.stamp) == 0
        there, rest = command.points
        assert there.time_from_start.nanosec == 50_000_000
        seconds = (rest.time_from_start.nanosec - there.time_from_start.nanosec) / 1e9
        assert 0.0 < seconds <= 0.05 + 1e-9
        assert not np.any(rest.velocities)
        velocities = np.array(there.velocities[:7])
        assert np.all(np.abs(velocities) / seconds <= BRAKE_RAD_S2 + 1e-6)
        expected = np.array(there.positions[:7]) + 0.5 * seconds * velocities
        np.testing.assert_allclose(rest.positions[:7], expected, atol=1e-9)
        assert rest.positions[7] == there.positions[7]


def test_a_trajectory_that_leaves_ahead_is_stamped_and_begins_with_the_one_under_way():
    ahead_s = 0.05
    with policy_node(**REAL, command_ahead_s=ahead_s) as (robot, _), moving(robot):
        before = len(robot.commands)
        robot.client.trigger("policy_node/stop")
        robot.until(lambda: len(robot.commands) > before, 1.0)  # the braking, where the path is long enough for it
    driver = Controller(Limits(np.full(7, -9.0), np.full(7, 9.0), np.full(7, 9.0), np.full(7, 1e3)), HOME.copy())
    # What leads the controller begins whenever it arrives.
    leads = [command for command in robot.commands if len(command.points) == 1]
    commands = robot.commands[len(leads) :]
    assert leads == robot.commands[: len(leads)] and not any(stamp_ns(lead.header.stamp) for lead in leads)
    assert all(lead.points[0].time_from_start.nanosec >= 50_000_000 for lead in leads) and len(commands) > 3
    began_ns = stamp_ns(commands[0].header.stamp)

    def departs_s(command: JointTrajectory) -> float:
        # Since the first: a float of seconds since 1970 is exact to 0.24 us only.
        return (stamp_ns(command.header.stamp) - began_ns) * 1e-9

    for command in commands:
        points = points_of(command, JOINTS)
        stamp_s = departs_s(command)
        assert stamp_ns(command.header.stamp) > 0 and points is not None and not points[-1][2].any()
        # Whenever a controller gets it until it departs, it goes the same way.
        assert not driver.take(stamp_s + 0.3 * ahead_s, points, 0.3 * ahead_s).outside
    for earlier, command in itertools.pairwise(commands):
        departs = next(p for p in points_of(command, JOINTS) if p[0] >= ahead_s - 1e-6)
        path = Controller(driver.limits, HOME.copy())
        path.take(departs_s(earlier), points_of(earlier, JOINTS))
        there, _ = path.state(departs_s(command) + departs[0])
        # The path's clock and that of stamps are read at once to within CLOSE_NS, each time by half of it.
        read_s = 1e-9 * CLOSE_NS
        assert np.all(np.abs(departs[1] - there) <= read_s * np.abs(departs[2]).max() + 1e-9)


def test_an_arm_that_stands_as_every_command_comes_too_late_is_told():
    with policy_node(**REAL, command_ahead_s=1e-4) as (robot, _):  # of which nobody decides within half
        arm = Arm(robot)
        robot.bring_up()
        robot.send_instruction()
        with Pace(robot, 0.05, arm.tick):
            start(robot)
            assert robot.until(lambda: int(robot.values().get("commands_late", 0)) > 2), robot.sentence()
            assert robot.shows(WARN, "came too late to be sent", "command_ahead_s")
        assert all(len(command.points) == 1 for command in robot.commands), "only what leads the controller"


def test_a_dry_run_publishes_where_no_driver_listens():
    heard: list[JointTrajectory] = []
    with policy_node(**REAL, dry_run=True) as (robot, _):
        robot.node.create_subscription(JointTrajectory, f"policy_node/dry_run/{COMMANDS}", heard.append, 10)
        arm = Arm(robot)
        robot.bring_up()
        robot.send_instruction()
        with Pace(robot, 0.05, arm.tick):
            start(robot)
            assert robot.until(lambda: len(heard) > 3), robot.sentence()
        assert robot.node.count_publishers(COMMANDS) == 0
        assert not robot.commands


def test_a_stream_of_positions_goes_on_between_the_policys_actions_and_comes_to_rest():
    heard: list[Float64MultiArray] = []
    with policy_node(**REAL, **FORWARD) as (robot, _):
        robot.node.create_subscription(Float64MultiArray, "forward/commands", heard.append, 100)
        robot.node.create_subscription(Float64MultiArray, "forward/commands", lambda m: robot.put(m.data), 100)
        arm = Arm(robot)
        robot.bring_up()
        robot.send_instruction()
        with Pace(robot, 0.05, arm.tick):
            start(robot)
            assert robot.until(lambda: len(heard) > 40), robot.sentence()
            robot.client.trigger("policy_node/e_stop")
            assert robot.until(lambda: robot.node.count_publishers("forward/commands") == 0)
        positions = np.array([message.data for message in heard])
        assert positions.shape[1] == 7
        assert np.abs(positions[-1] - positions[-2]).max() < 1e-9, "the last command is one at rest"
        jerk = np.abs(np.diff(positions, 3, axis=0)).max(axis=1) * 100.0**3
        assert np.median(jerk) < 5000.0
        assert int(robot.values()["commands"]) < len(heard)


def test_a_stream_of_positions_begins_where_the_arm_is_held_or_not_at_all():
    heard: list[np.ndarray] = []
    with policy_node(**{**REAL, "after_problem": "wait"}, **FORWARD) as (robot, _):

        def hear(message: Float64MultiArray) -> None:
            heard.append(np.array(message.data))
            robot.put(message.data)

        robot.node.create_subscription(Float64MultiArray, "forward/commands", hear, 100)
        arm = Arm(robot)
        robot.bring_up()
        robot.send_instruction()

        def streams() -> bool:
            heard.clear()
            return robot.until(lambda: len(heard) > 20)

        def moved_by_others() -> np.ndarray:
            robot.until(lambda: False, 1.0)  # what was on its way
            place = robot.arm.positions + 0.3 * np.eye(7)[0]
            robot.put(place)
            heard.clear()
            return place

        with Pace(robot, 0.05, arm.tick):
            start(robot)
            assert streams(), robot.sentence()
            # Somebody else commands the arm: nothing is known then of where its controller holds it.
            other = robot.node.create_publisher(Float64MultiArray, "forward/commands", 1)
            assert robot.shows(ERROR, "already commanded by")
            place = moved_by_others()
            robot.node.destroy_publisher(other)
            start(robot)
            assert robot.until(lambda: len(heard) > 20), robot.sentence()
            np.testing.assert_allclose(heard[0], place, atol=1e-9)
            # Moved while nobody commands it: either place may be wrong.
            robot.client.trigger("policy_node/stop")
            place = moved_by_others()
            start(robot)
            assert robot.shows(ERROR, "panda_joint1 is measured at", "clean up, configure and activate policy_node")
            assert not heard
            np.testing.assert_array_equal(robot.arm.positions, place)
            for transition in ("deactivate", "cleanup", "configure", "activate"):
                assert robot.change(transition), robot.log_text()
            robot.send_instruction()
            start(robot)
            assert robot.until(lambda: len(heard) > 20), robot.sentence()
            np.testing.assert_allclose(heard[0], place, atol=1e-9)


def test_an_interface_that_lockstep_lacks_is_refused():
    with policy_node(clock_mode="lockstep", committed=True) as (robot, _):
        assert not robot.change("configure")
        assert robot.until(lambda: "In lockstep one trajectory point answers" in robot.log_text())


@pytest.mark.parametrize(("lie", "said"), [("jump", "panda_joint2 went from"), ("degrees", "right in degrees")])
def test_joint_states_that_no_arm_could_have_stop_the_node_and_move_nothing(lie, said):
    with policy_node(**REAL) as (robot, _):
        arm = Arm(robot)
        truth = robot.sample_now

        def lies():
            sample = truth()
            if lie == "degrees":
                return replace(sample, positions=np.rad2deg(sample.positions))
            sample.positions[1] += 0.5
            return sample

        robot.bring_up()
        robot.send_instruction()
        with Pace(robot, 0.05, arm.tick):
            start(robot)
            assert arm.moves(), robot.sentence()
            robot.sample_now = lies
            assert robot.shows(ERROR, said, "activate policy_node and call ~/start.")
            assert robot.state() == "inactive"
            assert arm.rests()
        # Nothing of what was claimed was commanded.
        places = np.array([point.positions[:7] for command in robot.commands for point in command.points])
        assert np.abs(places - HOME).max() < 0.4
