"""How soon does Ctrl-C end a start-up?  `python -m benchmarks.interrupts`

Starts `vega3d-bringup` for the simulated robot, an evaluation over ROS and `vega3d-serve`, and interrupts each after
some seconds, while it imports, loads the policy or builds the world, and the first once it is up.  Prints `name value
threshold ok|FAIL`: seconds from the signal to the end of the last process, and how many ended with a traceback or with
what libraries say of leaked memory.  For comparison it times a bare node, which takes long too where a machine has
other things to do.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Rows
from policies.files.command_line import command, command_parser
from policies.types import VegaError
from vega3d_ros.inference.process import ChildProcess, children_of

WITHIN_S = 3.0
MOMENTS_S = (0.3, 1.5, 3.0, 6.0, 10.0)
DEADLINE_S = 120.0
BARE = "import rclpy; rclpy.init(); node = rclpy.create_node('bare'); print('there', flush=True); rclpy.spin(node)"
NOISE = ("Traceback", "leaked")
COMMANDS = {
    "bringup": ("vega3d_ros.bringup.bringup",),
    "evaluation_over_ros": ("sim.run_libero", "--tasks", "0", "--trials", "1", "--transport", "ros", "--output"),
    "serve": ("policies.serving.serve", "--port", "0"),
}


def ends_after_s(words: Sequence[str], moment_s: float, until: str = "") -> tuple[float, bool]:
    """s from the interrupt to the end of the process and of those that it started; whether one of NOISE was said.

    until: the line to wait for.
    """
    from sim.robot.ros_client import unused_domain

    environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_domain())}
    with ChildProcess("start-up", [sys.executable, *words], environment=environment, on_line=None) as child:
        if until:
            child.wait_for_line(until, DEADLINE_S)
        time.sleep(moment_s)
        pids = [child.pid, *children_of(child.pid)]
        begun = time.monotonic()
        child.signal(signal.SIGINT)
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            if child.wait(0.005) is None and time.monotonic() - begun > DEADLINE_S:
                raise VegaError(f"A start-up that was interrupted after {moment_s:g} s goes on: {child.tail(3)}")
            time.sleep(0.005)
        taken_s = time.monotonic() - begun
        child.wait(DEADLINE_S)
        return taken_s, any(word in line for line in child.tail(200) for word in NOISE)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command_parser("python -m benchmarks.interrupts", __doc__, paragraphs=2).parse_args(arguments)
    rows, noisy = Rows(), 0
    rows.information("bare_node_ends_s", ends_after_s(["-c", BARE], 0.0, "there")[0])
    for name, words in COMMANDS.items():
        for moment_s in MOMENTS_S:
            with tempfile.TemporaryDirectory() as folder:
                command_line = ["-m", *words, *([f"{folder}/run"] if words[-1] == "--output" else [])]
                taken_s, said = ends_after_s(command_line, moment_s)
            rows.at_most(f"{name}_interrupted_after_{moment_s:g}_s_ends_s", taken_s, WITHIN_S)
            noisy += said
    taken_s, said = ends_after_s(["-m", *COMMANDS["bringup"]], 0.5, "Everything is up")
    rows.at_most("bringup_interrupted_once_up_ends_s", taken_s, WITHIN_S)
    noisy += said
    rows.at_most("start_ups_that_ended_with_a_traceback_or_leaks", noisy, 0)
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
