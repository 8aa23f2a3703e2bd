"""One job at a time beside the executor: what a model computes keeps no message waiting."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from policies.types import SceneReply


@dataclass(frozen=True)
class Done:
    """A job that is over: what it gave or raised, and how long it took."""

    reply: SceneReply | None
    error: Exception | None
    ms: float


class Worker:
    """`start` and `collect` are called by one thread; wake: called from the worker's thread when a job is over."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._jobs: queue.SimpleQueue[Callable[[], SceneReply | None] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._then: Callable[[Done], None] | None = None
        self._began_s = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="scene", daemon=True)
        self._thread.start()

    @property
    def busy_s(self) -> float | None:
        """How long the present job has taken, None if there is none."""
        return None if self._then is None else time.monotonic() - self._began_s

    def start(self, job: Callable[[], SceneReply | None], then: Callable[[Done], None]) -> None:
        """Begin a job; `then` is called by `collect` once it is over."""
        assert self._then is None, "one job at a time"
        self._then, self._began_s = then, time.monotonic()
        self._jobs.put(job)

    def collect(self) -> bool:
        """Whether no job is under way; of one that is over, its `then` has been called."""
        if self._then is None:
            return True
        try:
            done = self._done.get_nowait()
        except queue.Empty:
            return False
        then, self._then = self._then, None
        then(done)
        return True

    def close(self, timeout_s: float) -> None:
        """End the thread once its job is over, for which `timeout_s` is waited."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            begin = time.perf_counter()
            reply, error = None, None
            try:
                reply = job()
            except Exception as raised:
                error = raised
            self._done.put(Done(reply, error, 1e3 * (time.perf_counter() - begin)))
            if not self._closed:
                self._wake()
