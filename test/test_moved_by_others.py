"""A controller that obeys at once, and who may have moved its arm while this node commanded nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from ros_harness import REAL, Arm, FakeRobot, Pace, policy_node, start
from std_msgs.msg import Float64MultiArray, String

from vega3d_ros.topics.node_outputs import DECISIONS

COMMANDS = "forward/commands"
FORWARD = {
    "command_interface": "forward_position", "controller": "forward", "forward_position__jerk": [5000.0],
    "gripper__command_joint": "",
}  # fmt: skip
BY_OTHERS = 0.09 * np.eye(7)[0]  # rad, within the tracking tolerance
SAG = 0.01 * np.eye(7)[1]


@contextmanager
def streaming(sag: np.ndarray) -> Iterator[tuple[FakeRobot, list[np.ndarray]]]:
    """Started and seen to command; its arm is so far from where its controller holds it.  With it what was commanded,
    by whomever."""
    heard: list[np.ndarray] = []
    with policy_node(**REAL, **FORWARD) as (robot, _):

        def hear(message: Float64MultiArray) -> None:
            heard.append(np.array(message.data))
            robot.put(heard[-1] - sag)

        robot.node.create_subscription(Float64MultiArray, COMMANDS, hear, 100)
        robot.bring_up()
        robot.send_instruction()
        with Pace(robot, 0.05, Arm(robot).tick):
            start(robot)
            assert robot.until(lambda: len(heard) > 40), robot.sentence()
            yield robot, heard


def rests(robot: FakeRobot, heard: list[np.ndarray]) -> None:
    """Until the path is at its end, where it is not said any more."""

    def quiet() -> bool:
        before = len(heard)
        robot.until(lambda: len(heard) > before, 0.5)
        return len(heard) == before

    assert robot.until(quiet)


@pytest.mark.parametrize("when", ["stopped", "inactive", "not started yet"])
def test_an_arm_that_another_commanded_meanwhile_is_taken_over_where_it_is(when) -> None:
    """However near: the first command would be a step back to where this node left it."""
    with streaming(0.0 * SAG) as (robot, heard):
        decided: list[dict[str, Any]] = []
        robot.node.create_subscription(
            String, "policy_node/decisions", lambda message: decided.append(json.loads(message.data)), DECISIONS
        )
        robot.client.trigger("policy_node/stop")
        rests(robot, heard)
        assert robot.until(lambda: decided and decided[-1]["event"] in ("discard", "tick"))
        if when == "not started yet":
            assert robot.change("deactivate") and robot.change("activate"), robot.log_text()
        elif when == "inactive":
            assert robot.change("deactivate"), robot.log_text()
        place = heard[-1] + BY_OTHERS
        other = robot.node.create_publisher(Float64MultiArray, COMMANDS, 1)
        assert robot.until(lambda: other.get_subscription_count() > 0)
        other.publish(Float64MultiArray(data=place.tolist()))
        assert robot.until(lambda: np.array_equal(heard[-1], place))
        assert robot.until(lambda: "begin at what joint_states say" in robot.log_text())
        robot.node.destroy_publisher(other)
        heard.clear()

        def streams() -> bool:
            """It may still be seen at first."""
            if robot.state() == "inactive" and not robot.change("activate"):
                return False
            start(robot)
            return robot.until(lambda: len(heard) > 20 or robot.state() == "inactive") and len(heard) > 20

        assert robot.until(streams), robot.sentence()
        np.testing.assert_allclose(heard[0], place, atol=1e-9)
        # Without it a recording would not lead to the same commands again.
        assert robot.until(lambda: decided and decided[-1]["event"] == "tick")
        released = next(i for i, event in enumerate(decided) if event["event"] == "release")
        assert decided[released]["elsewhere"] and decided[released]["held"] is None
        assert any(event["event"] == "start" for event in decided[released:])


def test_an_arm_that_nobody_else_commanded_sags_no_further_however_often_the_node_is_activated() -> None:
    with streaming(SAG) as (robot, heard):
        for _ in range(2):
            robot.client.trigger("policy_node/stop")
            rests(robot, heard)
            told = heard[-1]
            assert robot.change("deactivate"), robot.log_text()
            robot.until(lambda: False, 0.5)  # in which it would be seen
            assert robot.change("activate"), robot.log_text()
            assert "begin at what joint_states say" not in robot.log_text()
            heard.clear()
            start(robot)
            assert robot.until(lambda: len(heard) > 20), robot.sentence()
            np.testing.assert_allclose(heard[0], told, atol=1e-9)
