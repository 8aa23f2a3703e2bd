"""Throwaway environments with pinned packages from the index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

INSTALL_S, RUN_S = 1800.0, 900.0


class OutOfReach(Exception):
    """What is needed cannot be had here; the text says what."""


class Environment:
    """packages: pins.  python: an interpreter to use, by default this one.  Raises OutOfReach."""

    def __init__(self, folder: Path, packages: Sequence[str], python: str = sys.executable) -> None:
        self.folder = folder
        _must([python, "-m", "venv", str(folder)], packages)
        self.install(*packages)

    def install(self, *packages: str) -> None:
        """More of the index.  Raises OutOfReach."""
        _must([str(self.folder / "bin/pip"), "install", "-q", *packages], packages)

    def run(self, *words: str, **more: str) -> str:
        """Output of a program of the environment, or of `python` there.  Raises RuntimeError with its last words."""
        program, *rest = words
        done = subprocess.run(
            [str(self.folder / "bin" / program), *rest], capture_output=True, text=True, timeout=RUN_S,
            env=clean(more), cwd=self.folder,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError("\n".join((done.stderr + done.stdout).strip().splitlines()[-3:]))
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[str]:
        program, *rest = words
        return subprocess.Popen(
            [str(self.folder / "bin" / program), *rest], stdout=subprocess.PIPE, text=True, env=clean()
        )


def _must(command: Sequence[str], packages: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, env=clean())
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OutOfReach(f"{' '.join(packages)} could not be installed ({error})") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OutOfReach(f"{' '.join(packages)} could not be installed ({last})")


def clean(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our variables without what the ROS wheels leave for their own environment."""
    ours = ("LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE", "PYTHONPATH", "VIRTUAL_ENV")
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **(more or {})}


def python_312() -> str | None:
    """An interpreter of 3.12 or newer, which newer clients need: on the PATH, or one that pyenv or uv holds."""
    held = (
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob("3.1[2-4]*/bin/python"),
        (Path.home() / ".local/share/uv/python").glob("cpython-3.1[2-4]*/bin/python3"),
    )
    on_path = [path for name in ("python3.12", "python3.13") if (path := shutil.which(name))]
    return next(filter(_is_newer, [sys.executable, *on_path, *map(str, sorted(chain(*held)))]), None)


def _is_newer(python: str) -> bool:
    """Whether it runs, which pyenv's stand-ins on the PATH may not, and is new enough."""
    command = [python, "-c", "import sys, venv; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 14))"]
    return subprocess.run(command, capture_output=True, env=clean(), timeout=RUN_S).returncode == 0
