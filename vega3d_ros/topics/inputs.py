"""Everything that arrives at policy_node, checked on arrival: cameras, joint states, instruction, base pose.

A message that cannot be used is refused with one sentence, which stands as that input's *problem*
until a good message of the same input arrives.  While any problem stands, no command may leave.
All methods run in the executor's thread; stamps are nanoseconds, arrival times seconds of
time.monotonic().
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState

from policies.types import FloatArray, VegaError, check_instruction
from vega3d_ros.control.control_loop import JointSample
from vega3d_ros.control.frame_buffer import FrameBuffer
from vega3d_ros.control.guard.belief import Belief
from vega3d_ros.control.stamps import StampWatch
from vega3d_ros.ros import conversions
from vega3d_ros.ros.diagnostics import Stream
from vega3d_ros.ros.joint_states import FingerMap, JointReader
from vega3d_ros.ros.node_parameters import CameraParameters, NodeParameters
from vega3d_ros.topics.camera_inputs import CameraInputs

JOINTS, INSTRUCTION, BASE_POSE = "joint_states", "instruction", "base_pose"
INSTRUCTIONS_PER_S = 5
# Another device on joint_states is nobody's concern while the arm itself is heard; s, where no clock judges.
LOCKSTEP_SILENCE_S = 1.0


class Inputs(CameraInputs):
    """The newest good value of every input, and what was wrong with the bad ones.

    belief: says which joint states cannot be true.
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
        kinds: Callable[[str], Collection[str]] = lambda topic: (),
    ) -> None:
        buffers = dict.fromkeys(cameras, buffer)
        limits = parameters.max_skew_s, parameters.max_age_s
        super().__init__(cameras, buffers, *limits, judge_age, say, kinds=kinds)
        self._reader, self._fingers = reader, fingers
        self._parameters = parameters
        self.buffer, self.belief = buffer, belief
        self.streams |= {name: Stream() for name in (JOINTS, INSTRUCTION, BASE_POSE)}
        self.watches[JOINTS] = StampWatch()
        self.drops: Counter[str] = Counter()
        self._changes_s: deque[float] = deque(maxlen=INSTRUCTIONS_PER_S + 1)
        self.sample: JointSample | None = None
        self.instruction: str | None = None
        self.base: tuple[FloatArray, FloatArray] | None = None
        if not parameters.base_pose_topic:
            self.base = (parameters.base_position, parameters.base_quaternion)
        self._not_before_ns: int | None = None

    def clear(self, not_before_ns: int | None = None, keep_turns: bool = True) -> None:
        """Forget frames and joint states, and refuse those stamped before `not_before_ns`.

        keep_turns: false as `forget_turns` says.
        """
        super().clear(not_before_ns)
        self._not_before_ns = not_before_ns
        self._changes_s.clear()
        self.sample = None
        if keep_turns:
            self._reader.clear()
        else:
            self._reader.forget_turns()
        self.belief.reset()
        self.streams[JOINTS].problem = ""

    def forget_turns(self) -> None:
        """Nobody knows where the controller holds the arm: what joint_states say next counts as it is said, also which
        turn a joint without end is in."""
        self._reader.forget_turns()
        self.belief.reset()
        self.sample = None

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
            stream.problem = self.watches[JOINTS].sentence(JOINTS, of_camera=False)
            return None, ""
        jump = ""
        if self.sample is not None and sample.stamp_ns < self.sample.stamp_ns:
            back_ns = self.sample.stamp_ns - sample.stamp_ns
            if back_ns <= self._max_skew_ns:
                self.drops["joint_states_out_of_order"] += 1
                return None, ""
            self.drops["joint_states_stamp_jumped_back"] += 1
            jump = self._jump_sentence(JOINTS, back_ns)
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

    def _newest(self) -> dict[str, int | None]:
        return {**super()._newest(), JOINTS: self.sample.stamp_ns if self.sample is not None else None}

    @property
    def _silence_s(self) -> float:
        return self._parameters.max_age_s if self.judge_age else LOCKSTEP_SILENCE_S
