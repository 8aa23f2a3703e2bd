"""The house: what CONTRIBUTING asks of its folders, files and walls, counted.

    python -m benchmarks.house                     folders, files, walls, repeated lines: half a minute
    python -m benchmarks.house --rows episodes --base FOLDER
                                                   the ten official episodes, over ROS and direct: the same hashes, and
                                                   the same solved as in an older checkout (with its own .venv)

The suite beside other work is `python -m benchmarks.mood`, the installed wheel `make test ARGS=test/test_wheel.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.rows import Rows
from policies.files.command_line import command, command_parser
from policies.types import VegaError

ROOT = Path(__file__).resolve().parent.parent
FILES_PER_FOLDER = 12
LINES_PER_FILE = 400
EQUAL_LINES = 10
EPISODES_S = 3600.0


def sources(root: Path) -> list[Path]:
    """Every Python file that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=root, capture_output=True, text=True, check=True, timeout=60,
    ).stdout.splitlines()  # fmt: skip
    return sorted({root / name for name in listed if (root / name).is_file()})


def repeated_blocks(paths: Sequence[Path], length: int = EQUAL_LINES) -> list[tuple[str, str]]:
    """Pairs of places ("file:line") that share `length` or more equal lines; neither blank lines nor indents count."""
    where: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    numbered = []
    for number, path in enumerate(paths):
        lines = [(at, line.strip()) for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)]
        lines = [(at, line) for at, line in lines if line]
        numbered.append(lines)
        for start in range(len(lines) - length + 1):
            where[tuple(line for _, line in lines[start : start + length])].append((number, start))
    windows = {pair for places in where.values() for pair in combinations(places, 2)}
    # A longer run is one pair of places: it begins where the window before is not shared.
    begins = [(a, b) for a, b in windows if ((a[0], a[1] - 1), (b[0], b[1] - 1)) not in windows]
    return sorted(
        (f"{paths[a[0]]}:{numbered[a[0]][a[1]][0]}", f"{paths[b[0]]}:{numbered[b[0]][b[1]][0]}") for a, b in begins
    )


def broken_contracts(root: Path) -> tuple[int, int, str]:
    """(circles, other broken contracts, the linter's report), as import-linter finds them."""
    run = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = run.stdout.splitlines()
    verdicts = [line for line in lines if line.endswith(("KEPT", "BROKEN"))]
    if not verdicts:
        raise VegaError(f"import-linter said nothing ({run.stderr.strip()[-200:]}): run `make venv` again.")
    circles = sum(line.startswith("No cycles are allowed in") for line in lines)
    broken = sum(line.endswith("BROKEN") for line in verdicts)
    return circles, broken, run.stdout


def shape(rows: Rows, options: argparse.Namespace) -> None:
    """Folders, files, walls and repeated lines."""
    paths = sources(ROOT)
    per_folder: dict[Path, int] = defaultdict(int)
    for path in paths:
        if "test" not in path.relative_to(ROOT).parts:
            per_folder[path.parent] += 1
    fullest = max(per_folder, key=lambda folder: per_folder[folder])
    longest = max(paths, key=lambda path: len(path.read_text(encoding="utf-8").splitlines()))
    rows.at_most(f"files_in_{fullest.relative_to(ROOT)}", per_folder[fullest], FILES_PER_FOLDER)
    lines = len(longest.read_text(encoding="utf-8").splitlines())
    rows.at_most(f"lines_of_{longest.relative_to(ROOT)}", lines, LINES_PER_FILE)
    circles, broken, report = broken_contracts(ROOT)
    rows.at_most("import_circles", circles, 0)
    rows.at_most("contracts_broken", broken, 0)
    if broken:
        print(report)
    blocks = repeated_blocks(paths)
    rows.at_most(f"pairs_of_places_with_{EQUAL_LINES}_equal_lines", len(blocks), 0)
    for one, other in blocks:
        print(f"  {Path(one).relative_to(ROOT)}  {Path(other).relative_to(ROOT)}")


def _episodes(checkout: Path, transport: str) -> list[dict[str, Any]]:
    """The ten official episodes, run by the code in `checkout`."""
    python = checkout / ".venv" / "bin" / "python"
    if not python.is_file():
        raise VegaError(f"There is no environment in {checkout / '.venv'}: run `make venv` there.")
    with tempfile.TemporaryDirectory(prefix="vega3d-") as folder:
        run = subprocess.run(
            [str(python), "sim/run_libero.py", "--suite", "libero_object", "--trials", "1", "--command", "joint",
             "--transport", transport, "--output", folder],
            cwd=checkout, capture_output=True, text=True, timeout=EPISODES_S,
        )  # fmt: skip
        if run.returncode != 0:
            raise VegaError(f"The episodes in {checkout} failed: {run.stderr.strip()[-300:]}")
        summary = json.loads((Path(folder) / "summary.json").read_text())
    return list(summary["episodes"])


def _hashes(found: Sequence[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """(task, hash of commands, hash of states)."""
    return [(e["task"], e["actions_sha256"], e["states_sha256"]) for e in found]


def _solved(found: Sequence[dict[str, Any]]) -> list[tuple[int, bool]]:
    return [(e["task"], e["success"]) for e in found]


def episodes(rows: Rows, options: argparse.Namespace) -> None:
    """The ten official episodes: over ROS as direct, and here as in the older checkout."""
    direct, ros = _episodes(ROOT, "direct"), _episodes(ROOT, "ros")
    rows.at_least("episodes_over_ros_identical_to_direct_of_10", _same(_hashes(ros), _hashes(direct)), 10)
    if options.base is not None:
        # Decisions differ in the last bits since they are made faster, and states with them: not hashes.
        solved = [_solved(found) for found in (_episodes(options.base.resolve(), "ros"), ros)]
        rows.at_least("episodes_solved_as_by_base_of_10", _same(*solved), 10)


def _same(one: Sequence[object], other: Sequence[object]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


ROWS: dict[str, Callable[[Rows, argparse.Namespace], None]] = {"shape": shape, "episodes": episodes}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m benchmarks.house", __doc__, paragraphs=3)
    parser.add_argument("--rows", choices=sorted(ROWS), nargs="+", default=["shape"], help="which")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="an older checkout to compare the episodes with")
    options = parser.parse_args(arguments)
    rows = Rows()
    for name in options.rows:
        ROWS[name](rows, options)
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
