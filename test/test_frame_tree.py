"""Frames as tf tells them: chains as Pinocchio composes them, times between two transforms, and what is refused."""

from __future__ import annotations

import numpy as np
import pinocchio as pin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.types import VegaError
from vega3d_ros.control.frame_tree import FrameTree
from vega3d_ros.control.images import depth_from_raw


def _pose(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    quaternion = generator.normal(size=4)
    return generator.normal(size=3), quaternion / np.linalg.norm(quaternion)


def se3(pose: tuple[np.ndarray, np.ndarray]) -> pin.SE3:
    x, y, z, w = pose[1]
    return pin.SE3(pin.Quaternion(w, x, y, z).matrix(), pose[0])


seeds = st.integers(0, 2**32 - 1)


@given(seeds, seeds, seeds, st.booleans())
def test_what_hangs_together_is_composed(one: int, two: int, three: int, fixed: bool) -> None:
    tree, (a, b, c) = FrameTree(), map(_pose, (one, two, three))
    tree.take("world", "base", 5, *a, fixed=True)
    tree.take("base", "hand", 7, *b, fixed=fixed)
    tree.take("world", "table", 7, *c)
    expected = (se3(a) * se3(b)).homogeneous
    assert np.allclose(tree.lookup("world", "hand", 7), expected, atol=1e-9)
    assert np.allclose(tree.lookup("hand", "world", 7), np.linalg.inv(expected), atol=1e-9)
    beside = (se3(c).inverse() * se3(a) * se3(b)).homogeneous
    assert np.allclose(tree.lookup("table", "hand", 7), beside, atol=1e-9)
    assert np.array_equal(tree.lookup("hand", "hand", 7), np.eye(4))


@given(seeds, seeds, st.floats(0.0, 1.0))
def test_between_two_transforms_it_is_interpolated(one: int, two: int, share: float) -> None:
    tree, (a, b) = FrameTree(), map(_pose, (one, two))
    # In either order, as messages may come.
    tree.take("world", "hand", 2_000_000, *b)
    tree.take("world", "hand", 1_000_000, *a)
    stamp = 1_000_000 + round(share * 1_000_000)
    share = (stamp - 1_000_000) / 1_000_000
    found = tree.lookup("world", "hand", stamp)
    assert np.allclose(found[:3, 3], (1 - share) * a[0] + share * b[0], atol=1e-9)
    turn = pin.Quaternion(se3(a).rotation).slerp(share, pin.Quaternion(se3(b).rotation))
    assert np.allclose(found[:3, :3], turn.matrix(), atol=1e-6)


def test_what_is_not_known_is_said() -> None:
    tree, pose = FrameTree(), (np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))
    with pytest.raises(VegaError, match=r"does not connect 'hand' with 'world'.*\.$"):
        tree.lookup("world", "hand", 0)
    tree.take("world", "hand", 1_000_000_000, *pose)
    with pytest.raises(VegaError, match=r"ends 0\.50 s before"):
        tree.lookup("world", "hand", 1_500_000_000)
    with pytest.raises(VegaError, match=r"begins 0\.25 s after"):
        tree.lookup("world", "hand", 750_000_000)
    tree.take("world", "hand", 20_000_000_000, *pose)
    with pytest.raises(VegaError, match="begins"):
        tree.lookup("world", "hand", 1_000_000_000)  # forgotten after ten seconds
    with pytest.raises(VegaError, match="no rotation"):
        tree.take("world", "hand", 0, np.zeros(3), np.zeros(4))
    tree.take("hand", "world", 20_000_000_000, *pose)
    with pytest.raises(VegaError, match="does not connect") as caught:
        tree.lookup("a\nb", "\u202eworld", 0)
    assert str(caught.value).isprintable()
    with pytest.raises(VegaError, match="circle"):
        tree.lookup("table", "hand", 20_000_000_000)
    tree.clear()
    with pytest.raises(VegaError, match="does not connect"):
        tree.lookup("world", "hand", 20_000_000_000)


def test_a_transform_from_before_a_clock_was_set_back_keeps_no_later_one_out() -> None:
    tree, (late, early) = FrameTree(), map(_pose, (1, 2))
    tree.take("world", "hand", 100_000_000_000, *late)
    tree.take("world", "base", 100_000_000_000, *late, fixed=True)
    for stamp in (1_000_000_000, 2_000_000_000):
        tree.take("world", "hand", stamp, *early)
    assert np.allclose(tree.lookup("world", "hand", 1_500_000_000), se3(early).homogeneous)
    assert np.allclose(tree.lookup("world", "base", 1_500_000_000), se3(late).homogeneous)
    with pytest.raises(VegaError, match="ends"):
        tree.lookup("world", "hand", 100_000_000_000)


@pytest.mark.parametrize("big_endian", [False, True])
def test_depth_is_metres_and_its_holes_are_holes(big_endian: bool) -> None:
    order = ">" if big_endian else "<"
    millimetres = np.array([[0, 1500], [250, 65535]], order + "u2")
    padded = np.hstack([millimetres.view("u1"), np.zeros((2, 3), np.uint8)]).tobytes()
    depth = depth_from_raw(padded, 2, 2, 7, "16UC1", big_endian, "eye")
    assert np.allclose(depth, [[np.nan, 1.5], [0.25, 65.535]], equal_nan=True) and depth.dtype == np.float32
    metres = np.array([[np.inf, -1.0], [np.nan, 2.5]], order + "f4")
    depth = depth_from_raw(metres.tobytes(), 2, 2, 8, "32FC1", big_endian, "eye")
    assert np.allclose(depth, [[np.nan, np.nan], [np.nan, 2.5]], equal_nan=True)
    with pytest.raises(VegaError, match=r"is 1500 m in the middle, which looks like millimetres .*\.$"):
        depth_from_raw(np.full((9, 9), 1500.0, order + "f4").tobytes(), 9, 9, 36, "32FC1", big_endian, "eye")
    for data, step, encoding, words in ((b"123", 4, "16UC1", "3 bytes"), (bytes(12), 6, "rgb8", "16UC1")):
        with pytest.raises(VegaError, match=words):
            depth_from_raw(data, 2, 2, step, encoding, False, "eye")
