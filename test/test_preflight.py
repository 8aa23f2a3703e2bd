"""What cannot work is said before anything starts; RViz beside the robot; Ctrl-C in the first seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from policies.types import VegaError
from sim.robot.ros_client import unused_domain
from vega3d_ros.bringup import bringup, viewer
from vega3d_ros.bringup.bringup import ARGUMENTS, node_command, node_table
from vega3d_ros.bringup.entries import parse_arguments
from vega3d_ros.bringup.preflight import check_launch_words
from vega3d_ros.inference.process import ChildProcess, children_of

DEADLINE_S = 240.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["taks:=3"], "'taks:=3' is not an argument (did you mean 'task:=...'?)"),
        (["policy:=vega-nan"], "There is no policy 'vega-nan'"),
        (["policy:=/nowhere/checkpoint"], "There is no policy '/nowhere/checkpoint'"),
        (["policy:=ws://localhost:8000"], "There is no policy 'ws://localhost:8000' on this machine"),
        (["suite:=libero_objects"], "There is no suite 'libero_objects'"),
        (["task:=12"], "task 12 does not exist"),
        (["trial:=50"], "task 0 of libero_object has the trials 0 to 49"),
        # Without a sentence of the user's the task's own is told, which the policy must know.
        (["policy:=vega-nano-plain", "suite:=libero_goal"], "'open the middle drawer of the cabinet' names 'middle'"),
        (["instruction:=fold the shirt"], "'fold the shirt' names 'fold', which this policy does not know"),
        (["task:=12", "instruction:=pick up the milk and place it in the basket"], "task 12 does not exist"),
        (["policy:=vega-nano#libero_object"], "has no statistics to choose from: leave '#libero_object' out"),
        (["policy:=tiny_policy:TinyPolicy#libero_goal"], "has no statistics to choose from"),
        (["policy:=vega-nan#libero_object"], "There is no policy 'vega-nan'"),
        (["policy:=vega-nano#libero_object", "robot:=ur5e"], "has no statistics to choose from"),
        (["robot:=ur5e", "task:=3"], "task:=3 is for the simulated robot only: say what robot:=ur5e shall do"),
        (["device:=cuda:7"], "The device 'cuda:7' cannot be used"),
        (["device:=gpu"], "The device 'gpu' cannot be used"),
        (["rviz:=true"], "needs the ROS package robot_state_publisher"),
        (["rviz:=maybe"], "rviz:=maybe is not possible"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(words, said, capsys, monkeypatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(bringup, "run_table", lambda *_: started.append(1))
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    assert bringup.main(words) == 1
    printed = capsys.readouterr().err
    assert said in printed and len(printed.strip().splitlines()) == 1 and not started


def test_unknown_words_of_ros2_launch_are_refused_where_our_file_was_asked_for(monkeypatch) -> None:
    names = [argument.name for argument in bringup.ARGUMENTS]
    monkeypatch.setattr(sys, "argv", ["ros2", "launch", "vega3d_ros", "manipulation.launch.py", "taks:=3"])
    with pytest.raises(VegaError, match=r"'taks:=3' is not an argument \(did you mean 'task:=...'\?\)"):
        check_launch_words(["taks:=3", "robot:=libero"], names)
    monkeypatch.setattr(sys, "argv", ["ros2", "launch", "cell", "cell.launch.py", "conveyor:=true"])
    check_launch_words(["conveyor:=true"], names)


def test_rviz_is_started_with_our_file_and_a_publisher_of_the_arms_links(tmp_path, monkeypatch) -> None:
    for package in ("rviz2", "robot_state_publisher"):
        program = tmp_path / "lib" / package / package
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    table = {entry.name: entry for entry in node_table(parse_arguments(["rviz:=true"], ARGUMENTS))}
    shown = yaml.safe_load(Path(table["rviz2"].words[1]).read_text())["Visualization Manager"]["Displays"]
    assert {"agentview/image_raw", "wrist/image_raw"} <= {d.get("Topic", {}).get("Value") for d in shown}
    assert table["robot_state_publisher"].parameters["robot_description"].startswith("<?xml")
    command = node_command(table["rviz2"], tmp_path)
    assert command[:3] == [str(tmp_path / "lib/rviz2/rviz2"), "-d", str(viewer.rviz_file())]


@pytest.mark.parametrize(
    ("way", "status"), [("sys.exit(stopped())", 130), ("raise KeyboardInterrupt", -signal.SIGINT), ("sys.exit(3)", 3)]
)
def test_who_is_stopped_cleans_up_but_does_not_wait_until_python_has_taken_everything_apart(way, status) -> None:
    program = """
import atexit, os, sys
sys.argv = ["vega3d-serve"]
import policies
from policies.interrupts import stopped
class Heavy:
    def __del__(self, write=os.write):
        write(1, b"taken apart")
heavy = Heavy()
atexit.register(print, "cleaned up")
"""
    # Where the suite runs in a shell's background, SIGINT is ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program + way], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.returncode == status and "Traceback" not in ended.stderr
    assert ended.stdout == ("cleaned up\ntaken apart" if status == 3 else "cleaned up\n")


@pytest.mark.parametrize("after_s", [0.3, 1.5, 6.0])
def test_ctrl_c_in_the_first_seconds_ends_everything_without_a_traceback(after_s) -> None:
    """How soon, says `python -m benchmarks.interrupts`: it depends on what else the machine does."""
    command = [sys.executable, "-m", "vega3d_ros.bringup.bringup"]
    environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_domain())}
    with ChildProcess("bringup", command, environment=environment, on_line=None) as child:
        time.sleep(after_s)  # the moment of the user's Ctrl-C, which is what varies
        started = children_of(child.pid)
        child.signal(signal.SIGINT)
        status = child.wait(DEADLINE_S)
        assert status in (0, -signal.SIGINT, 130), child.tail()
        assert not any("Traceback" in line for line in child.tail(200)), child.tail(200)
        assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
