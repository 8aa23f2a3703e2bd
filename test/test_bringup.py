"""The table of nodes, and the processes that vega3d-bringup starts from it, over real DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from policies.types import VegaError
from sim.robot.ros_client import unused_domain
from vega3d_ros.bringup import bringup, scene
from vega3d_ros.bringup.bringup import ARGUMENTS, node_table, run_table
from vega3d_ros.bringup.entries import NodeEntry, parse_arguments, robot_file
from vega3d_ros.inference.process import ChildProcess, children_of

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 240.0


def table_of(*words: str) -> dict[str, NodeEntry]:
    return {entry.name: entry for entry in node_table(parse_arguments(words, ARGUMENTS))}


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until_ended(pid: int) -> bool:
    deadline = time.monotonic() + DEADLINE_S
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


# The table


def test_simulated_robot_runs_in_lockstep_and_starts_by_itself() -> None:
    table = table_of("suite:=libero_object_swap", "task:=3", "trial:=7")
    assert set(table) == {"policy_node", "sim_node", "startup_manager"}
    scene = {"suite": "libero_object_swap", "task": 3, "trial": 7}
    assert table["sim_node"].parameters == {**scene, "clock_mode": "lockstep"}
    policy = table["policy_node"].parameters
    assert policy["clock_mode"] == "lockstep" and policy["use_sim_time"] and policy["autostart"]
    assert table["startup_manager"].parameters["start_services"] == ["sim_node/reset", "sim_node/run"]
    assert table["policy_node"].parameter_files[-1].name == "libero.yaml"


def test_real_robot_does_not_move_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text("/**: {ros__parameters: {controller: arm}}\n")
    table = table_of(f"robot:={path}", "instruction:=pick up the milk")
    assert set(table) == {"policy_node", "startup_manager"}
    policy = table["policy_node"].parameters
    assert policy["autostart"] is False and policy["use_sim_time"] is False and "clock_mode" not in policy
    assert "start_services" not in table["startup_manager"].parameters


def test_users_instruction_replaces_that_of_the_simulated_task() -> None:
    assert table_of()["sim_node"].remappings == ()
    table = table_of("instruction:= pick up the milk ")
    assert table["startup_manager"].parameters["instruction"] == "pick up the milk"
    assert [source for source, _ in table["sim_node"].remappings] == ["instruction"]


def test_scene_node_is_started_beside_the_policy_or_with_the_cameras_alone(tmp_path: Path) -> None:
    assert "scene_node" not in table_of()
    beside = table_of("scene:=true", "scene_model:=tiny_scene:RedScene")
    assert set(beside) == {"policy_node", "scene_node", "sim_node", "startup_manager"}
    assert beside["scene_node"].parameters == {"use_sim_time": True, "scene.model": "tiny_scene:RedScene"}
    assert beside["scene_node"].parameter_files[0].name == "libero.yaml"
    assert beside["startup_manager"].parameters["lifecycle_nodes"] == ["policy_node", "scene_node"]

    words = parse_arguments(["robot:=libero", f"scene_model:={tmp_path}", "task:=3"], scene.ARGUMENTS)
    alone = {entry.name: entry for entry in scene.scene_table(words)}
    assert set(alone) == {"scene_node", "sim_node", "startup_manager"}
    assert (alone["sim_node"].parameters["clock_mode"], alone["sim_node"].parameters["task"]) == ("realtime", 3)
    words["task"] = "auto"  # a real robot has none
    blind = tmp_path / "arm.yaml"
    blind.write_text("/**: {ros__parameters: {controller: arm}}\n")
    with pytest.raises(VegaError, match=f"{blind} names no camera"):
        scene.scene_table({**words, "robot": str(blind)})
    with pytest.raises(VegaError, match="no scene model 'nobody'"):
        scene.scene_table({**words, "scene_model": "nobody"})
    configured = tmp_path / "robot.yaml"
    configured.write_text(robot_file("ur5e").read_text() + "    scene: {model: nobody}\n")
    with pytest.raises(VegaError, match="no scene model 'nobody'"):
        scene.scene_table({**words, "robot": str(configured), "scene_model": "auto"})


def test_recording_begins_between_configuration_and_activation() -> None:
    assert "recorder" not in table_of() and "configured_services" not in table_of()["startup_manager"].parameters
    table = table_of("record:=true", "bag:=runs/one")
    assert table["startup_manager"].parameters["configured_services"] == ["recorder/start"]
    assert table["recorder"].parameters["bag"] == str(Path("runs/one").absolute())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("record:=maybe", "true"),
        ("bag:=/somewhere", "record:=true"),
        ("robot:=none", "libero"),
        ("robot:=/nowhere/arm.yaml", "libero"),
        ("task:=-1", "task"),
        ("task:=one", "task"),
        ("threads:=0", "threads"),
        ("clock_mode:=fast", "lockstep"),
        ("use_sim_time:=maybe", "true"),
        ("startup_timeout_s:=nan", "startup_timeout_s"),
        ("domain:=233", "232"),
        ("instruction:=" + "x" * 513, "512"),
        ("instruction:= ", "empty"),
        ("robt:=libero", "robot"),
        ("libero", "name:=value"),
    ],
)
def test_bad_argument_is_refused_with_one_sentence(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bringup.main([word]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err and len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [b\n", "cannot be read"), ("hello\n", "no parameters"), ("", "no parameters"), ("/**: 3\n", "no parameters")],
)
def test_robot_file_without_parameters_is_refused_before_anything_starts(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    assert bringup.main([f"robot:={path}"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and str(path) in printed.err
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "words", "domain", "said"),
    [
        ("node.policy_node", ["--params-file", "/nowhere.yaml"], "45", "/nowhere.yaml"),
        ("node.policy_node", [], "abc", "ROS_DOMAIN_ID"),
        ("bringup.startup_manager", ["-r", "__node:=bad-name"], "45", "bad-name"),
    ],
)
def test_a_node_that_cannot_start_says_so_in_one_sentence(
    module: str, words: list[str], domain: str, said: str
) -> None:
    environment = {**os.environ, "ROS_DOMAIN_ID": domain, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"vega3d_ros.{module}", "--ros-args", *words]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 1
    # Before it rcl logs that it failed.
    lines = [line for line in run.stderr.splitlines() if line and "[rcl]" not in line]
    assert len(lines) == 1 and said in lines[0], run.stderr


def test_a_time_to_end_that_is_none_is_one_sentence() -> None:
    environment = {**os.environ, "VEGA3D_END_S": "soon", "ROS_DOMAIN_ID": str(unused_domain()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vega3d_ros.node.policy_node"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 1 and "VEGA3D_END_S=soon is not possible" in run.stderr
    assert len(run.stderr.splitlines()) == 1


# The processes


class Scene:
    """Runs a stand-in and the startup manager until a line appears, and keeps what they said."""

    def __init__(
        self,
        until: str = "",
        refuse: str = "",
        services: tuple[str, ...] = (),
        timeout_s: float = 30.0,
        configured: tuple[str, ...] = (),
        lose: tuple[str, ...] = (),
    ) -> None:
        manager: dict[str, object] = {"lifecycle_nodes": ["stand_in"], "timeout_s": timeout_s}
        if services:
            manager |= {"start_services": list(services), "instruction": "wave"}
        if configured:
            manager["configured_services"] = list(configured)
        self.table = (
            NodeEntry("stand_in", "", "lifecycle_stand_in", parameters={"refuse": refuse, "lose": list(lose) or [""]}),
            NodeEntry("startup_manager", "", "vega3d_ros.bringup.startup_manager", parameters=manager),
        )
        self.environment: Mapping[str, str] = {
            **os.environ,
            "ROS_DOMAIN_ID": str(unused_domain()),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test"), os.environ.get("PYTHONPATH", "")]),
        }
        self.until = until
        self.lines: list[str] = []
        self.stop = threading.Event()

    def hear(self, name: str, line: str) -> None:
        self.lines.append(line)
        if self.until and self.until in line:
            self.stop.set()

    def run(self) -> None:
        watchdog = threading.Timer(DEADLINE_S, self.stop.set)
        watchdog.start()
        try:
            run_table(self.table, self.environment, self.stop, self.hear)
        finally:
            watchdog.cancel()

    @property
    def pid(self) -> int:
        return int(next(line for line in self.lines if line.startswith("pid ")).split()[1])


def test_nodes_are_configured_recorded_activated_told_and_started_in_this_order() -> None:
    scene = Scene(until="Everything is up", services=("stand_in/run",), configured=("stand_in/run",))
    scene.run()
    said = [line for line in scene.lines if line in ("did configure", "did activate", "runs")]
    assert said == ["did configure", "runs", "did activate", "runs"]
    assert "told 'wave'" in scene.lines
    assert not is_running(scene.pid)


def test_answers_that_get_lost_hold_nothing_up() -> None:
    scene = Scene(until="Everything is up", lose=("get_state", "change_state"))
    scene.run()
    said = [line for line in scene.lines if line in ("did configure", "did activate")]
    assert said == ["did configure", "did activate"] and "Everything is up" in " ".join(scene.lines)


@pytest.mark.parametrize("transition", ["configure", "activate"])
def test_refused_transition_ends_everything_and_says_why(transition: str) -> None:
    scene = Scene(refuse=transition)
    with pytest.raises(VegaError, match=f"stand_in did not {transition}: I was told not to {transition}"):
        scene.run()
    assert not is_running(scene.pid)


def test_missing_service_is_given_up_after_the_deadline() -> None:
    scene = Scene(services=("nobody/run",), timeout_s=4.0)
    with pytest.raises(VegaError, match=r"nobody/run did not appear.*or raise startup_timeout_s, which is 4 s"):
        scene.run()
    assert not is_running(scene.pid)


def test_who_waits_is_told_what_for() -> None:
    scene = Scene(until=" s: waiting for the answer of nobody/run.", services=("nobody/run",), timeout_s=DEADLINE_S)
    scene.run()
    assert any(scene.until in line for line in scene.lines)
    assert not any("[ERROR]" in line for line in scene.lines), "waiting is no error"


def test_death_of_one_node_ends_the_others() -> None:
    scene = Scene()
    killed: list[int] = []

    def hear(name: str, line: str) -> None:
        Scene.hear(scene, name, line)
        if "Everything is up" in line:
            killed.append(scene.pid)
            os.kill(scene.pid, signal.SIGKILL)

    scene.hear = hear  # type: ignore[method-assign]
    with pytest.raises(VegaError, match="stand_in ended with SIGKILL"):
        scene.run()
    assert killed and not is_running(scene.pid)


def test_bringup_makes_the_policy_move_the_simulated_arm_and_ends_with_ctrl_c() -> None:
    domain = unused_domain()
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(domain),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "vega3d_ros.bringup.bringup"]
    command += ["policy:=tiny_policy:TinyPolicy", f"domain:={domain}", f"startup_timeout_s:={2 * DEADLINE_S}"]
    with ChildProcess("bringup", command, environment=environment) as child:
        child.wait_for_line("Everything is up", 2 * DEADLINE_S)
        watch = [sys.executable, str(ROOT / "test" / "watch_arm.py")]
        moved = subprocess.run(watch, env=environment, capture_output=True, text=True, timeout=2 * DEADLINE_S)
        assert moved.returncode == 0, moved.stdout + moved.stderr
        child.signal(signal.SIGINT)
        assert child.wait(DEADLINE_S) == 0


ALONE = """
import os, threading
from vega3d_ros.bringup.bringup import ARGUMENTS, environment_of, run_table
from vega3d_ros.bringup.entries import NodeEntry, parse_arguments
table = (NodeEntry("startup_manager", "", "vega3d_ros.bringup.startup_manager"),)
environment = {**os.environ, **environment_of(parse_arguments([], ARGUMENTS))}
run_table(table, environment, threading.Event())
"""


def test_nodes_end_by_themselves_when_bringup_is_killed() -> None:
    environment = {**os.environ, "ROS_DOMAIN_ID": str(unused_domain()), "PYTHONPATH": str(ROOT)}
    with ChildProcess("bringup", [sys.executable, "-c", ALONE], environment=environment) as child:
        child.wait_for_line("Everything is up", DEADLINE_S)
        (manager,) = children_of(child.pid)
        child.signal(signal.SIGKILL)
        assert wait_until_ended(manager)


# Child processes

DEAF = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def test_deaf_process_is_killed_after_its_deadline() -> None:
    with ChildProcess("deaf", [sys.executable, "-c", DEAF]) as child:
        child.wait_for_line("deaf", DEADLINE_S)
        began = time.monotonic()
        assert child.stop(grace_s=0.2) == -signal.SIGKILL
        assert time.monotonic() - began < DEADLINE_S, "it would have slept for ten minutes"


def test_sigint_reaches_the_child_of_a_process_in_the_background() -> None:
    """There the shell has SIGINT ignored, and what is ignored is inherited."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ChildProcess("sleeper", ["sleep", "600"], on_line=None) as child:
            child.signal(signal.SIGINT)
            assert child.wait(DEADLINE_S) == -signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)


def test_waiting_for_a_line_ends_with_the_process() -> None:
    with ChildProcess("short", [sys.executable, "-c", "print('one')"]) as child:
        assert child.wait_for_line("one", DEADLINE_S) == "one"
        with pytest.raises(VegaError, match="ended before it printed 'two'"):
            child.wait_for_line("two", DEADLINE_S)
        assert child.wait(DEADLINE_S) == 0 and child.tail() == ["one"]


def test_command_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(VegaError, match="cannot be started"):
        ChildProcess("nothing", ["/nowhere/nothing"])


def test_child_dies_with_a_killed_parent() -> None:
    parent = f"""
import os, signal, sys
from vega3d_ros.inference.process import ChildProcess
child = ChildProcess("orphan", [sys.executable, "-c", {DEAF!r}], on_line=None)
child.wait_for_line("deaf", 60)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S
    )
    assert run.returncode == -signal.SIGKILL
    assert wait_until_ended(int(run.stdout.split()[-1]))


def test_help_describes_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bringup.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for argument in bringup.ARGUMENTS:
        assert f"'{argument.name}':\n        {argument.description}\n        (default: '{argument.default}')" in text
