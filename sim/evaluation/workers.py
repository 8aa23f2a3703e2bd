"""Episodes or questions in several processes: blocks of trials of a task, handed to whoever is free.

A trial depends on nothing that ran before it (sim/worlds/libero_env.py), so the results are the same whatever the
number of workers and the order.  Of questions a task is a scene and a trial a question about it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Protocol, TypeVar

from policies.types import VegaError

ATTEMPTS = 3
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Settings(Protocol[R_co]):
    """What a worker needs to know; can be pickled.  unit: what a trial is called."""

    @property
    def unit(self) -> str: ...

    def build(self) -> Any:
        """What runs trials, with a method `close`: policy and simulator loaded.  Raises VegaError."""
        ...

    def run_trial(self, runner: Any, task: int, trial: int) -> R_co:
        """Run one trial; what is written about it.  Raises VegaError where that ends the run."""
        ...

    def lost(self, task: int, trial: int, error: str) -> R_co:
        """What is written about a trial in which workers died."""
        ...


@dataclass(frozen=True)
class Shard:
    """A block of trials of one task."""

    task: int
    trials: tuple[int, ...]


def make_shards(tasks: Sequence[int], trials: int, workers: int, done: Collection[tuple[int, int]] = ()) -> list[Shard]:
    """What is left to do, in blocks.

    Building a task's environment takes seconds, so a task is divided only where whole tasks would leave
    workers idle at the end.
    """
    left = [(task, [t for t in range(trials) if (task, t) not in done]) for task in tasks]
    left = [(task, numbers) for task, numbers in left if numbers]
    whole = not left or len(left) >= 3 * workers or len(left) % workers == 0
    parts = 1 if whole else -(-3 * workers // len(left))
    shards = []
    for task, numbers in left:
        size = -(-len(numbers) // parts)
        shards += [Shard(task, tuple(numbers[i : i + size])) for i in range(0, len(numbers), size)]
    return shards


def run_here(settings: Settings[R], shards: Sequence[Shard], on_record: Callable[[R], None]) -> None:
    """Run all shards in this process.  Raises VegaError."""
    runner = settings.build()
    try:
        for shard in shards:
            for trial in shard.trials:
                on_record(settings.run_trial(runner, shard.task, trial))
    finally:
        runner.close()


def run_in_workers(
    settings: Settings[R],
    shards: Sequence[Shard],
    workers: int,
    on_record: Callable[[R], None],
    on_start: Callable[[int], None] = lambda pid: None,
) -> None:
    """Run all shards in `workers` processes.

    on_record: called in this thread with each finished trial.  on_start: with the process id of each worker.
    A worker that dies is replaced and goes on with the rest of its shard; a trial at which workers died three times
    is recorded as an error.  Raises VegaError if a worker cannot be built, or a trial raises it.
    """
    pool = _Pool(settings, shards, on_record, on_start)
    try:
        for _ in range(min(workers, len(shards))):
            pool.start()
        while pool.workers:
            for connection in wait([worker.connection for worker in pool.workers]):
                pool.hear(next(w for w in pool.workers if w.connection is connection))
    finally:
        pool.kill()


class _Worker:
    def __init__(self, settings: Settings[Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()  # so that its death is the end of the pipe
        self.ready = False
        self.task = 0
        self.trials: deque[int] = deque()  # not yet reported, the first is being run


class _Pool(Generic[R]):
    def __init__(
        self,
        settings: Settings[R],
        shards: Sequence[Shard],
        on_record: Callable[[R], None],
        on_start: Callable[[int], None],
    ) -> None:
        self.settings, self.on_record, self.on_start = settings, on_record, on_start
        self.shards = deque(shards)
        self.workers: list[_Worker] = []
        self.deaths: Counter[tuple[int, int]] = Counter()
        self.unborn = 0

    def start(self) -> None:
        worker = _Worker(self.settings)
        self.workers.append(worker)
        self.on_start(worker.process.pid or 0)

    def hear(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if not isinstance(message, str):
            worker.trials.popleft()
            self.on_record(message)
        elif message:
            raise VegaError(message)
        worker.ready = True
        if not worker.trials:
            self._occupy(worker)

    def _occupy(self, worker: _Worker) -> None:
        try:
            if not self.shards:
                worker.connection.send(None)
                self._dismiss(worker)
                return
            shard = self.shards.popleft()
            worker.task, worker.trials = shard.task, deque(shard.trials)
            worker.connection.send(shard)
        except OSError:
            self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        self._dismiss(worker)
        status = worker.process.exitcode
        if not worker.ready:
            self.unborn += 1
            if self.unborn >= ATTEMPTS:
                raise VegaError(
                    f"Worker processes end while they load their model (exit status {status}): "
                    "give fewer --workers, or try without to see why."
                )
        if worker.trials:
            self._retry(worker, status)
        if self.shards:
            self.start()

    def _retry(self, worker: _Worker, status: int | None) -> None:
        trial = worker.trials[0]
        self.deaths[worker.task, trial] += 1
        if self.deaths[worker.task, trial] >= ATTEMPTS:
            worker.trials.popleft()
            error = f"{ATTEMPTS} worker processes died in this {self.settings.unit} (exit status {status})."
            self.on_record(self.settings.lost(worker.task, trial, error))
        if worker.trials:
            self.shards.appendleft(Shard(worker.task, tuple(worker.trials)))

    def _dismiss(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.connection.close()
        worker.process.join(10)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(10)

    def kill(self) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join(10)


def _work(connection: Connection, settings: Settings[Any]) -> None:
    """The life of a worker: say that it is ready, take shards until there are no more; or say what ends the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        runner = settings.build()
    except VegaError as error:
        connection.send(str(error))
        return
    try:
        connection.send("")
        while (shard := connection.recv()) is not None:
            for trial in shard.trials:
                connection.send(settings.run_trial(runner, shard.task, trial))
    except VegaError as error:  # as without workers: no room for what a trial leaves, no frames of a scene
        connection.send(str(error))
    except (EOFError, OSError):
        return
    finally:
        runner.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
