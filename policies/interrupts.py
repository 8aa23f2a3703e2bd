"""Ctrl-C: while a command of ours still imports its packages, and after it.

Python would print a traceback or, where the signal falls into a callback of the import machinery, lose it.  And before
it ends it takes its packages apart, which with torch lasts seconds on a busy machine and may print what is left over.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType

ROOMS = ("benchmarks", "policies", "sim", "vega3d_ros")
STOPPED = 130  # what shells say of a command that Ctrl-C ended

# The status or, negative, the signal by which this process ends at once, after its exit handlers.
_ends_by: list[int] = []


def quiet_while_imported() -> None:
    """In a command of ours: Ctrl-C before its `main` ends the process at once, and leaves no traceback later either."""
    if not _is_ours(sys.argv[0]) or threading.current_thread() is not threading.main_thread():
        return
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _quiet
    atexit.register(_skip_teardown)  # the first to be registered is the last to be called
    # In a script's background it is ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


def stopped() -> int:
    """The exit status of a command that Ctrl-C ended, which then ends without delay."""
    return ending(STOPPED)


def ending(status: int) -> int:
    """This exit status, of a process with nothing left to do: it ends without taking its packages apart."""
    _ends_by.append(status)
    return status


def _is_ours(program: str) -> bool:
    """Whether the running program is one of this package: never a notebook, a test runner or somebody's script."""
    if program == "-m":  # as long as Python looks for the module; orig_argv holds the whole command
        words = sys.orig_argv
        name = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        return name.split(".")[0] in ROOMS
    path, root = Path(program), Path(__file__).resolve().parent.parent
    if path.name.startswith("vega3d-") or path.parent.name == "vega3d_ros":
        return True
    inside = root in path.resolve().parents
    return inside and path.resolve().relative_to(root).parts[0] in ROOMS


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    names, importing = set(), False
    walked = frame
    while walked is not None:
        names.add(walked.f_code.co_name)
        importing = importing or walked.f_code.co_filename.startswith("<frozen importlib")
        walked = walked.f_back
    if importing and "main" not in names:
        os.write(2, b"stopped.\n")
        os._exit(STOPPED)
    signal.default_int_handler(number, frame)


def _quiet(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped.", file=sys.stderr)
        _ends_by.append(-signal.SIGINT)  # as Python would end itself, so that a shell's loop ends too
    else:
        _ends_by.clear()  # whatever status was meant, it is not the one now
        sys.__excepthook__(kind, error, trace)


def _skip_teardown() -> None:
    if not _ends_by:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # None where a process was started without
            stream.flush()
    if _ends_by[-1] < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), -_ends_by[-1])
        os._exit(STOPPED)
    os._exit(_ends_by[-1])
