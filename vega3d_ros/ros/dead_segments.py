"""What killed processes leave of Fast DDS's shared memory: megabytes each, which stay in memory until a restart.

Standard library only: `test/leftovers.py` runs this file alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

FOLDER = Path("/dev/shm")
# A segment of Fast DDS 2 or 3, named by a number that is drawn once, and the lock that its owner holds as long as it
# lives.  Ports are left: they are small, and whoever comes next takes the same one.
_LOCK = re.compile(r"fast(rtps|dds)_[0-9a-f]{16}_el")
# A process that makes a segment holds its lock a moment after the file is there.
YOUNG_S = 10.0


def remove(folder: Path = FOLDER, young_s: float = YOUNG_S) -> int:
    """Delete this user's segments whose owners have died, as `fastdds shm clean` does; returns how many.

    young_s: ones whose lock was made so short ago are left.  A segment whose lock anybody holds, in whatever container,
    stays, and so does one without a lock; whoever still reads a deleted one keeps what it has mapped.
    """
    try:
        names = [name for name in os.listdir(folder) if _LOCK.fullmatch(name)]
    except OSError:
        return 0  # a system without
    return sum(_removed(folder / name, young_s) for name in names)


def _removed(lock: Path, young_s: float) -> bool:
    with contextlib.suppress(OSError):  # held, or gone meanwhile
        status = lock.stat()
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < young_s:
            return False
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The lock last, so that a segment is never left without one.
            lock.with_name(lock.name.removesuffix("_el")).unlink(missing_ok=True)
            lock.unlink()
            return True
    return False
