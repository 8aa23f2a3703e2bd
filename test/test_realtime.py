"""Questions to the policy in real time: when it is asked, with what, and how long an answer counts as having taken."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from ros_harness import DEADLINE_S
from tiny_policy import TinyPolicy

from policies.types import ActionChunk, Observation, RobotState
from vega3d_ros.control.chunk_scheduler import Query
from vega3d_ros.inference import realtime
from vega3d_ros.inference.realtime import Answer, InferenceWorker

PERIOD_S = 1.0 / TinyPolicy.spec.action_space.rate_hz


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
