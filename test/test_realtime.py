"""Questions to the policy in real time: when it is asked, with what, and how long an answer counts as having taken."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from ros_harness import DEADLINE_S
from test_chunk_scheduler import PERIOD, chunk, make_spec, steady
from tiny_policy import TinyPolicy

from policies.types import ActionChunk, Observation, RobotState
from vega3d_ros.control.chunk_scheduler import ChunkScheduler, Query
from vega3d_ros.inference import realtime
from vega3d_ros.inference.realtime import Answer, InferenceWorker


def seen() -> Observation:
    images = {camera: np.zeros((1, 8, 8, 3), np.uint8) for camera in TinyPolicy.spec.cameras}
    state = RobotState(7, (), np.zeros(7), np.zeros(7), np.zeros(2), np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))
    return Observation(images, state, "go", 7)


def wait_for(worker: InferenceWorker) -> Answer:
    deadline = time.monotonic() + DEADLINE_S
    while (answer := worker.answer()) is None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)
    return answer


def test_the_wait_behind_a_question_of_before_is_no_time_of_the_policys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instruction that comes right after a question costs the arm nothing later on."""
    clock, both_asked = [0.0], threading.Event()
    monkeypatch.setattr(realtime, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class Slow(TinyPolicy):
        def act(self, observation: Observation) -> ActionChunk:
            assert both_asked.wait(DEADLINE_S)
            clock[0] += 0.15
            return super().act(observation)

    worker = InferenceWorker(Slow())
    try:
        for number in range(2):
            worker.ask(seen(), Query(0, number, number), 0)
        both_asked.set()
        taken = [wait_for(worker).latency_s for _ in range(2)]
    finally:
        both_asked.set()
        assert worker.close(DEADLINE_S)
    assert taken == pytest.approx([0.15, 0.15])


@pytest.mark.parametrize(
    ("length", "horizon", "latency_s", "every"), [(50, 10, 0.1, 7), (8, 8, 0.1, 5), (8, 4, 0.1, 2)]
)
def test_a_long_chunk_is_not_executed_beyond_its_open_loop_horizon(length, horizon, latency_s, every) -> None:
    scheduler = ChunkScheduler(make_spec(length, horizon=horizon), "latest", warm_up=0)
    scheduler.record_latency(latency_s)
    asked, ages, pending = [], [], None
    for tick in range(100):
        if pending is not None and tick == pending[0]:
            scheduler.submit(chunk(steady(0.1, length=length), stamp=pending[1].step), pending[1])
            pending = None
        if scheduler.should_query():
            pending = (tick + round(latency_s / PERIOD), scheduler.begin_query())
            asked.append(tick)
        item = scheduler.pop()
        if item is not None:
            ages.append(item.step - item.stamp_ns)
    assert scheduler.counts["starved"] == round(latency_s / PERIOD)  # before the first answer only
    assert set(np.diff(asked[1:])) == {every}
    assert max(ages) < horizon


def test_where_the_latency_cannot_be_hidden_a_chunk_ends_at_its_open_loop_horizon() -> None:
    scheduler = ChunkScheduler(make_spec(horizon=3), "latest", warm_up=0)
    scheduler.record_latency(0.3)
    for number in range(3):
        assert scheduler.should_query()
        scheduler.submit(chunk(steady(0.1), stamp=number), scheduler.begin_query())
        for _ in range(3):
            assert not scheduler.should_query()
            item = scheduler.pop()
            assert item is not None and item.stamp_ns == number
