"""A machine without an OpenGL library: one sentence with the remedy, and an exit status that says it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HIDE = (
    'PATH="$PATH:/usr/sbin:/sbin"; '  # of ldconfig, which an ordinary user's lacks on Debian: nothing would be hidden
    "for f in $(ldconfig -p | grep -o '/.*/libEGL[^ ]*' | xargs -n1 readlink -f | sort -u); "
    "do mount --bind /dev/null $f; done; "
)


def can_hide_libraries() -> bool:
    try:
        hidden = subprocess.run(["unshare", "-m", "bash", "-c", f"{HIDE} true"], capture_output=True, timeout=20)
        return hidden.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.skipif(not can_hide_libraries(), reason="needs the right to mount")
def test_a_missing_library_is_one_sentence() -> None:
    probe = "from sim.worlds.libero_env import LiberoEnvironment; LiberoEnvironment('libero_object', 0)"
    command = f'{HIDE} exec {sys.executable} -c "{probe}"'
    run = subprocess.run(
        ["unshare", "-m", "bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("policies.types.VegaError: OpenGL is missing")
    assert "apt-get install" in last
