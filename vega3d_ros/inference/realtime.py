"""Commands at the policy's rate while inference runs beside them.  NumPy and one worker thread; no ROS.

The control timer calls `Realtime.tick`, which never waits: it takes over chunks that are ready, asks
for the next one when the queue runs short, and pops one action.  The policy is used from the worker
thread only.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from policies.types import ActionChunk, FloatArray, Observation, Policy, VegaError
from vega3d_ros.control.chunk_scheduler import ChunkScheduler, MergeMode, Query
from vega3d_ros.control.control_loop import (
    CommandMaker,
    ControlLoop,
    JointCommand,
    JointSample,
    command_of,
    next_command,
)
from vega3d_ros.control.frame_buffer import FrameBuffer
from vega3d_ros.control.journal import Journal, no_journal, query_fields, tick_fields
from vega3d_ros.inference.failures import begin_episode


@dataclass(frozen=True)
class Answer:
    """What became of a query: a chunk, or the exception; latency: what the policy itself took."""

    query: Query
    frames_ns: int
    chunk: ActionChunk | None
    error: Exception | None
    latency_s: float


UNCONFIRMED = (
    "Somebody who listens to the arm's commands has not confirmed them: wait, since one that died is forgotten after "
    "half a minute, or see who is stuck (ros2 topic info -v)."
)


class Worker(Protocol):
    """Where questions go and answers come from; `InferenceWorker` says what each method does."""

    def ask(self, observation: Observation, query: Query, frames_ns: int) -> None: ...

    def reset(self) -> None: ...

    def answer(self) -> Answer | None: ...

    def close(self, timeout_s: float) -> bool: ...


class InferenceWorker:
    """Runs `policy.act` and `policy.reset` one after another in a thread of its own."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._unready: VegaError | None = None  # why the episode could not begin; of the worker's thread
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def ask(self, observation: Observation, query: Query, frames_ns: int) -> None:
        def job() -> None:
            begun = time.perf_counter()  # here: behind a question that was dropped this one may have waited
            chunk, error = None, None
            try:
                if self._unready is not None:
                    raise self._unready
                chunk = self._policy.act(observation)
            except Exception as raised:  # the control thread decides what a failing policy means
                error = raised
            self._answers.put(Answer(query, frames_ns, chunk, error, time.perf_counter() - begun))

        self._jobs.put(job)

    def reset(self) -> None:
        """Begin an episode; where the policy cannot, that is the answer to every question of it."""
        self._jobs.put(self._begin)

    def _begin(self) -> None:
        self._unready = None
        try:
            begin_episode(self._policy.reset)
        except VegaError as error:
            self._unready = error

    def answer(self) -> Answer | None:
        """The oldest answer that is ready, without waiting."""
        try:
            return self._answers.get_nowait()
        except queue.Empty:
            return None

    def close(self, timeout_s: float) -> bool:
        """End the thread; False if the policy is still computing after `timeout_s`."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Realtime:
    """Asynchronous execution of one policy.  All methods but the worker's own run in the control thread.

    command_timeout_s: how long the queue may be empty before `tick` raises.  policy_timeout_s: how long the policy may
    think about a question, once it has answered one (the first may compile); 0: as long as the queue lasts.  worker:
    who asks the policy, if not a thread of its own (a replay).

    confirmed: whether all who listen to commands have the last of them; to be set, else it is believed.  An arm counts
    as taken over only while that is so.
    """

    def __init__(
        self,
        loop: ControlLoop,
        buffer: FrameBuffer,
        home: FloatArray,
        merge: MergeMode,
        command_timeout_s: float,
        policy_timeout_s: float = 0.0,
        worker: Worker | None = None,
    ) -> None:
        self.loop = loop
        self.scheduler = ChunkScheduler(loop.policy.spec, merge)
        self.period_s = self.scheduler.period_s
        self._worker: Worker = InferenceWorker(loop.policy) if worker is None else worker
        self._maker = CommandMaker(loop.policy, loop.kinematics, home)
        self._buffer = buffer
        self._timeout_s = command_timeout_s
        self._policy_timeout_s = policy_timeout_s
        self._asked_s: float | None = None
        self._warm = False
        self.waiting_for = ""
        self.new_chunk: Answer | None = None
        self.journal: Journal = no_journal
        self.confirmed: Callable[[], bool] = lambda: True
        self._leading = False
        self._unconfirmed = False
        self._led = False  # since the last reset or release
        self._told = False
        self._held: FloatArray | None = None  # the place that it was given by the last release
        self._lead_began_ns: int | None = None  # stamp of the joint state, until the lead is over
        self._moves = ""  # why the arm could not be taken over when an action waited last

    @property
    def told(self) -> bool:
        """Whether a place is known at which the controller may hold the arm, since it was told so."""
        return self._told

    def reset(self) -> None:
        """Begin an episode: nothing queued, what is being computed will not count."""
        self.scheduler.reset()
        self._asked_s = None
        self._leave()
        self._maker.reset()
        self._worker.reset()
        self.journal("start")

    def discard(self) -> None:
        """Forget what was computed so far: after a stop, a fault or a new instruction."""
        self._forget()
        self.journal("discard")

    def release(self, elsewhere: bool, held: FloatArray | None = None) -> bool:
        """The arm's controller may not be on our path any more: the arm is taken over anew before the next action, and
        what was computed so far is forgotten.

        elsewhere, held: as for the guard's `reset`.  Returns whether that is news: the arm was led since, even if
        before the last reset, or was said to be held at another place.
        """
        again = held is not None and self._held is not None and np.array_equal(held, self._held)
        news = self._led or (elsewhere and self._told and not again)
        if news:
            self._forget()
            self._leave(elsewhere, held)
            if elsewhere:
                self._told, self._held = held is not None, held
            self.journal("release", elsewhere=elsewhere, held=held)
        return news

    def _leave(self, elsewhere: bool = False, held: FloatArray | None = None) -> None:
        self._leading = self._unconfirmed = self._led = False
        self._lead_began_ns = None
        self._moves = ""
        if self.loop.guard is not None:
            self.loop.guard.reset(elsewhere, held)

    def _forget(self) -> None:
        self.scheduler.discard()
        self._asked_s = None
        self._maker.reset()

    def tick(
        self, sample: JointSample, instruction: str, time_ns: int | None = None, begin_ns: int = 0, late_ns: int = 0
    ) -> JointCommand | None:
        """The command of this control period; None: nothing new is commanded, and `waiting_for` says why.

        time_ns: now, on the clock on which the controller carries commands out; None: the sample's stamp.  begin_ns:
        the same on the clock of stamps, 0 where commands carry none.  late_ns: so long ago the path was where the
        controller has been told to be by now.
        Sets `new_chunk` to the answer that was taken over in this period, else None.  Raises VegaError
        if the queue has been empty for too long, if the arm left the commanded path, if too many commands were refused
        in a row, or whatever the policy raised.
        """
        time_ns = sample.stamp_ns if time_ns is None else time_ns
        self._take_answers()
        self._check_policy()
        self.waiting_for = UNCONFIRMED if self._unconfirmed else self._moves or "The policy is computing."
        if self.scheduler.should_query():
            self._ask(sample, instruction)
        lead, wait = self._take_over(sample, time_ns, late_ns)
        item = None if wait else self.scheduler.pop()
        if item is None:
            self.journal("tick", **tick_fields(sample, lead, time_ns, begin_ns, late_ns))
            if wait:
                self.waiting_for = UNCONFIRMED if self._unconfirmed else wait
                return lead
            # While frames are missing the policy is not to blame, and asking it will do once they come.
            if self.scheduler.starved_s > self._timeout_s and not self._buffer.waiting_for:
                raise VegaError(
                    f"The policy gave no usable action for {self.scheduler.starved_s:.1f} s: use a faster device or "
                    "policy, or raise command_timeout_s, then call ~/start again."
                )
            return None
        self.waiting_for = ""
        guard = self.loop.guard
        command = next_command(guard, self._maker, sample, item.action, time_ns, {}, begin_ns, late_ns)
        if guard is not None and guard.rejected_in_a_row >= guard.limits.max_rejections:
            raise VegaError(
                f"The guard refused {guard.rejected_in_a_row} commands in a row ({', '.join(command.rejected)}): the "
                "policy does not fit these limits; see safety in the robot's YAML, then call ~/start again."
            )
        self.journal("tick", **tick_fields(sample, command, time_ns, begin_ns, late_ns))
        return command

    def withdraw(self) -> None:
        """The command of the last tick does not leave, since it would come too late: the arm is on the path before."""
        if self.loop.guard is not None:
            self.loop.guard.withdraw()
        self._maker.reset()
        self.journal("withdraw")

    def brake(self, sample: JointSample, time_ns: int, begin_ns: int = 0, late_ns: int = 0) -> JointCommand | None:
        """The command that brings the arm to rest as soon as the limits allow, None where its path does so already."""
        decision = None if self.loop.guard is None else self.loop.guard.brake(time_ns, late_ns)
        if decision is None:
            return None
        self.journal("brake", time_ns=time_ns, begin_ns=begin_ns, late_ns=late_ns)
        return command_of(decision, sample, self.period_s, {}, lead=True, begin_ns=begin_ns, late_ns=late_ns)

    def _take_over(self, sample: JointSample, time_ns: int, late_ns: int) -> tuple[JointCommand | None, str]:
        """Once an action waits: what leads the controller to the beginning of the path, and why it waits still."""
        guard = self.loop.guard
        if guard is None or not (self.scheduler.remaining or self._leading):
            return None, ""
        heard = not self._leading or self.confirmed()
        if not heard:
            self.journal("unheard")
        decision, wait = guard.take_over(sample.positions, sample.velocities, time_ns, heard, late_ns)
        if decision is not None:
            if self._lead_began_ns is None:
                self._lead_began_ns = sample.stamp_ns
            self._unconfirmed, self._leading, self._led, self._moves = self._leading, True, True, ""
            self._told, self._held = True, None
            return command_of(decision, sample, self.period_s, {}, lead=True), wait
        if wait and not self._leading:
            # By the time the arm rests, what is planned now will be long ago, and for another place.
            self._moves = wait
            self._forget()
        if not wait and self._lead_began_ns is not None:
            lead_s = 1e-9 * (sample.stamp_ns - self._lead_began_ns)
            if self._unconfirmed or lead_s > self.loop.policy.spec.chunk_length * self.period_s:
                # What was planned when the arm was to be taken over is long ago: all of it would be over by now.
                self._forget()
            self._unconfirmed, self._lead_began_ns = False, None
        # Until an action leaves, somebody may still begin to listen.
        self._leading = self._leading and not (self.scheduler.remaining and not wait)
        return None, wait

    def close(self, timeout_s: float) -> bool:
        """End the worker; False if the policy is still computing after `timeout_s`."""
        return self._worker.close(timeout_s)

    def _take_answers(self) -> None:
        self.new_chunk = None
        while (answer := self._worker.answer()) is not None:
            self._warm = True
            self.journal(
                "chunk",
                query=answer.query.chunk_id,
                latency_s=answer.latency_s,
                actions=None if answer.chunk is None else answer.chunk.actions,
                error="" if answer.error is None else str(answer.error),
            )
            if self._asked_s is not None:
                # One question after another: until now the policy was busy with one from before.
                current = answer.query.epoch == self.scheduler.epoch
                self._asked_s = None if current else time.perf_counter()
            if answer.chunk is None:
                self.scheduler.abandon(answer.query)
                # A query from before a reset belongs to nobody any more, and so does its failure.
                if answer.error is not None and answer.query.epoch == self.scheduler.epoch:
                    raise answer.error
                continue
            self.scheduler.record_latency(answer.latency_s)
            if self.scheduler.submit(answer.chunk, answer.query):
                self.new_chunk = answer

    def _check_policy(self) -> None:
        if not self._policy_timeout_s or not self._warm or self._asked_s is None:
            return
        age_s = time.perf_counter() - self._asked_s
        if age_s > self._policy_timeout_s:
            raise VegaError(
                f"The policy has been computing for {age_s:.2f} s: use a faster device or policy, or raise "
                "policy_timeout_s, then call ~/start again."
            )

    def _ask(self, sample: JointSample, instruction: str) -> None:
        frames = self._buffer.sample()
        if frames is None:
            self.waiting_for = self._buffer.waiting_for
            return
        observation = self.loop.observe(sample, frames.images, instruction)
        newest = max(int(stamps[-1]) for stamps in frames.stamps_ns.values())
        self._asked_s = time.perf_counter()
        query = self.scheduler.begin_query()
        self.journal("query", query=query.chunk_id, **query_fields(self.loop, sample.stamp_ns, frames, instruction))
        self._worker.ask(observation, query, newest)
