"""A policy_node in this process, whose callbacks are called by hand: what a stop and a switch must hold against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_harness import CAMERAS, COMMANDS, FINGERS, INSTRUCTION, JOINTS, PERIOD_NS, REAL, ROOT, image_of, sample_at
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from sim.robot.ros_client import RosClient, unused_domain
from vega3d_ros.node.policy_node import PolicyNode
from vega3d_ros.ros import conversions
from vega3d_ros.topics import node_outputs

SUCCESS = TransitionCallbackReturn.SUCCESS


class Robot:
    """The node, and an arm whose controller hears it in the same domain."""

    def __init__(self, node: PolicyNode, client: RosClient) -> None:
        self.node, self.client = node, client
        self.heard: list[JointTrajectory] = []
        client.node.create_subscription(JointTrajectory, COMMANDS, self.heard.append, 100)

    def bring_up(self) -> None:
        node = self.node
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        assert self.client.until(lambda: self.client.node.count_publishers(COMMANDS) == 1, 30.0)
        assert self.client.until(lambda: node._active.outputs.heard(), 30.0)
        pose = PoseStamped()
        pose.header.frame_id, pose.pose.orientation.w = "world", 1.0
        node._on_base_pose(pose)
        node._on_instruction(String(data=INSTRUCTION))

    def start(self) -> Trigger.Response:
        return self.node._on_start(Trigger.Request(), Trigger.Response())

    def show(self, step: int) -> None:
        for index, camera in enumerate(CAMERAS):
            self.node._on_image(camera, conversions.image_message(image_of(index), step * PERIOD_NS, camera))

    def ask(self, step: int) -> None:
        self.node._on_joint_state(conversions.joint_state_message(sample_at(step), JOINTS, FINGERS))

    @property
    def sent(self) -> int:
        return self.node._condition.counts["commands"]


@pytest.fixture
def robot(monkeypatch) -> Iterator[Callable[..., Robot]]:
    """Makes one from parameters; `__` in a name stands for a dot."""
    monkeypatch.setattr(node_outputs, "DISCOVERY_S", 0.0)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    domain, context = unused_domain(), Context()
    rclpy.init(context=context, domain_id=domain)
    with ExitStack() as made:
        made.callback(context.try_shutdown)

        def make(**given: Any) -> Robot:
            values: Mapping[str, Any] = {"policy": "tiny_policy:TinyPolicy", "clock_mode": "lockstep", **given}
            overrides = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
            file = ["--ros-args", "--params-file", str(ROOT / "config" / "robots" / "libero.yaml")]
            node = PolicyNode(context=context, cli_args=file, parameter_overrides=overrides)
            made.callback(node.destroy_node)
            client = RosClient("arm", domain)
            made.callback(client.close)
            return Robot(node, client)

        yield make


def test_a_repeated_answer_needs_the_enabling_switch_too(robot):
    arm = robot(enable__topic="enable")
    arm.bring_up()
    switch = arm.node._active.vigilance._on_switch
    switch(Bool(data=True))
    assert arm.start().success
    arm.show(1)
    arm.ask(1)
    arm.ask(1)
    assert arm.sent == 2, "an answer, and once more"
    switch(Bool(data=False))
    arm.ask(1)
    assert arm.sent == 2 and "is not held" in arm.node._condition.fault


def breaks(*_: Any) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("how", ["stop", "e_stop", "deactivate"])
def test_a_stop_stops_though_the_braking_fails(robot, monkeypatch, how):
    arm = robot(**REAL)
    arm.bring_up()
    node = arm.node
    assert arm.start().success
    monkeypatch.setattr(node._active.commander, "brake", breaks)
    if how == "stop":
        assert node._on_stop(Trigger.Request(), Trigger.Response()).success
    elif how == "e_stop":
        node._emergency._on_topic(Bool(data=True))
    else:
        assert node.trigger_deactivate() == SUCCESS
    assert not node._condition.running
    assert (node._active is None) == (how != "stop")


def test_a_node_that_cannot_deactivate_does_not_start_while_the_stop_is_set(robot, monkeypatch):
    arm = robot(**REAL)
    arm.bring_up()
    node = arm.node
    with monkeypatch.context() as patch:
        patch.setattr(node._active._control_timer, "destroy", breaks)
        node._emergency._on_topic(Bool(data=True))
        assert node._active is not None
        answer = arm.start()
    assert not answer.success and "emergency stop was set by the topic e_stop" in answer.message
    assert not node._condition.running


def test_a_stop_that_is_set_after_a_fault_has_deactivated_the_node_is_told_in_its_place(robot):
    """What the fault says to do, the stop refuses."""
    arm = robot()
    arm.bring_up()
    assert arm.start().success
    arm.node._fail("The camera is gone.", deactivate=True)
    assert arm.node._active is None and arm.node._condition.fault.startswith("The camera is gone, then activate")
    arm.node._emergency._on_service(Trigger.Request(), Trigger.Response())
    assert arm.node._condition.fault == arm.node._emergency.sentence
    assert arm.node.trigger_activate() != SUCCESS
    assert arm.node._condition.fault == arm.node._emergency.sentence


def test_a_start_by_itself_does_not_go_with_a_switch_that_somebody_has_to_hold(robot, monkeypatch):
    arm, said = robot(autostart=True, enable__topic="enable"), []
    assert arm.node.trigger_configure() == SUCCESS
    monkeypatch.setattr(arm.node, "get_logger", lambda: SimpleNamespace(error=said.append))
    assert arm.node.trigger_activate() != SUCCESS
    assert len(said) == 1 and said[0].endswith("set autostart to false, or enable.topic to nothing.")


def test_turns_are_counted_on_at_a_start_only_where_the_controller_was_told_them_last(robot, monkeypatch):
    """Else the arm is taken over where joint_states say, in the turn in which their driver says it."""
    arm, forgotten = robot(**REAL), []
    arm.bring_up()
    runner = arm.node._runner
    monkeypatch.setattr(arm.node._inputs._reader, "forget_turns", lambda: forgotten.append(1))
    assert arm.start().success and len(forgotten) == 1, "it was told nothing yet"
    runner._told = True  # as after the first command
    assert arm.start().success and len(forgotten) == 1
    assert runner.release(True)
    assert arm.start().success and len(forgotten) == 2
