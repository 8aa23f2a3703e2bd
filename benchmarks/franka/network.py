"""A network that nobody else can reach, for a simulator that listens on every interface."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from policies.types import VegaError

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1  # linux/sockios.h, linux/if.h


@contextmanager
def own_network() -> Iterator[None]:
    """Within it this thread, and the threads and processes that it starts, share a network of loopback alone.

    Raises VegaError where that is not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            why = os.strerror(ctypes.get_errno())
            raise VegaError(
                f"A network of its own is refused ({why}): run this as root, or within 'unshare --net --map-root-user'."
            )
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
                fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
            yield
        finally:
            libc.setns(before, _CLONE_NEWNET)
    finally:
        os.close(before)
