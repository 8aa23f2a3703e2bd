"""What one arm has over another, per task: `python -m sim.compare_answers --first RUN ... --second RUN ...`.

RUN is a folder of `run_spatial.py`; of each arm as many, in the order of their seeds, about the same questions.  Prints
both arms' means, the gain (second less first) with its paired 95 % interval over films and seeds, and each seed's; all
on the questions that every run answered, and how many each arm refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from policies.files.command_line import command, command_parser
from sim.results.spatial.paired import compare


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m sim.compare_answers", __doc__, paragraphs=2)
    parser.add_argument("--first", nargs="+", type=Path, required=True, metavar="RUN", help="such as without the prior")
    parser.add_argument("--second", nargs="+", type=Path, required=True, metavar="RUN", help="such as with it")
    args = parser.parse_args(argv)
    found = compare(args.first, args.second)  # before anything is printed: it may refuse
    print(f"{'task, %':32}{'first':>8}{'second':>8}{'gain':>8}  95 % interval    of each seed")
    for name, gain in found.tasks.items():
        low, high = gain.interval_95
        seeds = "  ".join(f"{value:+.1f}" for value in gain.seeds)
        print(
            f"{name:32}{gain.first:8.1f}{gain.second:8.1f}{gain.difference:+8.1f}  "
            f"{f'{low:+.1f} to {high:+.1f}':17}{seeds}"
        )
    print(
        f"of {found.answered} of {found.asked} questions, which all runs answered; refused: first {found.refused[0]}, "
        f"second {found.refused[1]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
