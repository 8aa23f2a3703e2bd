"""What the emergency stop takes for a button that is released, and for an arm at rest: one node in this process, its
messages handed over by hand, on a clock of the test's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from policies.types import VegaError
from sim.robot.ros_client import unused_domain
from vega3d_ros.control.stop_latch import COOLDOWN_S
from vega3d_ros.node import supervision, vigilance
from vega3d_ros.ros import node_parameters

ARM = ("a", "b", "c")
NAN = float("nan")
SECOND_NS = 10**9
SENT_NS = 1_700_000_000 * SECOND_NS


class Stop:
    """An EmergencyStop, what it hears, and the time."""

    def __init__(self, node, monkeypatch) -> None:
        self.now_s, self.said = 1000.0, ""
        for module in (supervision, vigilance):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self.stop = supervision.EmergencyStop(node, lambda sentence: None)

    def button(self, value: bool, at_s: float) -> None:
        """at_s: the publisher's clock.  Each message comes by three subscriptions."""
        for _ in range(3):
            self.stop._on_topic(Bool(data=value), {"source_timestamp": SENT_NS + round(at_s * SECOND_NS)})

    def joints(self, names: Sequence[str], positions: Sequence[float], velocities: Sequence[float] = ()) -> None:
        self.stop._on_joint_state(JointState(name=names, position=positions, velocity=velocities))

    def cleared(self) -> bool:
        answer = self.stop._on_clear(Trigger.Request(), Trigger.Response())
        self.said = answer.message
        return answer.success

    def rests(self, seconds: float = 1.5 * COOLDOWN_S) -> None:
        for _ in range(round(seconds / 0.05)):
            self.now_s += 0.05
            self.joints(ARM, [0.1, 0.2, 0.3], [0.0] * 3)


@pytest.fixture
def stopping(monkeypatch) -> Iterator[Callable[..., Stop]]:
    """Makes one from a node's parameters; `__` in a name stands for a dot."""
    context = Context()
    rclpy.init(context=context, domain_id=unused_domain())

    def make(**given: Any) -> Stop:
        values = {"joint_names": list(ARM), **{name.replace("__", "."): value for name, value in given.items()}}
        overrides = [Parameter(name, value=value) for name, value in values.items() if value is not None]
        node = Node("stopped", context=context, parameter_overrides=overrides)
        nodes.callback(node.destroy_node)
        node_parameters.declare(node)
        return Stop(node, monkeypatch)

    with ExitStack() as nodes:
        yield make
    context.try_shutdown()


@pytest.mark.parametrize("back_s", [0.3, 3.0, 100.0])
def test_a_button_whose_clock_was_set_back_still_counts_as_pressed(stopping, back_s):
    stop = stopping()
    stop.button(False, 0.0)
    stop.button(True, 0.1 - back_s)
    assert stop.stop.latch.reason
    stop.rests()
    assert not stop.cleared() and "still pressed" in stop.said


def test_a_button_whose_clock_was_set_back_can_be_released(stopping):
    stop = stopping()
    stop.button(True, 0.0)
    stop.button(False, -100.0)
    stop.rests()
    assert stop.cleared(), stop.said


def test_a_message_that_took_longer_by_one_way_than_the_next_by_another_is_not_the_last(stopping):
    stop = stopping()
    late = {"source_timestamp": SENT_NS}
    stop.button(True, 0.1)
    stop.stop._on_topic(Bool(data=False), late)
    stop.rests()
    assert not stop.cleared() and "still pressed" in stop.said


def test_a_button_whose_clock_was_set_back_is_not_silent(stopping):
    stop = stopping(e_stop__heartbeat_s=0.3)
    stop.button(False, 0.0)
    for beat in range(5):
        stop.now_s += 0.2
        stop.button(False, 0.2 * (beat + 1) - 100.0)
        stop.stop._watch()
    assert not stop.stop.latch.reason


def test_a_button_is_not_silent_because_the_node_did_not_listen(stopping):
    """While a policy is loaded, or the node activated, no callback runs; the timer's may then be the first."""
    stop = stopping(e_stop__heartbeat_s=0.3)
    for _ in range(3):
        stop.button(False, 0.0)
        stop.stop._watch()
        stop.now_s += 5.0
        stop.stop._watch()
        assert not stop.stop.latch.reason
    stop.now_s += 0.05
    stop.stop._watch()
    assert "silence" in stop.stop.latch.reason


@pytest.mark.parametrize("received_s", [5.0, 0.0, None])
def test_what_a_button_said_counts_from_when_it_came_not_from_when_it_was_taken(stopping, received_s):
    """It may have fallen silent while a policy was loaded."""
    stop = stopping(e_stop__heartbeat_s=0.3)
    info = {"received_timestamp": 0 if received_s is None else time.time_ns() - round(received_s * SECOND_NS)}
    stop.stop._on_topic(Bool(data=False), info)
    if received_s:
        with pytest.raises(VegaError, match="silence on the topic e_stop"):
            stop.stop.check()
    else:
        stop.stop.check()


def test_a_button_whose_words_wait_to_be_taken_is_not_silent(stopping):
    """After a pause of the executor the oldest come first."""
    stop = stopping(e_stop__heartbeat_s=0.3)
    node = stop.stop._node
    publisher = node.create_publisher(Bool, "e_stop", 1)
    began_s = time.monotonic()
    while publisher.get_subscription_count() < 2:
        assert time.monotonic() - began_s < 60.0
        time.sleep(0.01)
    stop.button(False, 0.0)
    stop.now_s += 5.0
    stop.stop._watch()
    publisher.publish(Bool(data=False))
    assert publisher.wait_for_all_acked(Duration(seconds=60.0))
    stop.now_s += 0.05
    stop.stop._watch()
    assert not stop.stop.latch.reason


@pytest.mark.parametrize("period_s", [0.05, 0.11, 1.0])
def test_a_silent_button_is_missed_however_seldom_the_node_looks(stopping, period_s):
    stop = stopping(e_stop__heartbeat_s=0.3)
    stop.button(False, 0.0)
    began_s = stop.now_s
    while not stop.stop.latch.reason:
        stop.now_s += period_s
        stop.stop._watch()
        assert stop.now_s - began_s <= 0.3 + 2 * period_s + 1e-6
    assert stop.now_s - began_s > 0.3


GRIPPER = (["finger"], [0.02])
PLACE = (0.1, 0.2, 0.3)


def run(stop: Stop, seconds: float, speed: float, velocities: Sequence[float] = (), parts: bool = False) -> None:
    """The arm's second joint turns at this speed, rad/s, at 20 Hz; velocities: what the driver tells of it."""
    for _ in range(round(seconds / 0.05)):
        stop.now_s += 0.05
        place = (PLACE[0], PLACE[1] + speed * (stop.now_s - 1000.0), PLACE[2])
        if parts:
            stop.joints(ARM[:1], place[:1], velocities[:1])
            stop.joints(ARM[1:], place[1:], velocities[1:])
        else:
            stop.joints(ARM, place, velocities)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("velocities", [(0.0,) * 3, (), (NAN,) * 3])
def test_an_arm_at_rest_is_told_whatever_of_it_comes_with_what_from_others(stopping, parts, velocities):
    stop = stopping()
    stop.stop._on_service(Trigger.Request(), Trigger.Response())
    for _ in range(12):
        run(stop, 0.05, 0.0, velocities, parts)
        stop.joints(*GRIPPER)
        stop.joints([], [])
    assert stop.cleared(), stop.said


@pytest.mark.parametrize("velocities", [(0.0,) * 3, (), (NAN,) * 3])
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("speed", [0.03, -2.0])
def test_an_arm_that_moves_is_told_from_where_it_is(stopping, parts, velocities, speed):
    stop = stopping(velocity_filter_s=0.05)
    stop.stop._on_service(Trigger.Request(), Trigger.Response())
    for _ in range(40):
        run(stop, 0.05, speed, velocities, parts)
        assert not stop.cleared()
    assert "the arm moved" in stop.said


@pytest.mark.parametrize("velocity", [0.03, float("inf")])
def test_an_arm_that_moves_is_told_from_one_velocity_alone(stopping, velocity):
    stop = stopping()
    stop.stop._on_service(Trigger.Request(), Trigger.Response())
    run(stop, 2.0, 0.0, (0.0, 0.0, velocity))
    assert not stop.cleared() and "the arm moved" in stop.said


def test_an_arm_with_a_joint_of_which_nothing_is_told_is_not_at_rest(stopping):
    stop = stopping()
    stop.stop._on_service(Trigger.Request(), Trigger.Response())
    for _ in range(40):
        stop.now_s += 0.05
        stop.joints(ARM[:2], PLACE[:2], (0.0, 0.0))
        stop.joints(["c"], [], [0.0])
    assert not stop.cleared()
    run(stop, 0.6, 0.0)
    assert stop.cleared(), stop.said
    stop.stop._on_service(Trigger.Request(), Trigger.Response())
    run(stop, 0.6, 0.0)
    for _ in range(20):
        stop.now_s += 0.05
        stop.joints(ARM[:2], PLACE[:2])
    assert not stop.cleared() and stop.said.startswith("Nobody knows whether the arm is at rest") and "c" in stop.said


def test_an_encoder_that_wavers_and_a_joint_that_is_reported_within_one_turn_are_at_rest(stopping):
    stop = stopping()
    stop.stop._on_service(Trigger.Request(), Trigger.Response())
    for step in range(12):
        stop.now_s += 0.05
        stop.joints(ARM, (0.1, 0.2 + 0.002 * (-1) ** step, 3.1415 * (-1) ** step))
    assert stop.cleared(), stop.said


def test_a_node_without_joint_names_is_stopped_and_stays_so(stopping):
    stop = stopping(joint_names=None)
    stop.stop._on_service(Trigger.Request(), Trigger.Response())
    run(stop, 2.0, 0.0)
    assert not stop.cleared() and "Nobody knows" in stop.said


def test_an_enabling_switch_that_is_released_after_its_clock_was_set_back_is_released(stopping):
    stop = stopping(enable__topic="enable", home=[0.0] * 3, joint_names=list(ARM))
    node = stop.stop._node
    switch = vigilance.Vigilance(node, node_parameters.read(node), 0.05)
    switch._on_switch(Bool(data=True), {vigilance.SENT: SENT_NS})
    assert not switch.problem(moving=True)
    switch._on_switch(Bool(data=False), {vigilance.SENT: SENT_NS - 100 * SECOND_NS})
    assert "is not held" in switch.problem(moving=True)


@pytest.mark.parametrize("overtaken_s", [0.0, 0.3, 100.0])
def test_an_enabling_switch_that_was_released_between_two_looks_was_released(stopping, overtaken_s):
    """However soon it is held again, somebody let go; and it is held anew for the next start."""
    stop = stopping(enable__topic="enable", home=[0.0] * 3, joint_names=list(ARM))
    node = stop.stop._node
    switch = vigilance.Vigilance(node, node_parameters.read(node), 0.05)

    def says(value: bool, at_s: float) -> None:
        switch._on_switch(Bool(data=value), {vigilance.SENT: SENT_NS + round(at_s * SECOND_NS)})

    says(False, 0.0)
    says(True, 1.0)
    switch.reset()
    switch.check(moving=True, is_period=True)
    says(False, 1.1 - overtaken_s)
    for beat in range(5):
        says(True, 3.0 + 0.05 * beat)
        with pytest.raises(VegaError, match=r"'enable' was released, if only for a moment: .* ~/start again"):
            switch.check(moving=True, is_period=True)
    switch.reset()
    switch.check(moving=True, is_period=True)


def test_of_an_enabling_switch_nothing_is_lost_while_the_node_is_held_up(stopping, monkeypatch):
    heard, take = [], vigilance.Vigilance._on_switch

    def hear(self, message, info=None) -> None:
        heard.append(message.data)
        take(self, message, info)

    monkeypatch.setattr(vigilance.Vigilance, "_on_switch", hear)
    stop = stopping(enable__topic="enable", home=[0.0] * 3, joint_names=list(ARM))
    node = stop.stop._node
    switch = vigilance.Vigilance(node, node_parameters.read(node), 0.05)
    publisher = node.create_publisher(Bool, "enable", QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT))
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)

    def until(condition: Callable[[], bool]) -> bool:
        ends_s = time.monotonic() + 60.0
        while not condition() and time.monotonic() < ends_s:
            executor.spin_once(timeout_sec=0.1)
        return condition()

    assert until(lambda: publisher.get_subscription_count() > 0)
    for value in [True, False] + [True] * 50:
        publisher.publish(Bool(data=value))
    assert until(lambda: len(heard) == 52), len(heard)
    with pytest.raises(VegaError, match="released"):
        switch.check(moving=True, is_period=True)
    executor.remove_node(node)
