"""Child processes that never outlive their welcome.

Each child leads a process group of its own, so that Ctrl-C on the terminal reaches the parent alone
and the parent passes it on exactly once (rclpy's teardown does not survive a second SIGINT).  The
kernel ends a child whose parent was killed, so that no policy goes on commanding a robot unseen.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from policies.types import VegaError

BACKLOG = 20_000  # lines that wait to be shown
# Environment variable: id of the process without which a node must not go on.
LAUNCHER = "VEGA3D_LAUNCHER"
# s for a node's last callback after a signal; longer where a machine is slow, shorter where who commands must be gone.
END_S = 5.0
END_VARIABLE = "VEGA3D_END_S"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal once the thread that forked it has ended."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def _begin(at_parents_death: int) -> None:
    die_with_parent(at_parents_death)
    # A parent that a shell has put into the background ignores SIGINT, and so would the child.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children_of(pid: int) -> list[int]:
    """The processes that a process started and that have not been waited for."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def end_seconds(environment: Mapping[str, str]) -> float:
    """How long a node with these variables takes for its end, s.  Raises VegaError."""
    text = environment.get(END_VARIABLE, str(END_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= 600.0:
        raise VegaError(f"{END_VARIABLE}={text} is not possible: give a number of seconds from 0 to 600.")
    return seconds


def print_line(name: str, line: str) -> None:
    """Show one line of output under the name of its process."""
    # In one piece, because several threads print.
    text = f"[{name}] {line}\n"
    try:
        print(text, end="", flush=True)
    except UnicodeEncodeError:  # letters that the terminal's encoding lacks
        print(text.encode("ascii", "backslashreplace").decode(), end="", flush=True)


class ChildProcess:
    """One child process, its output read line by line.

    Start it from the main thread: the kernel ties its life to the thread that forked it.  Methods
    may be called from any thread.  folder: where it runs; None: where this process does.
    `on_line(name, line)` is called in a thread of its own for every line of stdout and stderr, but for those that come
    while `BACKLOG` wait for it: whoever shows them may be slow, or gone, and the child must never wait in its log line.
    What it raises is dropped, with the line.
    at_parents_death: the signal that the kernel then sends; SIGTERM leaves a child that moves an arm time to stop it.

    Raises VegaError if the command cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        on_line: Callable[[str, str], None] | None = print_line,
        keep_lines: int = 200,
        at_parents_death: int = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=keep_lines)
        self._news = threading.Condition()
        self._line_count = 0
        self._unshown: deque[str] = deque()
        self._dropped = 0
        self._output_ended = False
        self._group_ended = False
        try:
            self._process = subprocess.Popen(
                self.command,
                env=None if environment is None else dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                bufsize=1,
                start_new_session=True,
                preexec_fn=partial(_begin, at_parents_death),
            )
        except OSError as error:
            raise VegaError(f"{name} cannot be started ({error}): check that {self.command[0]} exists.") from error
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()
        self._shower = threading.Thread(target=self._show, name=f"words of {name}", daemon=True)
        self._shower.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status (negative: the signal that ended it), None while it runs."""
        return self._process.poll()

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines of output, oldest first."""
        with self._news:
            return list(self._lines)[-lines:]

    def wait(self, timeout_s: float) -> int | None:
        """Exit status, or None if it still runs after `timeout_s` seconds."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        for thread in (self._reader, self._shower):
            thread.join(1.0)  # in vain where whoever reads our output is slow: others wait to be ended
        return status

    def wait_for_line(self, text: str, timeout_s: float) -> str:
        """The first kept line that contains `text`; waits until it is printed.

        Raises VegaError if the process ends, or `timeout_s` seconds pass, without it.
        """
        deadline = time.monotonic() + timeout_s
        with self._news:
            seen = 0
            while True:
                fresh = min(self._line_count - seen, len(self._lines))
                for line in list(self._lines)[len(self._lines) - fresh :]:
                    if text in line:
                        return line
                seen = self._line_count
                remaining = deadline - time.monotonic()
                if self._output_ended:
                    raise VegaError(f"{self.name} ended before it printed '{text}': read its output above.")
                if remaining <= 0:
                    raise VegaError(f"{self.name} did not print '{text}' in {timeout_s:g} s: read its output above.")
                self._news.wait(remaining)

    def signal(self, number: int) -> None:
        """Send a signal to the child alone; nothing happens if it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, grace_s: float = 5.0) -> int:
        """End it: SIGINT, after `grace_s` SIGTERM, after 1 s more SIGKILL to its whole group.

        Returns the exit status.  Safe to call more than once.
        """
        self.signal(signal.SIGINT)
        return self._end(grace_s)

    def _end(self, grace_s: float) -> int:
        status = self.wait(grace_s)
        if status is None:
            self.signal(signal.SIGTERM)
            status = self.wait(1.0)
        if not self._group_ended:
            # Whatever the child started itself and left behind goes too; once only, because the
            # number of an ended group may be given to another.
            self._group_ended = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait() if status is None else status

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                line = line.rstrip("\n")
                with self._news:
                    self._lines.append(line)
                    self._line_count += 1
                    if self._on_line is not None:
                        self._unshown.append(line)
                        if len(self._unshown) > BACKLOG:
                            self._unshown.popleft()
                            self._dropped += 1
                    self._news.notify_all()
        finally:
            with self._news:
                self._output_ended = True
                self._news.notify_all()

    def _show(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._unshown or self._output_ended)
                if not self._unshown:
                    return
                lines = [self._unshown.popleft()]
                if self._dropped:
                    lines.insert(0, f"({self._dropped} lines are not shown here, since nobody took them in time)")
                self._dropped = 0
            for line in lines:
                with contextlib.suppress(Exception):
                    assert self._on_line is not None
                    self._on_line(self.name, line)

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def stop_all(children: Sequence[ChildProcess], grace_s: float = END_S) -> None:
    """End all of them at the same time, so that the whole takes about `grace_s`, not its multiple."""
    for child in children:
        child.signal(signal.SIGTERM)  # a Python that still imports ends without a traceback
    deadline = time.monotonic() + grace_s
    for child in children:
        child._end(max(0.0, deadline - time.monotonic()))
