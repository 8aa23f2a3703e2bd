"""Ctrl-C while a command of ours still imports its packages.

Python would print a traceback or, where the signal falls into a callback of the import machinery, lose it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType

ROOMS = ("benchmarks", "policies", "sim", "vega3d_ros")
STOPPED = 130  # what shells say of a command that Ctrl-C ended


def quiet_while_imported() -> None:
    """In a command of ours: Ctrl-C before its `main` ends the process at once, and leaves no traceback later either."""
    if not _is_ours(sys.argv[0]) or threading.current_thread() is not threading.main_thread():
        return
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _quiet
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


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
    else:
        sys.__excepthook__(kind, error, trace)
