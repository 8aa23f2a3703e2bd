"""python -m benchmarks.mood: the suite under a load that is there while it runs, and gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import mood
from vega3d_ros.inference.process import children_of

SEEN = """
import os
from pathlib import Path

def test_what_is_beside():
    suite = Path(f"/proc/{os.getppid()}")
    children = [pid for file in suite.glob("task/*/children") for pid in file.read_text().split()]
    loops = [pid for pid in children if b"while True: pass" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    print("loops", len(loops), "group", Path("/proc/self/cgroup").read_text())
    assert "LOOPS" == str(len(loops)) and "GROUP" in Path("/proc/self/cgroup").read_text()
"""


def suite_that_expects(folder: Path, loops: int, group: str = "") -> list[str]:
    file = folder / "test_beside.py"
    file.write_text(SEEN.replace("LOOPS", str(loops)).replace("GROUP", group))
    return [str(file), "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]


def test_loops_run_beside_the_suite_and_end_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = children_of(os.getpid())
    assert mood.main(["--loops", "2", "--", *suite_that_expects(tmp_path, 2)]) == 0
    assert "suite_passed_beside_2_loops 1 >=1 ok" in capsys.readouterr().out
    assert children_of(os.getpid()) == before


def test_a_suite_that_fails_is_a_row_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mood.main(["--loops", "1", "--", *suite_that_expects(tmp_path, 7)]) == 1
    assert "suite_passed_beside_1_loops 0 >=1 FAIL" in capsys.readouterr().out


def test_a_share_of_the_processors_is_a_group_that_goes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mood.control_group(0.5) as group:
        made = group is not None
    if not made:
        pytest.skip("no control group can be made here")
    assert mood.main(["--quota", "0.5", "--", *suite_that_expects(tmp_path, 0, "vega3d-mood")]) == 0
    assert "suite_passed_with_50_percent 1 >=1 ok" in capsys.readouterr().out
    assert not list(mood.GROUPS.glob("**/vega3d-mood-" + str(os.getpid())))


@pytest.mark.parametrize("words", [[], ["--loops", "1", "--quota", "0.5"], ["--loops", "0"], ["--quota", "3"]])
def test_what_is_no_mood_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mood.main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")
