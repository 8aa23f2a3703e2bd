"""Compare evaluations: `python sim/compare.py RUN RUN ... [--output compare.html]`.

RUN is a folder of `run_libero.py` or `run_robosuite.py`.  Prints and writes the rates with intervals, and for each two
runs of a suite the difference on the initial states that both tried, its 95 % interval and the exact McNemar test; and
the same with tasks drawn in place of states: those of a task are often one layout moved a little.
"""

from __future__ import annotations

import sys
from pathlib import Path

from policies.files.command_line import command, command_parser
from policies.files.paths import check_named_once
from sim.results.evaluation import wilson_95
from sim.results.evaluation_report import read_run, write_report
from sim.results.paired import compare_arms, compare_pair


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m sim.compare", __doc__, paragraphs=2)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of results")
    parser.add_argument("--output", type=Path, help="page to write (default: compare.html beside the first RUN)")
    args = parser.parse_args(argv)
    runs = [read_run(folder) for folder in args.runs]
    check_named_once([run.folder for run in runs])
    for run in runs:
        won, count = run.tally()
        low, high = wilson_95(won, count)
        print(f"{run.summary['suite']} {run.name}: {won} of {count}, {100 * low:.1f} to {100 * high:.1f} %")
    for i, a in enumerate(runs):
        for b in runs[i + 1 :]:
            if a.summary["suite"] == b.summary["suite"]:
                pair = compare_pair(a.counted, b.counted)
                low, high = pair.interval_95
                least, most = compare_arms([a.counted], [b.counted]).interval_95
                print(
                    f"{a.name} against {b.name}: {pair.difference:+.1f} points in {pair.count} pairs ({low:+.1f} to "
                    f"{high:+.1f}), p = {pair.p_value:.3g} (exact McNemar, {pair.only_first} against "
                    f"{pair.only_second} states); over {len(pair.by_task)} tasks {least:+.1f} to {most:+.1f}, "
                    f"p = {pair.p_over_tasks:.3g} (signs of their differences)"
                )
    output = args.output or args.runs[0].resolve().parent / "compare.html"
    write_report(runs, output)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
