"""The closed loop and its transport: `python -m benchmarks`.

Others have commands of their own: `benchmarks.control`, `benchmarks.evaluation`, `policies.benchmark`.
"""

from __future__ import annotations

import sys

from benchmarks import closed_loop, ros_transport

if __name__ == "__main__":
    statuses = [ros_transport.main([]), closed_loop.main([])]
    sys.exit(max(statuses))
