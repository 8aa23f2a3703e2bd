"""Malformed ROS messages against a live, started policy_node: no crash, and no command.

Real message objects go straight into the callbacks of its subscriptions, in real time mode with the settings of a real
arm: over DDS a hundred thousand messages of sensor data would for the most part be lost before they could do harm.
(`test/test_policy_node_bad_input.py` sends such messages over DDS.)

In turn one input is attacked, with messages each of which breaks a rule by construction, while all others are as they
should be, fresh and complete.  A command that leaves in that time was caused by malformed input.  Before and after each
phase good messages alone must make the arm move, or the silence would prove nothing.
"""

from __future__ import annotations

import array
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.arm.stand_in import CAMERAS, COMMANDS, DEADLINE_S, HOME, PARAMETERS
from policies.types import MAX_INSTRUCTION_CHARS, VegaError
from vega3d_ros.control.resources import share_folder

SIZE = 64
PHASE = 500
TICK_EVERY = 10
AFTER_NS = 200_000_000  # as the guard waits: a period, and what a late command may be late by
FINGERS = ("panda_finger_joint1", "panda_finger_joint2")
ARM = tuple(f"panda_joint{i}" for i in range(1, 8))
WORDS = (
    "",
    " \n\t",
    "\x00",
    "é",
    "🤖",
    "rgb8 ",
    "RGB8",
    "\ud83e",
    "\u0627" * 40,
    "mono8",
    "bayer_rggb8",
    "16UC1",
    "x" * 10_000,
)
WRONG_NUMBERS = (float("nan"), float("inf"), float("-inf"))


@dataclass
class Fuzzed:
    """messages: malformed ones.  crashes: exceptions out of a callback.  commands: while an input was malformed.
    commands_after: the least number of commands in a phase of good input."""

    messages: int = 0
    crashes: int = 0
    commands: int = 0
    commands_after: float = float("inf")


class Target:
    """An active policy_node in this process, and good messages for it.  Raises VegaError where it does not start."""

    def __init__(self) -> None:
        import rclpy
        from trajectory_msgs.msg import JointTrajectory

        from sim.robot.ros_client import unused_domain
        from vega3d_ros.node.policy_node import PolicyNode

        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        words = ["--ros-args", "--params-file", str(share_folder() / "config" / "robots" / "libero.yaml")]
        cameras = {f"cameras.{name}.{side}": SIZE for name in CAMERAS for side in ("width", "height")}
        policy = {
            "policy": "benchmarks.arm.fault_matrix:CirclingPolicy",
            "base_pose_topic": "base_pose",
            "control_priority": 0,
        }
        for key, value in {**PARAMETERS, **cameras, **policy}.items():
            words += ["-p", f"{key}:={json.dumps(value)}"]
        rclpy.init(args=words, domain_id=unused_domain())
        self.node: Any = PolicyNode()
        # A driver, or nothing would be sent for want of a listener.
        self._driver = rclpy.create_node("driver", use_global_arguments=False)
        self._driver.create_subscription(JointTrajectory, COMMANDS, lambda _: None, 10)
        for step in ("trigger_configure", "trigger_activate"):
            getattr(self.node, step)()
        deadline = time.monotonic() + DEADLINE_S
        while self.node._active is None or not self.node._active.outputs.heard():
            if time.monotonic() > deadline:
                raise VegaError("policy_node does not become active in this process: read its output.")
            time.sleep(0.01)
        self._rng = np.random.default_rng(1)

    @property
    def commands(self) -> int:
        return int(self.node._condition.counts["commands"])

    def tick(self) -> None:
        """What the control timer does; a node that stopped by itself is started again, or it could not do wrong."""
        if not self.node._condition.running:
            self.node._start()
        self.node._on_control_timer()
        runner, deadline = self.node._runner, time.monotonic() + DEADLINE_S
        # The next tick has what the policy says now, or most phases would end before it spoke.
        while runner._asked_s is not None and runner._worker._answers.empty():
            if time.monotonic() > deadline:
                raise VegaError("The policy does not answer in this process: read its output.")
            time.sleep(0.0005)

    def good(self, leave_out: str = "") -> None:
        """Everything as it should be, but one input."""
        for camera in CAMERAS:
            if camera != leave_out:
                self.node._on_image(camera, self.image())
        if leave_out != "joint_states":
            self.node._on_joint_state(self.joint_state())
        if leave_out != "instruction":
            self.node._on_instruction(self.sentence())
        if leave_out != "base_pose":
            self.node._on_base_pose(self.base_pose())

    def image(self) -> Any:
        from vega3d_ros.ros.conversions import image_message

        pixels = self._rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        pixels[0, 0] = 0  # the policy's sign that all is well
        return image_message(pixels, time.time_ns())

    def joint_state(self) -> Any:
        from vega3d_ros.control.control_loop import JointSample
        from vega3d_ros.ros.conversions import joint_state_message

        sample = JointSample(time.time_ns(), np.array(HOME[:7]), np.zeros(7), np.array([0.04, 0.04]))
        return joint_state_message(sample, ARM, FINGERS)

    def sentence(self) -> Any:
        from std_msgs.msg import String

        return String(data="go round in a circle")

    def base_pose(self) -> Any:
        from vega3d_ros.ros.conversions import pose_message

        return pose_message(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), time.time_ns())

    def moves(self) -> int:
        """Commands that good input alone leads to, from a fresh start; waits for the first."""
        self.node._start()
        before, deadline = self.commands, time.monotonic() + DEADLINE_S
        while self.commands == before and time.monotonic() < deadline:
            self.good()
            self.tick()
        return self.commands - before

    def rest(self) -> None:
        """Waits for the end of what was commanded last, before which a start takes no arm over and nothing could go
        wrong."""
        guard, deadline = self.node._runner.loop.guard, time.monotonic() + DEADLINE_S
        while guard._motion is not None and guard._motion.is_under_way(time.monotonic_ns(), AFTER_NS):
            if time.monotonic() > deadline:
                raise VegaError("What was commanded last does not end in this process: read its output.")
            time.sleep(0.01)

    def close(self) -> None:
        import rclpy

        self.node.destroy_node()
        self._driver.destroy_node()
        rclpy.try_shutdown()


def _stamp(rng: np.random.Generator, stamp: Any) -> None:
    """Far in the past or in the future, before 1970, or beyond a second in its nanoseconds."""
    choice = rng.integers(4)
    if choice == 0:
        stamp.sec = int(rng.integers(0, 2**31 - 1)) // 2
    elif choice == 1:
        stamp.sec = int(rng.integers(2_000_000_000, 2**31 - 1))
    elif choice == 2:
        stamp.sec = -int(rng.integers(1, 2**31))
    else:
        stamp.sec, stamp.nanosec = 0, int(rng.integers(0, 2**32))


def bad_image(rng: np.random.Generator, target: Target) -> Any:
    message = target.image()
    kind = rng.integers(6)
    if kind == 0:
        message.encoding = str(rng.choice(WORDS))
    elif kind == 1:
        length = int(rng.integers(0, 2 * len(message.data)))
        message.data = array.array("B", bytes(length + (length == len(message.data))))
    elif kind == 2:
        message.step = int(rng.choice([0, 1, SIZE * 3 - 1, SIZE * 3 + 1, 2**32 - 1]))
    elif kind == 3:
        message.height, message.width = (int(v) for v in rng.integers(SIZE + 1, 2**32, 2))
    elif kind == 4:  # consistent, but of another size
        height, width = (int(v) for v in rng.integers(1, SIZE, 2))
        message.height, message.width, message.step = height, width, 3 * width
        message.data = message.data[: 3 * height * width]
    else:
        _stamp(rng, message.header.stamp)
    message.header.frame_id = str(rng.choice([word for word in WORDS if word != "\ud83e"]))
    return message


def bad_joint_state(rng: np.random.Generator, target: Target) -> Any:
    message = target.joint_state()
    kind = rng.integers(6)
    if kind == 0:
        message.name = [str(word) for word in rng.choice(WORDS, rng.integers(0, 12))]
    elif kind == 1:
        message.name = [message.name[0], *message.name[:-1]]
    elif kind == 2:
        length = int(rng.integers(0, 8))
        message.position = message.position[:length]
    elif kind == 3:
        message.velocity = array.array("d", rng.standard_normal(int(rng.integers(10, 300))))
    elif kind == 4:
        values = message.position if rng.random() < 0.5 else message.velocity
        values[int(rng.integers(7))] = float(rng.choice(WRONG_NUMBERS))
    else:
        _stamp(rng, message.header.stamp)
    message.effort = array.array("d", rng.standard_normal(int(rng.integers(0, 20))))
    return message


def bad_instruction(rng: np.random.Generator, _: Target) -> Any:
    from std_msgs.msg import String

    length = int(rng.integers(MAX_INSTRUCTION_CHARS + 1, 4000))
    endless = "".join(map(chr, rng.integers(0x21, 0xD7FF, length)))
    return String(data=str(rng.choice(np.array(["", " ", "\n\t\r", "\u2003\u00a0", endless], dtype=object))))


def bad_base_pose(rng: np.random.Generator, target: Target) -> Any:
    message = target.base_pose()
    if rng.random() < 0.5:
        setattr(message.pose.position, str(rng.choice(["x", "y", "z"])), float(rng.choice(WRONG_NUMBERS)))
    else:
        setattr(
            message.pose.orientation, str(rng.choice(["x", "y", "z", "w"])), float(rng.choice([np.nan, 2.0, 1e300]))
        )
    return message


def fuzz(count: int, seed: int = 0, phase: int = PHASE) -> Fuzzed:
    """At least `count` malformed messages, `phase` for one input after another."""
    rng = np.random.default_rng(seed)
    attacks: dict[str, Callable[[np.random.Generator, Target], Any]] = {
        **dict.fromkeys(CAMERAS, bad_image),
        "joint_states": bad_joint_state,
        "instruction": bad_instruction,
        "base_pose": bad_base_pose,
    }
    seen = Fuzzed()
    target = Target()
    try:
        seen.commands_after = min(seen.commands_after, target.moves())
        while seen.messages < count:
            for name, attack in attacks.items():
                _attack(target, name, partial(attack, rng, target), phase, seen)
                seen.commands_after = min(seen.commands_after, target.moves())
    finally:
        target.close()
    return seen


def _attack(target: Target, name: str, make: Callable[[], Any], count: int, seen: Fuzzed) -> None:
    callbacks: dict[str, Callable[[Any], None]] = {
        **{camera: partial(target.node._on_image, camera) for camera in CAMERAS},
        "joint_states": target.node._on_joint_state,
        "instruction": target.node._on_instruction,
        "base_pose": target.node._on_base_pose,
    }
    # What the last phase left behind, queued actions too, must not be taken for a consequence of this one.
    target.node._start()
    target.rest()
    before = target.commands
    for index in range(count):
        message = make()  # now, since a message made before the start would be refused for its stamp alone
        try:
            callbacks[name](message)
            if index % TICK_EVERY == 0:
                target.good(leave_out=name)
                target.tick()
        except Exception as error:  # whatever it is, it would have ended the process
            seen.crashes += 1
            print(f"# {name}: {type(error).__name__}: {error}", flush=True)
    seen.messages += count
    seen.commands += target.commands - before
