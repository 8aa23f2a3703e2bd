"""One control period of an active policy_node: from its inputs, through the runner, to its outputs.

Everything runs in the executor's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from policies.types import VegaError
from vega3d_ros.control.control_loop import JointCommand
from vega3d_ros.inference.lockstep import Lockstep
from vega3d_ros.inference.realtime import Realtime
from vega3d_ros.node.node_report import Condition
from vega3d_ros.topics.inputs import Inputs
from vega3d_ros.topics.node_outputs import Outputs

LONGEST_MS = 60_000.0


class Commander:
    """Commands if everything a command needs is there, and counts what became of it.

    strict: in `realtime`, every problem while the arm moves is a fault.  now_ns: the node's clock.  latency_clock:
    whether the stamps of images are of that clock and real time; a simulated one says nothing about our latency.
    committed: commands carry their path to rest with them, on the controller's clock; else each answers a joint state.
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
    ) -> None:
        self._condition, self._inputs, self._runner, self._outputs = condition, inputs, runner, outputs
        self._strict, self._now_ns, self._latency_clock = strict, now_ns, latency_clock
        self._committed = committed
        self._last_answer: JointCommand | None = None

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
        problem = inputs.problem() or inputs.stale(self._now_ns()) or self._outputs.unheard
        if self._strict:
            problem = problem or self._outputs.rivals() or next(iter(self._condition.qos_problems.values()), "")
        if problem:
            if runner.scheduler.remaining:
                runner.discard()  # actions planned before a gap do not fit the world after it
            if self._strict and self._condition.moving:
                raise VegaError(problem)
            return
        assert inputs.sample is not None
        command = runner.tick(inputs.sample, inputs.instruction or "", self._path_ns())
        answer = runner.new_chunk
        if answer is not None and answer.chunk is not None:
            self._condition.latencies.add_all(answer.chunk.timings_ms)
            self._condition.latencies.add("policy", 1e3 * answer.latency_s)
            if command is not None:
                self._note_query(answer.frames_ns, 1e3 * answer.latency_s)
            self._outputs.show(answer.chunk)
        if command is not None:
            self._send(command)

    def _path_ns(self) -> int | None:
        """Now for the commanded path: on a clock that nobody sets, where the controller's is not a simulated one."""
        if not self._committed:
            return None
        return time.monotonic_ns() if self._latency_clock else self._now_ns()

    def _send(self, command: JointCommand) -> None:
        assert self._inputs.sample is not None
        self._outputs.publish(command, self._inputs.sample)
        self._condition.counts["commands"] += 1
        self._condition.moving = True
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
