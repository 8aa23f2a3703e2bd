"""Which matrix a camera_info means, and what is taken for no calibration of a camera's pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest

from policies.types import SceneView, VegaError
from vega3d_ros.ros import conversions
from vega3d_ros.ros.node_parameters import CameraParameters
from vega3d_ros.scene.settings import Places, SceneSettings
from vega3d_ros.scene.views import Views

K = np.array([[60.0, 0.0, 33.0], [0.0, 58.0, 22.0], [0.0, 0.0, 1.0]])
P = np.array([[50.0, 0.0, 31.0, 0.0], [0.0, 49.0, 25.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
HEIGHT, WIDTH = 48, 64


def info(**fields: object) -> CameraInfo:
    values = {"height": HEIGHT, "width": WIDTH, "k": K.ravel().tolist(), "p": P.ravel().tolist(), **fields}
    return CameraInfo(**values)


def views_of(
    topic: str = "eye/image_raw",
    depth: str = "",
    pose: str = "",
    say: Callable[[str], object] = print,
    patience_s: float = 0.0,
) -> Views:
    """Of one camera, which does not wait for what belongs to a picture where nothing else is said."""
    settings = SceneSettings(
        model="red", framing="auto", max_tokens=16, device="cpu", threads=1, hardware_id="arm", frames=8, every_s=0.0,
        world_frame="world", tf=False, answer_timeout_s=1.0, max_skew_s=0.06, max_age_s=0.25,
        cameras={"eye": CameraParameters(topic, False, 0, 0, 0)},
        places={"eye": Places(depth, "eye/camera_info", pose)},
    )  # fmt: skip
    return Views(settings, False, say, patience_s)


def show(views: Views, stamp_ns: int = 1, height: int = HEIGHT, width: int = WIDTH, frame: str = "eye") -> SceneView:
    views.on_image("eye", conversions.image_message(np.zeros((height, width, 3), np.uint8), stamp_ns, frame), stamp_ns)
    view = views.next()
    assert view is not None
    return view


@pytest.mark.parametrize(
    ("topic", "matrix"),
    [("eye/image_raw", K), ("eye/image_rect/compressed", P[:, :3]), ("/eye/image_rect_color", P[:, :3])],
)
def test_a_rectified_picture_has_the_matrix_of_the_projection(topic: str, matrix: np.ndarray) -> None:
    views = views_of(topic)
    views.on_info("eye", info())
    assert np.array_equal(show(views).intrinsics, matrix)
    views.on_info("eye", info(p=[0.0] * 12))
    assert np.array_equal(show(views, 2).intrinsics, K), "no projection is given"


def test_a_part_of_the_sensor_and_binned_pixels_have_a_matrix_of_their_own() -> None:
    views = views_of()
    whole = info(roi=RegionOfInterest(x_offset=8, y_offset=4, width=40, height=32), binning_x=2, binning_y=2)
    views.on_info("eye", whole)
    seen = show(views, height=16, width=20)
    # The ray through the sensor's pixel (8 + 2 * 5, 4 + 2 * 3) is the one through the picture's (5, 3).
    rays = np.linalg.inv(K) @ [18.0, 10.0, 1.0], np.linalg.inv(seen.intrinsics) @ [5.0, 3.0, 1.0]
    assert np.allclose(*rays) and views.problem("eye") == ""
    # A driver that bins and tells of what it sends.
    views = views_of()
    views.on_info("eye", info(binning_x=2, binning_y=2))
    assert np.array_equal(show(views).intrinsics, K)
    views = views_of()
    views.on_info("eye", info())
    assert show(views, height=24, width=32).intrinsics is None
    assert "camera_info of 64x48 and pictures of 32x24: publish that of the same picture" in views.problem("eye")


def test_a_lens_that_bends_raw_pictures_is_told_of_once() -> None:
    said: list[str] = []
    for topic, d in (("eye/image_raw", [0.0] * 5), ("eye/image_rect", [0.2] * 5), ("eye/image_raw", [0.2] * 5)):
        views = views_of(topic, say=said.append)
        for _ in range(2):
            views.on_info("eye", info(d=d))
    assert len(said) == 1 and "bends its pictures on 'eye/image_raw'" in said[0]
    assert np.array_equal(show(views).intrinsics, K), "it is told, and seen all the same"


@pytest.mark.parametrize(("frame", "right"), [("world", True), ("/world", True), ("map", False)])
def test_a_pose_counts_in_the_frame_of_the_scene_with_or_without_a_slash(frame: str, right: bool) -> None:
    views, pose = views_of(pose="eye/pose"), PoseStamped()
    pose.header.frame_id, pose.pose.orientation.w, pose.pose.position.x = frame, 1.0, 0.5
    views.on_pose("eye", pose)
    seen = show(views).camera_to_world
    assert (seen is not None and seen[0, 3] == 0.5) if right else seen is None


@pytest.mark.parametrize("focal", [0.9375, 2.8, 1e6])
def test_a_focal_length_in_another_unit_than_pixels_is_told(focal: float) -> None:
    views = views_of()
    views.on_info("eye", info(k=(np.diag([focal, focal, 1.0])).ravel().tolist()))
    assert show(views).intrinsics is None
    assert f"focal length of {focal:.4g} for 64 pixels" in views.problem("eye")
    views.on_info("eye", info())
    assert np.array_equal(show(views, 2).intrinsics, K) and views.problem("eye") == "", "it is right again"


@pytest.mark.parametrize(("picture", "other"), [("eye", "depth_optical_frame"), ("/eye", "/depth_optical_frame")])
def test_depth_and_calibration_of_another_frame_are_not_those_of_the_picture(picture: str, other: str) -> None:
    views = views_of(depth="eye/depth")

    def measured(stamp_ns: int, frame: str) -> None:
        message = Image(height=HEIGHT, width=WIDTH, encoding="32FC1", step=4 * WIDTH)
        message.header.frame_id, message.header.stamp = frame, conversions.time_message(stamp_ns)
        message.data = np.ones((HEIGHT, WIDTH), np.float32).tobytes()
        views.on_depth("eye", message, stamp_ns)

    def calibrated(frame: str) -> None:
        message = info()
        message.header.frame_id = frame
        views.on_info("eye", message)

    measured(1, other)
    calibrated(picture)
    seen = show(views, 1, frame=picture)
    assert seen.depth is None and seen.intrinsics is not None
    said = "has depth of frame 'depth_optical_frame' and pictures of frame 'eye': register the depth"
    assert said in views.problem("eye") and views.problem("eye").endswith(".")
    measured(2, "eye")
    calibrated(other)
    seen = show(views, 2, frame=picture)
    assert seen.depth is not None and seen.intrinsics is None
    assert "has camera_info of frame 'depth_optical_frame'" in views.problem("eye")
    for stamp, frame in ((3, "eye"), (4, "")):  # what names no frame is believed
        measured(stamp, frame)
        calibrated(frame)
        seen = show(views, stamp, frame=picture)
        assert seen.depth is not None and seen.intrinsics is not None and views.problem("eye") == ""


def test_a_camera_that_was_not_calibrated_is_told() -> None:
    with pytest.raises(VegaError, match=r"no focal length: calibrate the camera\.$"):
        conversions.intrinsics(info(k=[0.0] * 9), "eye")
