"""What cameras send to a node, checked on arrival; shared by every node that looks.

A message that cannot be used is refused with one sentence, which stands as that camera's *problem* until a good
message of it arrives.  All methods run in the executor's thread; stamps are nanoseconds, arrival times seconds of
time.monotonic().
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image as ImageMessage

from policies.types import Image, VegaError
from vega3d_ros.control import images
from vega3d_ros.control.frame_buffer import FrameBuffer, Pushed
from vega3d_ros.control.stamps import StampWatch
from vega3d_ros.ros import conversions
from vega3d_ros.ros.diagnostics import Stream
from vega3d_ros.ros.node_parameters import CameraParameters

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def kinds_known_to(node: Node) -> Callable[[str], set[str]]:
    """Topic, as a robot's file names it -> types of the messages that this node sees published on it."""

    def kinds(topic: str) -> set[str]:
        return {str(info.topic_type) for info in node.get_publishers_info_by_topic(node.resolve_topic_name(topic))}

    return kinds


class CameraInputs:
    """The newest good frames of every camera, and what was wrong with the bad ones.

    buffers: camera -> where its frames go.  judge_age: compare stamps with our own clock; off where the world waits for
    us.  say: tells the user what is no problem.  service: of the node, to be called after a clock was set.  kinds: a
    topic -> types of the messages that are published on it.
    """

    def __init__(
        self,
        cameras: Mapping[str, CameraParameters],
        buffers: Mapping[str, FrameBuffer],
        max_skew_s: float,
        max_age_s: float,
        judge_age: bool,
        say: Callable[[str], object] = print,
        service: str = "~/start",
        kinds: Callable[[str], Collection[str]] = lambda topic: (),
    ) -> None:
        self._kinds = kinds
        self._cameras, self._buffers, self._say, self._service = cameras, buffers, say, service
        self.judge_age, self._max_age_s = judge_age, max_age_s
        self._max_skew_ns, self._max_age_ns = round(max_skew_s * 1e9), round(max_age_s * 1e9)
        self.streams = {name: Stream() for name in cameras}
        self.watches = {name: StampWatch() for name in cameras}
        # Why the last message of an input was dropped, where one alone is no problem.
        self._dropped: dict[str, Callable[[], str]] = {}
        self._told: set[str] = set()
        # camera -> the last picture, and how many frames have repeated it
        self._pictures: dict[str, tuple[Image, int]] = {}

    @property
    def topics(self) -> dict[str, str]:
        """Camera -> its topic."""
        return {name: camera.topic for name, camera in self._cameras.items()}

    def clear(self, not_before_ns: int | None = None) -> None:
        """Forget frames, and refuse those stamped before `not_before_ns`."""
        for buffer in {id(buffer): buffer for buffer in self._buffers.values()}.values():
            buffer.clear(not_before_ns)
        self._dropped.clear()
        for name in self._cameras:
            self.streams[name].problem = ""

    def on_image(self, camera: str, message: ImageMessage | CompressedImage, now_ns: int) -> str:
        """Take a frame; returns a sentence if the camera's clock was set back, else ''."""
        stream, buffer = self.streams[camera], self._buffers[camera]
        stream.arrived()
        try:
            if isinstance(message, CompressedImage):
                image = conversions.compressed_image_array(message, camera)
            else:
                image = conversions.image_array(message, camera)
                self._tell_conversion(camera, message.encoding)
        except images.DamagedImage as error:
            buffer.reject(camera, "damaged")
            self._drop(camera, str(error))
            return ""
        except VegaError as error:
            buffer.reject(camera, "wrong_encoding")
            stream.problem = str(error)
            return ""
        except Exception as error:  # no single message may end the node
            buffer.reject(camera, "damaged")
            why = f"{type(error).__name__}: {error}"[:80]
            self._drop(camera, f"Camera '{camera}' sends a picture that cannot be read ({why}): check its driver.")
            return ""
        wanted = self._cameras[camera]
        if wanted.height not in (0, image.shape[0]) or wanted.width not in (0, image.shape[1]):
            buffer.reject(camera, "wrong_size")
            stream.problem = (
                f"Camera '{camera}' sends {image.shape[1]}x{image.shape[0]} instead of {wanted.width}x{wanted.height}: "
                "set its driver, or correct the size in the robot's YAML."
            )
            return ""
        if wanted.max_identical and self._repeats(camera, image) > wanted.max_identical:
            buffer.reject(camera, "frozen")
            stream.problem = (
                f"Camera '{camera}' repeats one picture: restart it, or set its max_identical to 0 if it is simulated."
            )
            return ""
        stamp = conversions.stamp_ns(message.header.stamp)
        self._from_the_past(camera, stamp, now_ns)
        if self._from_the_future(stamp, now_ns):
            buffer.reject(camera, "future")
            stream.problem = self.watches[camera].sentence(self._name(camera))
            return ""
        previous = buffer.newest_ns(camera)
        try:
            pushed = buffer.push(camera, stamp, image, now_ns if self.judge_age else None)
        except VegaError as error:
            stream.problem = str(error)
            return ""
        if pushed is not Pushed.DROPPED:
            stream.problem = ""
            self._dropped.pop(camera, None)
        if pushed is Pushed.JUMPED_BACK and previous is not None:
            return self._jump_sentence(f"camera '{camera}'", previous - stamp)
        return ""

    def stale(self, now_ns: int, now_s: float | None = None, only: str = "") -> str:
        """Which input has been silent, or stamped too long ago, for longer than max_age_s; '' if none.

        only: of this one; '' of all.  Both clocks are asked: a frozen driver repeats old stamps, and a stopped
        simulated clock ages nothing.
        """
        now_s = time.monotonic() if now_s is None else now_s
        limit_s = self._max_age_s
        for name, stamp in self._newest().items():
            if only not in ("", name):
                continue
            arrived_s = self.streams[name].age_s(now_s)
            age_s = float("inf") if stamp is None else max(arrived_s, (now_ns - stamp) / 1e9)
            if age_s <= limit_s:
                continue
            if name in self._dropped and arrived_s <= limit_s:
                return self._dropped[name]()
            if stamp is None:
                told = f"{self._name(name)} has not sent anything usable yet: start its driver or correct the topic."
                return self._misread(name) or told
            return f"{self._name(name)} has been silent for {age_s:.2f} s: check its driver, or raise max_age_s."
        return ""

    def drifting(self) -> str:
        """A sentence on the first input whose stamps drift against this node's clock or run ahead of it, else ''."""
        for name, watch in self.watches.items():
            if (
                self.judge_age
                and watch.growth
                and (watch.offset_s < -0.002 or watch.offset_s > self._max_skew_ns / 1e9)
            ):
                return watch.sentence(self._name(name))
        return ""

    def _misread(self, name: str) -> str:
        """A sentence where nothing came of a camera since its topic carries something else than was expected."""
        camera = self._cameras.get(name)
        if camera is None or self.streams[name].count:
            return ""
        found, wanted = set(self._kinds(camera.topic)), COMPRESSED if camera.compressed else RAW
        if not found or wanted in found:
            return ""
        other = RAW if camera.compressed else COMPRESSED
        remedy = f"set cameras.{name}.compressed to {str(not camera.compressed).lower()}, or " if other in found else ""
        return (
            f"{self._name(name)} looks for {wanted} on '{camera.topic}', which carries {', '.join(sorted(found))}: "
            f"{remedy}correct the topic."
        )

    def _newest(self) -> dict[str, int | None]:
        """Input -> stamp of the newest that was good, None if there was none."""
        return {camera: self._buffers[camera].newest_ns(camera) for camera in self._cameras}

    def _name(self, name: str) -> str:
        return f"Camera '{name}'" if name in self._cameras else name

    def _jump_sentence(self, what: str, back_ns: int) -> str:
        return (
            f"The stamps of {what} jumped back by {back_ns / 1e9:.2f} s: check the clock, then call {self._service} "
            "again."
        )

    def _tell_conversion(self, camera: str, encoding: str) -> None:
        if camera not in self._told and not images.is_native(encoding):
            self._told.add(camera)
            self._say(
                f"Camera '{camera}' sends {encoding}, which is converted here: set its driver to rgb8 to save time."
            )

    def _repeats(self, camera: str, image: Image) -> int:
        """How many frames in a row have shown the very pixels of the one before them; real sensors have noise."""
        last, count = self._pictures.get(camera, (None, 0))
        count = count + 1 if last is not None and np.array_equal(last, image) else 0
        self._pictures[camera] = (image, count)
        return count

    def _drop(self, name: str, sentence: str) -> None:
        """Remember why a message was dropped; it is a problem once nothing better comes for `max_age_s`."""
        if self.judge_age:
            self._dropped[name] = lambda: sentence
        else:
            self.streams[name].problem = sentence

    def _from_the_past(self, name: str, stamp: int, now_ns: int) -> bool:
        if not self.judge_age:
            return False
        watch = self.watches[name]
        watch.seen(stamp, now_ns, time.monotonic())
        late = now_ns - stamp > self._max_age_ns
        if late:
            self.streams[name].problem = ""  # it can be read, and what is wrong with it is told below
        if late and (not watch.repeats or not stamp):
            self._dropped[name] = lambda: watch.sentence(self._name(name))
        return late

    def _from_the_future(self, stamp: int, now_ns: int) -> bool:
        return self.judge_age and stamp - now_ns > self._max_age_ns
