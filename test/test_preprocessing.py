"""Images, state and actions on their way into and out of OpenVLA-OFT; the exact numbers are in test_check_parity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from policies.openvla import preprocessing as pre
from policies.types import VegaError

finite = st.floats(-10, 10, allow_nan=False)


@given(st.lists(st.tuples(finite, st.floats(0.01, 5), st.floats(-1, 1)), min_size=1, max_size=14), st.data())
def test_actions_come_back_from_normalisation(numbers, data):
    low, width, unit = (np.array(x) for x in zip(*numbers, strict=True))
    bounds = {"min": low, "max": low + width, "q01": low, "q99": low + width}
    kind = data.draw(st.sampled_from(["bounds", "bounds_q99"]))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(low), max_size=len(low))))
    actions = pre.unnormalize_actions(unit, {"action": bounds | {"mask": mask}}, kind)
    np.testing.assert_array_equal(actions[~mask], unit[~mask])
    back = pre.normalize_proprio(actions, {"proprio": bounds}, kind)
    np.testing.assert_allclose(back[mask], unit[mask], atol=1e-5)
    assert np.abs(back).max() <= 1
    # As the reference: what the state's own mask leaves out is clipped alone.
    as_they_are = pre.normalize_proprio(actions, {"proprio": bounds | {"mask": mask}}, kind)
    np.testing.assert_array_equal(as_they_are, np.where(mask, back, np.clip(actions, -1, 1)))


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1 and q[3] > 1e-3))
def test_axis_angle_is_the_rotation_vector(quaternion):
    unit = np.array(quaternion) / np.linalg.norm(quaternion)
    np.testing.assert_allclose(pre.axis_angle(unit), Rotation.from_quat(unit).as_rotvec(), atol=2e-4)


def test_axis_angle_keeps_the_sign_of_the_quaternion():
    quaternion = Rotation.from_rotvec([0.3, 0, 0]).as_quat()
    np.testing.assert_allclose(pre.axis_angle(-quaternion), [-(2 * np.pi - 0.3), 0, 0], atol=1e-9)
    assert not pre.axis_angle(np.array([0.0, 0.0, 0.0, 1.0])).any()


@given(st.integers(40, 300), st.integers(40, 300), st.integers(0, 255))
def test_a_plain_image_of_any_size_stays_plain(height, width, level):
    image = pre.policy_image(np.full((height, width, 3), level, np.uint8))
    assert image.shape == (224, 224, 3)
    assert np.abs(image.astype(int) - level).max() <= 1


def test_crop_shows_the_middle():
    ramp = np.repeat(np.linspace(0, 255, 224)[None, :, None], 224, 0).repeat(3, 2)
    cropped = pre.centre_crop(np.rint(ramp).astype(np.uint8)).astype(float)
    margin = (1 - np.sqrt(pre.CROP_AREA)) / 2
    assert cropped[0, 0, 0] == pytest.approx(255 * margin, abs=1.5)
    assert cropped[0, -1, 0] == pytest.approx(255 * (1 - margin), abs=1.5)


def test_orientations():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(pre.rotate_180(image)[0, 0], image[1, 2])
    np.testing.assert_array_equal(pre.mirror(image[::-1]), pre.rotate_180(image))


def test_pixel_values_serve_each_tower():
    image = np.zeros((8, 8, 3), np.uint8)
    values = pre.pixel_values([image, image + 255])
    assert values.shape == (12, 8, 8) and values.dtype == np.float32
    (mean, std), _ = pre.DINOV2_MEAN_STD, pre.SIGLIP_MEAN_STD
    np.testing.assert_allclose(values[:3, 0, 0], -np.array(mean) / std, rtol=1e-6)
    np.testing.assert_allclose(values[9:, 0, 0], 1.0)


@given(st.floats(-2, 2).filter(lambda g: g != 0.5))
def test_gripper_closes_for_zero_and_opens_for_one(value):
    actions = np.full((3, 7), 0.25)
    actions[:, -1] = value
    converted = pre.libero_gripper(actions)
    assert (converted[:, -1] == (-1 if value > 0.5 else 1)).all()
    assert (converted[:, :-1] == 0.25).all() and (actions[:, -1] == value).all()


def test_prompt_ends_as_in_training():
    assert pre.prompt("Pick up the Milk") == "In: What action should the robot take to pick up the milk?\nOut:"
    assert pre.with_empty_token([1, 5]) == [1, 5, pre.EMPTY_TOKEN] == pre.with_empty_token([1, 5, pre.EMPTY_TOKEN])


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), [[1]]]
)
def test_a_bad_image_is_named(image):
    with pytest.raises(VegaError, match="image"):
        pre.policy_image(image)


def test_bad_statistics_are_named():
    with pytest.raises(VegaError, match=r"\['a', 'b'\]"):
        pre.statistics_for({"b": 1, "a": 2}, "libero")
    bounds = {"q01": [0.0] * 7, "q99": [1.0] * 7}
    with pytest.raises(VegaError, match="8 numbers"):
        pre.normalize_proprio(np.zeros(8), {"proprio": bounds})
    for what, use in (("action", pre.unnormalize_actions), ("proprio", pre.normalize_proprio)):
        with pytest.raises(VegaError, match=rf"The {what} statistics have a mask \[1, 0\]: give 7 times true or false"):
            use(np.zeros(7), {what: bounds | {"mask": [1, 0]}})
    with pytest.raises(VegaError, match="'min'"):
        pre.unnormalize_actions(np.zeros(7), {"action": bounds}, "bounds")
    with pytest.raises(VegaError, match="'q01' above 'q99' in number 2"):
        pre.unnormalize_actions(np.zeros(3), {"action": {"q01": [0.0, 0, 2], "q99": [1.0, 0, 1]}})
    with pytest.raises(VegaError, match="quantile"):
        pre.unnormalize_actions(np.zeros(7), {"action": bounds}, "quantile")
