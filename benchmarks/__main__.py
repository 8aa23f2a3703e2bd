"""The closed loop and its transport, one after the other: `python -m benchmarks` (about half an hour on two cores).

Others have commands of their own: `benchmarks.clients`, `benchmarks.control`, `benchmarks.evaluation`,
`benchmarks.house`, `benchmarks.interrupts`, `benchmarks.mood`, `benchmarks.prior`, `benchmarks.scene`,
`benchmarks.simulation`, `benchmarks.training`, `benchmarks.wire`, `policies.benchmark`; each answers --help.
"""

from __future__ import annotations

import sys

from benchmarks import closed_loop, ros_transport
from policies.files.command_line import command_parser

if __name__ == "__main__":
    command_parser("python -m benchmarks", __doc__, paragraphs=2).parse_args()
    sys.exit(max(ros_transport.main([]), closed_loop.main([])))
