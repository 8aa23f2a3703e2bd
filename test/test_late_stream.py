"""A stream of positions that is late: what the arm is held against, how it stops, and when that is a fault."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_position_stream import LIMITS, SAMPLE, STEP_S, Clockwork, Graph, parameters
from test_position_stream import clock as clock  # a fixture
from test_safety_guard import AXIS, INSIDE, PERIOD, PERIOD_NS, STILL, guard
from test_safety_guard import LIMITS as ARM_LIMITS

from policies.types import VegaError
from vega3d_ros.control.control_loop import JointCommand
from vega3d_ros.control.guard.motion import Motion, braking
from vega3d_ros.control.guard.safety_guard import LATE
from vega3d_ros.control.guard.smoothing import PathStream, stands_after_s
from vega3d_ros.topics.command_writers import ForwardWriter
from vega3d_ros.topics.node_outputs import Outputs

SPEED, TOLERANCE, STEP_NS = 0.6, 0.05, round(1e9 * STEP_S)
LAST = 6  # the joint that moves


class Late:
    """A guard and the stream of its path to an arm that is at once where it is told to be; a pause is nobody's turn."""

    def __init__(self, speed: float = SPEED) -> None:
        self._speed = speed
        self.guard = guard(workspace_lower=None, workspace_upper=None, tolerance=TOLERANCE)
        self.now_ns, self.arm, self.sent = 0, INSIDE.copy(), [INSIDE.copy()]
        lead, _ = self.guard.take_over(self.arm, STILL, 0)
        assert lead is not None
        self.stream = PathStream(lead.motion, ARM_LIMITS.acceleration, np.full(7, 5000.0), STEP_S)
        self.now_ns = round(1e9 * lead.motion.times_s[-1]) + LATE * PERIOD_NS
        assert self.guard.take_over(self.arm, STILL, self.now_ns) == (None, "")
        self._stood = True

    @property
    def late_ns(self) -> int:
        return max(0, self.now_ns - (self.stream.time_ns or self.now_ns))

    def step(self) -> None:
        self.arm = self.stream.step(self.now_ns, self._stood)
        self.sent.append(self.arm)
        self._stood = False
        self.now_ns += STEP_NS

    def period(self) -> None:
        """One command, faster up to the speed, and its steps."""
        q, v = self.guard.start(self.arm, STILL, self.now_ns, self.late_ns)
        faster = np.minimum(v + AXIS[LAST] * 0.8 * ARM_LIMITS.acceleration * PERIOD, AXIS[LAST] * self._speed)
        decision = self.guard.check(q + 0.5 * (v + faster) * PERIOD, faster, 0.0, self.now_ns)
        assert not decision.rejected
        self.stream.motion = decision.motion
        for _ in range(PERIOD_NS // STEP_NS):
            self.step()

    def pause(self, seconds: float) -> None:
        self.now_ns += round(1e9 * seconds)
        self._stood = self._stood or seconds > stands_after_s(STEP_S)


@pytest.fixture
def late() -> Late:
    """At full speed since three periods, after a pause of 0.2 s before them."""
    bench = Late()
    for _ in range(10):
        bench.period()
    bench.pause(0.2)
    for _ in range(3):
        bench.period()
    assert bench.late_ns > 150_000_000
    return bench


def test_the_arm_is_held_against_where_it_was_told_to_be_not_where_the_path_is(late) -> None:
    ahead = late.guard.start(late.arm, STILL, late.now_ns, late.late_ns)[0] - late.arm
    assert ahead[LAST] > TOLERANCE, "the path is further away than an arm may be"
    with pytest.raises(VegaError, match="from where it was commanded"):
        late.guard.start(late.arm + 1.2 * TOLERANCE * AXIS[LAST], STILL, late.now_ns, late.late_ns)


def test_a_stop_begins_where_the_stream_is_not_where_its_path_is_by_now(late) -> None:
    began, began_ns = late.arm[LAST], late.now_ns
    braking = late.guard.brake(late.now_ns, late.late_ns)
    assert braking is not None
    late.stream.motion = braking.motion
    before = len(late.sent)
    while not late.stream.at_rest:
        late.step()
    brakes_s = SPEED / ARM_LIMITS.acceleration[LAST]
    window_s = 2.0 * np.max(ARM_LIMITS.acceleration) / 5000.0
    assert 1e-9 * (late.now_ns - began_ns) <= brakes_s + window_s + 5 * STEP_S
    assert late.arm[LAST] - began <= SPEED * (0.5 * brakes_s + window_s + 3 * STEP_S)
    moved = np.diff(np.array(late.sent[before - 3 :]), axis=0)
    assert np.all(np.abs(np.diff(moved, axis=0)) <= 1.25 * ARM_LIMITS.acceleration * STEP_S**2 + 1e-9)
    np.testing.assert_allclose(late.arm, braking.motion.positions[-1], atol=1e-9)


def test_a_path_that_is_not_known_any_more_is_not_left(late) -> None:
    """It ends at rest by itself."""
    assert late.guard.brake(late.now_ns, late.now_ns + 10**9) is None


def test_a_stream_that_is_late_by_seconds_is_held_against_its_place_and_stops_there() -> None:
    """However many commands it is late by."""
    bench = Late(0.3 * SPEED)
    for _ in range(10):
        bench.period()
    bench.pause(8.0)
    for _ in range(70):
        bench.period()
    assert bench.late_ns > 5 * 10**9
    began = bench.arm[LAST]
    braking = bench.guard.brake(bench.now_ns, bench.late_ns)
    assert braking is not None and abs(braking.motion.positions[-1][LAST] - began) < 0.05


def test_a_stream_by_a_simulated_clock_remembers_no_more_than_it_needs() -> None:
    bench = Late()
    stream = PathStream(bench.stream.motion, ARM_LIMITS.acceleration, np.full(7, 5000.0), STEP_S, evenly=False)
    for _ in range(50):
        bench.period()
        stream.motion = bench.stream.motion
        stream.step(bench.now_ns)
    assert len(stream._course._motions) == 1


def steady(clock: Clockwork) -> JointCommand:
    """From rest to rest in 30 s, nearly all of it at one velocity."""
    ends = np.array([0.0, 0.5, 30.0, 30.5])
    places = 0.4 * np.array([0.0, 0.25, 29.75, 30.0])
    motion = Motion(clock.now_ns, ends, places[:, None], 0.4 * np.array([0.0, 1.0, 1.0, 0.0])[:, None])
    return JointCommand(0, motion.positions[1], motion.velocities[1], 0.0, 0.05, motion=motion)


@pytest.fixture
def writer(clock) -> ForwardWriter:
    made = ForwardWriter(Graph(), parameters(1000.0), LIMITS, {})  # type: ignore[arg-type]
    made.write(steady(clock), 0.0, SAMPLE)
    return made


def test_many_short_stalls_are_a_fault_that_names_the_machine(clock, writer) -> None:
    """None of them is long enough to be one, and the arm has followed all that it was told."""
    said: list[str] = []
    for step in range(150):
        writer._step()
        clock.sleep(0.03 if step % 3 == 0 else STEP_S)
        said.append(writer.behind())
    assert not any(said[:15]) and not writer.unheard()
    assert all("s behind the path: see what keeps the machine busy" in text for text in said[-20:])
    # It goes on by itself once it has caught up; where it is a fault, the node says what to call.
    assert not any("~/start" in text for text in said)


def test_one_pause_that_is_no_fault_by_itself_is_none_afterwards(clock, writer) -> None:
    writer._step()
    clock.sleep(0.22)  # of at most 4.5 periods of 0.05 s
    for _ in range(20):
        writer._step()
        assert 0.2 <= 1e-9 * writer.late_ns <= 0.24 and not writer.behind() and not writer.unheard()
        clock.sleep(STEP_S)


def test_braking_that_began_in_the_past_does_not_set_the_stream_back(clock) -> None:
    graph, made = Graph(), steady(clock)
    writer = ForwardWriter(graph, parameters(1000.0), LIMITS, {})  # type: ignore[arg-type]
    writer.write(made, 0.0, SAMPLE)
    for step in range(100):
        writer._step()
        clock.sleep(0.15 if step == 89 else STEP_S)
    late_ns, before = writer.late_ns, len(graph.sent)
    assert late_ns > 100_000_000 and made.motion is not None
    begin_ns = clock.now_ns - late_ns
    q, v = made.motion.at(begin_ns)
    rest, seconds = braking(q, v, LIMITS.acceleration)
    motion = Motion(begin_ns, np.array([0.0, seconds]), np.array([q, rest]), np.array([v, 0.0 * v]))
    writer.write(replace(made, motion=motion, lead=True, late_ns=late_ns), 0.0, SAMPLE)
    assert writer.late_ns == late_ns
    for _ in range(200):
        writer._step()
        clock.sleep(STEP_S)
    moved = np.diff(graph.sent[before - 3 :])
    assert moved.min() >= -1e-12
    assert graph.sent[-1] == pytest.approx(rest[0])
    assert np.abs(np.diff(moved)).max() <= 1.25 * LIMITS.acceleration[0] * STEP_S**2


@pytest.mark.parametrize("where", ["step", "publish"])
def test_a_process_that_is_frozen_within_a_step_says_no_more(clock, monkeypatch, where) -> None:
    """The arm rests since then; only what was on its way may come late."""
    graph = Graph()
    writer = ForwardWriter(graph, parameters(1000.0), LIMITS, {})  # type: ignore[arg-type]
    writer.write(steady(clock), 0.0, SAMPLE)
    frozen = freeze(clock, monkeypatch, where, writer, 1.0)
    for _ in range(100):
        writer._step()
        clock.sleep(STEP_S)
    assert len(frozen) == 50 and len(graph.sent) == (50 if where == "publish" else 49)
    assert "was held up for 1.0" in writer.unheard()
    np.testing.assert_array_equal(writer.held, graph.sent[-1])


@pytest.mark.parametrize("pause_s", [0.03, 0.1, 0.2])
def test_a_step_that_takes_too_long_is_made_anew_from_where_the_arm_stands(clock, monkeypatch, pause_s) -> None:
    graph = Graph()
    writer = ForwardWriter(graph, parameters(1000.0), LIMITS, {})  # type: ignore[arg-type]
    writer.write(steady(clock), 0.0, SAMPLE)
    frozen = freeze(clock, monkeypatch, "step", writer, pause_s)
    for _ in range(200):
        writer._step()
        clock.sleep(STEP_S)
    assert len(frozen) == 201 and len(graph.sent) == 200 and not writer.unheard()
    moved = np.diff(graph.sent, prepend=0.0)
    before = np.array([0.0, *moved[:-1]])
    before[49] = 0.0  # it stood
    assert moved[48] > 0.003 and np.abs(moved - before).max() <= 1.25 * LIMITS.acceleration[0] * STEP_S**2


def test_a_path_that_a_deactivation_could_not_end_is_not_taken_for_one_that_was_reached(clock, monkeypatch) -> None:
    """The next activation would begin with a jump to its end."""
    graph = Graph()
    outputs = Outputs(graph, parameters(1000.0), LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]
    outputs.publish(steady(clock), SAMPLE)
    for _ in range(100):
        graph.timers[0]()
        clock.sleep(STEP_S)
    elsewhere, held = outputs.end()
    assert elsewhere and held is not None and 0.0 < held[0] < 3.0
    np.testing.assert_array_equal(graph.sent[-5:], np.repeat(held, 5))
    outputs.destroy()


def test_a_path_that_was_ended_is_one_that_was_reached(clock) -> None:
    outputs = Outputs(Graph(), parameters(1000.0), LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]
    made = steady(clock)
    assert made.motion is not None
    end = Motion(made.motion.start_ns, np.array([0.0, 0.4]), np.zeros((2, 1)), np.array([[0.1], [0.0]]))
    outputs.publish(replace(made, motion=end), SAMPLE)
    assert outputs.end() == (False, None)


def test_a_braking_that_nobody_hears_is_no_end_that_was_reached_nor_said_to_who_comes_next(clock, monkeypatch) -> None:
    """A controller that comes up during a deactivation holds the arm where it is measured."""
    graph = Graph()
    outputs = Outputs(graph, parameters(1000.0), LIMITS, {}, clock.monotonic())  # type: ignore[arg-type]
    outputs.publish(steady(clock), SAMPLE)
    writer, told = outputs._writer, list[int]()
    assert isinstance(writer, ForwardWriter)
    step, listeners = writer._step, list(graph.listeners)

    def changed() -> None:
        told.append(len(graph.sent))
        graph.listeners[:] = [] if len(told) > 9 else listeners
        step()
        graph.listeners[:] = listeners

    monkeypatch.setattr(writer, "_step", changed)
    assert outputs.end() == (True, None)
    assert len(told) == 10 and len(graph.sent) == told[-1] + 1


def test_the_time_that_a_command_took_to_come_does_not_hide_how_late_the_stream_is(clock, writer) -> None:
    for _ in range(50):
        writer._step()
        clock.sleep(STEP_S)
    made = steady(clock)
    assert writer._stream is not None and made.motion is not None
    here, _ = writer._stream.motion.at(clock.now_ns)
    begun = replace(made.motion, start_ns=clock.now_ns, positions=made.motion.positions + here)
    clock.sleep(0.2)
    writer.write(replace(made, motion=begun), 0.0, SAMPLE)
    assert writer.late_ns >= 200_000_000


def freeze(clock: Clockwork, monkeypatch, where: str, writer: ForwardWriter, seconds: float) -> list[str]:
    """At the fiftieth call of where the writer is then; every call is noted."""
    calls: list[str] = []
    publisher = writer._publishers[0]
    honest = PathStream.step if where == "step" else publisher.publish

    def call(*given):  # type: ignore[no-untyped-def]
        calls.append(where)
        if len(calls) == 50:
            clock.sleep(seconds)
        return honest(*given)

    if where == "step":
        monkeypatch.setattr(PathStream, "step", call)
    else:
        publisher.publish = call
    return calls
