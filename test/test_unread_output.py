"""Commands whose output nobody reads any more, as behind `| head`."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from ros_harness import ROOT

DEADLINE_S = 120.0
COMMAND = """
import os, sys
from policies.files.command_line import {wrapped}

@{wrapped}
def main():
    sys.stdin.read()
    {does}
    return 0

sys.exit(main())
"""
ANOTHER_PIPE = "ends = os.pipe(); os.close(ends[0]); os.write(ends[1], b'x')"


def ended(wrapped: str, does: str, read: bool = False) -> tuple[int, str]:
    """Status and errors of a command; read: or its output is closed before it writes."""
    program = [sys.executable, "-c", COMMAND.format(wrapped=wrapped, does=does)]
    with subprocess.Popen(
        program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        if not read:
            process.stdout.close()
        process.stdin.close()
        errors = process.stderr.read()
        return process.wait(DEADLINE_S), errors


@pytest.mark.parametrize("wrapped", ["command", "while_read"])
@pytest.mark.parametrize("does", ["print('x')", "print('x', flush=True)", "print('x' * 100_000)"])
def test_a_command_that_nobody_reads_ends_without_a_word(wrapped: str, does: str) -> None:
    assert ended(wrapped, does) == (141, "")


@pytest.mark.parametrize("wrapped", ["command", "while_read"])
def test_a_command_that_was_started_without_an_output_ends_as_others(wrapped: str) -> None:
    program = shlex.join([sys.executable, "-c", COMMAND.format(wrapped=wrapped, does="interrupts.ending(0)")])
    program = program.replace("import os, sys", "import os, sys; from policies import interrupts", 1)
    asked = ["sh", "-c", f"{program} >&-"]
    how = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "timeout": DEADLINE_S, "text": True}
    done = subprocess.run(asked, **how)  # type: ignore[call-overload]
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_of_another_kind_is_told() -> None:
    status, errors = ended("command", ANOTHER_PIPE, read=True)
    assert status == 1 and "BrokenPipeError" in errors
