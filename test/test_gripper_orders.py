"""What a gripper is told, and when: what it holds by its force is not let go because an episode begins."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_action_writer import Goals
from test_position_stream import LIMITS, ONE, SAMPLE, Clockwork, Graph, clock, parameters  # noqa: F401
from test_robot_parameters import file_with, read_by_a_node

from policies.types import VegaError
from vega3d_ros.control.control_loop import JointCommand, JointSample
from vega3d_ros.control.guard.motion import resting
from vega3d_ros.topics import action_writer
from vega3d_ros.topics.node_outputs import Outputs

OPEN, CLOSED, HELD = 0.0, 0.7, 0.35
INTERFACES = ("joint_trajectory", "forward_position", "follow_joint_trajectory")


class Bench:
    """Outputs of a node whose gripper is stopped at HELD by what it holds; what its joint was told."""

    def __init__(self, clock: Clockwork, monkeypatch, interface: str, apart: bool) -> None:  # noqa: F811
        class Action:
            def Goal(self, **fields):
                return SimpleNamespace(command=SimpleNamespace(), **fields)

        for name, stand_in in (
            ("ActionClient", Goals), ("FollowJointTrajectory", Action()), ("GripperCommand", Action()),
        ):  # fmt: skip
            monkeypatch.setattr(action_writer, name, stand_in)
        self.messages: list[Any] = []
        self.graph = Graph()
        made = self.graph.create_publisher

        def create_publisher(kind: Any, topic: str, qos: Any, **options: Any) -> Any:
            publisher = made(kind, topic, qos, **options)
            publisher.publish = self.messages.append
            publisher.wait_for_all_acked = lambda _: True
            return publisher

        self.graph.create_publisher = create_publisher  # type: ignore[method-assign]
        self.graph.create_client = lambda *_: SimpleNamespace(call_async=lambda _: None)  # type: ignore[attr-defined]
        self.graph.get_subscriptions_info_by_topic = lambda _: [  # type: ignore[method-assign]
            SimpleNamespace(node_name="controller_manager", endpoint_gid=(1,))
        ]
        given = parameters(1000.0)
        given.command_interface, given.committed, given.joint_names = interface, True, ("j",)
        given.gripper_controller, given.gripper_action, given.gripper_max_effort = "hand" * apart, "grip", 50.0
        given.gripper_command_joint, given.gripper_joints = "finger", ("finger",)
        given.gripper_open, given.gripper_closed, given.controller = OPEN, CLOSED, "forward"
        self._given, self.where, self._clock = given, HELD, clock
        self.outputs = Outputs(self.graph, given, LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]
        self._noise, self._interface = np.random.default_rng(0), interface
        self._seen = 0

    def deactivate(self) -> None:
        self.outputs.end()
        self.outputs.destroy()

    def activate(self) -> None:
        """What has been sent before is no matter of what follows."""
        self._seen = 0
        made = self._given, LIMITS, {}, self._clock.monotonic()
        self.outputs = Outputs(self.graph, *made, notes=self.outputs.notes)  # type: ignore[arg-type]

    def send(self, order: float, rejected: bool = False, lead: bool = False) -> list[float]:
        """One command; what the gripper's joint was told by it."""
        where = self.where + self._noise.normal(0.0, 2e-4)
        motion = resting(0.0 * ONE, self._clock.now_ns)
        rules = ("acceleration",) if rejected else ()
        command = JointCommand(
            0, 0.0 * ONE, 0.0 * ONE, 0.0 if rejected or lead else order, 0.05, rejected=rules, motion=motion, lead=lead
        )
        self.outputs.publish(command, JointSample(0, SAMPLE.positions, SAMPLE.velocities, np.array([where])))
        told = []
        if self._interface == "follow_joint_trajectory":
            clients = self.outputs._writer._clients  # type: ignore[union-attr]
            goals = [goal for client in clients for goal in client.goals]
            new, self._seen = goals[self._seen :] if len(clients) == 1 else clients[1].goals[self._seen :], 0
            self._seen = len(clients[-1].goals)
            told = [goal.command.position for goal in new if hasattr(goal.command, "position")]
            new = [goal.trajectory for goal in new if hasattr(goal, "trajectory")]
        else:
            new, self.messages[:] = list(self.messages), []
        for message in new:
            if "finger" in getattr(message, "joint_names", ()):
                told += [point.positions[list(message.joint_names).index("finger")] for point in message.points]
        return told


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_gripper_with_a_controller_of_its_own_is_told_orders_and_nothing_else(clock, monkeypatch, interface):  # noqa: F811
    bench = Bench(clock, monkeypatch, interface, apart=True)
    for _ in range(2):
        bench.outputs.reset()
        # A lead, refused commands and those that keep it are no orders.
        silent = [bench.send(0.0, lead=True), *(bench.send(1.0, rejected=True) for _ in range(5)), bench.send(0.0)]
        assert silent == [[]] * 7
        told = bench.send(1.0)
        assert told and set(told) == {CLOSED}
        assert not bench.send(-1.0, rejected=True)
        assert set(bench.send(0.0)) <= {CLOSED}, "it keeps what it has"
        assert set(bench.send(-1.0)) == {OPEN} and set(bench.send(1.0)) == {CLOSED}


@pytest.mark.parametrize("interface", ["joint_trajectory", "follow_joint_trajectory"])
def test_a_gripper_in_the_arms_message_keeps_its_order_from_one_episode_to_the_next(clock, monkeypatch, interface):  # noqa: F811
    bench = Bench(clock, monkeypatch, interface, apart=False)
    bench.outputs.reset()
    first = bench.send(0.0, lead=True)
    assert first and abs(first[0] - HELD) < 0.01, "before the first order it stays where it is"
    assert {*bench.send(0.0, lead=True), *bench.send(0.0)} == {first[0]}, "and follows no noise"
    assert set(bench.send(1.0)) == {CLOSED}
    bench.outputs.stop()
    bench.outputs.reset()
    assert set(bench.send(0.0, lead=True)) == {CLOSED} == set(bench.send(0.0))
    # What others did with it meanwhile is not undone.
    bench.outputs.notes("release", elsewhere=True, held=None)
    bench.outputs.reset()
    assert abs(bench.send(0.0, lead=True)[0] - HELD) < 0.01


@pytest.mark.parametrize("meanwhile", ["nothing", "others", "opened by hand", "taken out"])
def test_what_a_gripper_holds_is_held_on_through_a_deactivation(clock, monkeypatch, meanwhile):  # noqa: F811
    """To be told where it is measured would take its force away."""
    bench = Bench(clock, monkeypatch, "joint_trajectory", apart=False)
    bench.outputs.reset()
    assert set(bench.send(1.0)) == {CLOSED}
    bench.outputs.stop()
    bench.deactivate()
    if meanwhile == "others":
        bench.outputs.notes("release", elsewhere=True, held=None)
    elif meanwhile == "opened by hand":
        bench.where = 0.1
    elif meanwhile == "taken out":
        bench.where = CLOSED
    bench.activate()
    bench.outputs.reset()
    told = bench.send(0.0, lead=True)
    if meanwhile in ("nothing", "taken out"):
        assert set(told) == {CLOSED} == set(bench.send(0.0))
        bench.where = 0.1
        assert set(bench.send(0.0)) == {CLOSED}, "under way it is told what it was"
    else:
        assert abs(told[0] - bench.where) < 0.01
    texts = [json.loads(text) for text in bench.outputs.notes.take()]
    assert [event["n"] for event in texts] == list(range(len(texts))) == [0]
    assert texts[0]["event"] == ("release" if meanwhile == "others" else "gripper")


def test_a_gripper_that_a_stream_of_the_arms_positions_cannot_move_is_refused_unless_it_is_told_nothing(tmp_path):
    path = file_with(tmp_path, "      controller: gripper_controller\n", "")
    forward = tmp_path / "forward.yaml"
    forward.write_text(
        "/**:\n  ros__parameters:\n    command_interface: forward_position\n    forward_position.jerk: [100.0]\n"
    )
    given = "--params-file", str(path), "--params-file", str(forward)
    with pytest.raises(VegaError, match=r"'gripper.controller' is empty, and with command_interface forward_position"):
        read_by_a_node(*given)
    assert not read_by_a_node(*given, "-p", "gripper.command_joint:=''").gripper_command_joint
    assert read_by_a_node(*given, "-p", "gripper.controller:=hand").gripper_command_joint == "finger_joint"
