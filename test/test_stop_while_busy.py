"""A stop button that is pressed while the node cannot listen, since it loads a policy or waits for others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_harness import DEADLINE_S, REAL, TRANSITIONS, policy_node
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from policies.types import VegaError
from sim.robot.ros_client import RosClient, unused_domain
from vega3d_ros.node.supervision import EmergencyStop
from vega3d_ros.ros import node_parameters

DELIVERED = Duration(seconds=DEADLINE_S)


@pytest.mark.parametrize("after", [0, 20])
def test_a_button_pressed_while_the_policy_loads_stops_whatever_it_says_after_that(tmp_path, monkeypatch, after):
    """A button that repeats its value says false as often as the load is long."""
    path = tmp_path / "policy"
    monkeypatch.setenv("SLOW_POLICY", str(path))
    with policy_node("SlowPolicy", **REAL) as (robot, _):
        button = robot.node.create_publisher(Bool, "e_stop", 100)
        assert robot.until(lambda: button.get_subscription_count() > 1)
        client = robot.node.create_client(ChangeState, "policy_node/change_state")
        assert robot.until(client.service_is_ready)
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS["configure"]
        answer = client.call_async(request)
        assert robot.until(path.with_suffix(".there").exists)
        for value in [False, True] + [False] * after:
            button.publish(Bool(data=value))
        assert button.wait_for_all_acked(DELIVERED)
        path.with_suffix(".go").touch()
        assert robot.until(answer.done) and answer.result().success, robot.log_text()
        assert not robot.change("activate")
        assert robot.until(lambda: "emergency stop was set by the topic e_stop" in robot.log_text())


class Bench:
    """A node with an emergency stop that nobody spins, and a button on another."""

    def __init__(self, node: Node, client: RosClient) -> None:
        self.told: list[str] = []
        self.stop = EmergencyStop(node, self.told.append)
        every = QoSProfile(
            depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self.button = client.node.create_publisher(Bool, "e_stop", every)
        assert client.until(lambda: self.button.get_subscription_count() == 3, DEADLINE_S)

    def say(self, *values: bool) -> None:
        for value in values:
            self.button.publish(Bool(data=value))
        assert self.button.wait_for_all_acked(DELIVERED)


@pytest.fixture
def bench() -> Iterator[Bench]:
    domain, context = unused_domain(), Context()
    rclpy.init(context=context, domain_id=domain)
    node = Node("stopped", context=context)
    node_parameters.declare(node)
    client = RosClient("button", domain)
    yield Bench(node, client)
    client.close()
    node.destroy_node()
    context.try_shutdown()


def test_what_waits_to_be_heard_counts_before_anything_may_move(bench):
    bench.say(False)
    bench.stop.check()
    bench.say(True, *[False] * 20)
    with pytest.raises(VegaError, match="set by the topic e_stop"):
        bench.stop.check()
    assert len(bench.told) == 1


def test_of_a_long_wait_nothing_is_lost_and_the_last_value_counts(bench):
    """More than DDS keeps, of which it then leaves out the oldest."""
    with bench.stop.listening():
        bench.say(False, True)
        for _ in range(60):
            bench.say(*[False] * 100)
        bench.say(True)
        assert not bench.told, "the executor's thread decides"
    assert len(bench.told) == 1
    answer = bench.stop._on_clear(Trigger.Request(), Trigger.Response())
    assert not answer.success and "still pressed" in answer.message


def test_a_wait_that_fails_forgets_no_button(bench):
    def load() -> Any:
        bench.say(True, False)
        raise VegaError("no such policy")

    with pytest.raises(VegaError, match="no such policy"), bench.stop.listening():
        load()
    assert bench.told
