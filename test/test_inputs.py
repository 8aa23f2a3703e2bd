"""What policy_node makes of messages: what the policy is told, what is dropped and counted, and what is said."""

from __future__ import annotations

import array
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState

from policies.checkpoints import shipped_policies
from policies.nano.config import VegaConfig
from policies.types import ActionSpace, PolicySpec, VegaError
from vega3d_ros.control.frame_buffer import FrameBuffer
from vega3d_ros.control.guard.belief import Belief
from vega3d_ros.control.guard.limits import GuardLimits
from vega3d_ros.ros import conversions, node_parameters
from vega3d_ros.ros.joint_states import finger_map, joint_reader
from vega3d_ros.ros.node_parameters import CameraParameters, NodeParameters
from vega3d_ros.topics.camera_inputs import CameraInputs
from vega3d_ros.topics.inputs import Inputs

ROOT = Path(__file__).resolve().parent.parent
SPEC = PolicySpec("one that looks at its fingers", ("wrist",), ActionSpace("eef_delta"), fingers=2)
CAMERAS = {"wrist": CameraParameters("wrist/image_raw", False, 0, 0, 0)}


def robot(name: str) -> NodeParameters:
    """The parameters of a shipped file."""
    context = Context()
    rclpy.init(context=context)
    try:
        options = ["--ros-args", "--params-file", str(ROOT / f"config/robots/{name}.yaml")]
        node = Node("reader", context=context, cli_args=options, use_global_arguments=False)
        node_parameters.declare(node)
        parameters = node_parameters.read(node)
        node.destroy_node()
    finally:
        context.try_shutdown()
    return parameters


@pytest.fixture(scope="module")
def ur5e() -> NodeParameters:
    return robot("ur5e")


def inputs_of(parameters: NodeParameters, lockstep: bool = False, said: list[str] | None = None) -> Inputs:
    max_age_ns = None if lockstep else round(parameters.max_age_s * 1e9)
    buffer = FrameBuffer(tuple(CAMERAS), max_age_ns=max_age_ns)
    reader = joint_reader(parameters, (), together=lockstep)
    fingers = finger_map(parameters, SPEC)
    joints = len(parameters.joint_names)
    limits = GuardLimits(np.full(joints, -7.0), np.full(joints, 7.0), np.full(joints, 3.0), np.full(joints, 20.0))
    belief = Belief(parameters.joint_names, limits)
    told = ([] if said is None else said).append
    return Inputs(parameters, CAMERAS, buffer, reader, fingers, belief, not lockstep, told)


def states(parameters: NodeParameters, stamp: int, finger: float) -> JointState:
    names = [*parameters.joint_names, *parameters.gripper_joints]
    message = JointState(name=names, position=[*parameters.home, finger], velocity=[0.0] * len(names))
    message.header.stamp = conversions.time_message(stamp)
    return message


def picture(stamp: int, encoding: str = "rgb8") -> Image:
    message = conversions.image_message(np.zeros((4, 4, 3), np.uint8), stamp)
    if encoding != "rgb8":
        message.encoding, message.step, message.data = encoding, 8, array.array("B", bytes(32))
    return message


@pytest.mark.parametrize(("finger", "opening"), [(0.0, 0.04), (0.7, 0.0), (0.35, 0.02)])
def test_the_shipped_ur5e_tells_a_libero_policy_that_its_gripper_is_open_when_it_is(ur5e, finger, opening):
    assert ur5e.gripper_open == 0.0 and ur5e.gripper_closed == 0.7
    inputs = inputs_of(ur5e)
    now = time.time_ns()
    sample, _ = inputs.on_joint_state(states(ur5e, now, finger), now)
    assert sample is not None, inputs.problem()
    told = finger_map(ur5e, VegaConfig.load(shipped_policies()["vega-nano"]).spec)(sample.gripper_positions)
    np.testing.assert_allclose(told, [opening, opening], atol=1e-9)


def test_a_policy_that_reads_fingers_and_an_arm_without_are_refused_in_one_sentence(ur5e):
    bare = replace(ur5e, gripper_joints=(), gripper_command_joint="")
    with pytest.raises(VegaError, match=r"reads 2 finger opening\(s\) and this robot has no gripper.joints"):
        finger_map(bare, SPEC)
    assert finger_map(bare, replace(SPEC, fingers=0))(np.zeros(0)).size == 0


def test_a_gripper_in_another_unit_than_the_file_keeps_the_robot_still(ur5e):
    inputs = inputs_of(ur5e)
    now = time.time_ns()
    sample, _ = inputs.on_joint_state(states(ur5e, now, 85.0), now)
    assert sample is None and "The gripper's joint reads 85" in inputs.problem()


def test_damaged_pictures_are_dropped_and_counted_and_said_once_nothing_better_comes(ur5e):
    inputs = inputs_of(replace(ur5e, max_age_s=10.0))
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))[1].tobytes()
    for hole in (0, 1, 0, 1, 1):
        message = CompressedImage(format="jpeg", data=array.array("B", data[:2000] + data[2000 + 700 * hole :]))
        message.header.stamp = conversions.time_message(time.time_ns())
        inputs.on_image("wrist", message, time.time_ns())
        assert inputs.streams["wrist"].problem == ""
    assert inputs.buffer.drops["wrist", "damaged"] == 3 and inputs.buffer.held("wrist") == 2
    inputs.on_joint_state(states(ur5e, time.time_ns(), 0.0), time.time_ns())
    assert "sends damaged JPEGs" in inputs.stale(time.time_ns() + 10**10, time.monotonic())


@pytest.mark.parametrize(
    ("offset_s", "words"),
    [
        (-3600.0, ("3600.00 s behind", "does not grow", "chrony")),
        (-1.0e9, ("1000000000.00 s behind", "1970")),
        (5.0, ("5.00 s ahead of this node's clock", "synchronise")),
        (None, ("stamps of zero",)),
    ],
)
@pytest.mark.parametrize("what", ["Camera 'wrist'", "joint_states"])
def test_stamps_that_are_off_are_named_with_offset_and_remedy(ur5e, offset_s, words, what):
    inputs = inputs_of(ur5e)
    inputs.on_instruction("pick up the milk")
    inputs.clear(time.time_ns())  # ~/start was called: nothing from before it counts
    for _ in range(3):
        now = time.time_ns()
        wrong = 0 if offset_s is None else now + round(offset_s * 1e9)
        inputs.on_joint_state(states(ur5e, wrong if what == "joint_states" else now, 0.0), now)
        inputs.on_image("wrist", picture(now if what == "joint_states" else wrong), now)
    sentence = inputs.problem() or inputs.stale(time.time_ns())
    assert sentence.startswith(what) and all(word in sentence for word in words), sentence
    assert sentence.endswith(".") and ". " not in sentence


def test_a_conversion_is_said_once(ur5e):
    said: list[str] = []
    inputs = inputs_of(ur5e, said=said)
    for _ in range(3):
        inputs.on_image("wrist", picture(time.time_ns(), "yuv422_yuy2"), time.time_ns())
    assert inputs.buffer.held("wrist") and len(said) == 1 and "yuv422_yuy2, which is converted" in said[0]


@pytest.mark.parametrize("lockstep", [False, True])
def test_another_device_on_joint_states_is_ignored_while_the_arm_is_heard(ur5e, lockstep):
    patient = replace(ur5e, max_age_s=10.0)
    inputs = inputs_of(patient, lockstep)
    other = JointState(name=["lift"], position=[float("nan")])
    sample, _ = inputs.on_joint_state(states(ur5e, time.time_ns(), 0.0), time.time_ns())
    assert sample is not None
    assert inputs.on_joint_state(other, time.time_ns()) == (None, "")
    assert inputs.sample is sample and inputs.streams["joint_states"].problem == ""
    assert inputs.drops["joint_states_of_others"] == 1
    quiet = inputs_of(patient, lockstep)
    quiet.on_joint_state(other, time.time_ns())
    assert "lacks" in quiet.streams["joint_states"].problem


@pytest.mark.parametrize("compressed", [False, True])
def test_what_a_topic_carries_instead_of_pictures_is_told(compressed):
    cameras = {"wrist": CameraParameters("wrist/image", compressed, 0, 0, 0)}
    found: set[str] = set()
    buffers = {"wrist": FrameBuffer(("wrist",))}
    inputs = CameraInputs(cameras, buffers, 0.06, 0.25, True, kinds={"wrist/image": found}.__getitem__)
    assert "start its driver or correct the topic" in inputs.stale(0)
    found.add("ffmpeg_image_transport_msgs/msg/FFMPEGPacket")
    assert inputs.stale(0).endswith("which carries ffmpeg_image_transport_msgs/msg/FFMPEGPacket: correct the topic.")
    found.add("sensor_msgs/msg/Image" if compressed else "sensor_msgs/msg/CompressedImage")
    assert f"set cameras.wrist.compressed to {str(not compressed).lower()}, or correct the topic." in inputs.stale(0)
    found |= {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"}
    assert "start its driver or correct the topic" in inputs.stale(0), "there is one who sends what is looked for"


@pytest.mark.parametrize("judge_age", [False, True])
def test_a_picture_that_nobody_foresaw_is_dropped_and_told(monkeypatch, judge_age):
    """What a callback raises ends the node, and with it the arm's commands in the middle of a motion."""
    buffer = FrameBuffer(("wrist",))
    inputs = CameraInputs(CAMERAS, {"wrist": buffer}, 0.05, 1.0, judge_age)
    picture = Image(height=2, width=2, encoding="rgb8", step=6, data=array.array("B", bytes(12)))
    now_ns = 10**18
    picture.header.stamp = conversions.time_message(now_ns)

    def fails(*_: object) -> None:
        raise KeyError(6)

    with monkeypatch.context() as patch:
        patch.setattr(conversions, "image_array", fails)
        assert inputs.on_image("wrist", picture, now_ns) == ""
    told = inputs.streams["wrist"].problem or inputs.stale(now_ns)
    assert told.startswith("Camera 'wrist' sends a picture that cannot be read (KeyError: 6): ")
    assert buffer.drops[("wrist", "damaged")] == 1
    assert inputs.on_image("wrist", picture, now_ns) == "" and not inputs.stale(now_ns)
    assert not inputs.streams["wrist"].problem
