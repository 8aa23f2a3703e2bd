"""Messages become exactly the arrays they stand for, or one sentence."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from policies.types import VegaError
from vega3d_ros.control.control_loop import JointCommand, JointSample
from vega3d_ros.ros import conversions

ORDERS = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2], "bgra8": [2, 1, 0]}
finite = st.floats(-1e6, 1e6, allow_nan=False)


def raw(image: np.ndarray, encoding: str, padding: int = 0, big_endian: int = 0) -> Image:
    """The message a driver would send for an RGB image."""
    height, width, _ = image.shape
    channels = image[:, :, ORDERS[encoding]]
    if encoding.endswith("a8"):
        channels = np.concatenate([channels, np.full((height, width, 1), 77, np.uint8)], axis=2)
    rows = channels.reshape(height, -1)
    rows = np.concatenate([rows, np.full((height, padding), 99, np.uint8)], axis=1)
    message = Image(height=height, width=width, encoding=encoding, step=rows.shape[1], is_bigendian=big_endian)
    message.data = array.array("B", rows.tobytes())
    return message


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(ORDERS)), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 1),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_colour_encoding_with_padded_rows_gives_the_same_rgb(encoding, height, width, padding, big_endian, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    message = deserialize_message(serialize_message(raw(image, encoding, padding, big_endian)), Image)
    np.testing.assert_array_equal(conversions.image_array(message, "wrist"), image)


@given(st.integers(0, 2**31 * 10**9 - 1), st.integers(1, 5), st.integers(1, 5))
def test_images_survive_the_round_trip(ns, height, width):
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    message = conversions.image_message(image, ns, "wrist")
    assert conversions.stamp_ns(message.header.stamp) == ns
    np.testing.assert_array_equal(conversions.image_array(message, "wrist"), image)


@pytest.mark.parametrize("encoding", ["mono8", "16UC1", "8UC3", "32FC1", "bayer_rggb12", "", "x" * 10_000])
def test_encodings_without_colour_are_refused_by_name(encoding):
    message = conversions.image_message(np.zeros((4, 4, 3), np.uint8), 0)
    message.encoding = encoding
    with pytest.raises(VegaError, match=r"Camera 'wrist' sends encoding .*rgb8.*\.$") as caught:
        conversions.image_array(message, "wrist")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "change", [{"height": 5}, {"step": 3}, {"width": 0}, {"data": array.array("B", b"\x00" * 7)}, {"step": 2**32 - 1}]
)
def test_sizes_that_contradict_the_data_are_refused(change):
    message = conversions.image_message(np.zeros((4, 4, 3), np.uint8), 0)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(VegaError, match="correct its driver"):
        conversions.image_array(message, "wrist")


def compressed(pixels: np.ndarray, kind: str) -> CompressedImage:
    ok, data = cv2.imencode(f".{kind}", pixels)
    assert ok
    return CompressedImage(format=kind, data=array.array("B", data.tobytes()))


def test_png_is_exact_and_jpeg_close():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[::-1], (48, 1)), np.full((48, 64), 40, np.uint8)], axis=2)
    bgr = image[:, :, ::-1]
    np.testing.assert_array_equal(conversions.compressed_image_array(compressed(bgr, "png"), "wrist"), image)
    jpeg = conversions.compressed_image_array(compressed(bgr, "jpg"), "wrist")
    assert np.abs(jpeg.astype(int) - image).mean() < 3
    alpha = np.dstack([bgr, np.full(bgr.shape[:2], 9, np.uint8)])
    np.testing.assert_array_equal(conversions.compressed_image_array(compressed(alpha, "png"), "wrist"), image)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff\xe0" + b"\x00" * 40])
def test_broken_compression_is_one_sentence(data):
    with pytest.raises(VegaError, match=r"no JPEG or PNG|damaged JPEG"):
        conversions.compressed_image_array(CompressedImage(format="jpeg", data=array.array("B", data)), "wrist")


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_compressed_grey_is_refused(kind):
    with pytest.raises(VegaError, match="without colour"):
        conversions.compressed_image_array(compressed(np.zeros((4, 4), np.uint8), kind), "wrist")


@given(st.lists(finite, min_size=4, max_size=4), st.lists(finite, min_size=2, max_size=2), st.permutations(range(4)))
def test_joints_are_found_by_name_in_any_order(values, velocities, order):
    names = ["j1", "j2", "finger", "stranger"]
    message = JointState(
        name=[names[i] for i in order],
        position=[values[i] for i in order],
        velocity=[([*velocities, 0.0, 0.0])[i] for i in order],
    )
    sample = conversions.joint_sample(message, ["j1", "j2"], ["finger"])
    assert sample.positions.tolist() == values[:2]
    assert sample.velocities.tolist() == velocities
    assert sample.gripper_positions.tolist() == [values[2]]


@given(st.lists(finite, min_size=3, max_size=3), st.integers(0, 10**18))
def test_joint_states_survive_the_round_trip_bit_for_bit(values, ns):
    sample = JointSample(ns, np.array(values[:2]), np.array(values[1:]), np.array(values[2:]))
    message = conversions.joint_state_message(sample, ["j1", "j2"], ["finger"])
    back = conversions.joint_sample(
        deserialize_message(serialize_message(message), JointState), ["j1", "j2"], ["finger"]
    )
    assert back.stamp_ns == ns
    for name in ("positions", "velocities", "gripper_positions"):
        assert getattr(back, name).tobytes() == getattr(sample, name).tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ["j1", "elbow", "finger"]}, r"lacks \['j2'\] and has \['j1', 'elbow'"),
        ({"name": ["j1", "j1", "finger"]}, r"lacks \['j2'\]"),
        ({"name": ["j1", "j2", "finger", "j2"], "position": [0.0] * 4, "velocity": [0.0] * 4}, "twice"),
        ({"velocity": []}, "0 velocities"),
        ({"position": [0.0, float("nan"), 0.0]}, "NaN"),
        ({"velocity": [0.0, float("inf"), 0.0]}, "NaN"),
        ({"name": ["long" * 1000] * 500, "position": [], "velocity": []}, "lacks"),
    ],
)
def test_joint_states_that_do_not_fit_are_one_sentence(change, words):
    message = JointState(name=["j1", "j2", "finger"], position=[0.0] * 3, velocity=[0.0] * 3)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(VegaError, match=words) as caught:
        conversions.joint_sample(message, ["j1", "j2"], ["finger"])
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 700


def command(gripper: float = 1.0) -> JointCommand:
    return JointCommand(1_050_000_000, np.array([0.1, 1 / 3]), np.array([-0.2, 2 / 3]), gripper, 0.05)


def test_a_command_is_one_point_that_names_the_state_it_answers():
    message, apart = conversions.command_messages(command(), ["j1", "j2"], "finger", 0.04, gripper_apart=False)
    message = deserialize_message(serialize_message(message), JointTrajectory)
    assert apart is None
    assert message.joint_names == ["j1", "j2", "finger"]
    assert conversions.stamp_ns(message.header.stamp) == 1_050_000_000
    (point,) = message.points
    assert list(point.positions) == [0.1, 1 / 3, 0.04]
    assert list(point.velocities) == [-0.2, 2 / 3, 0.0]
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (0, 50_000_000)


def test_a_gripper_of_its_own_gets_its_own_message_and_none_gets_none():
    arm, gripper = conversions.command_messages(command(), ["j1", "j2"], "finger", 0.04, gripper_apart=True)
    assert arm.joint_names == ["j1", "j2"] and gripper is not None
    assert gripper.joint_names == ["finger"] and list(gripper.points[0].positions) == [0.04]
    arm, gripper = conversions.command_messages(command(), ["j1", "j2"], "", 0.0, gripper_apart=False)
    assert arm.joint_names == ["j1", "j2"] and gripper is None


def test_nothing_that_is_not_a_number_reaches_the_wire():
    with pytest.raises(VegaError, match="not sent"):
        conversions.trajectory_message(0, ["j1"], [float("nan")], [0.0], 0.05)


def test_the_gripper_keeps_its_last_order_and_before_that_its_place():
    memory = conversions.GripperMemory(open_position=0.04, closed_position=0.0)
    orders = [(0.0, 0.017), (1.0, 0.0), (0.0, 0.0), (-0.3, 0.04), (0.0, 0.04)]
    assert [memory.position(order, 0.017) for order, _ in orders] == [place for _, place in orders]
    memory.reset()
    assert memory.position(0.0, 0.03) == 0.03


@given(st.lists(st.floats(-1, 1), min_size=7, max_size=7))
def test_base_poses_survive_the_round_trip_or_are_refused(values):
    position, quaternion = np.array(values[:3]), np.array(values[3:])
    norm = np.linalg.norm(quaternion)
    if norm > 1e-3:
        message = conversions.pose_message(position, quaternion / norm, 5)
        back = conversions.base_pose(message)
        assert back[0].tobytes() == position.tobytes() and back[1].tobytes() == (quaternion / norm).tobytes()
    if abs(norm - 1) > 2e-3:
        with pytest.raises(VegaError, match="base_pose"):
            conversions.base_pose(conversions.pose_message(position, quaternion, 0))


def test_a_gate_becomes_grey_from_0_to_255():
    message = conversions.gate_message(np.array([[0.0, 0.5], [1.0, 1.7]], np.float32), 3, "wrist")
    assert (message.encoding, message.height, message.width, message.header.frame_id) == ("mono8", 2, 2, "wrist")
    assert list(message.data) == [0, 128, 255, 255]


def test_a_time_before_zero_is_refused():
    with pytest.raises(VegaError, match="before 0"):
        conversions.time_message(-1)
