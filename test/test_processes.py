"""Jobs in processes of their own: their answers, their errors, and what becomes of one that is killed."""

from __future__ import annotations

import os
import signal

import pytest

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


def test_what_a_job_raises_is_raised_and_a_death_is_told() -> None:
    with pytest.raises(VegaError, match="-2 is below 0"):
        list(each_in_its_process(halve, [(-2,)], 1))
    with pytest.raises(VegaError, match=r"did \(3,\) ended without an answer \(exit status -9\)"):
        list(each_in_its_process(halve, [(3,)], 1))
