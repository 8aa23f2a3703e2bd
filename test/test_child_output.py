"""Whoever reads our output may be gone, or slow: a node must never wait for that in its log line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vega3d_ros.bringup.bringup import run_table
from vega3d_ros.bringup.entries import NodeEntry
from vega3d_ros.inference import process
from vega3d_ros.inference.process import ChildProcess

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120.0
# More than a pipe holds.
TALKS = [sys.executable, "-c", "for i in range(4000): print(i, 'x' * 100, flush=True)"]


def broken(_name: str, _line: str) -> None:
    raise BrokenPipeError(32, "Broken pipe")


def test_a_child_goes_on_where_its_lines_can_not_be_shown() -> None:
    with ChildProcess("talker", TALKS, on_line=broken) as child:
        assert child.wait(DEADLINE_S) == 0
        assert child.wait_for_line("3999 x", DEADLINE_S)


def test_a_child_goes_on_where_nobody_takes_its_lines_and_how_many_were_dropped_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a terminal after Ctrl-S."""
    monkeypatch.setattr(process, "BACKLOG", 10)
    shown: list[str] = []
    go_on, caught = threading.Event(), threading.Event()

    def show(_name: str, line: str) -> None:
        shown.append(line)
        caught.set()
        go_on.wait(DEADLINE_S)

    with ChildProcess("talker", TALKS, on_line=show) as child:
        assert caught.wait(DEADLINE_S)
        assert child.wait(DEADLINE_S) == 0
        assert child.wait_for_line("3999 x", DEADLINE_S)
        go_on.set()
        child._shower.join(DEADLINE_S)
    told = [line for line in shown if "not shown" in line]
    numbers = [int(line.split()[0]) for line in shown if line not in told]
    assert numbers == sorted(numbers) and numbers[-10:] == list(range(3990, 4000))
    assert told and sum(int(line[1:].split()[0]) for line in told) == 4000 - len(numbers)


def test_whose_lines_are_shown_slowly_keeps_nobody_from_being_ended() -> None:
    """At a slow terminal, with much to show: the end does not wait for all of it."""
    go_on = threading.Event()
    shown: list[str] = []

    def show(_name: str, line: str) -> None:
        shown.append(line)
        go_on.wait(0.05)

    with ChildProcess("talker", TALKS, on_line=show) as child:
        assert child.wait(DEADLINE_S) == 0
        assert len(shown) < 4000
        go_on.set()
        child._shower.join(DEADLINE_S)
    assert len(shown) == 4000


PARENT = """
import sys
from vega3d_ros.inference.process import ChildProcess
with ChildProcess("talker", [sys.executable, "-c", *sys.argv[1:]]) as child:
    sys.exit(child.wait(60))
"""
CHILD = """
import sys
sys.stdout.buffer.write("\u00e9\\n".encode())
for i in range(4000):
    print("x" * 100, flush=True)
open(sys.argv[1], "w")
"""


@pytest.mark.parametrize(("closed", "codes"), [(True, "utf-8"), (False, "ascii")])
def test_a_closed_output_and_letters_that_it_does_not_know_stop_no_child(closed, codes, tmp_path) -> None:
    ours, theirs = os.pipe()
    if closed:
        os.close(ours)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": codes}
    done = tmp_path / "done"
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(done)], env=environment, stdout=theirs) as run:
        os.close(theirs)
        if not closed:
            with os.fdopen(ours) as pipe:
                shown = pipe.read()
            assert shown.count("[talker] x") == 4000 and r"[talker] \xe9" in shown
        run.wait(DEADLINE_S)
    assert done.exists()


SLOW_TO_END = """
import signal, sys, time
def end(*_):
    time.sleep(7.0)
    open(sys.argv[1], "w")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open(sys.argv[2], "w")
signal.pause()
signal.pause()
"""


def test_bringup_gives_its_nodes_the_time_to_end_that_they_give_themselves(tmp_path) -> None:
    ended, ready = tmp_path / "ended", tmp_path / "ready"
    entry = NodeEntry("slow", "slow", sys.executable, words=("-c", SLOW_TO_END, str(ended), str(ready)))
    stop = threading.Event()

    def stop_when_ready() -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=stop_when_ready, daemon=True).start()
    run_table([entry], {**os.environ, "VEGA3D_END_S": "100"}, stop)
    assert ended.exists()
