"""All benchmarks that need no GPU: `python -m benchmarks`."""

from __future__ import annotations

import sys

from benchmarks import closed_loop, ros_transport

if __name__ == "__main__":
    statuses = [ros_transport.main([]), closed_loop.main([])]
    sys.exit(max(statuses))
