"""Jobs in processes of their own: their answers, their errors, and what becomes of one that is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from policies.files import processes
from policies.files.processes import each_in_its_process
from policies.types import VegaError


def halve(number: int) -> tuple[int, int]:
    if number < 0:
        raise VegaError(f"{number} is below 0.")
    if number % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number // 2, os.getpid()


def test_every_job_has_its_own_process() -> None:
    found = dict(each_in_its_process(halve, [(2,), (4,), (6,)], 2))
    assert {job: answer[0] for job, answer in found.items()} == {(2,): 1, (4,): 2, (6,): 3}
    assert len({os.getpid(), *(pid for _, pid in found.values())}) == 4


def wait_for(path: str) -> str:
    return Path(path).read_text()  # of a named pipe, which somebody writes into


def test_who_waits_is_told_now_and_then(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(processes, "NEWS_S", 0.01)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    told: list[str] = []

    def news() -> str:
        told.append("3 of 5 are there")
        if len(told) == 2:
            gate.write_text("through")
        return told[-1]

    [(_, answer)] = each_in_its_process(wait_for, [(str(gate),)], 1, news)
    assert answer == "through" and "3 of 5 are there after 0 s\n" in capfd.readouterr().err


def test_what_a_job_raises_is_raised_and_a_death_is_told() -> None:
    with pytest.raises(VegaError, match="-2 is below 0"):
        list(each_in_its_process(halve, [(-2,)], 1))
    with pytest.raises(VegaError, match=r"did \(3,\) ended without an answer \(exit status -9\)"):
        list(each_in_its_process(halve, [(3,)], 1))
