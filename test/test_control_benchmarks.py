"""The rows of `python -m benchmarks.control` would notice what they are there to notice."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_policy import TinyPolicy

from benchmarks.arm import cost, fuzz, guard
from benchmarks.arm.realtime import LateWorker
from benchmarks.arm.running import Running
from policies.types import Observation, RobotState
from vega3d_ros.control.body.body import Body
from vega3d_ros.control.chunk_scheduler import ChunkScheduler
from vega3d_ros.control.guard.safety_guard import SafetyGuard


def test_a_guard_that_overlooks_a_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = guard.judged_commands(1600)
    assert (judged.outside, judged.out_of_box, judged.commands) == (0, 0, 1600) and judged.passed > 400
    assert judged.worst is not None and judged.worst.velocity > 0.9 and judged.worst.acceleration > 0.99
    honest = SafetyGuard._broken
    for rule in ("position", "velocity", "acceleration", "workspace"):
        monkeypatch.setattr(
            SafetyGuard, "_broken", lambda *args, rule=rule: tuple(r for r in honest(*args) if r != rule)
        )
        judged = guard.judged_commands(1600)
        assert (judged.out_of_box if rule == "workspace" else judged.outside) > 0, rule


def test_the_cost_is_that_of_a_guard_that_looks_at_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_PACKAGE_PATH", "")  # measure() sets it
    looked: list[int] = []
    honest = Body.allows
    monkeypatch.setattr(Body, "allows", lambda body, q: looked.append(len(q)) or honest(body, q))
    seen = cost.measure(50)
    assert len(seen.law) == len(seen.guard) == 50 and seen.pairs > 20 and seen.refused <= 5
    assert len(looked) >= 100 and min(looked[1:]) > 4 and seen.share(50.0) > 0.0


def test_a_message_that_is_not_malformed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    seen = fuzz.fuzz(250, phase=50)
    assert (seen.messages, seen.crashes, seen.commands) == (250, 0, 0) and seen.commands_after >= 1
    monkeypatch.setattr(fuzz, "bad_image", lambda rng, target: target.image())
    monkeypatch.setattr(fuzz, "bad_instruction", lambda rng, target: None)
    seen = fuzz.fuzz(250, phase=50)
    assert seen.commands > 0
    assert seen.crashes == 50  # None is no message


@pytest.mark.parametrize(("latency_s", "periods"), [(0.0, 0), (0.1, 2), (0.2, 4), (0.21, 5), (0.3, 6)])
def test_an_answer_comes_as_many_control_periods_late_as_its_latency_takes(latency_s: float, periods: int) -> None:
    policy = TinyPolicy()
    worker = LateWorker(policy, latency_s, 0.05)
    image = {camera: np.zeros((1, 4, 4, 3), dtype=np.uint8) for camera in policy.spec.cameras}
    down = np.array([1.0, 0.0, 0.0, 0.0])
    state = RobotState(0, (), np.zeros(7), np.zeros(7), np.zeros(2), np.zeros(3), down)
    worker.step = 10
    worker.ask(Observation(image, state, "go", 0), ChunkScheduler(policy.spec).begin_query(), 0)
    for step in range(10, 10 + periods):
        worker.step = step
        assert worker.answer() is None
    worker.step = 10 + periods
    answer = worker.answer()
    assert answer is not None and answer.chunk is not None and answer.latency_s == latency_s
    assert worker.answer() is None


def test_a_leak_and_an_uneven_period_are_seen() -> None:
    times = np.arange(0.0, 3600.0, 5.0)
    leaking = [(float(t), 600.0 + 30.0 * t / 3600.0) for t in times]
    warming = [(float(t), 600.0 + 30.0 * min(t / 60.0, 1.0)) for t in times]
    assert Running(leaking, []).growth_mb() > 25.0
    assert Running(warming, []).growth_mb() == 0.0
    assert Running([], [50.0] * 98 + [58.0, 42.0]).off_ms(99.0) == pytest.approx(8.0)
    assert Running([], [50.0] * 1000 + [58.0]).off_ms(99.0) == 0.0
