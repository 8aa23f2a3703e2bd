"""ROS messages <-> arrays.  Every refusal is a VegaError of one sentence; nothing is guessed or padded.

Stamps become integer nanoseconds; images become (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import array
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState
from sensor_msgs.msg import Image as ImageMessage
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from policies.types import FloatArray, Image, VegaError
from vega3d_ros.control import images
from vega3d_ros.control.control_loop import JointCommand, JointSample

# Of a picture's side, in its pixels: angles of view from 169 degrees down to half a degree.
SHORTEST_FOCAL, LONGEST_FOCAL = 0.05, 100.0


def stamp_ns(stamp: Time) -> int:
    """Nanoseconds of a header stamp."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def time_message(ns: int) -> Time:
    """Header stamp of `ns` nanoseconds; a time before 0 is refused, as ROS has none."""
    if ns < 0:
        raise VegaError(f"The time {ns} ns lies before 0: use a clock that starts at 0 or later.")
    return Time(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)


def duration_message(seconds: float) -> Duration:
    """ROS duration of a non-negative number of seconds."""
    ns = round(seconds * 1e9)
    return Duration(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)


def image_array(message: ImageMessage, camera: str) -> Image:
    """(H, W, 3) uint8 RGB of a raw image; which encodings are taken, and why not all, says `images.py`."""
    size = int(message.height), int(message.width), int(message.step)
    return images.from_raw(message.data, *size, message.encoding, bool(message.is_bigendian), camera)


def depth_array(message: ImageMessage, camera: str) -> NDArray[np.float32]:
    """(H, W) float32 m of a raw depth image, NaN where nothing was measured."""
    size = int(message.height), int(message.width), int(message.step)
    return images.depth_from_raw(message.data, *size, message.encoding, bool(message.is_bigendian), camera)


def intrinsics(message: CameraInfo, camera: str, rectified: bool = False) -> dict[tuple[int, int], FloatArray]:
    """Size (height, width) of a picture -> its (3, 3) matrix, px: of a calibration's whole picture, and of its part.

    As image_geometry reads it: P counts for a rectified picture, where it is given, and K for a raw one.  Both are of
    the whole sensor, of which a picture may show the region of interest, and `binning` of whose pixels may make one.
    Drivers that bin and give what holds of the binned picture are known by that picture's size.  Raises VegaError for a
    camera that was not calibrated.
    """
    matrix, height, width = np.array(message.k, dtype=np.float64).reshape(3, 3), int(message.height), int(message.width)
    projection = np.array(message.p, dtype=np.float64).reshape(3, 4)[:, :3]
    if rectified and projection[0, 0] > 0.0:
        matrix = projection
    if not np.all(np.isfinite(matrix)) or matrix[0, 0] <= 0.0 or matrix[1, 1] <= 0.0:
        raise VegaError(f"The camera_info of camera '{camera}' has no focal length: calibrate the camera.")
    for focal, side in ((matrix[0, 0], width), (matrix[1, 1], height)):
        if side and not SHORTEST_FOCAL * side <= focal <= LONGEST_FOCAL * side:
            raise VegaError(
                f"The camera_info of camera '{camera}' has a focal length of {focal:.4g} for {side} pixels, which is "
                "none in pixels: give it in pixels, with the size of the picture that it was calibrated with."
            )
    roi, binning = message.roi, (max(int(message.binning_x), 1), max(int(message.binning_y), 1))
    shown = (int(roi.height) or height) // binning[1], (int(roi.width) or width) // binning[0]
    part = matrix.copy()
    part[:2, 2] -= int(roi.x_offset), int(roi.y_offset)
    part[:2] /= np.array([[binning[0]], [binning[1]]])
    return {(height, width): matrix, shown: part}


def compressed_image_array(message: CompressedImage, camera: str) -> Image:
    """(H, W, 3) uint8 RGB of a JPEG or PNG; `images.DamagedImage` where it was damaged in transport."""
    return images.from_compressed(bytes(message.data), message.format, camera)


def image_message(image: NDArray[np.uint8], ns: int, frame_id: str = "") -> ImageMessage:
    """rgb8 from (H, W, 3) or mono8 from (H, W), uint8."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise VegaError(f"An image of {image.dtype} {image.shape} cannot be sent: give uint8 (H, W, 3) or (H, W).")
    message = ImageMessage()
    message.header.stamp = time_message(ns)
    message.header.frame_id = frame_id
    message.height, message.width = int(image.shape[0]), int(image.shape[1])
    message.encoding = "rgb8" if image.ndim == 3 else "mono8"
    message.step = message.width * (3 if image.ndim == 3 else 1)
    # rclpy converts any other type element by element: 40 ms for a VGA frame instead of 0.3 ms.
    message.data = array.array("B", image.tobytes())
    return message


def gate_message(gate: NDArray[np.float32], ns: int, camera: str) -> ImageMessage:
    """mono8 of a gate map in [0, 1]: 255 where only the semantic stream speaks."""
    scaled = np.clip(np.rint(np.asarray(gate, dtype=np.float64) * 255.0), 0, 255)
    return image_message(scaled.astype(np.uint8), ns, camera)


def joint_sample(
    message: JointState, joint_names: Sequence[str], gripper_joints: Sequence[str], velocities: bool = True
) -> JointSample:
    """The named joints of one JointState, whatever their order: rad, rad/s; gripper joints in their own unit.

    velocities: whether the arm's must be there; where they need not, what is missing is NaN.
    """
    positions, rates = joint_values(message, tuple(joint_names), tuple(gripper_joints), velocities)
    arm = len(rates)
    stamp = stamp_ns(message.header.stamp)
    return JointSample(stamp, np.array(positions[:arm]), np.array(rates), np.array(positions[arm:]))


def joint_values(
    message: JointState, joint_names: tuple[str, ...], gripper_joints: tuple[str, ...], velocities: bool = True
) -> tuple[list[float], list[float]]:
    """What `joint_sample` is made of: positions of arm and gripper, velocities of the arm."""
    names = tuple(message.name)
    places = _places(names, (*joint_names, *gripper_joints))
    has_velocities = len(message.velocity) == len(names)
    if len(message.position) != len(names) or not (has_velocities or not velocities):
        raise VegaError(
            f"joint_states has {len(names)} names, {len(message.position)} positions and {len(message.velocity)} "
            "velocities: the driver must publish all three for every joint, or set velocity_filter_s in the robot's "
            "file if it has no velocities."
        )
    arm = places[: len(joint_names)]
    positions = [message.position[place] for place in places]
    rates = [message.velocity[place] for place in arm] if has_velocities else [math.nan] * len(arm)
    if not all(map(math.isfinite, (*positions, *(rates if velocities else ())))):
        raise VegaError("joint_states holds NaN or infinite values: check the robot's driver and encoders.")
    return positions, rates


@lru_cache(maxsize=16)  # a driver names its joints in the same order every time
def _places(names: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Where in `names` the wanted joints are.  Raises VegaError on what is missing or twice."""
    index = {name: i for i, name in enumerate(names)}
    missing = [name for name in wanted if name not in index]
    if missing:
        raise VegaError(
            f"joint_states lacks {missing} and has {_shorten(names)}: correct joint_names and gripper.joints in the "
            "robot's YAML."
        )
    if len(index) != len(names):
        raise VegaError(f"joint_states names a joint twice in {_shorten(names)}: correct the driver.")
    return tuple(index[name] for name in wanted)


def joint_state_message(sample: JointSample, joint_names: Sequence[str], gripper_joints: Sequence[str]) -> JointState:
    """The reverse of `joint_sample`; gripper velocities are 0, as a sample has none."""
    message = JointState()
    message.header.stamp = time_message(sample.stamp_ns)
    message.name = [*joint_names, *gripper_joints]
    message.position = array.array("d", [*sample.positions, *sample.gripper_positions])
    message.velocity = array.array("d", [*sample.velocities, *([0.0] * len(gripper_joints))])
    return message


def trajectory_message(
    stamp: int,
    names: Sequence[str],
    positions: Sequence[float] | FloatArray,
    velocities: Sequence[float] | FloatArray,
    period_s: float,
) -> JointTrajectory:
    """One point, to be reached `period_s` after the controller receives it; `stamp` (ns) names the state answered.

    Raises VegaError on values that are not finite, as the last check before the wire.
    """
    point = JointTrajectoryPoint()
    point.positions, point.velocities = array.array("d", positions), array.array("d", velocities)
    if not all(map(math.isfinite, (*point.positions, *point.velocities))):
        raise VegaError("A joint command holds NaN or infinite values and was not sent: report this with the log.")
    point.time_from_start = duration_message(period_s)
    message = JointTrajectory()
    message.header.stamp = time_message(stamp)
    message.joint_names = list(names)
    message.points = [point]
    return message


def command_messages(
    command: JointCommand,
    joint_names: Sequence[str],
    gripper_joint: str,
    gripper_position: float,
    gripper_apart: bool,
) -> tuple[JointTrajectory, JointTrajectory | None]:
    """The arm's trajectory and, where the gripper has its own controller, the gripper's.

    gripper_position: m, where the gripper joint shall be at the end of the period; see `GripperMemory`.
    """
    stamp, period_s = command.stamp_ns, command.period_s
    positions, velocities = command.positions.tolist(), command.velocities.tolist()
    if gripper_joint and not gripper_apart:
        names = [*joint_names, gripper_joint]
        return trajectory_message(stamp, names, [*positions, gripper_position], [*velocities, 0.0], period_s), None
    arm = trajectory_message(stamp, joint_names, positions, velocities, period_s)
    if not gripper_joint:
        return arm, None
    return arm, trajectory_message(stamp, [gripper_joint], [gripper_position], [0.0], period_s)


AWAY = 0.1  # of its stroke: a gripper that was moved by more from where it was told to be holds nothing any more


class GripperMemory:
    """Turns > 0 close, < 0 open, 0 keep into a joint position (m), remembering the last order.

    apart: the gripper has a controller of its own, which need not be told anything before the first order.  keeps: an
    order outlasts the beginning of an episode, and an activation, unless the gripper was moved away from it meanwhile:
    what is held by the way still to go would be let go by any other.
    """

    def __init__(self, open_position: float, closed_position: float, apart: bool = False, keeps: bool = False) -> None:
        self._open, self._closed = open_position, closed_position
        self._apart, self._keeps = apart, keeps
        self._away = AWAY * abs(open_position - closed_position)
        self._last: float | None = None
        self._found: float | None = None
        self._off, self._begins = 0.0, True

    @property
    def kept(self) -> tuple[float, float] | None:
        """The last order and how far from there the gripper was, as it was told last; None where none outlasts."""
        return (self._last, self._off) if self._keeps and self._last is not None else None

    @property
    def remembers(self) -> bool:
        """Whether there is anything to forget."""
        return self._last is not None or self._found is not None

    def recall(self, position: float, off: float) -> None:
        """Go on with what was `kept`."""
        self._last, self._off = position, off

    def reset(self) -> None:
        """An episode begins."""
        self._found = None
        self._begins = True
        if not self._keeps:
            self._last = None

    def forget(self) -> None:
        """Others may have commanded the gripper since."""
        self._found = self._last = None

    def position(self, order: float, measured: float) -> float | None:
        """Commanded position; while nothing has been ordered yet None where it is apart, else where it was found."""
        if order > 0:
            self._last = self._closed
        elif order < 0:
            self._last = self._open
        elif self._begins and self._last is not None and abs(measured - self._last) > self._off + self._away:
            self._last = None  # somebody has moved it: whatever it held is not there any more
        self._begins = False
        if self._last is not None:
            self._off = abs(measured - self._last)
        if self._last is not None or self._apart:
            return self._last
        if self._found is None:
            self._found = measured  # once, since to follow a noisy measurement is to move
        return self._found


def base_pose(message: PoseStamped, what: str = "base_pose") -> tuple[FloatArray, FloatArray]:
    """Position (3,) m and unit quaternion (4,) xyzw of the base frame in the world frame, or of something else."""
    p, q = message.pose.position, message.pose.orientation
    position = np.array([p.x, p.y, p.z], dtype=np.float64)
    quaternion = np.array([q.x, q.y, q.z, q.w], dtype=np.float64)
    if not (np.all(np.isfinite(position)) and abs(np.linalg.norm(quaternion) - 1.0) < 1e-3):
        raise VegaError(f"{what} is not a finite position with a unit quaternion: correct its publisher.")
    return position, quaternion


def pose_message(position: FloatArray, quaternion: FloatArray, ns: int, frame_id: str = "world") -> PoseStamped:
    """The reverse of `base_pose`."""
    message = PoseStamped()
    message.header.stamp = time_message(ns)
    message.header.frame_id = frame_id
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z = (float(value) for value in position)
    q.x, q.y, q.z, q.w = (float(value) for value in quaternion)
    return message


def _shorten(names: Sequence[str]) -> str:
    shown = [name[:32] for name in names[:12]]
    return f"{shown}{' ...' if len(names) > 12 else ''}"
