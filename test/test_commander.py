"""What becomes of a gap while the arm is commanded: a controller that comes back, and what was planned before."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_safety_guard import HOME, INSIDE, JUDGED, LIMITS, PERIOD, PERIOD_NS, arm, guard

from benchmarks.wire_judge.controller import Controller, Verdict
from policies.types import ActionChunk, ActionSpace, Observation, PolicySpec, VegaError
from vega3d_ros.control.chunk_scheduler import Query
from vega3d_ros.control.control_loop import ControlLoop, JointCommand, JointSample
from vega3d_ros.control.frame_buffer import FrameSet
from vega3d_ros.inference import realtime
from vega3d_ros.inference.realtime import Answer, Realtime
from vega3d_ros.node.commander import Commander
from vega3d_ros.node.node_report import Condition
from vega3d_ros.topics.inputs import JOINTS

LENGTH = 4
SAG = 0.02  # rad between where the controller holds the arm and where it is measured
SILENT, DEAF = "joint_states has been silent", "Nobody listens"


class Numbered:
    """Answers after `periods`; the arm shall stay, and the gripper says which question an action is the answer to."""

    spec = PolicySpec("numbered", ("front",), ActionSpace("eef_delta"), chunk_length=LENGTH, open_loop_horizon=LENGTH)

    def __init__(self) -> None:
        self.asked_ns: list[int] = []
        self.periods, self.holds = 1, 0  # how many answers are held back
        self._due: deque[tuple[int, Answer]] = deque()
        self._now = 0

    def act(self, observation: Observation) -> ActionChunk:
        actions = np.zeros((LENGTH, 7))
        actions[:, 6] = len(self.asked_ns)
        self.asked_ns.append(observation.stamp_ns)
        return ActionChunk(actions, observation.stamp_ns, observation.instruction)

    def reset(self) -> None:
        """Nothing is remembered."""

    # As a worker

    def ask(self, observation: Observation, query: Query, frames_ns: int) -> None:
        answer = Answer(query, frames_ns, self.act(observation), None, self.periods * PERIOD)
        self._due.append((self._now + self.periods, answer))

    def answer(self) -> Answer | None:
        ready = len(self._due) > self.holds and self._due[0][0] <= self._now
        return self._due.popleft()[1] if ready else None

    def close(self, timeout_s: float) -> bool:
        return True

    def later(self) -> None:
        self._now += 1


class Frames:
    waiting_for = ""

    def sample(self) -> FrameSet:
        return FrameSet({"front": np.zeros((1, 4, 4, 3), np.uint8)}, {"front": np.zeros(1, np.int64)}, 0)


class Bench:
    """A commander between inputs that can fail and a controller that can be restarted; the arm sags below it."""

    def __init__(self, policy_timeout_s: float = 0.0, **limits: Any) -> None:
        self.now_ns, self.speed = 10**12, 0.0
        self.controller = Controller(JUDGED, INSIDE)
        self.worst = Verdict()
        self.sent: list[JointCommand] = []
        self.asked = Numbered()
        self.instruction = "stay"
        # What a commander sees of inputs and outputs
        self.stream_problem = self.unheard = self.behind = ""
        self.late_ns = 0
        self.held = None
        self._lost: bool | None = None
        self.forgotten = 0  # how often the gripper's orders were
        self.turns_forgotten = 0
        self.silent: dict[str, str] = {}
        loop = ControlLoop(self.asked, arm, HOME, guard(**limits))
        frames: Any = Frames()
        self.runner = Realtime(loop, frames, HOME, "latest", 5.0, policy_timeout_s, self.asked)
        itself: Any = self
        condition = Condition(running=True)
        self.commander = Commander(condition, itself, self.runner, itself, False, lambda: self.now_ns, False, True)

    @property
    def sample(self) -> JointSample:
        place, rate = self.controller.state(self.now_ns * 1e-9)
        return JointSample(self.now_ns, place - SAG, rate + self.speed, np.array([0.02, 0.03]))

    def problem(self) -> str:
        return self.stream_problem

    def stale(self, now_ns: int, only: str = "") -> str:
        return next((why for name, why in self.silent.items() if only in ("", name)), "")

    def rivals(self) -> str:
        return ""

    @property
    def lost(self) -> bool:
        """The arm's controller, unless it was said that it is another's that does not hear."""
        return bool(self.unheard) if self._lost is None else self._lost

    @lost.setter
    def lost(self, lost: bool) -> None:
        self._lost = lost

    def leave(self) -> None:
        """What is led anew is not gone on with."""
        assert self.lost

    def forget_gripper(self) -> None:
        self.forgotten += 1

    def forget_turns(self) -> None:
        self.turns_forgotten += 1

    def show(self, chunk: ActionChunk) -> None:
        """Nobody looks."""

    def publish(self, command: JointCommand, sample: JointSample) -> None:
        self.sent.append(command)
        motion = command.motion
        assert motion is not None and not command.rejected
        points = list(zip(motion.times_s[1:], motion.positions[1:], motion.velocities[1:], strict=True))
        self.worst.add(self.controller.take(self.now_ns * 1e-9, points))

    def run(self, periods: int) -> list[JointCommand]:
        """What leaves meanwhile."""
        before = len(self.sent)
        for _ in range(periods):
            self.commander.tick()
            self.now_ns += PERIOD_NS
            self.asked.later()
        return self.sent[before:]

    def moves(self) -> list[JointCommand]:
        """What leaves until several actions have; the leads before them are among it."""
        seen: list[JointCommand] = []
        while len([command for command in seen if not command.lead]) < 5:
            seen += self.run(1)
            assert len(seen) < 500 and self.now_ns < 2 * 10**12, "no action leaves"
        return seen

    def restart_controller(self) -> None:
        """It holds the arm where it is measured, as controllers do that are activated."""
        self.controller = Controller(JUDGED, self.sample.positions)


def age_s(bench: Bench, command: JointCommand) -> float:
    """Since the observation that led to it."""
    return 1e-9 * (command.stamp_ns - bench.asked.asked_ns[round(command.gripper)])


@pytest.mark.parametrize("why", [SILENT, DEAF, "both, and a camera first"])
def test_a_controller_that_was_restarted_is_led_again_before_the_next_action(why) -> None:
    bench = Bench()
    assert bench.moves()[0].lead
    # What one looks for first may hide what the controller tells.
    bench.silent = {"front": "Camera 'front' has been silent"} if why.startswith("both") else {}
    bench.silent |= {} if why == DEAF else {JOINTS: SILENT}
    bench.unheard = "" if why == SILENT else DEAF
    assert not bench.run(20)
    bench.restart_controller()
    bench.silent, bench.unheard = {}, ""
    again = bench.moves()
    assert again[0].lead and not bench.worst.outside, bench.worst
    assert not any(command.lead for command in bench.run(20)), "once is enough"


@pytest.mark.parametrize("why", [SILENT, DEAF])
def test_a_restarted_controller_that_obeys_at_once_is_told_where_it_is(why) -> None:
    """Where only joint_states were away, the controller is believed to hold the arm where it was told."""
    bench = Bench()
    bench.runner.loop.guard.at_once = True  # type: ignore[union-attr]
    end = bench.moves()[-1].motion.positions[-1]  # type: ignore[union-attr]
    bench.silent, bench.unheard = ({}, DEAF) if why == DEAF else ({JOINTS: SILENT}, "")
    assert not bench.run(20)
    measured = bench.sample.positions
    bench.silent, bench.unheard = {}, ""
    lead = bench.moves()[0]
    assert lead.lead
    np.testing.assert_allclose(lead.positions, measured if why == DEAF else end, atol=1e-9)
    # Where it is told what joint_states say, they say it as their driver counts.
    assert bench.turns_forgotten == (1 if why == DEAF else 0)


def test_after_a_gap_of_a_camera_the_arm_goes_on_from_its_path() -> None:
    bench = Bench()
    bench.moves()
    bench.silent = {"front": "Camera 'front' has been silent"}
    assert not bench.run(20)
    bench.silent = {}
    assert not any(command.lead for command in bench.moves()) and not bench.worst.outside


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("why", ["camera", DEAF])
def test_an_answer_to_a_question_from_before_a_gap_is_not_carried_out(first, why) -> None:
    bench = Bench()
    bench.asked.periods = 8  # more than half a chunk: questions are asked when the queue has run dry
    if not first:
        bench.moves()
    while len(bench.asked.asked_ns) < (1 if first else 5) or bench.runner.scheduler.remaining:
        bench.run(1)
    assert bench.runner.scheduler.synchronous or first
    bench.silent, bench.unheard = ({}, DEAF) if why == DEAF else ({"front": "Camera 'front' has been silent"}, "")
    assert not bench.run(600)
    bench.silent, bench.unheard = {}, ""
    back_ns = bench.now_ns
    actions = [command for command in bench.moves() if not command.lead]
    assert all(bench.asked.asked_ns[round(action.gripper)] >= back_ns for action in actions)


def test_a_policy_that_is_busy_with_a_question_from_before_a_gap_is_not_too_slow_for_the_next(monkeypatch) -> None:
    bench = Bench(policy_timeout_s=0.3)
    monkeypatch.setattr(realtime, "time", SimpleNamespace(perf_counter=lambda: 1e-9 * bench.now_ns))
    bench.moves()
    bench.asked.holds = 1
    while bench.runner.scheduler.remaining:
        bench.run(1)
    bench.silent = {"front": "Camera 'front' has been silent"}
    bench.run(1)
    bench.silent, bench.asked.holds = {}, 2
    bench.run(4)
    bench.asked.holds = 1
    assert not bench.run(5), "only the answer to the first of the two questions comes"
    bench.asked.holds = 0
    assert bench.run(2)
    bench.asked.holds = 9
    with pytest.raises(VegaError, match="has been computing for"):
        bench.run(20)


def test_what_was_planned_while_the_arm_still_moved_is_not_carried_out_when_it_rests() -> None:
    bench = Bench()
    bench.speed = 0.1
    assert not bench.run(1200) and "still moves at 0.10 rad/s" in bench.runner.waiting_for
    bench.speed = 0.0
    assert age_s(bench, next(command for command in bench.moves() if not command.lead)) < 1.0


def test_what_was_planned_before_the_arm_was_led_for_long_is_not_carried_out() -> None:
    bench = Bench(velocity=0.02 * LIMITS.velocity)
    first = next(command for command in bench.moves() if not command.lead)
    assert (first.stamp_ns - bench.sent[0].stamp_ns) * 1e-9 > 5.0 > age_s(bench, first) + 4.0
