"""A robot's file is read strictly: a slip is one sentence that names the key, wherever the file is used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from policies.types import VegaError
from vega3d_ros.bringup import bringup, check_robot
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.parameters.arm_check import check_arm, check_described
from vega3d_ros.parameters.robot_file import read_robot_file, strict_arguments, write_parameters
from vega3d_ros.parameters.table import CAMERA_ROWS, FRANKA, ROWS, SCENE_CAMERA_ROWS, SCENE_ROWS
from vega3d_ros.parameters.values import check_known
from vega3d_ros.ros import node_parameters

ROOT = Path(__file__).resolve().parent.parent
UR5E = (ROOT / "config" / "robots" / "ur5e.yaml").read_text()
HOME_LINE = "home: [0.0, -1.570796, 1.570796, -1.570796, -1.570796, 0.0]"
DEADLINE_S = 240.0

# What is changed in the UR5e's file, what becomes of it, and words of the sentence that must come.
SLIPS = [
    ("dry_run: true", "dryrun: true", ["'dryrun' (did you mean 'dry_run'?)"]),
    ("max_skew_s: 0.04", "max_skew: 0.04", ["'max_skew' (did you mean 'max_skew_s'?)"]),
    ("velocity_scale: [0.1]", "velocty_scale: [0.1]", ["'safety.velocty_scale' (did you mean 'safety.velocity_scale'"]),
    ("    safety:\n", "    saftey:\n", ["nothing reads the section 'saftey' (did you mean 'safety'?): correct or"]),
    ("    cameras:\n", "    camera:\n", ["nothing reads the section 'camera' (did you mean 'cameras'?): correct or"]),
    ("    safety:\n", "    limits:\n", ["nothing reads the section 'limits': correct or remove it"]),
    ("    e_stop:\n", "    e_stop:\n      mode: x\n", ["nothing reads 'e_stop.mode': correct or remove it"]),
    ("    dry_run: true", "    dry_run: true\n    velocity_scale: [0.1]", ["did you mean 'safety.velocity_scale'?"]),
    ("  ros__parameters:", "  ros_parameters:", ["no parameters", "ros__parameters"]),
    ("/**:\n", "/policy-node:\n", ["no parameters for policy_node"]),
    ("width: 640,", "widht: 640,", ["did you mean 'cameras.agentview.width'?"]),
    ("agentview: {topic: agentview/color/image_raw, compressed: false, width: 640, height: 480, max_identical: 2}",
     "agentview: agentview/color/image_raw", ["'cameras.agentview' by itself", "topic"]),
    ("    gripper:\n", "    gripper: 0.04\n    griper:\n", ["'gripper' by itself", "the section 'griper' (did"]),
    (HOME_LINE, "home: [0.0, -90.0, 90.0, -90.0, -90.0, 0.0]", ["'home'", "-90", "degrees"]),
    (HOME_LINE, "home: [0.0, -1.57, 4.0, -1.57, -1.57, 0.0]", ["'home'", "elbow_joint at 4 rad", "-3.092 to 3.092"]),
    (HOME_LINE, "home: [0.0, -1.57, 1.57]", ["'home' has 3 angles for 6 joints"]),
    (HOME_LINE, "home: ['0.0', -1.57, 1.57, -1.57, -1.57, 0.0]", ["'home'", "remove the quotes"]),
    (HOME_LINE, "home:", ["'home' has no value"]),
    (HOME_LINE, "home: [.nan, -1.57, 1.57, -1.57, -1.57, 0.0]", ["'home' is nan"]),
    ("open: 0.0\n      closed: 0.7", "open: 10.0\n      closed: 0.0", ["'gripper.open' is 10 and"]),
    ("open: 0.0", "open: 40.0", ["'gripper.open' is 40 and 'gripper.closed' is 0.7"]),
    ("open: 0.0", "open: 0.7", ["'gripper.open' and 'gripper.closed' are equal"]),
    ("      acceleration: [3.1415]", "      acceleration: [1e9]", ["'safety.acceleration' is 1e+09"]),
    ("      acceleration: [3.1415]", "      acceleration: [180.0]", ["'safety.acceleration' is 180", "degrees"]),
    ("      acceleration: [3.1415]", "      acceleration: [0]", ["'safety.acceleration' is 0"]),
    ("      velocity: [3.1415]", "      velocity: [3.1415, 3.1415]", ["'safety.velocity' has 2 numbers"]),
    ("lower: [-6.2831, -6.2831", "lower: [-360.0, -360.0", ["'safety.lower' is -360", "degrees"]),
    ("lower: [-6.2831, -6.2831", "lower: [6.29, -6.2831", ["'safety.lower' is not below 'safety.upper'"]),
    ("workspace_lower: [0.2, -0.4, 0.02]", "workspace_lower: [200, -400, 20]", ["'safety.workspace_lower'", "milli"]),
    ("workspace_lower: [0.2, -0.4, 0.02]", "workspace_lower: [0.2, -0.4]", ["'safety.workspace_lower' has 2 numbers"]),
    ("velocity_scale: [0.1]", "velocity_scale: [10]", ["'safety.velocity_scale' is 10"]),
    ("velocity_scale: [0.1]", "velocity_scale: {}", ["'safety.velocity_scale' has no value"]),
    ("    gripper:\n", "    gripper: &grip\n      <<: {open: 0.1}\n      open: 0.2\n", ["'open' twice in one place"]),
    ("    gripper:\n", "    gripper:\n      <<: {open: 0.1}\n      <<: {closed: 0.1}\n", ["'<<' twice in one place"]),
    ("dry_run: true", "dry_run: 'false'", ["'dry_run'", "true or false"]),
    ("mode: reject", "mode: warn", ["'safety.mode' is 'warn'", "reject, clamp"]),
    ("hardware_id: ur5e ", "hardware_id: 5 ", ["'hardware_id' is 5", "text"]),
    ("dry_run: true", "dry_run: true\n    dry_run: false", ["'dry_run' twice"]),
    ("dry_run: true", "dry_run: true\n    gripper.open: 0.1", ["'gripper.open' twice"]),
    ("/**:\n", "safety: {mode: clamp}\n/**:\n", ["'safety' outside of 'ros__parameters'"]),
    ("command_joint: finger_joint", "command_joint: fingerjoint", ["'gripper.command_joint'"]),
    ("      joints: [finger_joint]\n", "", ["'gripper.command_joint' is 'finger_joint'", "gripper.joints"]),
    ("joints: [finger_joint]", "joints: []", ["'gripper.command_joint' is 'finger_joint'", "gripper.joints"]),
    ("controller: gripper_controller", "controller: /scaled_joint_trajectory_controller",
     ["'gripper.controller' is that of the arm", "leave gripper.controller empty"]),
    ("joints: [finger_joint]", "joints: [finger_joint, finger_joint]", ["'gripper.joints' lists a joint twice"]),
    ("joints: [finger_joint]", "joints: [finger_joint, wrist_3_joint]", ["'gripper.joints' has 'wrist_3_joint'"]),
    ("joints: [finger_joint]\n      command_joint: finger_joint", "command_joint: wrist_3_joint",
     ["'gripper.command_joint' has 'wrist_3_joint', which is one of joint_names"]),
]  # fmt: skip


def file_with(folder: Path, old: str, new: str) -> Path:
    assert old in UR5E
    path = folder / "arm.yaml"
    path.write_text(UR5E.replace(old, new, 1))
    return path


@pytest.mark.parametrize(("old", "new", "said"), SLIPS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_slip_is_one_sentence_that_names_the_key(old, new, said, tmp_path, capsys):
    path = file_with(tmp_path, old, new)
    sentences = []
    for main in (bringup.main, check_robot.main):
        assert main([f"robot:={path}"]) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and len(printed.err.strip().splitlines()) == 1, printed
        sentences.append(printed.err.partition(": ")[2])
    assert sentences[0] == sentences[1] and str(path) in sentences[0]
    for words in said:
        assert words in sentences[0]


def values_in_ros(path: Path, *words: str) -> dict[str, Any]:
    """What rclpy makes of a parameter file, for a node with these other arguments."""
    context = Context()
    rclpy.init(context=context)
    try:
        options = ["--ros-args", "--params-file", str(path), *words]
        node = Node("policy_node", context=context, cli_args=options, use_global_arguments=False)
        found = {name: parameter.value for name, parameter in node._parameter_overrides.items()}
        node.destroy_node()
        return {name: list(value) if hasattr(value, "tolist") else value for name, value in found.items()}
    finally:
        context.try_shutdown()


def read_by_a_node(*words: str) -> node_parameters.NodeParameters:
    """The parameters of a policy_node that is started by hand with these arguments."""
    context = Context()
    rclpy.init(context=context)
    try:
        with strict_arguments(["node", "--ros-args", *words], "policy_node") as options:
            node = Node("policy_node", context=context, cli_args=options[1:], use_global_arguments=False)
        node_parameters.declare(node)
        return node_parameters.read(node)
    finally:
        context.try_shutdown()


def test_a_gripper_whose_position_nothing_tells_is_refused_by_a_node_wherever_it_was_given(tmp_path):
    path = file_with(tmp_path, "      joints: [finger_joint]\n", "")
    with pytest.raises(VegaError, match=r"'gripper.command_joint' is 'finger_joint'.* gripper.joints .*\.$"):
        read_by_a_node("--params-file", str(path))
    rest = tmp_path / "rest.yaml"  # what one file leaves out may stand in another
    rest.write_text("/**:\n  ros__parameters:\n    gripper.joints: [finger_joint]\n")
    read = read_by_a_node("--params-file", str(path), "--params-file", str(rest))
    assert read.gripper_joints == ("finger_joint",)


def test_whole_numbers_among_others_reach_ros_as_floats(tmp_path):
    text = UR5E.replace(HOME_LINE, "home: [0, -1.5, 1.5, -1.5, -1.5, 0]").replace("open: 0.0", "open: 0")
    path = tmp_path / "arm.yaml"
    path.write_text(
        text.replace("      velocity: [3.1415]", "      velocity: 3").replace("[finger_joint]", "finger_joint")
    )
    understood = read_robot_file(path)
    with strict_arguments(["node", "--ros-args", "--params-file", str(path)], "policy_node") as words:
        assert words[:3] == ["node", "--ros-args", "--params-file"]
        in_ros = values_in_ros(Path(words[3]))
    assert in_ros == understood
    assert in_ros["home"] == [0.0, -1.5, 1.5, -1.5, -1.5, 0.0] and isinstance(in_ros["gripper.open"], float)
    assert in_ros["safety.velocity"] == [3.0] and in_ros["gripper.joints"] == ["finger_joint"]


def test_a_file_that_ros_reads_means_the_same_after_it_was_read_strictly(tmp_path):
    for path in sorted((ROOT / "config" / "robots").glob("*.yaml")):
        copy = tmp_path / path.name
        write_parameters(read_robot_file(path), copy)
        assert values_in_ros(copy) == values_in_ros(path)


def test_text_that_looks_like_something_else_reaches_ros_as_text(tmp_path):
    path = tmp_path / "arm.yaml"
    texts = ["y", "n", "on", "null", "~", "1e3", "0x10", "inf", ".nan", "-.Inf", "5", "a: b", "é # '\"\\", " x " * 99]
    given = {"hardware_id": "1e3", "tip_frame": "y", "joint_names": texts}
    write_parameters(given, path)
    assert values_in_ros(path) == given == read_robot_file(path)


def test_what_a_camera_says_itself_goes_before_what_is_merged_into_it(tmp_path):
    path = tmp_path / "arm.yaml"
    path.write_text(
        """
/**:
  ros__parameters:
    cameras:
      agentview: &first {topic: one, width: 640}
      wrist: &second {<<: *first, topic: two}
      third: {<<: [*second, *first], height: 480}
"""
    )
    cameras = {"agentview.topic": "one", "wrist.topic": "two", "third.topic": "two", "third.height": 480}
    widths = {f"{camera}.width": 640 for camera in ("agentview", "wrist", "third")}
    assert read_robot_file(path) == {f"cameras.{name}": value for name, value in (cameras | widths).items()}


def test_the_commanded_gripper_of_the_driver_is_listed_for_the_policy_alone(tmp_path):
    path = tmp_path / "arm.yaml"
    hand = {"gripper": {"command_joint": "finger", "open": 0.04, "closed": 0.0}}
    path.write_text(
        yaml.safe_dump({
            "/**": {"ros__parameters": hand},
            "policy_node": {"ros__parameters": {"gripper": {"joints": ["finger"]}}},
        })
    )  # fmt: skip
    assert read_robot_file(path)["gripper.joints"] == ["finger"]
    assert read_robot_file(path, "franka_driver")["gripper.command_joint"] == "finger"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": hand}}))
    with pytest.raises(VegaError, match=r"list it in gripper\.joints"):
        read_robot_file(path)


def test_a_section_for_another_node_is_left_to_it(tmp_path):
    path = tmp_path / "arm.yaml"
    own, other = {"ros__parameters": {"dry_run": False}}, {"ros__parameters": {"speed": 5}}
    path.write_text(yaml.safe_dump({"ns": {"policy_node": own}, "/driver": other}))
    assert read_robot_file(path) == {"dry_run": False}
    with pytest.raises(VegaError, match="nothing reads 'speed'"):
        read_robot_file(path, "driver")


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ([], ["/**", "/*", "policy_node", "/**/policy_node"]),
        (["-r", "__ns:=/left", "-r", "__ns:=/right"],
         ["/**", "left/policy_node", "/**/policy_node", "/*/policy_node", "/left/*", "/left/**"]),
        (["-r", "policy_node:__node:=one", "-r", "__node:=two", "-r", "policy_node:__ns:=/", "--remap",
          "one:__ns:=/left/up"], ["/**", "/left/**", "/left/*/one", "/**/up/one"]),
    ],
)  # fmt: skip
def test_of_several_robots_in_a_file_a_node_reads_those_sections_that_ros_reads(words, read, tmp_path):
    sections = ["/**", "/*", "policy_node", "left/policy_node", "/**/policy_node", "/*/policy_node"]
    sections += ["/left/*", "/left/**", "/left/*/one", "/**/up/one", "/right/policy_node"]
    path = tmp_path / "arm.yaml"
    contents = [{"threads": 1 + number} for number in range(len(sections))]
    tree = {section: {"ros__parameters": own} for section, own in zip(sections, contents, strict=True)}
    for last in sections:
        path.write_text(yaml.safe_dump({last: tree[last]}))
        with strict_arguments(["node", "--ros-args", *words, "--params-file", str(path)], "policy_node") as strict:
            assert (strict[-1] != str(path)) == (last in read), last
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    with strict_arguments(["node", "--ros-args", *words, "--params-file", str(path)], "policy_node") as strict:
        wins = tree[read[-1]]["ros__parameters"]
        assert values_in_ros(Path(strict[-1]), *words) == values_in_ros(path, *words) == wins


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("/left/policy_node", "/right/policy_node", "/left and /right"),
        ("/left/policy_node", "policy_node", "/left and /"),
        ("/left/**", "/right/*", "/left and /right"),
        ("/**/left/policy_node", "/**/right/policy_node", "left and /"),
        ("/left/policy_node", "/left/**", ""),
        ("/**", "/left/policy_node", ""),
        ("policy_node", "/**/policy_node", ""),
        ("policy_node", "/left/scene_node", ""),
    ],
)
def test_two_robots_in_one_file_are_refused_where_the_namespace_is_not_known(one, other, said, tmp_path):
    path = tmp_path / "arm.yaml"
    own = {"ros__parameters": {"dry_run": True}}
    path.write_text(yaml.safe_dump({one: own, other: own}))
    if said:
        with pytest.raises(VegaError, match=rf"has policy_node in the namespaces .*{said}.*: keep one robot in a file"):
            read_robot_file(path)
    else:
        assert read_robot_file(path) == {"dry_run": True}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--params-file", "{file}"], "'dryrun' (did you mean 'dry_run'?)"),
        (["-p", "dryrun:=true"], "'dryrun' (did you mean 'dry_run'?)"),
        (["-p", "cameras.wrist.topc:=x"], "did you mean 'cameras.wrist.topic'?"),
    ],
)
def test_a_node_started_by_hand_refuses_what_it_does_not_know(words, said, tmp_path):
    path = file_with(tmp_path, "dry_run: true", "dryrun: true")
    command = [sys.executable, "-m", "vega3d_ros.node.policy_node", "--ros-args"]
    command += [word.replace("{file}", str(path)) for word in words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROS_DOMAIN_ID": "45"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    lines = run.stderr.strip().splitlines()
    assert run.returncode == 1 and len(lines) == 1 and said in lines[0], run.stderr


# Against the arm's own model

LIBERO = read_robot_file(ROOT / "config" / "robots" / "libero.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tip_frame": "panda_link0"}, "tip_frame is 'panda_link0', which does not move with panda_joint1"),
        ({"tip_frame": "panda_link5"}, "does not move with panda_joint6, panda_joint7"),
        ({"home": [0.0, -0.16, 0.0, 1.0, 0.0, 2.2, 0.8]}, "panda_joint4 at 1 rad, outside its limits of -3.072"),
        ({"gripper.open": 0.4}, "gripper.open is 0.4, but panda_finger_joint1 reaches from 0 to 0.04"),
        ({"tip_frame": "tcp"}, "no frame 'tcp'"),
        ({"robot_description": "/nowhere.urdf"}, "/nowhere.urdf"),
        ({"robot_description": "/tmp"}, "/tmp is a folder: give a file in it"),
        ({"robot_description": "/" + "a" * 300}, "a...' is no name of a file"),
        ({"robot_description": "<?xml version='1.0'?>\n<robot name='x'/>"}, "robot_description holds the URDF itself"),
    ],
)
def test_what_the_arm_cannot_be_is_refused_before_anything_starts(changes, said, tmp_path, capsys):
    check_described(LIBERO)
    path = tmp_path / "arm.yaml"
    write_parameters(LIBERO | changes, path)
    assert bringup.main([f"robot:={path}"]) == 1
    printed = capsys.readouterr().err
    assert said in printed and len(printed.strip().splitlines()) == 1


def test_a_model_that_does_not_know_the_gripper_says_nothing_about_it():
    urdf = (ROOT / "config" / "robots" / "libero_panda.urdf").read_text()
    arm = Kinematics(urdf, LIBERO["joint_names"], "panda_tcp")
    limits = combine_limits(arm, {"acceleration": 10.0})
    check_arm(arm, limits, urdf, "panda_tcp", (limits.lower + limits.upper) / 2, "another_gripper", (3.0, 0.0))


NAMES = [row.name for row in ROWS]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(NAMES), st.data())
def test_one_slip_of_a_letter_finds_the_name_that_was_meant(name, data):
    at = data.draw(st.integers(0, len(name) - 1))
    kind = data.draw(st.sampled_from(["lost", "doubled", "swapped"]))
    wrong = {
        "lost": name[:at] + name[at + 1 :],
        "doubled": name[:at] + name[at] + name[at:],
        "swapped": name[:at] + name[at : at + 2][::-1] + name[at + 2 :],
    }[kind]
    if wrong in NAMES or len(name) < 6 or wrong.startswith(".") or any(n.startswith(f"{wrong}.") for n in NAMES):
        return
    with pytest.raises(VegaError) as refused:
        check_known([wrong])
    section, meant = wrong.partition(".")[0], name.partition(".")[0]
    told = (f"'{wrong}' (did you mean '{name}'?)", f"the section '{section}' (did you mean '{meant}'?)")
    assert str(refused.value).startswith(tuple(f"nothing reads {text}" for text in told))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("home: 2026-02-20", "'home' is the text '2026-02-20': give a number"),
        ("home: 2026-02-20 10:00:00", "'home' is the text '2026-02-20 10:00:00': give a number"),
        ("home: !!timestamp 2026-02-20", "'home' is 2026-02-20: give a number, a text, or a list of them"),
        ("hardware_id: !!binary aGk=", "'hardware_id' is b'hi': give a number, a text, or a list of them"),
        ("joint_names: !!set {a, b}", "'joint_names' is {"),
        ("home: [" + "9" * 400 + "]", "'home' has a number of 400 digits: give one that a computer can hold"),
        ("threads: " + "9" * 400, "'threads' has a number of 400 digits"),
        ("threads: 0x" + "f" * 5000, "'threads' has a number of 6021 digits"),
        ("threads: " + "9" * 5000, "line 3"),  # Python itself reads no more than 4300
        ("threads: !!int abc", "line 3"),
        ("dry_run: !!bool perhaps", "line 3"),
        ("max_age_s: !!float ''", "line 3"),
        ("hardware_id: !!timestamp 2026-02-30", "line 3"),
    ],
)
def test_what_yaml_makes_something_else_of_is_one_sentence_with_its_place(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(f"/**:\n  ros__parameters:\n    {line}\n")
    with pytest.raises(VegaError, match=re.escape(said)) as refused:
        read_robot_file(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_qos_overrides_are_refused_as_no_subscription_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    where = "qos_overrides./joint_states.subscription.reliability"
    path.write_text(f"/**:\n  ros__parameters:\n    {where}: reliable\n")
    with pytest.raises(VegaError, match=f"nothing reads '{where}'"):
        read_robot_file(path)
    context = Context()
    rclpy.init(context=context)
    node = Node("policy_node", context=context, parameter_overrides=[Parameter(where, value="reliable")])
    with pytest.raises(VegaError, match=f"nothing reads '{where}'"):
        node_parameters.refuse_unknown(node)
    node.destroy_node()
    context.try_shutdown()


def test_a_date_is_a_text_as_in_ros(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text("/**:\n  ros__parameters:\n    hardware_id: 2026-02-30\n")
    assert read_robot_file(path) == {"hardware_id": "2026-02-30"} == values_in_ros(path)


def test_every_parameter_is_in_the_tables_of_the_interfaces() -> None:
    rows = [line for line in (ROOT / "docs" / "interfaces.md").read_text().splitlines() if line.startswith("| `")]
    told = {word for line in rows for word in re.findall(r"`([\w.<>]+)`", line.split(" | ")[0])}
    rows_of_a_camera = (f"cameras.<camera>.{row.name}" for row in (*CAMERA_ROWS, *SCENE_CAMERA_ROWS))
    names = [row.name for row in (*ROWS, *SCENE_ROWS, *FRANKA)]
    short = {word for word in told if word.startswith(".")}
    missing = [n for n in [*names, *rows_of_a_camera] if n not in told and f".{n.rpartition('.')[2]}" not in short]
    assert not [name for name in missing if "_topic" not in name], "those of topics are in the table of topics"
