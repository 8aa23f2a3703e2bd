"""Real-time priority for the threads that command, as ros2_control's controller_manager takes it for its own."""

from __future__ import annotations

import os


def take(priority: int) -> str:
    """Schedule this process before all ordinary ones (SCHED_FIFO), or with priority 0 as one of them again.

    priority: 0 to 99.  All threads there are now: those that pass messages hold locks for which the one that commands
    would wait.  Threads and processes started later are ordinary.  Returns why not, or "".
    """
    if not hasattr(os, "sched_setscheduler"):
        return "this system has no such priorities"
    policy = os.SCHED_FIFO if priority else os.SCHED_OTHER
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setscheduler(int(thread), policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        except ProcessLookupError:
            continue  # it has ended meanwhile
        except OSError as error:
            return str(error.strerror).lower()
    return ""
