"""Which action to execute now, while the next chunk is being computed.

Two queues, both plain values in and out, without threads, clocks or ROS:

- `LockstepQueue`: the world waits for the policy.  A chunk is run open loop, then the next is asked for.
- `ChunkScheduler`: it does not.  Inference runs elsewhere and takes d control periods; the control timer only pops.

Steps are *counted* (actions that were really handed out), never read off a clock, so a pause, a slow timer or a fast
simulation cannot shift a chunk against the motion it belongs to.  Every action knows its absolute step, the stamp
and instruction of the observation behind it, and its chunk.  An epoch number tells results that were computed before
a stop, reset or new instruction from those that count.

Sources: ACT (arXiv 2304.13705) for `ensemble`; for `align` the idea of fading out the offset between the chunk that
arrives and the motion under way (see `MERGE_MODES`).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from policies.types import ActionChunk, FloatArray, PolicySpec, VegaError

MergeMode = Literal["align", "ensemble", "latest"]
MERGE_MODES: tuple[str, ...] = get_args(MergeMode)
ENSEMBLE_DECAY = 0.01  # ACT's m: weight exp(-m i), i = 0 for the oldest chunk


@dataclass(frozen=True)
class ScheduledAction:
    """One action to execute at absolute step `step`; action (dim,) in the units of the policy's ActionSpace."""

    action: FloatArray
    step: int
    stamp_ns: int
    chunk_id: int
    instruction: str


@dataclass(frozen=True)
class Query:
    """A question put to the policy: the observation was made when `step` was the next step to execute."""

    step: int
    epoch: int
    chunk_id: int


def check_chunk(chunk: ActionChunk, spec: PolicySpec) -> FloatArray:
    """The chunk's actions (chunk_length, dim) as float64; VegaError unless kind, shape and every number are right."""
    if not isinstance(chunk, ActionChunk):
        raise VegaError(f"Policy {spec.name} gave a {type(chunk).__name__}: its act() must return an ActionChunk.")
    actions = np.asarray(chunk.actions, dtype=np.float64)
    expected = (spec.chunk_length, spec.action_space.dim)
    if actions.shape != expected:
        raise VegaError(
            f"Policy {spec.name} gave actions of shape {actions.shape}, not {expected}: use a checkpoint whose config "
            "matches its weights."
        )
    if not np.isfinite(actions).all():
        raise VegaError(
            f"Policy {spec.name} gave an action that is not a number: check its inputs and normalisation statistics."
        )
    return actions


class LockstepQueue:
    """The first `open_loop_horizon` actions of a chunk, one after another."""

    def __init__(self, spec: PolicySpec) -> None:
        if not 1 <= spec.open_loop_horizon <= spec.chunk_length:
            raise VegaError(
                f"Policy {spec.name} has open_loop_horizon {spec.open_loop_horizon}: set it between 1 and its "
                f"chunk_length {spec.chunk_length}."
            )
        self._spec = spec
        self._queue: deque[ScheduledAction] = deque()
        self._chunk_id = 0
        self.step = 0

    @property
    def empty(self) -> bool:
        """Whether a chunk must be submitted before the next `pop`."""
        return not self._queue

    def submit(self, chunk: ActionChunk) -> None:
        """Replace what is queued.  Raises VegaError on a malformed chunk; the queue is then empty."""
        self._queue.clear()
        actions = check_chunk(chunk, self._spec)
        for index, action in enumerate(actions[: self._spec.open_loop_horizon]):
            self._queue.append(
                ScheduledAction(action, self.step + index, chunk.stamp_ns, self._chunk_id, chunk.instruction)
            )
        self._chunk_id += 1

    def pop(self) -> ScheduledAction:
        self.step += 1
        return self._queue.popleft()

    def discard(self) -> None:
        """Drop what is queued: after a stop or a new instruction."""
        self._queue.clear()

    def reset(self) -> None:
        """Begin an episode: nothing queued, step 0."""
        self._queue.clear()
        self.step = self._chunk_id = 0


class LatencyMeter:
    """A running percentile of what the policy takes for a chunk, in control periods.

    The first `warm_up` samples (compilation, caches) are left out; the last `window` of the others count.
    """

    def __init__(self, period_s: float, warm_up: int = 2, window: int = 50, percentile: float = 95.0) -> None:
        self._period_s = period_s
        self._left = warm_up
        self._samples: deque[float] = deque(maxlen=window)
        self._percentile = percentile

    def record(self, latency_s: float) -> None:
        if self._left > 0:
            self._left -= 1
        else:
            self._samples.append(latency_s)

    @property
    def known(self) -> bool:
        return bool(self._samples)

    @property
    def seconds(self) -> float:
        """The percentile in s (NaN while unknown); the upper neighbour, never an interpolation below a sample."""
        if not self._samples:
            return math.nan
        return float(np.percentile(np.asarray(self._samples), self._percentile, method="higher"))

    @property
    def periods(self) -> int:
        """d: whole control periods that a query takes.  Raises ValueError while unknown."""
        # The small slack keeps 0.1 s / 0.05 s from becoming 3 by rounding.
        return max(0, math.ceil(self.seconds / self._period_s - 1e-6))


class ChunkScheduler:
    """Queue for asynchronous execution.  One thread at a time (the caller locks).

    The control timer calls `pop` once per period.  Beside it:

        if scheduler.should_query():
            query = scheduler.begin_query()      # at the moment of the observation
            ...                                  # policy.act in another thread
            scheduler.record_latency(seconds)
            scheduler.submit(chunk, query)       # or abandon(query) if the policy failed

    merge:
        latest    the newest chunk's actions as they are, from the first step not yet executed;
        ensemble  for every step the mean of all chunks that predict it, weights exp(-m i), oldest first;
        align     actions are turned into absolute targets (eef_delta: the sum of all deltas executed up to the
                  observation, plus the chunk's own), and the chunk's targets plus a correction are differenced back
                  to actions.  The correction starts at the offset, and the rate, between the motion under way and
                  the chunk, and fades to zero along a cubic over `blend_steps`: no jump at the seam, and what the
                  executed steps did differently from the chunk's dropped prefix is made up for, not forgotten.
                  A longer blend (default two chunks) is smoother, and later to follow a change of mind.
    The gripper (last number) always comes from the newest chunk.

    The next chunk is asked for in time to take over once `open_loop_horizon` actions of the one under way are done;
    those beyond are for when it comes later.  If the latency d cannot be hidden (d > chunk_length / 2) the horizon's
    actions run dry before it asks again, as in `LockstepQueue`; `notice` says so as long as it is so.
    """

    def __init__(
        self,
        spec: PolicySpec,
        merge: MergeMode = "align",
        blend_steps: int | None = None,
        warm_up: int = 2,
        latency_window: int = 50,
    ) -> None:
        if merge not in MERGE_MODES:
            raise VegaError(f"There is no merge mode '{merge}': choose one of {', '.join(MERGE_MODES)}.")
        self._spec = spec
        self._merge = merge
        self._blend = max(1, blend_steps if blend_steps is not None else 2 * spec.chunk_length)
        self._beyond = max(0, spec.chunk_length - spec.open_loop_horizon)  # actions for when an answer comes late
        self._is_delta = spec.action_space.kind == "eef_delta"
        self.period_s = 1.0 / spec.action_space.rate_hz
        self.latency = LatencyMeter(self.period_s, warm_up, latency_window)
        self.step = 0
        self.epoch = 0
        self.counts = {
            "chunks": 0, "steps_dropped": 0, "chunks_stale": 0, "chunks_late": 0, "starved": 0, "discarded": 0,
        }  # fmt: skip
        self._next_chunk_id = 0
        self._in_flight: Query | None = None
        self._queue: deque[ScheduledAction]
        self._live: list[tuple[int, FloatArray]]  # (first step, actions) of the chunks that `ensemble` averages
        self._starved: int
        # The last executed absolute target (eef_delta: in action units, 0 at the start), whether there is one, and its
        # change in the last step (None: the arm was not moving).
        self._target: FloatArray
        self._has_target: bool
        self._rate: FloatArray | None
        self._clear()

    @property
    def remaining(self) -> int:
        """Actions queued."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether anything is queued, or asked and not answered yet."""
        return bool(self._queue) or self._in_flight is not None

    @property
    def planned(self) -> ScheduledAction | None:
        """What `pop` will hand out unless a chunk comes before."""
        return self._queue[0] if self._queue else None

    @property
    def starved_s(self) -> float:
        """Seconds since the queue ran dry: hold, and after `command_timeout` stop.  0 while it is not."""
        return self._starved * self.period_s

    @property
    def synchronous(self) -> bool:
        """Whether the latency is too long to be hidden, d > chunk_length / 2."""
        return self.latency.known and 2 * self.latency.periods > self._spec.chunk_length

    @property
    def notice(self) -> str | None:
        """One sentence with the numbers while `synchronous`, else None."""
        if not self.synchronous:
            return None
        return (
            f"Inference takes {1e3 * self.latency.seconds:.0f} ms (p95) = {self.latency.periods} periods of "
            f"{1e3 * self.period_s:.0f} ms, more than half of a chunk of {self._spec.chunk_length}: actions and "
            "inference now alternate and the arm waits in between; use a faster device or policy."
        )

    def should_query(self) -> bool:
        """Whether an observation should go to the policy now: none is on its way, and what is left of the open-loop
        horizon runs short."""
        if self._in_flight is not None:
            return False
        if self.synchronous:
            return self.remaining == 0
        # Until the latency is known, ask as early as it could be needed.
        periods = self.latency.periods if self.latency.known else self._spec.chunk_length // 2
        return self.remaining - self._beyond <= periods + 1

    def begin_query(self) -> Query:
        """Note that the policy is asked with an observation made now."""
        self._in_flight = Query(self.step, self.epoch, self._next_chunk_id)
        self._next_chunk_id += 1
        # Where the targets of the answer start: needed only for this one query, so kept beside it.
        self._origin = self._target.copy()
        return self._in_flight

    def abandon(self, query: Query) -> None:
        """The policy gave no chunk for this query."""
        if query == self._in_flight:
            self._in_flight = None

    def record_latency(self, latency_s: float) -> None:
        """What the policy took for one chunk, s.  A wait behind another question belongs to none: it would be expected
        of the questions after it, which do not wait."""
        self.latency.record(latency_s)

    def submit(self, chunk: ActionChunk, query: Query) -> bool:
        """Merge the answer to `query`; False if it is of no use (another epoch, or every step of it already executed).

        Raises VegaError on a malformed chunk; the queue is then as before.
        """
        current = query == self._in_flight
        self.abandon(query)
        if query.epoch != self.epoch or not current:
            self.counts["chunks_stale"] += 1
            return False
        actions = check_chunk(chunk, self._spec)
        consumed = self.step - query.step
        if self.synchronous:
            actions = actions[: max(self._spec.open_loop_horizon, consumed + 1)]
        if consumed >= len(actions):
            self.counts["chunks_late"] += 1
            return False
        self.counts["chunks"] += 1
        self.counts["steps_dropped"] += consumed
        merged = self._merged(actions, consumed, query)
        self._queue = deque(
            ScheduledAction(action, self.step + i, chunk.stamp_ns, query.chunk_id, chunk.instruction)
            for i, action in enumerate(merged)
        )
        return True

    def pop(self) -> ScheduledAction | None:
        """The action of this control period; None: hold still (nothing is queued)."""
        if not self._queue:
            self._starved += 1
            self.counts["starved"] += 1
            self._rate = None
            return None
        self._starved = 0
        item = self._queue.popleft()
        motion = item.action[:-1]
        target = self._target + motion if self._is_delta else motion.copy()
        # The first absolute target has no predecessor to take a rate from.
        known = self._is_delta or self._has_target
        self._rate = target - self._target if known else None
        self._target, self._has_target = target, True
        self.step += 1
        return item

    def discard(self) -> None:
        """Forget all that was computed so far, queued or on its way: after a stop or a new instruction."""
        self.counts["discarded"] += self.remaining
        self.epoch += 1
        self._in_flight = None
        self._clear()

    def reset(self) -> None:
        """Begin an episode: `discard`, and steps count from 0.  Latency statistics stay."""
        self.discard()
        self.step = 0

    def _clear(self) -> None:
        dims = self._spec.action_space.dim - 1
        self._queue = deque()
        self._live = []
        self._starved = 0
        self._target = np.zeros(dims)
        self._has_target = False
        self._rate = None
        self._origin = self._target.copy()

    def _merged(self, actions: FloatArray, consumed: int, query: Query) -> FloatArray:
        """(H - consumed, dim): what to execute from the present step on."""
        fresh = actions[consumed:].copy()
        if self._merge == "align":
            fresh[:, :-1] = self._aligned(actions[:, :-1], consumed)
        elif self._merge == "ensemble":
            self._live = [(start, old) for start, old in self._live if start + len(old) > self.step]
            self._live.append((query.step, actions))
            for i in range(len(fresh)):
                fresh[i, :-1] = self._mean_at(self.step + i)
        return fresh

    def _mean_at(self, step: int) -> FloatArray:
        """ACT's weighted mean of all predictions for one step."""
        found = [actions[step - start, :-1] for start, actions in self._live if 0 <= step - start < len(actions)]
        weights = np.exp(-ENSEMBLE_DECAY * np.arange(len(found)))
        return weights @ np.stack(found) / weights.sum()

    def _aligned(self, motion: FloatArray, consumed: int) -> FloatArray:
        """(H - consumed, dim - 1): the chunk's motion (H, dim - 1), led over from the motion under way."""
        if self._rate is None:
            # At rest there is nothing to lead over from.
            return motion[consumed:]
        targets = self._origin + np.cumsum(motion, axis=0) if self._is_delta else motion
        last = max(consumed - 1, 0)
        start = self._origin if self._is_delta else self._target
        before = targets[last] if consumed > 0 else start
        if self._queue:
            # What the chunk under way would do in this very step says more about the motion than its last step does.
            planned = self._queue[0].action[:-1]
            rate = (planned if self._is_delta else planned - self._target) - (targets[consumed] - before)
        elif self._is_delta:
            rate = self._rate - motion[last]
        else:
            later = max(last, min(1, len(motion) - 1))
            rate = self._rate - (motion[later] - motion[max(0, later - 1)])
        offset = self._target - before
        path = targets[consumed:] + _fade(len(motion) - consumed, self._blend, offset, rate)
        if not self._is_delta:
            return path
        steps = np.diff(np.vstack([self._target, path]), axis=0)
        return np.clip(steps, -1.0, 1.0)


def _fade(count: int, length: int, offset: FloatArray, rate: FloatArray) -> FloatArray:
    """(count, dim): at steps 1..count, the cubic with value `offset` and slope `rate` at 0, and both 0 at `length`."""
    s = np.minimum(np.arange(1, count + 1) / length, 1.0)[:, None]
    return (1 - 3 * s**2 + 2 * s**3) * offset + (s - 2 * s**2 + s**3) * length * rate
