"""Ends what a test run has started and left behind, however the run itself ends.

A process of its own waits for the end of the run (of a pipe, which the kernel closes even where the run is killed) and
then kills every process whose environment bears the run's mark: all descendants inherit it, workers of workers too.
What killed processes left in shared memory goes with them.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

NAME = "VEGA3D_TEST_RUN"
AGAIN_S = 0.05
# Run by its path, without the packages around it.
SEGMENTS = Path(__file__).resolve().parent.parent / "vega3d_ros" / "ros" / "dead_segments.py"


def watch() -> subprocess.Popen[bytes]:
    """From now on children bear the mark; keep what is returned until the end of the run."""
    mark = f"{NAME}={uuid.uuid4()}"
    # Without site packages, so that it is there at once; in a session of its own, so that Ctrl-C does not reach it.
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, mark], stdin=subprocess.PIPE, start_new_session=True
    )
    os.environ[NAME] = mark.partition("=")[2]
    return watcher


def end(mark: str) -> None:
    """Kill until none is left: one that was being born when we looked is found the next time."""
    found = True
    while found:
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"\0{mark}\0".encode() in b"\0" + (folder / "environ").read_bytes() + b"\0":
                    found = True
                    os.kill(int(folder.name), signal.SIGKILL)
        time.sleep(AGAIN_S)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end(sys.argv[1])
    runpy.run_path(str(SEGMENTS))["remove"]()
