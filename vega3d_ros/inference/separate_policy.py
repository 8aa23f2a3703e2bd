"""The policy in a process of its own, for `realtime`: what it computes must not delay what is commanded.

    policy_node ─ Observation ─► pipe ─► policy.act ─► pipe ─► ActionChunk

In one process the two would share Python's interpreter lock, and every command that falls into an inference would wait
for it.  A policy that hangs or takes its process with it costs no more than itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import traceback
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import cast

from policies.types import AS_CONFIGURED, ActionChunk, Observation, Policy, PolicySpec, SpeedOptions, VegaError
from vega3d_ros.inference.process import die_with_parent

ALIVE_S = 1.0
KILL_S = 2.0
BEGIN = "from vega3d_ros.inference.separate_policy import serve; serve()"


class SeparatePolicy:
    """This process's end, a `policies.types.Policy`.  Used from one thread at a time, but for `check` and `close`.

    name, device, threads, world_simulator, speed: as for `policies.checkpoints.load_policy`.  Takes as long as loading
    does; raises VegaError as that does, and later wherever the policy's process has ended.  To be made in the main
    thread: the kernel ends the process with the thread that started it.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        threads: int = 1,
        world_simulator: str = "on",
        speed: SpeedOptions = AS_CONFIGURED,
    ) -> None:
        self._connection, theirs = Pipe()
        # Not multiprocessing's own start: that runs the main script again, which an installed node's need not survive.
        end = theirs.fileno()
        options = json.dumps(asdict(speed))
        command = [sys.executable, "-c", BEGIN, str(end), name, device, str(threads), world_simulator, options]
        self._process = subprocess.Popen(command, pass_fds=[end], env={**os.environ, **import_environment()})
        theirs.close()  # so that its end is told by the end of the pipe
        try:
            spec = self._receive()
        except VegaError:
            self.close()
            raise
        assert isinstance(spec, PolicySpec)
        self.spec = spec

    def act(self, observation: Observation) -> ActionChunk:
        return cast(ActionChunk, self._ask(observation))  # checked with what is in it, by `check_chunk`

    def reset(self) -> None:
        self._ask(None)

    def check(self) -> None:
        """Raise VegaError if the process has ended, without waiting; from any thread."""
        if self._process.poll() is not None:
            raise self._ended()

    def close(self) -> None:
        """End the process, whatever it does; a thread that waits for an answer gets a VegaError."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)

    def _ask(self, question: Observation | None) -> object:
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
            f"The policy's process has ended (exit status {self._process.returncode}): see the log and the machine's "
            "free memory, then clean policy_node up and configure it again."
        )


def import_environment() -> dict[str, str]:
    """Variables with which another process of this interpreter can import what can be imported here.

    A user's own folders stand before the standard library in the path; what comes after it comes by itself there too.
    """
    library = sysconfig.get_path("stdlib")
    given = [os.path.abspath(entry) for entry in itertools.takewhile(lambda entry: entry != library, sys.path)]
    # The last keeps Python, from 3.11 on, from putting the working folder first where this process does not have it.
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(given)), "PYTHONSAFEPATH": "1"}


def serve() -> None:
    """The life of the policy's process: answers what comes, until the other end goes away."""
    end, name, device, threads, world_simulator, options = sys.argv[1:]
    connection = Connection(int(end))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; policy_node decides
    die_with_parent()  # even if the policy hangs; a parent that has ended already has closed its end of the pipe
    from policies.checkpoints import load_policy  # torch is imported in this process only

    try:
        policy = load_policy(name, device, int(threads), world_simulator, speed=SpeedOptions(**json.loads(options)))
    except VegaError as error:
        connection.send(error)
        return
    with contextlib.suppress(EOFError, OSError):
        connection.send(policy.spec)
        while True:
            connection.send(_answer(policy, connection.recv()))


def _answer(policy: Policy, question: Observation | None) -> ActionChunk | VegaError | None:
    try:
        if question is not None:
            return policy.act(question)
        policy.reset()
        return None
    except VegaError as error:
        return error
    except Exception as error:
        traceback.print_exc()
        return policy_failed(error)


def policy_failed(error: Exception) -> VegaError:
    """What no policy should raise, in one sentence."""
    return VegaError(
        f"The policy failed ({type(error).__name__}: {str(error)[:200]}): see the log, then call ~/start again."
    )
