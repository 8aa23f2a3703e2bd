"""One policy for all the workers of a machine: a process of its own that decides for several episodes at once.

    worker ─ Observation ─┐                                    ┌─► ActionChunk ─ worker
    worker ─ Observation ─┼─► those that wait ─► act_batch ────┤
    worker ─ Observation ─┘                                    └─► ActionChunk ─ worker

While the policy computes, the next observations gather; nobody waits for a batch to fill.  Who is decided for together
depends on time, and the size of a batch on the last bits of an action, so runs with a shared policy are comparable but
not equal bit for bit.  Workers and policy talk through a socket in a folder that only this user can enter.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import secrets
import signal
import tempfile
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from types import TracebackType

from policies.types import ActionChunk, BatchPolicy, Observation, PolicySpec, VegaError
from sim.evaluation.open_policy import open_policy

START_S = 600.0
END_S = 10.0


@dataclass(frozen=True)
class Place:
    """Where a shared policy answers; can be pickled."""

    address: str
    key: bytes


class SharedPolicy:
    """A worker's end, a `policies.types.Policy`.  Used from one thread at a time."""

    def __init__(self, place: Place) -> None:
        try:
            self._connection = Client(place.address, "AF_UNIX", authkey=place.key)
            self.spec: PolicySpec = self._connection.recv()
        except (OSError, EOFError) as error:
            raise VegaError("The process of the shared policy has ended: --resume goes on with the run.") from error

    def act(self, observation: Observation) -> ActionChunk:
        try:
            self._connection.send(observation)
            answer = self._connection.recv()
        except (OSError, EOFError) as error:
            raise VegaError("The process of the shared policy has ended: --resume goes on with the run.") from error
        if isinstance(answer, str):
            raise VegaError(answer)
        if not isinstance(answer, ActionChunk):
            raise VegaError(f"The shared policy answered with a {type(answer).__name__}: it has to be an ActionChunk.")
        return answer

    def reset(self) -> None:
        """Policies that can be shared remember nothing."""


class PolicyProcess:
    """The policy's end, as a context: `place` is where workers find it.

    Raises VegaError on entering if the policy cannot be loaded or cannot be shared.
    """

    def __init__(self, policy: str, device: str, threads: int, world_simulator: str = "on") -> None:
        self._arguments = (policy, device, threads, world_simulator)

    def __enter__(self) -> PolicyProcess:
        self._folder = tempfile.TemporaryDirectory(prefix="vega3d-")
        self.place = Place(str(Path(self._folder.name) / "policy"), secrets.token_bytes(32))
        context = multiprocessing.get_context("spawn")
        self._alarm, theirs = context.Pipe()  # when this end is closed, by whatever end of ours, the process ends
        self._process = context.Process(target=_serve, args=(*self._arguments, self.place, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            complaint = (
                self._alarm.recv()
                if self._alarm.poll(START_S)
                else f"Loading the policy took more than {START_S:.0f} s."
            )
        except EOFError:
            self._process.join(END_S)
            status = self._process.exitcode
            complaint = f"The policy's process ended while it loaded it (exit status {status}): try --workers 1."
        if complaint:
            self.__exit__(None, None, None)
            raise VegaError(str(complaint))
        return self

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join(END_S)
        self._alarm.close()
        self._folder.cleanup()


def _serve(
    name: str, device: str, threads: int, world_simulator: str, place: Place, parent: Connection
) -> None:
    """The life of the policy's process; it says None when it is ready, or why not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        policy = open_policy(name, device, threads, world_simulator)
        if not isinstance(policy, BatchPolicy):
            raise VegaError(f"The policy '{name}' decides for one episode at a time: leave --share-policy out.")
    except Exception as error:
        parent.send(_complaint(error, "could not be loaded"))
        return
    newcomers = Newcomers(place)
    parent.send(None)
    workers: list[Connection] = []
    while True:
        ready = wait([*workers, newcomers.bell, parent])
        if parent in ready:
            os._exit(0)  # it never says anything: it has ended
        if newcomers.bell in ready:
            workers.append(newcomers.take())
            _send(workers[-1], policy.spec)
        waiting: list[tuple[Connection, Observation]] = []
        for worker in [w for w in workers if w in ready]:
            try:
                waiting.append((worker, worker.recv()))
            except (OSError, EOFError):
                workers.remove(worker)
            except Exception as error:  # what it sent is no observation
                _send(worker, _complaint(error, "was asked something it cannot read"))
        if waiting:
            _answer(policy, waiting)


def _answer(policy: BatchPolicy, waiting: list[tuple[Connection, Observation]]) -> None:
    """Decide for all at once; where that fails, for each alone, so that an error reaches only whom it concerns."""
    for (worker, _), answer in zip(waiting, _decide(policy, [o for _, o in waiting]), strict=True):
        _send(worker, answer)


def _decide(policy: BatchPolicy, observations: list[Observation]) -> list[ActionChunk | str]:
    try:
        chunks = policy.act_batch(observations)
        if len(chunks) != len(observations):
            raise VegaError(f"The shared policy answered {len(chunks)} of {len(observations)} observations: mend it.")
        return list(chunks)
    except Exception as error:
        if len(observations) == 1:
            return [_complaint(error)]
    return [answer for observation in observations for answer in _decide(policy, [observation])]


def _complaint(error: Exception, failed: str = "failed on an observation") -> str:
    """One sentence for the worker; where nobody foresaw the error, this process's terminal shows where it was."""
    if isinstance(error, VegaError):
        return str(error)
    traceback.print_exception(error)
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return f"The shared policy {failed} ({type(error).__name__}: {reason}): see its traceback above."


def _send(worker: Connection, answer: ActionChunk | PolicySpec | str) -> None:
    with contextlib.suppress(OSError):  # a worker that died is noticed when it is read from
        try:
            worker.send(answer)
        except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:  # it cannot be pickled
            worker.send(_complaint(error, "gave an answer that cannot be sent"))


class Newcomers:
    """Accepts workers in a thread of its own; `bell` can be waited for beside other connections."""

    def __init__(self, place: Place) -> None:
        self._listener = Listener(place.address, "AF_UNIX", authkey=place.key, backlog=64)
        self.bell, self._ring = multiprocessing.Pipe(duplex=False)
        self._accepted: list[Connection] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self) -> Connection:
        self.bell.recv()
        return self._accepted.pop(0)

    def _accept(self) -> None:
        while True:
            try:
                self._accepted.append(self._listener.accept())
            except (OSError, EOFError, multiprocessing.AuthenticationError):
                continue  # one that went away, or has not the key
            self._ring.send(None)
