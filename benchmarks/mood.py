"""Does the suite pass on a machine in a bad mood?  `python -m benchmarks.mood --loops 4`, or `--quota 0.33`.

Runs pytest beside that many busy loops, or with that share of the processors (a quota of a control group; where none
can be made, on one core beside as many loops as leave it that share), and prints `name value threshold ok|FAIL`.  What
comes after `--` goes to pytest: `python -m benchmarks.mood --loops 4 -- test/test_bringup.py`.  Takes an hour or two.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.rows import Rows
from policies.files.command_line import command, command_parser
from policies.types import VegaError
from vega3d_ros.inference.process import ChildProcess

ROOT = Path(__file__).resolve().parent.parent
PERIOD_US = 100_000
LOOP = (sys.executable, "-S", "-c", "while True: pass")
# A shell puts itself into the group, so that whatever pytest starts is born there.
JOIN = ("sh", "-c", 'echo $$ >"$0" && exec "$@"')
GROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def busy_loops(count: int, cores: set[int] | None = None) -> Iterator[None]:
    """So many processes that do nothing but use a processor; cores: those they are confined to."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            child = stack.enter_context(ChildProcess("loop", LOOP, on_line=None))
            if cores is not None:
                os.sched_setaffinity(child.pid, cores)
        yield


@contextlib.contextmanager
def control_group(share: float) -> Iterator[Path | None]:
    """The `cgroup.procs` of a new group that gets this share of all processors; None where none can be made."""
    quota = round(share * (os.cpu_count() or 1) * PERIOD_US)
    unified, name = GROUPS / "cgroup.controllers", f"vega3d-mood-{os.getpid()}"
    folder = GROUPS / name if unified.is_file() else GROUPS / "cpu" / name
    limits = {"cpu.max": f"{quota} {PERIOD_US}"}
    if not unified.is_file():
        limits = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota)}
    try:
        folder.mkdir()
    except OSError:
        yield None
        return
    try:
        try:
            for file, text in limits.items():
                (folder / file).write_text(text)
            made: Path | None = folder / "cgroup.procs"
        except OSError:
            made = None
        yield made
    finally:
        # Who is still there belongs to the suite; a group can only go once it is empty.
        deadline = time.monotonic() + 10.0
        while folder.is_dir() and time.monotonic() < deadline:
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                folder.rmdir()
            time.sleep(0.05)


def passes(words: Sequence[str], join: Sequence[str] = (), cores: set[int] | None = None) -> bool:
    """Run the suite, showing what it prints, and say whether everything passed."""
    command = [*join, sys.executable, "-m", "pytest", *words]
    with ChildProcess("suite", command, environment=_environment(), folder=ROOT) as suite:
        if cores is not None:
            os.sched_setaffinity(suite.pid, cores)
        while (status := suite.wait(1.0)) is None:
            pass
    return status == 0


def _environment() -> dict[str, str]:
    """As `make test` has it, for the environment whose Python this is."""
    left_out = ("PYTHONHOME", "_ROS_WHEELS_BOOTSTRAP_COMPLETE")
    kept = {name: text for name, text in os.environ.items() if name not in left_out}
    paths = {"PATH": str(Path(sys.prefix) / "bin"), "AMENT_PREFIX_PATH": sys.prefix}
    return kept | {name: os.pathsep.join(filter(None, [own, kept.get(name)])) for name, own in paths.items()}


def beside_loops(rows: Rows, loops: int, words: Sequence[str]) -> None:
    with busy_loops(loops):
        begun = time.monotonic()
        good = passes(words)
    _report(rows, f"beside_{loops}_loops", good, time.monotonic() - begun)


def with_share(rows: Rows, share: float, words: Sequence[str]) -> None:
    name = f"with_{100 * share:.0f}_percent"
    begun = time.monotonic()
    with control_group(share) as group:
        if group is not None:
            good = passes(words, [*JOIN, str(group)])
        else:
            core = {min(os.sched_getaffinity(0))}
            loops = max(1, round(1.0 / share) - 1)
            name = f"on_one_core_beside_{loops}_loops"
            with busy_loops(loops, core):
                good = passes(words, cores=core)
    _report(rows, name, good, time.monotonic() - begun)


def _report(rows: Rows, name: str, good: bool, seconds: float) -> None:
    rows.information(f"suite_seconds_{name}", seconds)
    rows.at_least(f"suite_passed_{name}", float(good), 1.0)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command_parser("python -m benchmarks.mood", __doc__, paragraphs=2)
    parser.add_argument("--loops", type=int, help="busy loops beside the suite (default: none)")
    parser.add_argument("--quota", type=float, help="share of all processors that the suite gets (default: all)")
    parser.add_argument("words", nargs="*", metavar="WORD", help="for pytest, after --")
    options = parser.parse_args(arguments)
    if (options.loops is None) == (options.quota is None):
        raise VegaError("A machine is in one mood at a time: give either --loops or --quota.")
    if options.loops is not None and options.loops < 1:
        raise VegaError(f"--loops {options.loops} is none: give a number from 1 on.")
    if options.quota is not None and not 0.05 <= options.quota < 1.0:
        raise VegaError(f"--quota {options.quota:g} is not possible: give a share from 0.05 to 1.")
    rows = Rows()
    if options.loops is not None:
        beside_loops(rows, options.loops, options.words)
    else:
        with_share(rows, options.quota, options.words)
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
