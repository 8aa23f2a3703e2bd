"""franka_driver: how a path becomes targets, and what a user can get wrong; `test_franka_sim.py` moves a robot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.types import VegaError
from vega3d_ros.bringup.bringup import ARGUMENTS, node_table
from vega3d_ros.bringup.entries import parse_arguments
from vega3d_ros.driver.following import STEP_S, look_ahead, stopping_times

ROOT = Path(__file__).resolve().parent.parent
FR3 = ROOT / "config" / "robots" / "franka_fr3.yaml"
DEADLINE_S = 120.0
joints = st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3)


def there_and_rest(distance: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """A cubic from rest to rest, every STEP_S."""
    s = np.arange(0.0, seconds + 1.5 * STEP_S, STEP_S).clip(max=seconds)[:, None] / seconds
    return distance * s**2 * (3.0 - 2.0 * s), 6.0 * distance * s * (1.0 - s) / seconds


@given(joints, st.floats(0.3, 3.0))
def test_targets_lie_on_the_path_ahead_of_it_and_end_where_it_ends(distance, seconds):
    positions, velocities = there_and_rest(np.array(distance), seconds)
    targets = look_ahead(positions, velocities, np.full(3, 5.0), 0.002)
    assert targets.shape == positions.shape and np.allclose(targets[-1], positions[-1], atol=1e-12)
    sign = np.sign(distance)
    assert np.all(sign * (targets - positions) >= -1e-12) and np.all(sign * (positions[-1] - targets) >= -1e-12)


@given(st.floats(0.1, 1.0), st.floats(1.0, 8.0))
def test_at_constant_speed_the_target_is_where_a_generator_comes_to_rest(speed, acceleration):
    times = STEP_S * np.arange(3000)
    slower = 0.3 * speed
    velocities = np.tile([speed, slower], (len(times), 1))
    targets = look_ahead(times[:, None] * velocities, velocities, np.full(2, acceleration), 0.0)
    stops_after = speed / acceleration
    wanted = speed * stops_after / 2.0, slower * stops_after - slower**2 / (2.0 * acceleration)
    assert np.allclose(targets[0], wanted, atol=1e-9)


@given(joints, st.floats(1.0, 4.0), st.floats(0.0, 0.9))
def test_slowing_down_stays_on_the_path_and_needs_half_the_acceleration(distance, seconds, where):
    acceleration = 6.0
    positions, velocities = there_and_rest(np.array(distance), seconds)
    start = int(where * len(positions))
    times = stopping_times(velocities[start:], np.full(3, acceleration))
    assert times[0] == 0.0 and np.all(np.diff(times) >= 0.0)
    along = np.interp(times, STEP_S * np.arange(len(positions) - start), np.arange(start, len(positions)))
    places = np.stack([np.interp(along, np.arange(len(positions)), column) for column in positions.T], axis=1)
    speeds = np.diff(places, axis=0) / STEP_S
    assert np.abs(speeds[-1]).max() < 0.02 and np.abs(speeds[0] - velocities[start]).max() < 0.05
    path = np.abs(np.diff(velocities, axis=0)).max() / STEP_S
    # Two points of a grid make a speed, three an acceleration: rounding counts a little.
    assert np.abs(np.diff(speeds[:-1], axis=0)).max(initial=0.0) / STEP_S <= path + 0.5 * acceleration + 0.5


def bringup(tmp_path: Path, **changes: str) -> str:
    """A robot's file like ours, a line of it changed by its beginning."""
    lines = FR3.read_text().splitlines()
    for start, line in changes.items():
        (index,) = [i for i, old in enumerate(lines) if old.strip().startswith(f"{start}:")]
        lines[index] = " " * (len(lines[index]) - len(lines[index].lstrip())) + f"{start}: {line}"
    path = tmp_path / "fr3.yaml"
    path.write_text("\n".join(lines))
    return str(path)


def test_the_driver_is_started_where_it_is_asked_for_and_the_file_has_what_it_needs(tmp_path):
    file = bringup(tmp_path, address="192.0.2.1", robot_description=str(ROOT / "config/robots/libero_panda.urdf"))
    with pytest.raises(VegaError, match="joint"):  # another arm's URDF
        node_table(parse_arguments([f"robot:={file}", "driver:=franka"], ARGUMENTS))
    for changes, what in (({}, "franka.address"), ({"address": "192.0.2.1"}, "robot_description")):
        file = bringup(tmp_path, **changes)
        names = {entry.name for entry in node_table(parse_arguments([f"robot:={file}"], ARGUMENTS))}
        assert "franka_driver" not in names
        with pytest.raises(VegaError, match=f"driver:=franka needs {what}"):
            node_table(parse_arguments([f"robot:={file}", "driver:=franka"], ARGUMENTS))


def run_driver(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vega3d_ros.driver.franka_driver", "--ros-args", *words]
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=environment, cwd=ROOT)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "franka.address is empty"),
        (["-p", "franka.address:=127.0.0.1", "-p", "franka.fraktion:=0.5"], "did you mean 'franka.fraction'"),
        (["-p", "franka.address:=127.0.0.1", "-p", "franka.realtime:=maybe"], "choose one of enforce, ignore"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(words, sentence):
    done = run_driver("--params-file", str(FR3), *words)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("franka") is None, reason="franka-rs is not installed (extra 'franka')")
def test_a_robot_that_does_not_answer_is_one_sentence():
    done = run_driver("--params-file", str(FR3), "-p", "franka.address:=127.0.0.1", "-p", "franka.hand:=false")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "franka_driver cannot connect to the robot" in done.stderr
