"""Jobs in processes of their own: robosuite keeps the memory of every environment until its process ends."""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from policies.types import VegaError

Job = TypeVar("Job", bound=tuple[Any, ...])
NEWS_S = 20.0


def each_in_its_process(
    work: Callable[..., Any], jobs: Iterable[Job], processes: int, news: Callable[[], str] | None = None
) -> Iterator[tuple[Job, Any]]:
    """(job, work(*job)) of each, in the order in which they end; so many at once.

    news: said on stderr now and then while no job ends.
    Raises what `work` raised, and VegaError where a process ends without an answer (killed for its memory, or by a
    graphics driver), for which multiprocessing.Pool waits for ever.
    """
    context, left = multiprocessing.get_context("spawn"), deque(jobs)
    running: dict[Any, tuple[Any, Job]] = {}
    begun = time.monotonic()
    try:
        while left or running:
            while left and len(running) < processes:
                job = left.popleft()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(theirs, work, job), daemon=True)
                process.start()
                theirs.close()
                running[ours] = process, job
            ended = wait(list(running), NEWS_S if news else None)
            if not ended and news:
                print(f"{news()} after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            for pipe in ended:
                process, job = running.pop(pipe)
                try:
                    answer = pipe.recv()  # type: ignore[call-arg, union-attr]
                except EOFError:
                    process.join()
                    told = tuple(part for part in job if isinstance(part, (str, int)))  # not all of a command's options
                    raise VegaError(
                        f"The process that did {told} ended without an answer (exit status {process.exitcode}): see "
                        "whether memory ran out, then run the command again; what is done is kept."
                    ) from None
                process.join()
                if isinstance(answer, Exception):
                    raise answer
                yield job, answer
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _answer(pipe: Connection, work: Callable[..., Any], job: tuple[Any, ...]) -> None:
    try:
        answer = work(*job)
    except KeyboardInterrupt:
        return
    except Exception as error:  # of another process, which raises it
        if not isinstance(error, VegaError):
            traceback.print_exc()
        answer = error
    pipe.send(answer)
