"""Stops that fail safe, over real DDS: buttons, switches, frozen processes, clocks, launchers, other commanders."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace

import pytest
from ros_harness import (
    CAMERAS,
    DEADLINE_S,
    LATCHED,
    REAL,
    Arm,
    FakeRobot,
    Pace,
    image_of,
    moving,
    node_environment,
    policy_node,
    start,
)
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from policies.types import VegaError
from vega3d_ros.inference.process import LAUNCHER, ChildProcess

ERROR = 2


def cleared(robot: FakeRobot, seen: list[str]) -> bool:
    """Ask once to clear the stop; what was answered is in `seen`."""
    seen.append(str(robot.client.call(Trigger, "policy_node/clear_stop", Trigger.Request(), 20.0).message))
    return seen[-1].startswith("Cleared")


def test_a_button_that_stays_pressed_cannot_be_cleared_and_nothing_moves():
    with policy_node(**REAL) as (robot, _):
        arm = Arm(robot)
        button = robot.node.create_publisher(Bool, "e_stop", LATCHED)
        button.publish(Bool(data=True))  # pressed before the node is even configured
        seen: list[str] = []
        with Pace(robot, 0.05, arm.tick):
            assert robot.until(lambda: "set by the topic e_stop" in robot.log_text())
            assert robot.change("configure"), robot.log_text()
            robot.send_instruction()
            assert robot.until(robot.connected)
            assert robot.until(lambda: cleared(robot, seen) or "still pressed" in seen[-1]), seen
            robot.until(lambda: False, 1.0)  # longer than the cooldown, in which the arm rests
            assert not cleared(robot, seen) and "the last value on the topic e_stop is true" in seen[-1]
            assert not robot.change("activate")
            button.publish(Bool(data=False))
            assert robot.until(lambda: cleared(robot, seen)), seen
            assert robot.change("activate"), robot.log_text()
            start(robot)
            assert arm.moves(), robot.sentence()


def test_a_button_whose_publisher_vanishes_stops_the_arm():
    with policy_node(**REAL) as (robot, _):
        arm = Arm(robot)
        button = robot.node.create_publisher(Bool, "e_stop", LATCHED)
        button.publish(Bool(data=False))
        robot.bring_up()
        robot.send_instruction()
        assert robot.until(lambda: button.get_subscription_count() == 3)
        with Pace(robot, 0.05, arm.tick):
            start(robot)
            assert arm.moves(), robot.sentence()
            robot.node.destroy_publisher(button)
            assert robot.shows(ERROR, "set by the loss of a publisher of the topic e_stop", "~/clear_stop")
            assert robot.until(lambda: robot.state() == "inactive") and arm.rests()
            seen: list[str] = []
            assert robot.until(lambda: cleared(robot, seen)), seen


def test_a_button_that_must_speak_is_missed_before_and_while_the_arm_moves():
    beat_s = 3.0
    with policy_node(**REAL, e_stop__heartbeat_s=beat_s) as (robot, _):
        arm = Arm(robot)
        robot.send_instruction()
        assert robot.change("configure") and not robot.change("activate")
        assert robot.until(lambda: "silence on the topic e_stop for more than 3 s" in robot.log_text())
        button = robot.node.create_publisher(Bool, "e_stop", 1)
        assert robot.until(lambda: button.get_subscription_count() >= 2)
        with Pace(robot, 0.05, arm.tick):
            with Pace(robot, 0.1, lambda: button.publish(Bool(data=False))):

                def moves() -> bool:
                    # On a machine that stands still for longer than the beat the button is missed: all over again.
                    cleared(robot, [])
                    robot.change("activate")
                    try:
                        start(robot)
                    except VegaError:
                        return False
                    before = len(robot.commands)
                    return robot.until(lambda: len(robot.commands) > before + 3, 20.0)

                assert robot.until(moves), robot.log_text()
            assert robot.shows(ERROR, "set by silence on the topic e_stop")
            assert robot.until(lambda: robot.state() == "inactive")
            seen: list[str] = []
            # Where the machine stood still just before, the button was missed while it spoke; silent it is only now.
            assert robot.until(lambda: not cleared(robot, seen) and "connect the button" in seen[-1]), seen


def test_an_enabling_switch_must_be_held():
    switch = {"enable__topic": "enable", "enable__timeout_s": 8.0}
    with policy_node(**{**REAL, "after_problem": "wait"}, **switch) as (robot, _):
        arm = Arm(robot)
        robot.bring_up()
        robot.send_instruction()
        publisher = robot.node.create_publisher(Bool, "enable", 1)
        with Pace(robot, 0.05, arm.tick):
            with pytest.raises(VegaError, match="has said nothing on 'enable'"):
                start(robot)
            held = [False]
            assert robot.until(lambda: publisher.get_subscription_count() > 0)
            with Pace(robot, 0.05, lambda: publisher.publish(Bool(data=held[0]))):

                def starts(said: str) -> bool:
                    try:
                        start(robot)
                    except VegaError as error:
                        return bool(said) and said in str(error)
                    return not said

                assert robot.until(lambda: starts("is not held"))
                held[0] = True
                assert robot.until(lambda: starts(""))
                assert arm.moves(), robot.sentence()
                held[0] = False
                assert robot.shows(ERROR, "switch on 'enable' is not held", "~/start")
                assert arm.rests()
                held[0] = True
                assert arm.rests(), "holding it again alone moves nothing"
                assert robot.until(lambda: starts("")) and arm.moves()
            assert robot.shows(ERROR, "switch on 'enable' has been silent")
            assert arm.rests()


@pytest.mark.parametrize("after_problem", ["wait", "deactivate"])
def test_a_node_that_was_frozen_does_not_move_again_by_itself(after_problem):
    frozen_s = 3.0
    parameters = {**REAL, "after_problem": after_problem, "max_gap_periods": 40}
    with policy_node(**parameters) as (robot, child), moving(robot) as arm:
        child.signal(signal.SIGSTOP)
        robot.until(lambda: False, frozen_s)
        child.signal(signal.SIGCONT)
        again = "activate policy_node" if after_problem == "deactivate" else "call ~/start again"
        assert robot.shows(ERROR, "Nothing was decided for", again)
        assert arm.rests()
        assert robot.state() == ("inactive" if after_problem == "deactivate" else "active")
        if after_problem == "deactivate":
            assert robot.change("activate"), robot.log_text()
        start(robot)
        assert arm.moves(), robot.sentence()


def test_no_parameter_changes_while_the_node_is_active():
    with policy_node(**REAL) as (robot, _):
        robot.bring_up()
        for name, value in (("use_sim_time", True), ("autostart", True), ("safety.acceleration", [9.0])):
            with pytest.raises(VegaError, match=r"while policy_node is active|read-only"):
                robot.client.set_parameters("policy_node", {name: value}, 30.0)
        assert robot.change("deactivate")
        robot.client.set_parameters("policy_node", {"autostart": False}, 30.0)


def test_a_client_of_the_controllers_action_is_a_rival():
    # What an action client is in the graph: a client of the service that takes goals.
    goals = "panda_arm_controller/follow_joint_trajectory/_action/send_goal"
    with policy_node(**REAL) as (robot, _):
        arm = Arm(robot)
        client = robot.node.create_client(Trigger, goals)
        assert robot.change("configure"), robot.log_text()
        assert not robot.change("activate")
        said = "The action /panda_arm_controller/follow_joint_trajectory is already commanded by /fake_robot"
        assert robot.until(lambda: said in robot.log_text())
        robot.node.destroy_client(client)
        assert robot.until(lambda: robot.change("activate")), robot.log_text()
        robot.send_instruction()
        assert robot.until(robot.connected)
        with Pace(robot, 0.05, arm.tick):
            start(robot)
            assert arm.moves(), robot.sentence()
            robot.node.create_client(Trigger, goals)
            assert robot.shows(ERROR, said)
            assert arm.rests()


class SimulatedTime:
    """A robot that lives by its own /clock; it can be held, and set."""

    def __init__(self, robot: FakeRobot) -> None:
        self.publisher = robot.node.create_publisher(Clock, "/clock", 1)
        self.robot, self.seconds, self.runs = robot, 1000.0, True

    def tick(self) -> None:
        if self.runs:
            self.seconds += 0.05
            self.sample = self.robot.sample_now()  # in a world that stands, the arm stands too
        stamp = round(self.seconds * 1e9)
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(stamp, 10**9)
        self.publisher.publish(message)
        for camera in CAMERAS:
            self.robot.send_image(camera, image_of(0), stamp)
        self.robot.send_joints(replace(self.sample, stamp_ns=stamp))


@pytest.mark.parametrize(
    ("what", "said"),
    [("back", "jumped back by"), ("ahead", "jumped ahead by"), ("stand", "has been standing still for")],
)
def test_a_simulated_clock_that_jumps_or_stands_ends_commanding(what, said):
    sim = {**REAL, "after_problem": "wait", "use_sim_time": True, "max_age_s": 2.0, "max_gap_periods": 100}
    with policy_node(**sim) as (robot, _):
        world = SimulatedTime(robot)
        arm = Arm(robot)
        robot.send_instruction()
        with Pace(robot, 0.05, world.tick):
            robot.bring_up()
            start(robot)
            assert arm.moves(), robot.sentence()
            if what == "stand":
                world.runs = False
            else:
                world.seconds += -900.0 if what == "back" else 900.0
            # The stamps jump with the clock, so either may be told first.
            assert robot.until(lambda: said in robot.log_text() or "jumped back" in robot.log_text()), robot.sentence()
            assert robot.shows(ERROR, "~/start")
            world.runs = True
            assert arm.rests(), "it does not go on from what was before"
            start(robot)
            assert arm.moves(), robot.sentence()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_node_ends_with_the_launcher_that_it_was_told_of(number, monkeypatch):
    sleeps = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    with ChildProcess("launcher", sleeps, on_line=None) as launcher:
        launcher.wait_for_line("up", 60.0)
        monkeypatch.setenv(LAUNCHER, str(launcher.pid))
        with policy_node(**REAL) as (robot, child), moving(robot):
            launcher.signal(number)
            assert child.wait(DEADLINE_S) == 0, child.tail()
            assert any("that started this node has ended" in line for line in child.tail()), child.tail()


def test_a_node_whose_launcher_is_gone_already_does_not_start(monkeypatch):
    with ChildProcess("launcher", [sys.executable, "-c", "pass"], on_line=None) as launcher:
        assert launcher.wait(DEADLINE_S) == 0
    monkeypatch.setenv(LAUNCHER, str(launcher.pid))
    command = [sys.executable, "-m", "vega3d_ros.node.policy_node"]
    with ChildProcess("policy_node", command, environment=node_environment(0), on_line=None) as child:
        assert child.wait(DEADLINE_S) == 1
    assert f"The process {launcher.pid} that started this node has ended" in " ".join(child.tail())
