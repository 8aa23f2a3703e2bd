"""Files that several processes need and one makes: what was decoded or computed from a data set."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, after `make` has written it unless it is there; who comes while another makes it waits for that one.

    make: writes the whole to the path that it is given, which is renamed; a kill leaves nothing under the right name.
    """
    if not path.exists():
        with path.with_name(f".{path.stem}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # gone with the process that holds it, whatever ends that
            if not path.exists():
                partial = path.with_suffix(".partial")
                make(partial)
                partial.rename(path)
    return path
