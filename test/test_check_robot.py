"""vega3d-check-robot on a robot made of messages: right, and wrong in ways it must name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import yaml
from rclpy.node import Node
from ros_harness import (
    CAMERAS,
    COMMANDS,
    FINGERS,
    HOME,
    JOINTS,
    ROOT,
    FakeRobot,
    Pace,
    image_of,
    node_environment,
    now_ns,
)
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from sim.robot.ros_client import unused_domain
from vega3d_ros.bringup import check_robot
from vega3d_ros.bringup.controller_check import judge
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.ros.conversions import time_message


@pytest.fixture
def robot():
    robot = FakeRobot(unused_domain())
    yield robot
    robot.close()


def check(
    robot: FakeRobot, path: str, stamp_offset_ns: int = 0, parts: Sequence[Sequence[str]] = ((*JOINTS, *FINGERS),)
) -> tuple[int | None, str]:
    """Exit status and output of a check of this robot, which sends at 20 Hz meanwhile; parts: the joints of each of the
    messages that tell its state, in their order."""
    place = dict(zip((*JOINTS, *FINGERS, "lift"), (*HOME, 0.04, 0.04, 3.0), strict=True))

    def tick() -> None:
        stamp = now_ns() + stamp_offset_ns
        for camera in CAMERAS:
            robot.send_image(camera, image_of(0), stamp)
        for names in parts:
            message = JointState(name=list(names), position=[place[name] for name in names])
            message.velocity = [0.0] * len(names)
            message.header.stamp = time_message(stamp)
            robot.joint_states.publish(message)

    command = [sys.executable, "-m", "vega3d_ros.bringup.check_robot", f"robot:={path}", "seconds:=2"]
    domain = robot.node.context.get_domain_id()
    with (
        ChildProcess("check_robot", command, environment=node_environment(domain), on_line=None) as child,
        Pace(robot, 0.05, tick),
    ):
        assert robot.until(lambda: child.returncode is not None)
        child.wait(5.0)
        return child.returncode, "\n".join(child.tail(100))


def patient(tmp_path, **changes) -> str:
    """libero.yaml with an age limit that a busy machine keeps, and changes."""
    tree = yaml.safe_load((ROOT / "config/robots/libero.yaml").read_text())
    tree["/**"]["ros__parameters"] |= {"max_age_s": 10.0, "max_skew_s": 1.0, **changes}
    path = tmp_path / "robot.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_a_robot_that_is_as_its_file_says_passes_and_nothing_is_commanded(robot, tmp_path):
    status, text = check(robot, patient(tmp_path))
    assert status == 0, text
    assert "All points pass." in text and "FIX" not in text
    assert text.count("pass  camera") == 6 and "pass  joints within limits" in text
    assert not robot.commands


def test_a_robot_that_tells_its_arm_and_its_fingers_apart_passes_beside_other_devices(robot, tmp_path):
    status, text = check(robot, patient(tmp_path), parts=(["lift"], JOINTS, FINGERS))
    assert status == 0, text
    assert "pass  gripper: It is 100 % open" in text and "FIX" not in text


@pytest.mark.parametrize(
    ("parts", "missing"), [((["lift"], JOINTS, FINGERS[1:]), FINGERS[:1]), ((["lift"],), (*JOINTS, *FINGERS))]
)
def test_a_joint_that_never_comes_is_named(robot, tmp_path, parts, missing):
    status, text = check(robot, patient(tmp_path), parts=parts)
    assert status == 1, text
    assert f"FIX   joint_states: joint_states lacks {list(missing)}" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "robot:="),
        (["robot:=none"], "libero"),
        (["robot:=libero", "seconds:=x"], "seconds:=x"),
        (["robot:=libero", "seconds:=nan"], "seconds:=nan"),
        (["robot:=libero", "axes:=maybe"], "axes:=maybe"),
        (["robot:=libero", "speed:=3"], "robot, seconds, axes"),
    ],
)
def test_wrong_words_are_refused_with_one_sentence(words, said, capsys):
    assert check_robot.main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and len(printed.err.strip().splitlines()) == 1


def test_a_value_of_a_wrong_type_is_one_sentence(tmp_path, capsys):
    assert check_robot.main([f"robot:={patient(tmp_path, policy=5)}"]) == 1
    printed = capsys.readouterr()
    assert "'policy'" in printed.err and len(printed.err.strip().splitlines()) == 1


def test_what_ros_itself_refuses_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check_robot, "read_robot_file", lambda _: {"joint_names": [1, "two"]})  # as if it let it pass
    assert check_robot.main([f"robot:={patient(tmp_path)}"]) == 1
    printed = capsys.readouterr()
    assert "ROS refuses the robot's file (" in printed.err and "correct it." in printed.err
    assert len([line for line in printed.err.splitlines() if line.startswith("vega3d-check-robot")]) == 1


def test_its_words_are_not_taken_for_remappings_of_ros(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(check_robot, "read_robot_file", lambda _: {"joint_names": [1, "two"]})  # ends early
    words = [f"robot:={patient(tmp_path)}", "axes:=true"]
    monkeypatch.setattr(sys, "argv", ["vega3d-check-robot", *words])  # as it is started on a terminal
    assert check_robot.main() == 1
    said = capfd.readouterr().err
    assert "ROS refuses the robot's file (" in said and "remap" not in said, said


def test_each_thing_that_is_wrong_is_named(robot, tmp_path):
    robot.node.create_publisher(JointTrajectory, COMMANDS, 1)
    cameras = {
        "agentview": {"topic": "agentview/image_raw", "width": 640, "height": 480},
        "wrist": {"topic": "nowhere/image_raw"},
    }
    safety = {"acceleration": [10.0], "lower": [-0.1], "upper": [3.0]}
    changes = {"cameras": cameras, "safety": safety, "home": [0.0, 0.0, 0.0, -0.08, 0.0, 2.2, 0.8]}
    status, text = check(robot, patient(tmp_path, **changes), stamp_offset_ns=-60_000_000_000)
    assert status == 1, text
    for words in (
        "FIX   camera agentview: It sends 256x256 instead of 640x480",
        "FIX   camera wrist: Nothing came on nowhere/image_raw",
        "FIX   joint_states, stamps",
        "FIX   joints within limits: ['panda_joint2', 'panda_joint4']",
        "1 other commander(s)",
    ):
        assert words in text, text


def test_the_controllers_own_parameters_are_read_and_what_to_set_is_said(robot, tmp_path):
    context = robot.node.context
    controller = Node("panda_arm_controller", context=context)
    controller.declare_parameter("interpolate_from_desired_state", False)
    controller.declare_parameter("allow_nonzero_velocity_at_trajectory_end", False)
    controller.declare_parameter("command_interfaces", ["position"])
    robot.client._executor.add_node(controller)
    try:
        status, text = check(robot, patient(tmp_path, committed=True))
    finally:
        robot.client._executor.remove_node(controller)
        controller.destroy_node()
    assert status == 1, text
    assert "FIX   controller panda_arm_controller, interpolate_from_desired_state: Set it to true" in text
    assert "pass  controller panda_arm_controller, allow_nonzero_velocity_at_trajectory_end: No trajectory ends" in text
    assert "pass  controller panda_arm_controller, command_interfaces: They are ['position']." in text
    assert "state_interfaces" not in text


def test_trajectories_that_end_in_motion_need_a_controller_that_takes_them():
    asked = {"allow_nonzero_velocity_at_trajectory_end": False, "state_interfaces": ["position"]}
    assert [(good, name) for good, name, _ in judge(asked, committed=False)] == [
        (False, "allow_nonzero_velocity_at_trajectory_end"),
        (False, "state_interfaces"),
    ]
