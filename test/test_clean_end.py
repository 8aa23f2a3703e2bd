"""How a node's process ends: with its status, and without what libraries say as the interpreter is taken apart."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ros_harness import ROOT, node_environment

DEADLINE_S = 120.0
# What is given to Py_AtExit runs where libraries tell what was leaked: here it kills the process.
NODE = """
import ctypes, os, signal, sys

from rclpy.node import Node

import vega3d_ros
from policies.types import VegaError
from vega3d_ros.ros.node_process import run_node

pythonapi, libc = ctypes.pythonapi, ctypes.CDLL(None)
pythonapi.Py_AtExit(ctypes.cast(libc.abort, ctypes.c_void_p))


def make():
    if sys.argv[1] == "refused":
        raise VegaError("It cannot be made.")
    os.kill(os.getpid(), signal.SIGINT)
    return Node("ended")


status = run_node(make, ["ended"])
print("the last word")
if sys.argv[1] == "fails":
    raise ValueError("after all")
sys.exit(status)
"""


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("case", "status", "told"), [("interrupted", 0, ""), ("refused", 1, "It cannot be made.\n")])
def test_a_node_that_is_done_ends_at_once_and_says_no_more(
    case: str, status: int, told: str, ignored: bool, tmp_path: Path
) -> None:
    """Also where it was started in a script's background: SIGINT is ignored there, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        run = ended(case, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (run.returncode, run.stdout, run.stderr) == (status, "the last word\n", told)


def test_what_fails_after_the_node_is_told_with_its_trace(tmp_path: Path) -> None:
    run = ended("fails", tmp_path)
    assert run.returncode != 0 and "ValueError: after all" in run.stderr


def ended(case: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "vega3d_ros" / "node"  # as colcon installs our programs
    program.parent.mkdir()
    program.write_text(NODE)
    environment = {**node_environment(50), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), case]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
