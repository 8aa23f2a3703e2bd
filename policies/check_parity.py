"""Compare this package with what the reference implementations computed: `python -m policies.check_parity DIR`.

DIR is a folder of golden vectors, of one of three kinds: a Wan (`transformer/`, `cases.npz`, and perhaps `vae/` with
`world_cases.npz`, and `fusions.npz`), an OpenVLA-OFT checkpoint (`config.json`, ..., with `cases.npz`,
`libero_observation.npz` and/or `prompts.json`), or spatial reasoning (see `policies/parity/spatial.py`).  Prints a line
`quantity max_error tolerance ok|FAIL` for each and exits 1 if one fails.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from policies.files.command_line import command, command_parser
from policies.types import VegaError


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 if everything agrees."""
    parser = command_parser("python -m policies.check_parity", __doc__, paragraphs=2)
    parser.add_argument("folder", type=Path, help="folder of golden vectors")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise VegaError(f"'{options.folder}' is no golden folder, as there is no folder of that name: correct it.")
    from policies.parity.check import checked  # torch, which --help does without

    failed = False
    for quantity, error, tolerance in checked(options.folder):
        good = error <= tolerance
        failed |= not good
        print(f"{quantity} {error:.3e} {tolerance:.3e} {'ok' if good else 'FAIL'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
