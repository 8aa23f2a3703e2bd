"""A controller that goes away while the arm moves: whose it was counts, and what one that comes up is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_commander import Bench
from test_position_stream import LIMITS, SAMPLE, SPEED, Clockwork, Graph, clock, command, parameters, stream  # noqa: F401

from vega3d_ros.topics.node_outputs import Outputs

ARM, GRIPPER = "/forward/commands", "/hand/joint_trajectory"
GRIPPERS = f"Nobody listens to {GRIPPER}: start the gripper's controller or correct 'gripper.controller'."


class Heard(Graph):
    """Of each topic who listens, and what of the gripper's was said."""

    def __init__(self) -> None:
        super().__init__()
        self.away: set[str] = set()
        self.orders: list[float] = []

    def create_publisher(self, kind: Any, topic: str, qos: Any, **options: Any) -> Any:
        publisher = super().create_publisher(kind, topic, qos, **options)
        name, publish = publisher.topic_name, publisher.publish

        def told(message: Any) -> None:
            if name == GRIPPER:
                self.orders.append(message.points[-1].positions[0])
            publish(message)

        publisher.publish = told
        publisher.get_subscription_count = lambda: int(name not in self.away)
        return publisher

    def get_subscriptions_info_by_topic(self, topic: str) -> list[Any]:
        return [SimpleNamespace(node_name=name) for name in self.listeners if topic not in self.away]


def outputs(graph: Graph, clock: Clockwork) -> Outputs:  # noqa: F811
    given = parameters(1000.0)
    given.gripper_controller, given.gripper_command_joint, given.gripper_joints = "hand", "finger", ("finger",)
    given.gripper_action = "grip"
    given.gripper_open, given.gripper_closed = 0.0, 0.7
    return Outputs(graph, given, LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]


def order(clock: Clockwork, gripper: float, speed: float = SPEED) -> Any:  # noqa: F811
    made = command(clock, speed)
    return SimpleNamespace(**{**made.__dict__, "gripper": gripper})


SAMPLED = SimpleNamespace(**{**SAMPLE.__dict__, "gripper_positions": np.zeros(1)})


def under_way(clock: Clockwork, gripper: float) -> tuple[Heard, Outputs, Any]:  # noqa: F811
    """A stream of positions at speed, of an order that has been heard."""
    graph = Heard()
    made, sent = outputs(graph, clock), order(clock, gripper)
    made.publish(sent, SAMPLED)
    stream(graph, clock, 0.1)
    return graph, made, sent


def test_an_arm_at_speed_brakes_along_its_path_where_the_gripper_s_controller_alone_is_away(clock) -> None:  # noqa: F811
    graph, made, sent = under_way(clock, 1.0)
    graph.away.add(GRIPPER)
    on_our_path = made.stop()
    stream(graph, clock, 3.0)
    assert graph.sent[-1] == pytest.approx(sent.motion.positions[-1, 0])
    assert on_our_path and made.unheard == GRIPPERS
    assert np.abs(np.diff(graph.sent, 2)).max() <= 1.25 * LIMITS.acceleration[0] * 0.01**2


def test_a_gripper_s_controller_that_comes_up_is_told_the_next_order_and_none_from_before(clock) -> None:  # noqa: F811
    graph = Heard()
    made = outputs(graph, clock)
    made.publish(order(clock, 1.0), SAMPLED)
    made.publish(order(clock, 1.0), SAMPLED)
    assert graph.orders == [0.7]
    graph.away.add(GRIPPER)
    assert made.unheard
    made.forget_gripper()
    graph.away.clear()
    assert not made.unheard
    made.publish(order(clock, 1.0), SAMPLED)
    assert graph.orders == [0.7, 0.7]
    graph.away.add(GRIPPER)
    assert made.unheard
    made.forget_gripper()
    assert '"forget"' in made.notes.take()[-1]  # so that a replay forgets it, too
    graph.away.clear()
    assert not made.unheard
    made.publish(order(clock, 0.0), SAMPLED)
    assert graph.orders == [0.7, 0.7], "it holds the gripper where it is"


def test_a_stream_that_nobody_hears_is_not_gone_on_with_to_who_comes_next(clock) -> None:  # noqa: F811
    """A controller that comes up holds the arm where it is measured; the rest of the path would be a jump."""
    graph, made, _ = under_way(clock, 0.0)
    graph.away.add(ARM)
    assert "start the arm's controller" in made.unheard
    before = len(graph.sent)
    stream(graph, clock, 0.5)
    graph.away.clear()
    # Nobody has looked meanwhile; who takes the arm over anew leaves the path, and not who only asks.
    assert made.lost and "For a moment nobody listened" in made.unheard
    made.leave()
    assert not made.lost and not made.unheard
    stream(graph, clock, 0.5)
    assert len(graph.sent) == before + 1 and made.held is None


def test_who_asks_whether_a_stream_is_heard_does_not_end_it(clock) -> None:  # noqa: F811
    """As /diagnostics do: nobody would know that the arm is to be taken over, and the next command be a jump."""
    graph, made, sent = under_way(clock, 1.0)
    graph.away.update((ARM, GRIPPER))
    assert made.lost and made.unheard and made.missing and not made.heard() and made.held is None
    graph.away.clear()
    assert not made.lost and made.heard()
    stream(graph, clock, 3.0)
    assert graph.sent[-1] == pytest.approx(sent.motion.positions[-1, 0])
    made.publish(sent, SAMPLED)
    assert graph.orders == [0.7], "nor does it say an order again"


def test_where_the_gripper_alone_is_away_the_arm_goes_on_from_its_path() -> None:
    bench = Bench()
    bench.runner.loop.guard.at_once = True  # type: ignore[union-attr]
    end = bench.moves()[-1].motion.positions[-1]  # type: ignore[union-attr]
    bench.unheard, bench.lost = GRIPPERS, False
    assert not bench.run(20)
    bench.unheard = ""
    again = bench.moves()
    assert not any(sent.lead for sent in again) and bench.forgotten == 20
    np.testing.assert_allclose(again[0].motion.positions[0], end, atol=1e-9)  # type: ignore[union-attr]
