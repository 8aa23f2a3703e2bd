"""What every run shares: options, progress on the terminal, and an end that leaves a page whatever happens."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic

from policies.files.command_line import add_threads
from policies.types import VegaError
from sim.results.result_files import SUMMARY_FILE, R, ResultFiles

QUIET_S = 10.0


def add_run_options(parser: argparse.ArgumentParser, runs: str, default: str) -> None:
    """runs: what is loaded, "policy" or "model".  default: folder of the results, as it is told."""
    parser.add_argument("--device", default="cpu", help=f"torch device of the {runs}")
    add_threads(parser, f"torch threads of the {runs}, in each worker; with another number last bits are others")
    parser.add_argument("--workers", type=int, default=1, help="processes; 1 runs everything in this one")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument("--output", type=Path, default=None, help=f"folder for the results (default: {default})")


def check_run_options(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise VegaError(f"--workers {args.workers} is none: give a number from 1 on.")
    if args.resume and args.output is None:
        raise VegaError("--resume needs the folder of the run to go on with: give it as --output.")


def device_kind(device: str) -> str:
    """What a run says of its device: "cuda" of cuda:0 and cuda:1 alike, which find the same."""
    return device.partition(":")[0]


class Progress(ABC, Generic[R]):
    """Puts each record on disk and says how it went and how long the rest will take, until `close`.

    quiet_s: after so long without a word a line says how far it is, as loading and building may take minutes.
    """

    preparing = "the run is being prepared"

    def __init__(self, writer: ResultFiles[R], total: int, done: int, quiet_s: float = QUIET_S) -> None:
        self.writer, self.total, self.done, self._first = writer, total, done, done
        self._started = self._told = time.monotonic()
        self._quiet_s = quiet_s
        self._closed = threading.Event()
        threading.Thread(target=self._tell, name="progress", daemon=True).start()

    @abstractmethod
    def describe(self, record: R) -> str:
        """What is said of a record that is on disk, and of the run so far."""

    def close(self) -> None:
        self._closed.set()

    def _tell(self) -> None:
        while not self._closed.wait(0.1 * self._quiet_s):
            now = time.monotonic()
            if now - self._told >= self._quiet_s:
                self._told = now
                doing = f"{self.writer.unit}s run" if self.done > self._first else self.preparing
                print(f"[{self.done}/{self.total}] {now - self._started:.0f} s: {doing}", flush=True)

    def add(self, record: R) -> None:
        self._told = time.monotonic()
        self.writer.add(record)
        self.done += 1
        pace = (time.monotonic() - self._started) / (self.done - self._first)
        left = pace * (self.total - self.done) / 60
        print(f"[{self.done}/{self.total}] {self.describe(record)}, {left:.1f} min left", flush=True)


def carry_out(progress: Progress[R], run: Callable[[], None], report: Callable[[], None]) -> bool:
    """Run; False where Ctrl-C ended it, after the page was written and how to go on was said."""
    writer = progress.writer
    try:
        run()
    except KeyboardInterrupt:
        report()
        print(
            f"Interrupted: {len(writer.records)} of {progress.total} {writer.unit}s are in "
            f"{writer.folder / SUMMARY_FILE}; --resume --output {writer.folder} goes on.",
            file=sys.stderr,
        )
        return False
    finally:
        progress.close()
        writer.close()
    return True
