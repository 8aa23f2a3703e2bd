"""A line of progress now and then, so that who waits for the suite sees where it is; a pytest plugin."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

PERIOD_S = 30.0
# Of a test that failed: characters of its error, and lines of what it printed, that are told at once.
ERROR_CHARACTERS, OUTPUT_LINES = 2000, 30


class Progress:
    """Says every `period_s` seconds how many tests are done, and which ones run for how long.

    What fails is told when it fails: a run that is ended from outside prints no summary.  Where pytest-xdist hands the
    tests to processes of their own, this belongs to the one that hands them out; one that is lost, whatever it did,
    makes the run a failure.
    """

    def __init__(self, config: pytest.Config, period_s: float = PERIOD_S) -> None:
        self._count = self._done = self._failed = 0
        self._lost = False
        self._since_s: dict[str, float] = {}  # of each test that runs
        self._period_s, self._ended = period_s, threading.Event()
        capture = config.pluginmanager.getplugin("capturemanager")
        assert capture is not None
        with capture.global_and_fixture_disabled():
            self._terminal = os.dup(1)  # while a test runs, 1 itself is captured
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)
        self._thread.start()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._count = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._count = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._since_s[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed += report.failed
        if report.failed:
            self._write(f"\nFAILED {report.nodeid} ({report.when})\n{_reason(report)}\n")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._done += 1
        self._since_s.pop(nodeid, None)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if error:
            self._lost = True
            self._write(f"\nLOST {node.gateway.id}: {error}\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._lost:  # else a process that was lost between two tests would leave a run that passed
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._terminal)

    def _tell(self) -> None:
        begun_s = time.monotonic()
        while not self._ended.wait(self._period_s):
            now_s = time.monotonic()
            running = [f"{test} for {now_s - since_s:.0f} s" for test, since_s in self._since_s.copy().items()]
            where = ", ".join(running) or ("between two" if self._count else "collecting")
            failed = f", {self._failed} failed" if self._failed else ""
            self._write(f"\n[{now_s - begun_s:.0f} s] {self._done} of {self._count} done{failed}; {where}\n")

    def _write(self, text: str) -> None:
        os.write(self._terminal, text.encode(errors="replace"))


def _reason(report: pytest.TestReport) -> str:
    """Where and why a test failed, and the end of what it had printed."""
    crash = getattr(report.longrepr, "reprcrash", None)
    error = f"{crash.path}:{crash.lineno}: {crash.message}" if crash else report.longreprtext
    printed = "\n".join(text for title, text in report.sections if title.startswith("Captured"))
    return "\n".join([error[:ERROR_CHARACTERS], *printed.splitlines()[-OUTPUT_LINES:]])
