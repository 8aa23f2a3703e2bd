"""launch/manipulation.launch.py under the real launch system, where it is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Installation

from sim.robot.ros_client import unused_domain
from vega3d_ros.bringup import scene
from vega3d_ros.bringup.bringup import ARGUMENTS
from vega3d_ros.bringup.entries import describe_arguments
from vega3d_ros.inference.process import ChildProcess, children_of

pytest.importorskip("launch_ros", reason="the launch system is not installed")
if shutil.which("ros2") is None:
    pytest.skip("the command ros2 is not installed", allow_module_level=True)

TESTS = Path(__file__).resolve().parent
DEADLINE_S = 240.0


@pytest.fixture
def environment(installation: Installation) -> dict[str, str]:
    variables = installation.environment()
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [variables["PYTHONPATH"], str(TESTS)]))
    variables["ROS_DOMAIN_ID"] = str(unused_domain())
    return variables


def launch_command(*words: str) -> list[str]:
    return ["ros2", "launch", "vega3d_ros", "manipulation.launch.py", *words]


def run_launch(environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        launch_command(*words), env=environment, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S
    )


def test_launch_file_and_bringup_describe_the_same_arguments(environment: dict[str, str], tmp_path: Path) -> None:
    shown = run_launch(environment, tmp_path, "--show-args")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == describe_arguments(ARGUMENTS).split()
    helped = subprocess.run(
        ["vega3d-bringup", "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert shown.stdout.strip() in helped.stdout
    assert all(f"'{argument.name}'" in shown.stdout for argument in ARGUMENTS)


def test_the_launch_file_of_the_scene_describes_its_arguments(environment: dict[str, str], tmp_path: Path) -> None:
    command = ["ros2", "launch", "vega3d_ros", "scene.launch.py", "--show-args"]
    shown = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert shown.stdout.split() == describe_arguments(scene.ARGUMENTS).split()


def test_unknown_robot_ends_the_launch_with_the_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    run = run_launch(environment, tmp_path, "robot:=none")
    assert run.returncode == 1
    assert "There is no robot 'none': choose one of" in run.stdout + run.stderr


def test_missing_checkpoint_ends_the_launch_with_the_reason(environment: dict[str, str], tmp_path: Path) -> None:
    run = run_launch(environment, tmp_path, "policy:=/nowhere/checkpoint")
    assert run.returncode == 1
    assert "There is no policy '/nowhere/checkpoint'" in run.stdout + run.stderr


def test_what_cannot_work_ends_the_launch_before_anything_starts(environment: dict[str, str], tmp_path: Path) -> None:
    for word, said in (("taks:=3", "did you mean 'task:=...'?"), ("suite:=libero_goal", "does not know: use one of")):
        run = run_launch(environment, tmp_path, word)
        assert run.returncode == 1 and said in run.stdout + run.stderr
        assert "process started" not in run.stdout + run.stderr


def test_launched_policy_moves_the_simulated_arm(environment: dict[str, str], tmp_path: Path) -> None:
    command = launch_command("policy:=tiny_policy:TinyPolicy", "startup_timeout_s:=200", "task:=1")
    with ChildProcess("launch", command, environment=environment) as launched:
        launched.wait_for_line("Everything is up", DEADLINE_S)
        moved = subprocess.run(
            [sys.executable, str(TESTS / "watch_arm.py")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert moved.returncode == 0, moved.stdout + moved.stderr
        launched.signal(signal.SIGINT)
        assert launched.wait(DEADLINE_S) == 0


def test_nodes_end_when_the_launch_process_alone_is_told_to(environment: dict[str, str], tmp_path: Path) -> None:
    command = launch_command("policy:=tiny_policy:TinyPolicy", "startup_timeout_s:=200")
    with ChildProcess("launch", command, environment=environment) as launched:
        launched.wait_for_line("Everything is up", DEADLINE_S)
        nodes = children_of(launched.pid)
        assert len(nodes) >= 3
        launched.signal(signal.SIGTERM)
        deadline = time.monotonic() + 30.0
        while any(Path(f"/proc/{pid}").exists() for pid in nodes) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in nodes if Path(f"/proc/{pid}").exists()]
