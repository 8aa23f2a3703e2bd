"""What belongs to a picture is kept with it as it comes, however long the model takes before it looks."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import Image
from test_calibration import HEIGHT, WIDTH, info, views_of

from vega3d_ros.ros import conversions
from vega3d_ros.scene.views import Views

PERIOD_NS = 33_333_333
BEGIN_NS = 1_700_000_000 * 10**9


def depth_message(number: int, stamp_ns: int) -> Image:
    """(HEIGHT, WIDTH) 32FC1, m: everywhere as far as the number says."""
    message = Image(height=HEIGHT, width=WIDTH, encoding="32FC1", step=4 * WIDTH)
    message.header.stamp = conversions.time_message(stamp_ns)
    message.data = np.full((HEIGHT, WIDTH), 1.0 + number, np.float32).tobytes()
    return message


def picture(views: Views, number: int) -> None:
    stamp_ns = BEGIN_NS + number * PERIOD_NS
    image = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
    views.on_image("eye", conversions.image_message(image, stamp_ns, ""), stamp_ns)


def depth(views: Views, number: int) -> None:
    stamp_ns = BEGIN_NS + number * PERIOD_NS
    views.on_depth("eye", depth_message(number, stamp_ns), stamp_ns)


def pose(views: Views, number: int, stamped: bool = True) -> None:
    stamp_ns = BEGIN_NS + number * PERIOD_NS if stamped else 0
    place, upright = np.array([float(number), 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])
    views.on_pose("eye", conversions.pose_message(place, upright, stamp_ns, "world"))


def taken(views: Views) -> tuple[int, float | None, float | None]:
    """(number of the picture, that of its depth, that of its pose) of the view that is due."""
    view = views.next()
    assert view is not None and view.intrinsics is not None
    far = None if view.depth is None else float(view.depth[0, 0]) - 1.0
    return int(view.image[0, 0, 0]), far, None if view.camera_to_world is None else float(view.camera_to_world[0, 3])


def test_a_picture_that_waits_for_the_model_keeps_its_depth_and_its_pose() -> None:
    views = views_of(depth="eye/depth", pose="eye/pose")
    views.on_info("eye", info())
    for number in range(60):  # nobody looks for two seconds
        picture(views, number)
        depth(views, number)
        pose(views, number)
    assert taken(views) == (0, 0.0, 0.0) and views.problem("eye") == ""
    for number in range(60, 120):  # the pose may also come first
        pose(views, number)
        depth(views, number)
        picture(views, number)
    assert taken(views) == (60, 60.0, 60.0) and views.problem("eye") == ""


def test_a_pose_without_a_stamp_is_that_of_the_moment_at_which_the_picture_came() -> None:
    views = views_of(depth="eye/depth", pose="eye/pose")
    views.on_info("eye", info())
    for number in range(30):
        pose(views, number, stamped=False)
        picture(views, number)
        depth(views, number)
    assert taken(views) == (0, 0.0, 0.0)


def test_the_depth_of_the_picture_before_is_not_that_of_a_picture_whose_own_is_on_its_way() -> None:
    views = views_of(depth="eye/depth", pose="eye/pose", patience_s=3600.0)
    views.on_info("eye", info())
    pose(views, 0, stamped=False)
    depth(views, 0)
    picture(views, 1)
    assert views.next() is None
    depth(views, 1)
    assert taken(views) == (1, 1.0, 0.0)


def test_what_is_kept_of_poses_does_not_grow() -> None:
    views = views_of(pose="eye/pose")
    for number in range(1000):
        pose(views, number)
    assert len(views._cameras["eye"].poses) <= 256


def test_after_the_clock_was_set_back_the_newest_pose_holds_on() -> None:
    """One that was latched before would come to be in the future, and an obsolete one to hold."""
    views = views_of(pose="eye/pose")
    views.on_info("eye", info())
    pose(views, 10)
    pose(views, 200)  # the camera was moved, and told once
    picture(views, 210)
    assert taken(views)[2] == 200.0
    picture(views, 100)
    assert views.jump and taken(views)[2] == 200.0
    views.clear()
    picture(views, 101)
    assert taken(views)[2] == 200.0
    pose(views, 102)
    picture(views, 103)
    assert taken(views)[2] == 102.0
