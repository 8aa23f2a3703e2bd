"""Deciding a recording again: what was observed then goes through the parts policy_node is made of.

`node_setup.build` puts policy, scheduler, control law and guard together from the recorded parameters, as in the node.
Each recorded control period is then run again with the joint state, the frames and the instruction it had.  In real
time an answer of the policy is taken over in the period in which it was then, and its latency counts as it did then;
so what timing decided stays as it was, and everything else is decided anew.

Compared bit for bit: every chunk of actions, and every command with what the guard did to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.types import ActionChunk, Observation, Policy, PolicySpec, VegaError
from vega3d_ros.control.chunk_scheduler import Query
from vega3d_ros.control.control_loop import ControlLoop, JointCommand, JointSample
from vega3d_ros.control.frame_buffer import FrameSet
from vega3d_ros.control.journal import command_fields
from vega3d_ros.inference.lockstep import Lockstep
from vega3d_ros.inference.realtime import Answer, Realtime
from vega3d_ros.ros.node_parameters import NodeParameters

Event = Mapping[str, Any]


class Difference(Exception):
    """The first thing that came out differently; the text is one sentence."""


@dataclass
class Compared:
    """What came out again, and what could not be asked again because the recorder missed what it was made of."""

    episodes: int = 0
    chunks: int = 0
    commands: int = 0
    still: int = 0
    chunks_missed: int = 0
    states_missed: int = 0


class RecordedPolicy:
    """The policy, compared with what it answered then.  Where frames are missing the recorded answer stands in."""

    def __init__(self, policy: Policy, compared: Compared) -> None:
        self._policy, self._compared = policy, compared
        self.frames_known = False
        self._unready = ""

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    def reset(self) -> None:
        self._unready = ""
        try:
            self._policy.reset()
        except Exception as raised:  # a policy that failed then shall fail again
            self._unready = str(raised) or type(raised).__name__

    def ask(self, observation: Observation) -> Callable[[Event], ActionChunk]:
        """Asks now; the function returned compares with the recorded answer, and returns what to go on with."""
        chunk, error = None, self._unready
        if self.frames_known and not error:
            try:
                chunk = self._policy.act(observation)
            except Exception as raised:  # a policy that failed then shall fail again
                error = str(raised)
        asked = self.frames_known

        def answer(event: Event) -> ActionChunk:
            recorded = ActionChunk(
                actions=np.array(event["actions"], dtype=np.float64),
                stamp_ns=observation.stamp_ns,
                instruction=observation.instruction,
            )
            if not asked:
                self._compared.chunks_missed += 1
                return recorded
            if chunk is None:
                raise Difference(f"the policy fails now ({error[:200]}) and did not then")
            if not _same(chunk.actions, recorded.actions):
                raise Difference(
                    f"the chunk for '{observation.instruction}' at {observation.stamp_ns} ns differs by up to "
                    f"{_distance(chunk.actions, recorded.actions):.3g}"
                )
            self._compared.chunks += 1
            return chunk

        return answer


class RecordedWorker:
    """Takes the place of the inference thread: an answer is ready when, and after the latency that, it was then."""

    def __init__(self, policy: RecordedPolicy) -> None:
        self._policy = policy
        self._asked: dict[int, tuple[Query, Callable[[Event], ActionChunk]]] = {}
        self._due: deque[Answer] = deque()
        self.next_number: int | None = None

    def ask(self, observation: Observation, query: Query, frames_ns: int) -> None:
        if self.next_number is None:
            raise Difference("the policy is asked now and was not then")
        self._asked[self.next_number] = (query, self._policy.ask(observation))
        self.next_number = None

    def deliver(self, event: Event) -> None:
        """The recorded answer `event` arrives."""
        if event["query"] not in self._asked:
            raise Difference(f"question {event['query']} of the policy is answered and was not asked")
        query, compare = self._asked.pop(event["query"])
        failed = event["actions"] is None
        chunk = None if failed else compare(event)
        self._due.append(Answer(query, 0, chunk, RuntimeError(event["error"]) if failed else None, event["latency_s"]))

    def answer(self) -> Answer | None:
        return self._due.popleft() if self._due else None

    def reset(self) -> None:
        self._policy.reset()

    def close(self, timeout_s: float) -> bool:
        return True


class RecordedAnswers:
    """Takes the place of the policy in lockstep, where it answers within the period."""

    def __init__(self, policy: RecordedPolicy) -> None:
        self._policy = policy
        self.next_event: Event | None = None

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    def reset(self) -> None:
        self._policy.reset()

    def act(self, observation: Observation) -> ActionChunk:
        if self.next_event is None:
            raise Difference("the policy is asked now and was not then")
        return self._policy.ask(observation)(self.next_event)


class RecordedFrames:
    """Takes the place of the frame buffer: a sample is what the recorded query saw."""

    waiting_for = "the recording has no query here"

    def __init__(self) -> None:
        self.next: FrameSet | None = None

    def sample(self, *_: Any, **__: Any) -> FrameSet | None:
        """Whatever is asked for: what was found then was recorded."""
        return self.next


class Decisions:
    """Runs the recorded events again, one after another.

    runner: as `node_setup.build` made it.  compared: of a configuration before, to be gone on with.  last_sample: the
    joint state of the last tick.  Raises Difference at the first that differs.
    """

    def __init__(
        self, runner: Lockstep | Realtime, parameters: NodeParameters, compared: Compared | None = None
    ) -> None:
        self.compared = Compared() if compared is None else compared
        self._sample: JointSample | None = None
        self._period: list[Event] = []
        self._frames = RecordedFrames()
        self._policy = RecordedPolicy(runner.loop.policy, self.compared)
        self._answers = RecordedAnswers(self._policy)
        self._worker = RecordedWorker(self._policy)
        made = runner.loop
        loop = ControlLoop(self._answers, made.kinematics, parameters.home, made.guard)
        loop.openings = made.openings
        period_ns = round(1e9 / made.policy.spec.action_space.rate_hz)
        self._unheard = False
        self._runner: Lockstep | Realtime
        frames: Any = self._frames
        if isinstance(runner, Lockstep):
            self._runner = Lockstep(loop, frames, period_ns)
        else:
            runner.close(1.0)
            self._runner = Realtime(
                loop, frames, parameters.home, parameters.merge, parameters.command_timeout_s, worker=self._worker
            )
            self._realtime.confirmed = self._was_confirmed

    def feed(
        self, event: Event, sample: JointSample | None = None, frames: FrameSet | None = None
    ) -> JointCommand | None:
        """The next event.  sample, for a tick, and frames, for a query: as the bag has them; None where it lacks them.

        Returns the command of a tick that has one.
        """
        name = event["event"]
        if name == "start":
            self._period.clear()
            self._runner.reset()
            self.compared.episodes += 1
        elif name == "discard":
            self._end_without_tick()
            self._runner.discard()
        elif name == "release":
            self._end_without_tick()
            held = event["held"]
            self._realtime.release(event["elsewhere"], None if held is None else np.array(held, dtype=np.float64))
        elif name == "query":
            self._take_query(event, frames)
            self._period.append(event)
        elif name == "chunk":
            self._period.append(event)
        elif name == "unheard":
            self._unheard = True
        elif name == "withdraw":
            self._realtime.withdraw()
        elif name == "brake":
            return self._realtime.brake(self.last_sample, event["time_ns"], event["begin_ns"], event.get("late_ns", 0))
        else:
            return self._tick(event, sample)
        return None

    def _was_confirmed(self) -> bool:
        unheard, self._unheard = self._unheard, False
        return not unheard

    def _take_query(self, event: Event, frames: FrameSet | None) -> None:
        self._policy.frames_known = frames is not None
        self._worker.next_number = event["query"]
        stamps = {camera: np.array(values, dtype=np.int64) for camera, values in event["frames_ns"].items()}
        # A stand-in that nobody looks at, so that the scheduler goes the same way.
        blank = {camera: np.zeros((len(values), 1, 1, 3), dtype=np.uint8) for camera, values in stamps.items()}
        self._frames.next = frames or FrameSet(blank, stamps, min(int(values[-1]) for values in stamps.values()))
        self._runner.loop.base_position = np.array(event["base_position"])
        self._runner.loop.base_quaternion = np.array(event["base_quaternion"])

    def _tick(self, event: Event, sample: JointSample | None) -> JointCommand | None:
        measured = {key: np.array(values, dtype=np.float64) for key, values in event["sample"].items()}
        recorded_sample = JointSample(event["sample_ns"], **measured)
        if sample is None:
            self.compared.states_missed += 1
            sample = recorded_sample
        elif not all(_same(getattr(sample, key), values) for key, values in measured.items()):
            raise Difference(f"the joint state at {sample.stamp_ns} ns is another than the node used then")
        self._sample = sample
        instruction = next((e["instruction"] for e in self._period if e["event"] == "query"), "")
        chunks = [e for e in self._period if e["event"] == "chunk"]
        try:
            command = self._run_again(sample, instruction, chunks, event)
        except VegaError as error:
            raise Difference(f"at {sample.stamp_ns} ns: {str(error).rstrip('.')}") from error
        self._period.clear()
        self._frames.next = None
        self._compare(event, command)
        return command

    @property
    def last_sample(self) -> JointSample:
        if self._sample is None:
            raise Difference("the path is left and no joint state has come before")
        return self._sample

    @property
    def _realtime(self) -> Realtime:
        if not isinstance(self._runner, Realtime):
            raise Difference("the arm's path was changed between two joint states, which lockstep does not know")
        return self._runner

    def _run_again(
        self, sample: JointSample, instruction: str, chunks: list[Event], tick: Event
    ) -> JointCommand | None:
        if isinstance(self._runner, Lockstep):
            if self._runner.loop.needs_images and self._frames.next is None:
                raise Difference(f"the policy is asked at {sample.stamp_ns} ns now and was not then")
            self._answers.next_event = chunks[0] if chunks else None
            self._runner.offer(sample)
            return self._runner.answer(instruction)
        for chunk in chunks:
            self._worker.deliver(chunk)
        times = tick.get("time_ns"), tick.get("begin_ns", 0), tick.get("late_ns", 0)
        command = self._runner.tick(sample, instruction, *times)
        if self._worker.next_number is not None:
            raise Difference("the policy was asked then and is not now")
        return command

    def _end_without_tick(self) -> None:
        """A period that a fault ended: its answers count for the latency, and for nothing else."""
        for event in self._period:
            if event["event"] == "chunk" and isinstance(self._runner, Realtime) and event["actions"] is not None:
                self._runner.scheduler.record_latency(event["latency_s"])
        self._period.clear()
        self._frames.next = self._worker.next_number = None

    def _compare(self, event: Event, command: JointCommand | None) -> None:
        recorded, at = event["command"], f"at {event['sample_ns']} ns"
        made = command_fields(command)
        if made == recorded:
            self.compared.commands += made is not None
            self.compared.still += made is None
        elif made is None or recorded is None:
            raise Difference(f"{at} there is {'no command now' if made is None else 'a command now'}, unlike then")
        else:
            fields = [key for key in recorded if made[key] != recorded[key]]
            far = max(_distance(np.array(made[key]), np.array(recorded[key])) for key in ("positions", "velocities"))
            raise Difference(f"the command {at} differs in {', '.join(fields)}, by up to {far:.3g} rad or rad/s")


def _same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _distance(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(np.max(np.abs(one - other))) if one.shape == other.shape else float("inf")
