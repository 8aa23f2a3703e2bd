"""A run of the study made again from its seed, as far as its first checkpoint: the same numbers, to the last digit."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.prior.evaluations import Trained
from benchmarks.rows import Rows
from policies.training.curves import LOG, read_log

DEADLINE_S = 3600.0  # of some hundred steps, on a machine that does much else
TRAINING = ["-m", "policies.training.train_nano"]
OLDER = {"--progress-loss": "l1", "--normalise": "all"}  # of runs from before there was a choice
NAME = "losses_repeated_from_the_seed"


def first_line(folder: Path) -> Mapping[str, Any]:
    """What a training has logged first; empty without a log."""
    return next(iter(read_log(folder / LOG)), {})


def losses(line: Mapping[str, Any]) -> dict[str, float]:
    return {f"{part} {name}": value for part in ("train", "held_out") for name, value in line.get(part, {}).items()}


def at_home(words: Sequence[str], run: Path) -> list[str]:
    """A run's words where its study's folder has moved since: what lies in that folder is looked for in the new one."""
    home = run.resolve().parent.parent
    before = Path(words[words.index("--cache") + 1]).parent if "--cache" in words else home
    return [str(home / Path(word).relative_to(before)) if Path(word).is_relative_to(before) else word for word in words]


def repeat(rows: Rows, trained: Sequence[Trained], arm: str, run: bool) -> None:
    """The row; run: whether to train at all."""
    chosen = next((one for one in trained if one.arm == arm), None)
    if chosen is None or not first_line(chosen.folder):
        rows.missing(NAME, f"no run of {arm} has a log")
        return
    if not run:
        rows.missing(NAME, "with --print-only nothing is trained again")
        return
    before = first_line(chosen.folder)
    words = at_home(chosen.record["words"], chosen.folder)
    for option, value in OLDER.items():
        words += [option, value] if option not in words else []
    with tempfile.TemporaryDirectory(prefix="vega3d-") as folder:
        words[words.index("--output") + 1] = folder
        program = [sys.executable, *TRAINING, *words, "--until", str(before["step"])]
        print(f"# {chosen.name} again, to step {before['step']}", flush=True)
        try:
            done = subprocess.run(program, capture_output=True, text=True, timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            rows.missing(NAME, f"{before['step']} steps took longer than {DEADLINE_S:.0f} s")
            return
        if done.returncode != 0:
            rows.missing(NAME, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it ended")
            return
        again = losses(first_line(Path(folder)))
    wanted = losses(before)
    same = sum(again.get(name) == value for name, value in wanted.items())
    rows.at_least(f"{NAME}_of_{len(wanted)}", same, len(wanted))
