"""A model in a process of its own: what it computes must not delay what its node does.

    node ─ question ─► pipe ─► model ─► pipe ─► answer

In one process the two would share Python's interpreter lock.  A model that hangs or takes its process with it costs no
more than itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from policies.types import VegaError
from vega3d_ros.inference.process import die_with_parent

ALIVE_S = 1.0
KILL_S = 2.0
# The words of a command line -> what to say first, and what answers each question.
Load = Callable[[list[str]], tuple[object, Callable[[Any], object]]]


class SeparateModel:
    """This process's end.  Used from one thread at a time, but for `check` and `close`.

    begin: Python code that calls `serve` with the model in the other process.  words: its arguments.  what, node: whose
    process it is, and who started it, in the sentence on its end.  greeting: what the model said of itself.

    Takes as long as loading does; raises VegaError as that does, and later wherever the process has ended.  To be made
    in the main thread: the kernel ends the process with the thread that started it.
    """

    def __init__(self, begin: str, words: Sequence[str], what: str, node: str) -> None:
        self._what, self._node = what, node
        self._connection, theirs = Pipe()
        # Not multiprocessing's own start: that runs the main script again, which an installed node's need not survive.
        end = theirs.fileno()
        command = [sys.executable, "-c", begin, str(end), *words]
        self._process = subprocess.Popen(command, pass_fds=[end], env={**os.environ, **import_environment()})
        theirs.close()  # so that its end is told by the end of the pipe
        try:
            self.greeting = self._receive()
        except VegaError:
            self.close()
            raise

    def check(self) -> None:
        """Raise VegaError if the process has ended, without waiting; from any thread."""
        if self._process.poll() is not None:
            raise self._ended()

    def close(self) -> None:
        """End the process, whatever it does; a thread that waits for an answer gets a VegaError."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)

    def _ask(self, question: object) -> object:
        try:
            self._connection.send(question)
        except OSError as error:
            raise self._ended() from error
        return self._receive()

    def _receive(self) -> object:
        try:
            while not self._connection.poll(ALIVE_S):
                self.check()
            answer = self._connection.recv()
        except (OSError, EOFError) as error:
            raise self._ended() from error
        if isinstance(answer, VegaError):
            raise answer
        return answer

    def _ended(self) -> VegaError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ALIVE_S)
        return VegaError(
            f"The {self._what}'s process has ended (exit status {self._process.returncode}): see the log and the "
            f"machine's free memory, then clean {self._node} up and configure it again."
        )


def import_environment() -> dict[str, str]:
    """Variables with which another process of this interpreter can import what can be imported here.

    A user's own folders stand before the standard library in the path; what comes after it comes by itself there too.
    """
    library = sysconfig.get_path("stdlib")
    given = [os.path.abspath(entry) for entry in itertools.takewhile(lambda entry: entry != library, sys.path)]
    # The last keeps Python, from 3.11 on, from putting the working folder first where this process does not have it.
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(given)), "PYTHONSAFEPATH": "1"}


def serve(load: Load, failed: Callable[[Exception], VegaError]) -> None:
    """The life of the model's process: answers what comes, until the other end goes away.

    failed: a sentence for what no model should raise.
    """
    end, *words = sys.argv[1:]
    connection = Connection(int(end))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the node decides
    die_with_parent()  # even if the model hangs; a parent that has ended already has closed its end of the pipe
    try:
        greeting, answer = load(words)
    except VegaError as error:
        connection.send(error)
        return

    def answer_or_error(question: object) -> object:
        try:
            return answer(question)
        except VegaError as error:
            return error
        except Exception as error:
            traceback.print_exc()
            return failed(error)

    with contextlib.suppress(EOFError, OSError):
        connection.send(greeting)
        while True:
            connection.send(answer_or_error(connection.recv()))
