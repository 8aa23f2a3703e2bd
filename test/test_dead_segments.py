"""Shared memory that killed processes leave behind goes again, and nobody else's does."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from sim.robot.ros_client import unused_domain
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.ros import dead_segments
from vega3d_ros.ros.dds import fast_dds_generation

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120.0
OLD_S = 1e6
NODE = """
import threading
from vega3d_ros.ros.dds import apply_defaults
apply_defaults()
import rclpy
from vega3d_ros.ros.node_process import start_ros
start_ros()
node = rclpy.create_node("holder")
print("there", flush=True)
threading.Event().wait(600.0)
"""


def segment(folder: Path, name: str, old: bool = True, lock: str = "_el") -> Path:
    (folder / name).write_bytes(b"0" * 100)
    if lock:
        made = folder / f"{name}{lock}"
        made.touch()
        if old:
            os.utime(made, (made.stat().st_mtime - OLD_S,) * 2)
    return folder / name


@pytest.mark.parametrize("family", ["fastrtps", "fastdds"])
@pytest.mark.parametrize("how", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_only_old_segments_whose_lock_nobody_holds_go(tmp_path: Path, family: str, how: int) -> None:
    dead = segment(tmp_path, f"{family}_0123456789abcdef")
    kept = [
        segment(tmp_path, f"{family}_1123456789abcdef"),
        segment(tmp_path, f"{family}_2123456789abcdef", old=False),
        segment(tmp_path, f"{family}_3123456789abcdef", lock=""),
        segment(tmp_path, f"{family}_port7411"),
        segment(tmp_path, "others_0123456789abcdef"),
    ]
    with kept[0].with_name(f"{kept[0].name}_el").open() as held:
        fcntl.flock(held, how)
        assert dead_segments.remove(tmp_path) == 1
    left = {file.name.removesuffix("_el") for file in tmp_path.iterdir()}
    assert not dead.exists() and left == {file.name for file in kept}


def test_a_folder_that_is_not_there_is_none_to_clean(tmp_path: Path) -> None:
    assert dead_segments.remove(tmp_path / "none") == 0


@pytest.mark.skipif(fast_dds_generation() == 0, reason="the middleware here is not Fast DDS")
def test_a_node_that_starts_removes_what_a_killed_one_left_and_no_living_ones() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROS_DOMAIN_ID": str(unused_domain())}
    command = [sys.executable, "-c", NODE]

    def started() -> ChildProcess:
        child = ChildProcess("node", command, environment=environment, on_line=None)
        child.wait_for_line("there", DEADLINE_S)
        return child

    with started() as killed, started() as alive:
        segments = {}
        for child in (killed, alive):
            maps = Path(f"/proc/{child.pid}/maps").read_text()
            segments[child] = {Path(path) for path in re.findall(r"/dev/shm/fast(?:rtps|dds)_[0-9a-f]{16}\b", maps)}
        own, others = segments[killed] - segments[alive], segments[alive] - segments[killed]
        assert own and others
        for path in own | others:  # as if both had run for long
            os.utime(f"{path}_el", (path.stat().st_mtime - OLD_S,) * 2)
        killed.signal(signal.SIGKILL)
        killed.wait(DEADLINE_S)
        with started():
            assert not any(path.exists() or Path(f"{path}_el").exists() for path in own)
            assert all(path.exists() and Path(f"{path}_el").exists() for path in others)
