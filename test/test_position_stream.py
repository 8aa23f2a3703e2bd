"""Positions for a controller that obeys at once: what leaves when commanding ends, and what must not leave any more."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from policies.types import VegaError
from vega3d_ros.control.control_loop import JointCommand, JointSample
from vega3d_ros.control.guard.limits import GuardLimits
from vega3d_ros.control.guard.motion import Motion, braking, resting
from vega3d_ros.inference.process import END_S
from vega3d_ros.topics import command_writers, node_outputs, rivals
from vega3d_ros.topics.command_writers import ForwardWriter
from vega3d_ros.topics.node_outputs import Outputs

STEP_S = 0.01
SPEED, ACCELERATION = 2.0, 1.0  # rad/s and rad/s^2: braking takes 2 s
TOPIC = "/forward/commands"
ONE = np.ones(1)
LIMITS = GuardLimits(-9.0 * ONE, 9.0 * ONE, SPEED * ONE, ACCELERATION * ONE)
SAMPLE = JointSample(0, 0.0 * ONE, 0.0 * ONE, np.zeros(0))


class Clockwork:
    """In the place of the module `time`: who sleeps makes it later, nothing else does."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def monotonic_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns * 1e-9

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class Graph:
    """As much of a node as writers see: its publishers, who listens to them, and who else publishes."""

    def __init__(self) -> None:
        self.sent: list[float] = []
        self.others: list[str] = []
        self.listeners = ["controller_manager"]
        self.runs = True
        self.timers: list[Any] = []
        self.context = SimpleNamespace(ok=lambda: self.runs, get_domain_id=lambda: 7)
        self._own: list[str] = []

    def create_publisher(self, kind: Any, topic: str, qos: Any, **_: Any) -> Any:
        self._own.append(self.resolve_topic_name(topic))

        def publish(message: Any) -> None:
            assert self.runs, "nothing can be published after the end"
            said = getattr(message, "data", ())
            self.sent += [] if isinstance(said, str) else list(said)  # not what is noted of decisions

        return SimpleNamespace(
            topic_name=self._own[-1], publish=publish, get_subscription_count=lambda: len(self.listeners)
        )

    def get_parameter(self, name: str) -> Any:
        assert name == "use_sim_time"
        return SimpleNamespace(value=False)

    def create_timer(self, period_s: float, callback: Any, **_: Any) -> None:
        self.timers.append(callback)

    def create_subscription(self, kind: Any, topic: str, callback: Any, qos: Any) -> None:
        """Nobody tells this node anything."""

    def destroy_subscription(self, subscription: Any) -> None:
        """Nor has anybody told it."""

    def destroy_timer(self, timer: Any) -> None:
        self.timers.clear()

    def destroy_publisher(self, publisher: Any) -> None:
        self._own.remove(publisher.topic_name)

    def resolve_topic_name(self, name: str) -> str:
        return name if name.startswith(("/", "~")) else f"/{name}"

    def count_publishers(self, topic: str) -> int:
        return self._own.count(topic) + (len(self.others) if topic == TOPIC else 0)

    def get_publishers_info_by_topic(self, topic: str) -> list[Any]:
        return [SimpleNamespace(node_namespace="/", node_name=name) for name in self.others]

    def get_subscriptions_info_by_topic(self, topic: str) -> list[Any]:
        return [SimpleNamespace(node_name=name) for name in self.listeners]

    def count_clients(self, service: str) -> int:
        return 0

    def get_fully_qualified_name(self) -> str:
        return "/policy_node"


def parameters(jerk: float) -> Any:
    return SimpleNamespace(
        forward_jerk=jerk * ONE, forward_rate_hz=1.0 / STEP_S, controller="forward", gripper_controller="",
        gripper_command_joint="", gripper_open=0.0, gripper_closed=0.0, dry_run=False, max_gap_periods=4,
        command_interface="forward_position", committed=True,
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch) -> Clockwork:
    clockwork = Clockwork()
    for module in (command_writers, node_outputs, rivals):
        monkeypatch.setattr(module, "time", clockwork)
    return clockwork


def command(clock: Clockwork, speed: float) -> JointCommand:
    """From 0, where the arm has this speed, one period on and then to rest."""
    there = 0.05 * speed * ONE
    rest, seconds = braking(there, speed * ONE, LIMITS.acceleration)
    motion = Motion(
        clock.now_ns,
        np.array([0.0, 0.05, 0.05 + seconds]),
        np.array([0.0 * ONE, there, rest]),
        np.array([speed * ONE, speed * ONE, 0.0 * ONE]),
    )
    return JointCommand(0, there, speed * ONE, 0.0, 0.05, motion=motion)


def stream(graph: Graph, clock: Clockwork, seconds: float) -> None:
    for _ in range(round(seconds / STEP_S)):
        graph.timers[0]()
        clock.sleep(STEP_S)


def test_an_arm_that_came_to_rest_is_told_nothing_more_when_commanding_ends(clock) -> None:
    """It may have been moved since, by hand or with another controller."""
    graph = Graph()
    writer = ForwardWriter(graph, parameters(1000.0), LIMITS, {})  # type: ignore[arg-type]
    writer.write(command(clock, 1.0), 0.0, SAMPLE)
    stream(graph, clock, 3.0)
    before = len(graph.sent)
    assert graph.sent[-1] == pytest.approx(0.55)
    stream(graph, clock, 60.0)
    writer.stop()
    writer.destroy()
    assert len(graph.sent) == before


@pytest.mark.parametrize("jerk", [1000.0, 2.0, 0.5])
def test_the_end_of_commanding_goes_along_the_path_however_long_it_brakes(clock, jerk) -> None:
    graph = Graph()
    writer = ForwardWriter(graph, parameters(jerk), LIMITS, {})  # type: ignore[arg-type]
    made = command(clock, SPEED)
    writer.write(made, 0.0, SAMPLE)
    stream(graph, clock, 0.03)
    began_s = clock.monotonic()
    writer.stop()
    writer.destroy()
    assert clock.monotonic() - began_s < END_S, "what ends the process would cut it off"
    sent = np.array(graph.sent)
    assert np.abs(np.diff(sent)).max() <= SPEED * STEP_S * (1 + 1e-9)
    rests_s = made.motion.times_s[-1] + 2 * ACCELERATION / jerk
    if rests_s < 4.0:
        assert sent[-1] == pytest.approx(made.motion.positions[-1, 0])
        assert np.abs(np.diff(sent, 2))[-50:].max() <= ACCELERATION * STEP_S**2 * (1 + 1e-6), "it brakes to the end"
    # Said again, since the last of what a publisher says may be lost with it; and no further place.
    np.testing.assert_array_equal(sent[-command_writers.LAST_WORDS :], sent[-command_writers.LAST_WORDS - 1])


@pytest.mark.parametrize("why", ["another commands", "nobody listens", "the end of ROS"])
def test_nothing_more_is_streamed_where_the_arm_may_be_on_anothers_path(clock, why) -> None:
    graph = Graph()
    outputs = Outputs(graph, parameters(1000.0), LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]
    outputs.publish(command(clock, SPEED), SAMPLE)
    stream(graph, clock, 0.1)
    before = len(graph.sent)
    assert before == 10 and not outputs.rivals() and outputs.heard()
    if why == "another commands":
        graph.others.append("teleoperation")
    elif why == "nobody listens":
        graph.listeners.clear()
    else:
        graph.runs = False
    outputs.stop()
    stream(graph, clock, 0.1)
    outputs.end()
    outputs.destroy()
    assert len(graph.sent) == before


@pytest.mark.parametrize("stopped_first", [False, True])
def test_a_process_that_was_held_up_leaves_the_arm_where_it_rests_since(clock, stopped_first) -> None:
    """The controller has held the last position meanwhile; the path's end would be a jump."""
    graph = Graph()
    outputs = Outputs(graph, parameters(1000.0), LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]
    outputs.publish(command(clock, SPEED), SAMPLE)
    stream(graph, clock, 0.1)
    clock.sleep(0.1)
    stream(graph, clock, 0.1)
    before = len(graph.sent)
    assert before == 20 and outputs.heard(), "a short delay is none"
    clock.sleep(1.0)
    # Which of the timers that are due comes first is chance.
    if stopped_first:
        assert not outputs.stop()
    stream(graph, clock, 0.1)
    assert "was held up for 1.01 s" in outputs.unheard and not outputs.stop()
    assert len(graph.sent) == before
    # There it is taken over anew, unless somebody else has commanded it since, or it was away.
    np.testing.assert_array_equal(outputs.held, graph.sent[-1])  # type: ignore[arg-type]
    graph.others.append("teleoperation")
    assert outputs.held is None
    graph.others.clear()
    graph.listeners.clear()
    assert outputs.held is None
    graph.listeners.append("controller_manager")
    outputs.reset()
    assert outputs.heard() and outputs.held is None
    outputs.publish(command(clock, SPEED), SAMPLE)
    clock.sleep(1.0)  # while it ends: before the first position has left, the last ones of another path are no rest
    graph.timers[0]()
    outputs.end()
    outputs.destroy()
    assert len(graph.sent) == before


@pytest.mark.parametrize("jerk", [2000.0, 100.0])
@pytest.mark.parametrize("pause_s", [0.03, 0.1, 0.2, 0.4])
def test_a_stream_that_was_held_up_for_less_goes_on_from_where_the_arm_stands(clock, pause_s, jerk) -> None:
    """Such a controller obeys at once: a step along the path to where it is by now would be as fast as the arm can."""
    limits = replace(LIMITS, acceleration=10.0 * ONE)
    graph = Graph()
    writer = ForwardWriter(graph, parameters(jerk), limits, {})  # type: ignore[arg-type]
    writer._parameters.max_gap_periods = 10
    path = resting(0.0 * ONE, clock.now_ns)
    told: list[tuple[float, float]] = []

    def period(pause_s: float = 0.0) -> None:
        """Faster up to the limit of velocity, five times the stream's step, with a pause after the second."""
        nonlocal path
        q, v = path.at(clock.now_ns)
        faster = np.minimum(v + 0.9 * 10.0 * 0.05, SPEED)
        q = q + 0.5 * (v + faster) * 0.05
        rest, seconds = braking(q, faster, limits.acceleration)
        path = Motion(
            clock.now_ns, np.array([0.0, 0.05, 0.05 + seconds]), np.array([*path.at(clock.now_ns)[:1], q, rest]),
            np.array([v, faster, 0.0 * ONE]),
        )  # fmt: skip
        writer.write(JointCommand(0, q, faster, 0.0, 0.05, motion=path), 0.0, SAMPLE)
        for step in range(5):
            graph.timers[0]()
            told.append((clock.monotonic(), graph.sent[-1]))
            clock.sleep(STEP_S + (pause_s if step == 1 else 0.0))

    for number in range(60):
        period(pause_s if number == 20 else 0.0)
    writer.stop()
    writer.destroy()
    assert not writer.unheard()
    times_s, sent = np.array([*told, *((0.0, place) for place in graph.sent[len(told) :])]).T
    assert sent[-1] == pytest.approx(path.positions[-1, 0], abs=1e-6)
    moved = np.diff(sent)
    assert np.abs(moved).max() <= 1.1 * SPEED * STEP_S
    # Where it stood, the arm was at rest, whatever it was told before.
    before = np.array([0.0, *moved[:-1]])
    before[: len(told) - 1][np.diff(times_s[: len(told)]) > 2.0 * STEP_S] = 0.0
    assert np.abs(moved - before).max() <= 1.25 * 10.0 * STEP_S**2


@pytest.mark.parametrize("pause_s", [0.03, 0.1, 0.2])
def test_a_hold_up_while_commanding_ends_leaves_no_burst_behind(clock, monkeypatch, pause_s) -> None:
    """However many steps were missed, what follows comes a period apart."""
    graph = Graph()
    outputs = Outputs(graph, parameters(100.0), LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]
    outputs.publish(command(clock, SPEED), SAMPLE)
    stream(graph, clock, 0.03)
    writer, told = outputs._writer, list[float]()
    assert isinstance(writer, ForwardWriter)
    step = writer._step

    def late() -> None:
        if len(told) == 3:
            clock.sleep(pause_s)
        told.append(clock.monotonic())
        step()

    monkeypatch.setattr(writer, "_step", late)
    outputs.end()
    outputs.destroy()
    assert len(told) > 8 and np.diff(told[4:]).min() >= 0.49 * STEP_S


def test_a_stop_alone_leaves_the_stream_on_its_way_to_rest(clock) -> None:
    graph = Graph()
    outputs = Outputs(graph, parameters(1000.0), LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]
    made = command(clock, SPEED)
    outputs.publish(made, SAMPLE)
    outputs.stop()
    stream(graph, clock, 3.0)
    assert graph.sent[-1] == pytest.approx(made.motion.positions[-1, 0])


def test_a_stop_that_was_pressed_while_others_were_looked_for_leaves_nothing_behind(clock) -> None:
    graph = Graph()

    def pressed() -> None:
        assert clock.monotonic() >= began_s + node_outputs.LOOK_S, "asked after the wait, not before"
        raise VegaError("The emergency stop was set.")

    began_s = clock.monotonic()
    with pytest.raises(VegaError, match="emergency stop"):
        Outputs(graph, parameters(1000.0), LIMITS, {}, began_s, pressed)  # type: ignore[arg-type]
    assert not graph.count_publishers(TOPIC)


@pytest.mark.parametrize("listed_s", [0.2, 60.0])
def test_a_publisher_of_our_own_that_is_listed_after_its_end_is_no_rival_unless_it_stays(clock, listed_s) -> None:
    graph, began_s = Graph(), clock.monotonic()
    honest = graph.count_publishers
    graph.count_publishers = lambda topic: honest(topic) + (clock.monotonic() - began_s < listed_s)  # type: ignore
    graph.get_publishers_info_by_topic = lambda topic: [  # type: ignore[method-assign]
        SimpleNamespace(node_namespace="/", node_name="policy_node")
    ]

    def begin() -> Outputs:
        return Outputs(graph, parameters(1000.0), LIMITS, {}, 0.0)  # type: ignore[arg-type]

    if listed_s < 1.0:
        assert begin().heard()
    else:
        with pytest.raises(VegaError, match="another node of the same name"):
            begin()
