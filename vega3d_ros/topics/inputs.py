"""Everything that arrives at policy_node, checked on arrival: cameras, joint states, instruction, base pose.

A message that cannot be used is refused with one sentence, which stands as that input's *problem*
until a good message of the same input arrives.  While any problem stands, no command may leave.
All methods run in the executor's thread; stamps are nanoseconds, arrival times seconds of
time.monotonic().
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CompressedImage, JointState
from sensor_msgs.msg import Image as ImageMessage

from policies.types import FloatArray, Image, VegaError, check_instruction
from vega3d_ros.control import images
from vega3d_ros.control.control_loop import JointSample
from vega3d_ros.control.frame_buffer import FrameBuffer, Pushed
from vega3d_ros.control.guard.belief import Belief
from vega3d_ros.control.stamps import StampWatch
from vega3d_ros.ros import conversions
from vega3d_ros.ros.diagnostics import Stream
from vega3d_ros.ros.joint_states import FingerMap, JointReader
from vega3d_ros.ros.node_parameters import CameraParameters, NodeParameters

JOINTS, INSTRUCTION, BASE_POSE = "joint_states", "instruction", "base_pose"
INSTRUCTIONS_PER_S = 5
# Another device on joint_states is nobody's concern while the arm itself is heard; s, where no clock judges.
LOCKSTEP_SILENCE_S = 1.0


class Inputs:
    """The newest good value of every input, and what was wrong with the bad ones.

    belief: says which joint states cannot be true.  judge_age: compare stamps with our own clock; off where the world
    waits for us.  say: tells the user what is no problem.
    """

    def __init__(
        self,
        parameters: NodeParameters,
        cameras: dict[str, CameraParameters],
        buffer: FrameBuffer,
        reader: JointReader,
        fingers: FingerMap,
        belief: Belief,
        judge_age: bool,
        say: Callable[[str], object] = print,
    ) -> None:
        self._reader, self._fingers, self._say = reader, fingers, say
        self._parameters = parameters
        self._cameras = cameras
        self._judge_age = judge_age
        self._max_skew_ns = round(parameters.max_skew_s * 1e9)
        self._max_age_ns = round(parameters.max_age_s * 1e9)
        self.buffer, self.belief = buffer, belief
        self.streams = {name: Stream() for name in (*cameras, JOINTS, INSTRUCTION, BASE_POSE)}
        self.watches = {name: StampWatch() for name in (*cameras, JOINTS)}
        # Why the last message of an input was dropped, where one alone is no problem.
        self._dropped: dict[str, Callable[[], str]] = {}
        self._told: set[str] = set()
        self.drops: Counter[str] = Counter()
        self._changes_s: deque[float] = deque(maxlen=INSTRUCTIONS_PER_S + 1)
        self.sample: JointSample | None = None
        self.instruction: str | None = None
        self.base: tuple[FloatArray, FloatArray] | None = None
        if not parameters.base_pose_topic:
            self.base = (parameters.base_position, parameters.base_quaternion)
        self._not_before_ns: int | None = None
        # camera -> the last picture, and how many frames have repeated it
        self._pictures: dict[str, tuple[Image, int]] = {}

    @property
    def topics(self) -> dict[str, str]:
        """Camera -> its topic."""
        return {name: camera.topic for name, camera in self._cameras.items()}

    def clear(self, not_before_ns: int | None = None) -> None:
        """Forget frames and joint states, and refuse those stamped before `not_before_ns`."""
        self.buffer.clear(not_before_ns)
        self._not_before_ns = not_before_ns
        self._changes_s.clear()
        self.sample = None
        self._reader.clear()
        self._dropped.clear()
        self.belief.reset()
        for name in (*self._cameras, JOINTS):
            self.streams[name].problem = ""

    def on_image(self, camera: str, message: ImageMessage | CompressedImage, now_ns: int) -> str:
        """Take a frame; returns a sentence if the camera's clock was set back, else ''."""
        stream = self.streams[camera]
        stream.arrived()
        try:
            if isinstance(message, CompressedImage):
                image = conversions.compressed_image_array(message, camera)
            else:
                image = conversions.image_array(message, camera)
                self._tell_conversion(camera, message.encoding)
        except images.DamagedImage as error:
            self.buffer.reject(camera, "damaged")
            self._drop(camera, str(error))
            return ""
        except VegaError as error:
            self.buffer.reject(camera, "wrong_encoding")
            stream.problem = str(error)
            return ""
        wanted = self._cameras[camera]
        if wanted.height not in (0, image.shape[0]) or wanted.width not in (0, image.shape[1]):
            self.buffer.reject(camera, "wrong_size")
            stream.problem = (
                f"Camera '{camera}' sends {image.shape[1]}x{image.shape[0]} instead of {wanted.width}x{wanted.height}: "
                "set its driver, or correct the size in the robot's YAML."
            )
            return ""
        if wanted.max_identical and self._repeats(camera, image) > wanted.max_identical:
            self.buffer.reject(camera, "frozen")
            stream.problem = (
                f"Camera '{camera}' repeats one picture: restart it, or set its max_identical to 0 if it is simulated."
            )
            return ""
        stamp = conversions.stamp_ns(message.header.stamp)
        self._from_the_past(camera, stamp, now_ns)
        if self._from_the_future(stamp, now_ns):
            self.buffer.reject(camera, "future")
            stream.problem = self.watches[camera].sentence(_name(camera))
            return ""
        previous = self.buffer.newest_ns(camera)
        try:
            pushed = self.buffer.push(camera, stamp, image, now_ns if self._judge_age else None)
        except VegaError as error:
            stream.problem = str(error)
            return ""
        if pushed is not Pushed.DROPPED:
            stream.problem = ""
            self._dropped.pop(camera, None)
        if pushed is Pushed.JUMPED_BACK and previous is not None:
            return _jump_sentence(f"camera '{camera}'", previous - stamp)
        return ""

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

    def on_joint_state(
        self, message: JointState, now_ns: int, number: int | None = None
    ) -> tuple[JointSample | None, str]:
        """The sample, None if it is refused; and a sentence if the robot's clock was set back, else ''.

        number: of the message among those of its publisher, if known.
        """
        stream = self.streams[JOINTS]
        if not self._reader.concerns(message) and stream.age_s(time.monotonic()) <= self._silence_s:
            self.drops["joint_states_of_others"] += 1
            return None, ""
        stream.arrived()
        try:
            sample = self._reader.read(message, time.monotonic())
            if sample is not None:
                self._fingers.check(sample.gripper_positions)
        except VegaError as error:
            self.drops["joint_states_malformed"] += 1
            stream.problem = str(error)
            self.sample = None
            return None, ""
        if sample is None:
            return None, ""  # the rest of the joints is still to come
        late = self._from_the_past(JOINTS, sample.stamp_ns, now_ns)
        if self._not_before_ns is not None and sample.stamp_ns < self._not_before_ns:
            self.drops["joint_states_before_start"] += 1
            return None, ""
        if late:
            self.drops["joint_states_late"] += 1
            return None, ""
        if self._from_the_future(sample.stamp_ns, now_ns):
            self.drops["joint_states_future"] += 1
            stream.problem = self.watches[JOINTS].sentence(JOINTS)
            return None, ""
        jump = ""
        if self.sample is not None and sample.stamp_ns < self.sample.stamp_ns:
            back_ns = self.sample.stamp_ns - sample.stamp_ns
            if back_ns <= self._max_skew_ns:
                self.drops["joint_states_out_of_order"] += 1
                return None, ""
            self.drops["joint_states_stamp_jumped_back"] += 1
            jump = _jump_sentence("joint_states", back_ns)
            self.belief.reset()
        stream.problem = self.belief.observe(sample.stamp_ns, sample.positions, sample.velocities, number)
        self._dropped.pop(JOINTS, None)
        if stream.problem:
            self.drops["joint_states_not_believed"] += 1
            self.sample = None
            return None, jump
        self.sample = sample
        return sample, jump

    def on_instruction(self, text: str) -> bool:
        """Take a new instruction; False if it is refused, and then there is none."""
        stream = self.streams[INSTRUCTION]
        stream.arrived()
        try:
            self.instruction = check_instruction(text)
        except VegaError as error:
            self.drops["instruction_refused"] += 1
            stream.problem = str(error)
            self.instruction = None
            return False
        stream.problem = ""
        return True

    def flooded(self, now_s: float) -> str:
        """To be called at every change of the instruction: a sentence if it changes too often to be followed."""
        self._changes_s.append(now_s)
        if len(self._changes_s) <= INSTRUCTIONS_PER_S or now_s - self._changes_s[0] > 1.0:
            return ""
        return (
            f"The instruction changed more than {INSTRUCTIONS_PER_S} times in a second: find who publishes it, then "
            "call ~/start again."
        )

    def on_base_pose(self, message: PoseStamped) -> bool:
        """Take the base frame; True if it differs from the one known."""
        stream = self.streams[BASE_POSE]
        stream.arrived()
        try:
            base = conversions.base_pose(message)
        except VegaError as error:
            self.drops["base_pose_refused"] += 1
            stream.problem = str(error)
            self.base = None
            return True
        stream.problem = ""
        known, self.base = self.base, base
        return known is None or any((a != b).any() for a, b in zip(known, base, strict=True))

    def problem(self) -> str:
        """Why nothing may be commanded, as far as single messages tell; '' if all is well."""
        for stream in self.streams.values():
            if stream.problem:
                return stream.problem
        if self.base is None:
            return f"No base pose has come on '{self._parameters.base_pose_topic}': publish it, latched."
        if self.instruction is None:
            return "There is no instruction: publish a sentence on the topic 'instruction'."
        return ""

    def stale(self, now_ns: int, now_s: float | None = None) -> str:
        """Which input has been silent, or stamped too long ago, for longer than max_age_s; '' if none.

        Both clocks are asked: a frozen driver repeats old stamps, and a stopped simulated clock ages nothing.
        """
        now_s = time.monotonic() if now_s is None else now_s
        stamps = {camera: self.buffer.newest_ns(camera) for camera in self._cameras}
        stamps[JOINTS] = self.sample.stamp_ns if self.sample is not None else None
        limit_s = self._parameters.max_age_s
        for name, stamp in stamps.items():
            arrived_s = self.streams[name].age_s(now_s)
            age_s = float("inf") if stamp is None else max(arrived_s, (now_ns - stamp) / 1e9)
            if age_s <= limit_s:
                continue
            if name in self._dropped and arrived_s <= limit_s:
                return self._dropped[name]()
            if stamp is None:
                return f"{_name(name)} has not sent anything usable yet: start its driver or correct the topic."
            return f"{_name(name)} has been silent for {age_s:.2f} s: check its driver, or raise max_age_s."
        return ""

    def drifting(self) -> str:
        """A sentence on the first input whose stamps drift against this node's clock or run ahead of it, else ''."""
        for name, watch in self.watches.items():
            if (
                self._judge_age
                and watch.growth
                and (watch.offset_s < -0.002 or watch.offset_s > self._max_skew_ns / 1e9)
            ):
                return watch.sentence(_name(name))
        return ""

    @property
    def _silence_s(self) -> float:
        return self._parameters.max_age_s if self._judge_age else LOCKSTEP_SILENCE_S

    def _drop(self, name: str, sentence: str) -> None:
        """Remember why a message was dropped; it is a problem once nothing better comes for `max_age_s`."""
        if self._judge_age:
            self._dropped[name] = lambda: sentence
        else:
            self.streams[name].problem = sentence

    def _from_the_past(self, name: str, stamp: int, now_ns: int) -> bool:
        if not self._judge_age:
            return False
        watch = self.watches[name]
        watch.seen(stamp, now_ns, time.monotonic())
        late = now_ns - stamp > self._max_age_ns
        if late:
            self.streams[name].problem = ""  # it can be read, and what is wrong with it is told below
        if late and (not watch.repeats or not stamp):
            self._dropped[name] = lambda: watch.sentence(_name(name))
        return late

    def _from_the_future(self, stamp: int, now_ns: int) -> bool:
        return self._judge_age and stamp - now_ns > self._max_age_ns


def _name(name: str) -> str:
    return name if name == JOINTS else f"Camera '{name}'"


def _jump_sentence(what: str, back_ns: int) -> str:
    return f"The stamps of {what} jumped back by {back_ns / 1e9:.2f} s: check the clock, then call ~/start again."
