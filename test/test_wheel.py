"""What `pip install .` leaves works from any folder, the checkout out of sight."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from conftest import ROOT, Installation

from vega3d_ros.inference.process import ChildProcess

DEADLINE_S = 600.0
WHERE = """
import benchmarks, policies, sim, vega3d_ros
print(*(package.__file__ for package in (benchmarks, policies, sim, vega3d_ros)))
"""


def run(installation: Installation, folder: Path, words: Sequence[str]) -> str:
    """What a command prints that ends well, in `folder`."""
    done = subprocess.run(
        words, cwd=folder, env=installation.environment(), capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_the_installed_one_that_runs(installation: Installation, tmp_path: Path) -> None:
    files = run(installation, tmp_path, [str(installation.python), "-c", WHERE]).split()
    assert all(Path(file).is_relative_to(installation.site_packages) for file in files), files


def test_suites_are_listed_by_module_script_and_file(installation: Installation, tmp_path: Path) -> None:
    python, file = str(installation.python), str(installation.site_packages / "sim" / "run_libero.py")
    listed = run(installation, tmp_path, [python, "-m", "sim.run_libero", "--list"])
    assert "policies: vega-nano" in listed and "libero_object\n  0 pick up the alphabet soup" in listed
    assert run(installation, tmp_path, [str(installation.prefix / "bin" / "vega3d-run-libero"), "--list"]) == listed
    assert run(installation, tmp_path, [python, file, "--list"]) == listed


def test_an_episode_runs(installation: Installation, tmp_path: Path) -> None:
    words = ["-m", "sim.run_libero", "--suite", "libero_object", "--tasks", "0", "--trials", "1", "--output", "run"]
    run(installation, tmp_path, [str(installation.python), *words])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["errors"] == 0 and len(summary["episodes"]) == 1


def test_bringup_helps(installation: Installation, tmp_path: Path) -> None:
    helped = run(installation, tmp_path, [str(installation.prefix / "bin" / "vega3d-bringup"), "--help"])
    assert "'robot':" in helped and "'startup_timeout_s':" in helped


def test_the_demo_takes_steps_over_ros(installation: Installation, tmp_path: Path) -> None:
    command = [str(installation.python), "-m", "sim.demo"]
    with ChildProcess("demo", command, environment=installation.environment(), folder=tmp_path) as demo:
        line = demo.wait_for_line("observation to command", DEADLINE_S)
        assert re.search(r"step +\d+/280", line), line
        demo.signal(signal.SIGINT)
        assert demo.wait(DEADLINE_S) == 130, demo.tail()


def test_no_file_touches_the_path_of_imports() -> None:
    files = [path for folder in ("policies", "vega3d_ros", "sim", "benchmarks", "scripts", "launch", "test")
             for path in (ROOT / folder).rglob("*.py")]  # fmt: skip
    touching = re.compile(r"sys\.path(\.(insert|append|extend)\(|\[.*\] = | [-+]?= )")
    assert files and not [str(path) for path in files if touching.search(path.read_text()) and path != Path(__file__)]
