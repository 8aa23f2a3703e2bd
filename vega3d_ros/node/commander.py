"""One control period of an active policy_node: from its inputs, through the runner, to its outputs.

Everything runs in the executor's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from policies.types import VegaError
from vega3d_ros.control.control_loop import JointCommand, JointSample
from vega3d_ros.control.stamps import read_at_once
from vega3d_ros.inference.lockstep import Lockstep
from vega3d_ros.inference.realtime import Realtime
from vega3d_ros.node.node_report import Condition
from vega3d_ros.topics.inputs import JOINTS, Inputs
from vega3d_ros.topics.node_outputs import Outputs

LONGEST_MS = 60_000.0
# Of the time by which a command leaves ahead, what it may have lost before it is sent; the rest is for its way.
LOST = 0.5


class Commander:
    """Commands if everything a command needs is there, and counts what became of it.

    strict: in `realtime`, every problem while the arm moves is a fault.  now_ns: the node's clock.  latency_clock:
    whether the stamps of images are of that clock and real time; a simulated one says nothing about our latency.
    committed: commands carry their path to rest with them, on the controller's clock; else each answers a joint state.
    ahead_ns: they leave so long before they depart from the path under way, and carry a stamp; 0: they carry none.
    """

    def __init__(
        self,
        condition: Condition,
        inputs: Inputs,
        runner: Lockstep | Realtime,
        outputs: Outputs,
        strict: bool,
        now_ns: Callable[[], int],
        latency_clock: bool,
        committed: bool = False,
        ahead_ns: int = 0,
    ) -> None:
        self._condition, self._inputs, self._runner, self._outputs = condition, inputs, runner, outputs
        self._strict, self._now_ns, self._latency_clock = strict, now_ns, latency_clock
        self._committed, self._ahead_ns = committed, ahead_ns
        self._last_answer: JointCommand | None = None
        self._last_sample: JointSample | None = None

    def forget(self) -> None:
        """The last answer is not repeated any more."""
        self._last_answer = None

    def repeat(self, stamp_ns: int) -> bool:
        """lockstep: whether this joint state was the last to be answered; it is then answered again, unchanged.

        The world that asks again has not heard the answer.
        """
        if self._last_answer is None or self._last_answer.stamp_ns != stamp_ns:
            return False
        if not self._inputs.problem():
            self._condition.counts["answers_repeated"] += 1
            self._send(self._last_answer)
        return True

    def answer(self) -> None:
        """lockstep: answer the pending joint state, if everything it needs is there.  Raises what the runner raises."""
        runner = self._runner
        assert isinstance(runner, Lockstep)
        if runner.pending is None or self._inputs.problem() or not self._outputs.heard():
            return
        command = runner.answer(self._inputs.instruction or "")
        if command is None:
            return
        self._last_answer = command
        self._send(command)
        self._condition.latencies.add_all(command.timings_ms)
        if runner.queried_frames_ns is not None:
            self._note_query(runner.queried_frames_ns, command.timings_ms["policy"])
            self._outputs.show(runner.loop.last_chunk)

    def tick(self) -> None:
        """realtime: the command of this control period, if everything it needs is there.

        Raises VegaError on a fault, or whatever the policy raised.
        """
        runner, inputs = self._runner, self._inputs
        assert isinstance(runner, Realtime)
        problem = inputs.problem() or inputs.stale(self._now_ns()) or self._outputs.unheard or self._outputs.behind
        if self._strict:
            problem = problem or self._outputs.rivals() or self._condition.not_connected
        if problem:
            if runner.scheduler.busy:
                runner.discard()  # actions planned before a gap do not fit the world after it
            if self._strict and self._condition.moving:
                raise VegaError(problem)
            # Whatever else is wrong, too: a controller that was restarted holds the arm where it is measured, which
            # sags below our path.
            lost = self._outputs.lost
            if self._committed and (lost or inputs.stale(self._now_ns(), only=JOINTS)):
                news = runner.release(lost, self._outputs.held)
                if news and not runner.told:
                    inputs.forget_turns()
            if lost:
                self._outputs.leave()
            if not lost and self._outputs.unheard:
                self._outputs.forget_gripper()
            return
        assert inputs.sample is not None
        command = runner.tick(inputs.sample, inputs.instruction or "", *self._now(), self._late_ns)
        answer = runner.new_chunk
        if answer is not None and answer.chunk is not None:
            self._condition.latencies.add_all(answer.chunk.timings_ms)
            self._condition.latencies.add("policy", 1e3 * answer.latency_s)
            if command is not None:
                self._note_query(answer.frames_ns, 1e3 * answer.latency_s)
            self._outputs.show(answer.chunk)
        if command is not None:
            self._send(command)

    def silent(self) -> str:
        """strict, while the arm moves: which input has become too old, '' if none has."""
        return self._inputs.stale(self._now_ns()) if self._strict and self._condition.moving else ""

    def brake(self) -> None:
        """Commanding ends while the arm may move: it leaves its path for the quickest braking.

        Not where somebody else commands it too, or it is lost: then its controller may not be on our path; nor on a
        simulated clock, which may be what is wrong.  The path under way ends at rest by itself.
        """
        runner, sample = self._runner, self._last_sample
        timed = self._committed and self._latency_clock
        if not (timed and self._condition.moving and isinstance(runner, Realtime) and sample is not None):
            return
        if self._outputs.lost or self._outputs.rivals():
            return
        time_ns, begin_ns = self._now()
        assert time_ns is not None
        command = runner.brake(sample, time_ns, begin_ns, self._late_ns)
        if command is not None and self._too_late(command):
            runner.withdraw()
        elif command is not None:
            self._outputs.publish(command, sample)

    def _now(self) -> tuple[int | None, int]:
        """Now for the commanded path: on a clock that nobody sets, where the controller's is not a simulated one; and
        on the clock of stamps, 0 where commands carry none."""
        if not self._committed:
            return None, 0
        if not self._latency_clock:
            return self._now_ns(), 0
        return read_at_once(self._now_ns) if self._ahead_ns else (time.monotonic_ns(), 0)

    @property
    def _late_ns(self) -> int:
        return self._outputs.late_ns if self._committed else 0

    def _too_late(self, command: JointCommand) -> bool:
        if not self._ahead_ns or command.rejected or command.motion is None:
            return False
        return time.monotonic_ns() - command.motion.start_ns > LOST * self._ahead_ns

    def _send(self, command: JointCommand) -> None:
        assert self._inputs.sample is not None
        # The arm rests when it is taken over, and has time enough.
        if not command.lead and self._too_late(command) and isinstance(self._runner, Realtime):
            # The controller might get it when it has left the path already; the one under way leads to rest.
            self._runner.withdraw()
            self._condition.counts["commands_late"] += 1
            self._condition.late_in_a_row += 1
            return
        self._outputs.publish(command, self._inputs.sample)
        self._last_sample = self._inputs.sample
        self._condition.counts["commands"] += 1
        self._condition.moving, self._condition.late_in_a_row = True, 0
        self._condition.refused_in_a_row = self._condition.refused_in_a_row + 1 if command.rejected else 0
        self._condition.refused_for = command.rejected
        for rule in command.rejected:
            self._condition.counts[f"guard_rejected_{rule}"] += 1
        for rule in command.touched:
            self._condition.counts[f"guard_clamped_{rule}"] += 1

    def _note_query(self, frames_ns: int, policy_ms: float) -> None:
        total_ms = (self._now_ns() - frames_ns) / 1e6
        if 0 <= total_ms < LONGEST_MS and self._latency_clock:
            self._condition.latencies.add("image_to_command", total_ms)
            self._condition.latencies.add("image_to_command_without_policy", total_ms - policy_ms)
