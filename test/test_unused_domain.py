"""Domains for those who start nodes at the same time: nobody gets the domain of another."""

from __future__ import annotations

import subprocess
import sys

from vega3d_ros.inference.process import die_with_parent

CALLERS, CALLS = 4, 8
DEADLINE_S = 120.0
# Nobody starts a node, so that the domains look unused to all; each keeps what it got until it is told to end.
ASK = f"""
from sim.robot.ros_client import unused_domain
print(*(unused_domain() for _ in range({CALLS})), flush=True)
input()
"""
ASK_AGAIN = "from sim.robot.ros_client import unused_domain; print(len({unused_domain() for _ in range(300)}))"


def test_callers_at_the_same_time_get_domains_of_their_own():
    command = [sys.executable, "-c", ASK]
    callers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        for _ in range(CALLERS)
    ]
    try:
        domains = [int(word) for caller in callers for word in caller.stdout.readline().split()]
    finally:
        for caller in callers:
            caller.communicate("\n", timeout=DEADLINE_S)
    assert len(domains) == len(set(domains)) == CALLERS * CALLS
    assert all(1 <= domain <= 101 for domain in domains)


def test_a_caller_that_asks_for_ever_does_not_take_them_all():
    run = subprocess.run([sys.executable, "-c", ASK_AGAIN], capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > CALLS
