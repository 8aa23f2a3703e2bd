"""Frames worth keeping, with what is known of where their pixels lie: depth, calibration, and the camera's pose.

A camera's frame is *due* once `scene.every_s` have passed since the one before.  What belongs to it may come later than
the picture itself, and is waited for; what then is missing is told in one sentence, and the frame is seen without it.
It is kept with the frame as it comes: the model may look long after it is gone from where the newest are held.
All methods run in the executor's thread; stamps are nanoseconds, arrival times seconds of time.monotonic().
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from sensor_msgs.msg import CameraInfo, CompressedImage
from sensor_msgs.msg import Image as ImageMessage

from policies.types import FloatArray, SceneView, VegaError
from vega3d_ros.control.frame_buffer import FrameBuffer
from vega3d_ros.control.frame_tree import FrameTree, pose_matrix
from vega3d_ros.ros import conversions
from vega3d_ros.scene.settings import SceneSettings
from vega3d_ros.topics.camera_inputs import CameraInputs

REGISTER = "register the depth to the picture (depth_image_proc)"
SAME = "publish that of the same picture"
PATIENCE_S = 0.5  # for what belongs to a picture and comes after it
MOST_POSES = 256  # kept of a camera, so that a picture that took longer than its pose still finds it


@dataclass
class _Camera:
    """What is known of a camera.

    due: the frame that is to be seen next, as far as it is complete; it arrived at arrived_s.  placed: the last frame
    that was seen had a pose.  problem: what it was seen without, and why.  refused: kind of message -> what is wrong
    with the last one.  poses: (stamp, matrix) as they came, 0 for a stamp that is not set.  calibrations: size (height,
    width) of a picture -> its matrix.  frames: kind of message -> the frame that the last one named.
    """

    frame_id: str = ""
    taken_ns: int | None = None
    due: SceneView | None = None
    arrived_s: float = 0.0
    calibrations: dict[tuple[int, int], FloatArray] = field(default_factory=dict)
    poses: deque[tuple[int, FloatArray]] = field(default_factory=lambda: deque(maxlen=MOST_POSES))
    placed: bool = False
    problem: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)


class Views:
    """The cameras' inputs, and the views made of them.

    judge_age: compare stamps with our own clock.  patience_s: how long a picture waits for what belongs to it.  say,
    kinds: as for `CameraInputs`.
    """

    def __init__(
        self,
        settings: SceneSettings,
        judge_age: bool,
        say: Callable[[str], object],
        patience_s: float = PATIENCE_S,
        kinds: Callable[[str], Collection[str]] = lambda topic: (),
    ) -> None:
        self._settings, self._patience_s = settings, patience_s
        self._say, self._bent = say, set[str]()
        skew_ns, age_ns = round(settings.max_skew_s * 1e9), round(settings.max_age_s * 1e9)

        def buffer(stream: str) -> FrameBuffer:
            return FrameBuffer((stream,), max_skew_ns=skew_ns, max_age_ns=age_ns, service="~/forget")

        self._pictures = {name: buffer(name) for name in settings.cameras}
        self._depths = {name: buffer(_depth(name)) for name in settings.cameras if settings.places[name].depth}
        self.inputs = CameraInputs(
            settings.cameras, self._pictures, settings.max_skew_s, settings.max_age_s, judge_age, say, "~/forget", kinds
        )
        self.tree = FrameTree()
        self._cameras = {name: _Camera() for name in settings.cameras}
        self.jump = ""

    def restart(self, judge_age: bool) -> None:
        """`clear`, and from now on compare stamps with our own clock or not."""
        self.inputs.judge_age = judge_age
        self.clear()

    def clear(self) -> None:
        """Forget every frame; the next one of each camera is due."""
        self.inputs.clear()
        for buffer in self._depths.values():
            buffer.clear()
        self.tree.clear()
        self.jump = ""
        for camera in self._cameras.values():
            camera.taken_ns = camera.due = None
            camera.placed, camera.problem = False, ""
            if camera.poses:  # the newest holds on, whatever the clock that it was stamped with
                _, newest = camera.poses[-1]
                camera.poses.clear()
                camera.poses.append((0, newest))

    def drops(self, name: str) -> dict[str, int]:
        """Why frames of a camera were dropped, and how often."""
        buffers = [self._pictures[name], *([self._depths[name]] if name in self._depths else [])]
        drops = [(stream, why, count) for buffer in buffers for (stream, why), count in sorted(buffer.drops.items())]
        return {f"{'depth_' * (stream != name)}{why}": count for stream, why, count in drops}

    def problem(self, name: str) -> str:
        """What is wrong with a camera's pictures, or else with what belongs to them."""
        return self.inputs.streams[name].problem or self._cameras[name].problem

    def stale(self, name: str, now_ns: int) -> str:
        """Why nothing new comes of a camera, '' where it does.  Where ages are not judged, only one that never sent."""
        if not self.inputs.judge_age and self._pictures[name].newest_ns(name) is not None:
            return ""
        return self.inputs.stale(now_ns, only=name)

    def unplaced(self) -> str:
        """Why no object can be placed, '' where the newest frame of a camera has a pose."""
        if any(camera.placed for camera in self._cameras.values()):
            return ""
        told = next((camera.problem for camera in self._cameras.values() if camera.problem), "")
        return told or (
            "It is not known where the cameras stand: set scene.tf, or a camera's pose_topic, and wait for a frame."
        )

    # Inputs

    def on_image(self, name: str, message: ImageMessage | CompressedImage, now_ns: int) -> str:
        """Take a picture; a sentence where the camera's clock was set back, and so what came before was forgotten."""
        camera, buffer = self._cameras[name], self._pictures[name]
        before = buffer.newest_ns(name)
        jump = self.inputs.on_image(name, message, now_ns)
        stamp = buffer.newest_ns(name)
        if jump and stamp is not None:  # what is held belongs to another time; this picture is the first of the new one
            newest = buffer.sample(stamp)
            assert newest is not None, "it has just come"
            self.clear()
            buffer.push(name, stamp, newest.images[name][0])
            self.jump = f"{jump.partition(':')[0]}, so what was seen before was forgotten: check the clock, then call "
            self.jump += "~/forget to end this warning."
        if stamp is None or stamp == before or camera.due is not None:
            return self.jump if jump else ""
        camera.frame_id = message.header.frame_id.lstrip("/")
        if camera.taken_ns is None or stamp - camera.taken_ns >= round(self._settings.every_s * 1e9):
            newest = buffer.sample(stamp)
            assert newest is not None, "it has just come"
            camera.due, camera.arrived_s = SceneView(name, stamp, newest.images[name][0]), time.monotonic()
            self._complete(name)
        return self.jump if jump else ""

    def on_depth(self, name: str, message: ImageMessage, now_ns: int) -> None:
        try:
            depth: Any = conversions.depth_array(message, name)
            stamp = conversions.stamp_ns(message.header.stamp)
            self._depths[name].push(_depth(name), stamp, depth, now_ns if self.inputs.judge_age else None)
            self._cameras[name].refused.pop("depth", None)
            self._cameras[name].frames["depth"] = message.header.frame_id.lstrip("/")
            self._complete(name)
        except VegaError as error:
            self._depths[name].reject(_depth(name), "unusable")
            self._cameras[name].refused["depth"] = str(error)

    def on_info(self, name: str, message: CameraInfo) -> None:
        camera, topic = self._cameras[name], self._settings.cameras[name].topic
        rectified = _rectified(topic)
        try:
            camera.calibrations = conversions.intrinsics(message, name, rectified)
            if any(message.d) and not rectified and name not in self._bent:
                self._bent.add(name)
                self._say(
                    f"The lens of camera '{name}' bends its pictures on '{topic}', which is not undone: places are off "
                    "towards their edges; give the topic of rectified ones (image_rect) if there is one."
                )
            camera.refused.pop("camera_info", None)
            camera.frames["camera_info"] = message.header.frame_id.lstrip("/")
            self._complete(name)
        except VegaError as error:
            camera.calibrations = {}
            camera.refused["camera_info"] = str(error)

    def on_pose(self, name: str, message: PoseStamped) -> None:
        """A pose holds from its stamp, or where it has none from its arrival, until the next one."""
        camera, stamp_ns = self._cameras[name], conversions.stamp_ns(message.header.stamp)
        try:
            if message.header.frame_id.lstrip("/") != self._settings.world_frame.lstrip("/"):
                raise VegaError(
                    f"The pose of camera '{name}' is given in {message.header.frame_id!r} and not in "
                    f"'{self._settings.world_frame}': correct its publisher, or scene.world_frame."
                )
            pose = pose_matrix(*conversions.base_pose(message, f"The pose of camera '{name}'"))
            camera.poses.append((stamp_ns, pose))
            camera.refused.pop("pose", None)
            if camera.due is not None and 0 < stamp_ns <= camera.due.stamp_ns:  # truer than the one before
                camera.due = replace(camera.due, camera_to_world=None)
            self._complete(name)
        except VegaError as error:
            camera.poses.clear()
            camera.refused["pose"] = str(error)

    def on_tf(self, transforms: Iterable[TransformStamped], fixed: bool) -> str:
        """Take transforms; a sentence on the last that is none."""
        problem = ""
        for one in transforms:
            to, turn = one.transform.translation, one.transform.rotation
            try:
                self.tree.take(
                    one.header.frame_id.lstrip("/"),
                    one.child_frame_id.lstrip("/"),
                    conversions.stamp_ns(one.header.stamp),
                    np.array([to.x, to.y, to.z]),
                    np.array([turn.x, turn.y, turn.z, turn.w]),
                    fixed,
                )
            except VegaError as error:
                problem = str(error)
        for name in self._cameras:
            self._complete(name)
        return problem

    # Views

    def next(self, before_s: float = float("inf")) -> SceneView | None:
        """The oldest view that is due and complete, or has waited long enough, of those that came before `before_s`."""
        now_s = time.monotonic()
        due = [(camera.arrived_s, name) for name, camera in self._cameras.items() if camera.due is not None]
        for arrived_s, name in sorted(due):
            if arrived_s >= before_s:
                break
            patient_enough = now_s - arrived_s >= self._patience_s
            missing = self._complete(name, patient_enough)
            if missing and not patient_enough:
                continue
            camera = self._cameras[name]
            view, camera.due = camera.due, None
            assert view is not None
            camera.taken_ns, camera.placed = view.stamp_ns, view.camera_to_world is not None
            camera.problem = missing
            return view
        return None

    def awaited(self, before_s: float) -> bool:
        """Whether a frame that came before `before_s` waits for what belongs to it."""
        return any(camera.due is not None and camera.arrived_s < before_s for camera in self._cameras.values())

    def _complete(self, name: str, patient_enough: bool = False) -> str:
        """Add what belongs to the frame that is due, if one is; what is missing, in one sentence, '' if nothing."""
        camera, missing = self._cameras[name], ""
        finders: tuple[tuple[str, Callable[[str, SceneView], Any]], ...] = (
            ("depth", partial(self._find_depth, patient_enough)),
            ("intrinsics", self._find_intrinsics),
            ("camera_to_world", self._find_pose),
        )
        for part, find in finders:
            view = camera.due
            if view is not None and getattr(view, part) is None:
                try:
                    found: dict[str, Any] = {part: find(name, view)}
                    camera.due = replace(view, **found)
                except VegaError as error:
                    missing = missing or str(error)
        return missing

    def _find_depth(self, patient_enough: bool, name: str, view: SceneView) -> Any:
        buffer = self._depths.get(name)
        if buffer is None:
            return None
        newest_ns = buffer.newest_ns(_depth(name))
        if not patient_enough and (newest_ns is None or newest_ns < view.stamp_ns):
            raise VegaError(f"The depth of camera '{name}' may be on its way.")  # until then the nearest is not known
        found = buffer.sample(view.stamp_ns)
        if found is None:
            raise VegaError(self._cameras[name].refused.get("depth") or buffer.waiting_for)
        self._check_frame("depth", name, REGISTER)
        depth = found.images[_depth(name)][0]
        _check_size("depth", name, depth.shape, view, REGISTER)
        return depth

    def _find_intrinsics(self, name: str, view: SceneView) -> FloatArray | None:
        topic, camera = self._settings.places[name].camera_info, self._cameras[name]
        if not topic:
            return None
        if not camera.calibrations:
            told = f"No camera_info of camera '{name}' has come on '{topic}': start what publishes it."
            raise VegaError(camera.refused.get("camera_info") or told)
        self._check_frame("camera_info", name, SAME)
        height, width = view.image.shape[:2]
        if (height, width) not in camera.calibrations:
            _check_size("camera_info", name, list(camera.calibrations)[-1], view, SAME)
        return camera.calibrations[height, width]

    def _check_frame(self, what: str, name: str, remedy: str) -> None:
        """Of an equal size may also be what another camera sees; its frame tells.  Raises VegaError."""
        camera = self._cameras[name]
        frame = camera.frames.get(what, "")
        if frame and camera.frame_id and frame != camera.frame_id:
            raise VegaError(
                f"Camera '{name}' has {what} of frame {frame!r} and pictures of frame {camera.frame_id!r}: {remedy}, "
                f"or correct its {what}_topic."
            )

    def _find_pose(self, name: str, view: SceneView) -> FloatArray | None:
        camera, settings = self._cameras[name], self._settings
        if topic := settings.places[name].pose:
            if not camera.poses:
                told = f"No pose of camera '{name}' has come on '{topic}': publish it, latched."
                raise VegaError(camera.refused.get("pose") or told)
            until_then = (pose for stamp_ns, pose in reversed(camera.poses) if stamp_ns <= view.stamp_ns)
            return next(until_then, camera.poses[-1][1])
        if not settings.tf:
            return None
        if not camera.frame_id:
            raise VegaError(f"Camera '{name}' names no frame in its header: set the frame_id of its driver.")
        return self.tree.lookup(settings.world_frame, camera.frame_id, view.stamp_ns)


def _rectified(topic: str) -> bool:
    """Whether pictures are rectified, by the names that image_proc and drivers give them."""
    return any(part.startswith("image_rect") for part in topic.split("/"))


def _depth(name: str) -> str:
    """What the stream of a camera's depth is called."""
    return f"{name} depth"


def _check_size(what: str, name: str, size: tuple[int, ...], view: SceneView, remedy: str) -> None:
    height, width = view.image.shape[:2]
    if tuple(size) != (height, width):
        raise VegaError(
            f"Camera '{name}' has {what} of {size[1]}x{size[0]} and pictures of {width}x{height}: {remedy}, or correct "
            f"its {what}_topic."
        )
