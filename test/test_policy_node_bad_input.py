"""Whatever is wrong with its input, policy_node keeps the robot still and says why on /diagnostics.

Real DDS, the node in a process of its own.  Several faults share one process, since each is over when
good input comes again or `~/start` is called.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ros_harness import (
    CAMERAS,
    FINGERS,
    INSTRUCTION,
    JOINTS,
    PERIOD_NS,
    FakeRobot,
    Pace,
    image_of,
    now_ns,
    policy_node,
    sample_at,
)
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from policies.types import VegaError
from vega3d_ros.ros import conversions

ERROR = 2
STILL_S = 0.3


def still(robot: FakeRobot, *words: str, again: Callable[[], None] | None = None) -> None:
    """No command leaves, and the diagnostics say so with these words in one sentence; `again` sends the fault."""
    if again is not None:
        again()
    before = robot.answered()
    assert robot.shows(ERROR, *words, again=again), robot.sentence()
    assert robot.sentence().endswith(".")
    # In real time a command or two may leave before the silence of an input is noticed, and none after that.
    at_rest = robot.answered()
    assert robot.quiet_for(STILL_S)
    assert again is None or at_rest == before


def test_what_may_arrive_in_lockstep():
    with policy_node("EagerPolicy") as (robot, _):
        robot.bring_up()
        robot.client.trigger("policy_node/start")

        def state_of(step: int) -> None:
            robot.send_images(step)
            robot.send_joints(sample_at(step))

        # Nothing at all, then no instruction, an empty one, a white one, one of 10 kB.
        still(robot, "There is no instruction", again=lambda: state_of(1))
        for text, words in (("", "empty"), (" \n\t", "empty"), ("x" * 10_000, "10000 characters")):
            still(robot, "instruction", words, again=lambda text=text: robot.send_instruction(text))
        robot.send_instruction()
        robot.ask(1)

        # One camera silent: the joint state waits, and is answered once the frame comes.
        def one_camera() -> None:
            robot.send_image(CAMERAS[0], image_of(4), 2 * PERIOD_NS)
            robot.send_joints(sample_at(2))

        still(robot, "'wrist'", again=one_camera)
        robot.ask(2)

        # Wrong encoding, a size that contradicts the data, a wrong size.
        grey = conversions.image_message(image_of(3)[:, :, 0].copy(), 3 * PERIOD_NS)
        short = conversions.image_message(image_of(3), 3 * PERIOD_NS)
        short.height = 200
        small = conversions.image_message(image_of(3, size=128), 3 * PERIOD_NS)
        for message, words in ((grey, "mono8"), (short, "correct its driver"), (small, "128x128 instead of 256x256")):

            def bad_frame(message=message) -> None:
                robot.send_image(CAMERAS[0], image_of(6), 3 * PERIOD_NS)
                robot.cameras["wrist"].publish(message)
                robot.send_joints(sample_at(3))

            still(robot, "Camera 'wrist'", words, again=bad_frame)
        assert int(robot.values("wrist")["wrong_encoding"]) >= 2
        assert int(robot.values("wrist")["wrong_size"]) >= 1
        robot.ask(3)

        # Joint names that are not this robot's, NaN, no velocities.
        renamed = conversions.joint_state_message(sample_at(4), [f"ur_{name}" for name in JOINTS], FINGERS)
        broken = conversions.joint_state_message(sample_at(4), JOINTS, FINGERS)
        broken.position[3] = float("nan")
        mute = conversions.joint_state_message(sample_at(4), JOINTS, FINGERS)
        mute.velocity = []
        robot.send_images(4)
        for message, words in ((renamed, "lacks ['panda_joint1'"), (broken, "NaN"), (mute, "0 velocities")):
            still(robot, "joint_states", words, again=lambda message=message: robot.joint_states.publish(message))
        robot.ask(4)

        # The clock is set back: it stops until it is started anew.
        robot.ask(100)
        still(robot, "joint_states jumped back by 4.70 s", "~/start", again=lambda: robot.send_joints(sample_at(6)))
        still(robot, "jumped back", again=lambda: state_of(7))
        robot.client.trigger("policy_node/start")
        robot.ask(8)
        still(robot, "camera 'wrist' jumped back", again=lambda: robot.send_image("wrist", image_of(0), 0))

        # A flood of instructions changes nothing but the instruction.
        robot.client.trigger("policy_node/start")
        for number in range(300):
            robot.instruction.publish(String(data=f"{INSTRUCTION} {number}"))
        assert robot.until(lambda: robot.values().get("instruction") == f"{INSTRUCTION} 299")
        robot.ask(9)


@pytest.mark.parametrize(
    ("policy", "answers", "words"),
    [("NanPolicy", 8, "an action that is not a number"), ("RaisingPolicy", 4, "RuntimeError: CUDA error: device lost")],
)
def test_a_policy_that_fails_stops_the_robot_until_it_is_started_again(policy, answers, words):
    with policy_node(policy) as (robot, child):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        for step in range(1, answers + 1):
            robot.ask(step)
        for step in (answers + 1, answers + 2):

            def send(step: int = step) -> None:
                robot.send_images(step)
                robot.send_joints(sample_at(step))

            still(robot, words, again=send)
        robot.client.trigger("policy_node/start")
        robot.ask(answers + 3)
        assert child.returncode is None


UNREADY = "The policy could not begin anew (RuntimeError: CUDA out of memory)", "~/start"


def test_a_policy_that_cannot_begin_an_episode_is_a_fault_in_lockstep_and_may_the_next_time():
    with policy_node("ForgetfulPolicy") as (robot, child):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        robot.ask(1)
        with pytest.raises(VegaError, match="CUDA out of memory"):
            robot.client.trigger("policy_node/start")

        def send() -> None:
            robot.send_images(2)
            robot.send_joints(sample_at(2))

        still(robot, *UNREADY, again=send)
        robot.client.trigger("policy_node/start")
        robot.ask(3)
        assert child.returncode is None


def test_a_policy_that_cannot_begin_an_episode_is_a_fault_in_real_time_and_may_the_next_time():
    with policy_node("ForgetfulPolicy", clock_mode="realtime", max_age_s=10.0) as (robot, child):
        robot.bring_up()
        robot.send_instruction()
        with Pace(robot, 0.05, Driver(robot).tick):
            robot.client.trigger("policy_node/start")
            assert robot.until(lambda: len(robot.commands) > 3), robot.sentence()
            robot.client.trigger("policy_node/start")
            still(robot, *UNREADY)
            before = len(robot.commands)
            robot.client.trigger("policy_node/start")
            assert robot.until(lambda: len(robot.commands) > before + 3), robot.sentence()
        assert child.returncode is None


class Driver:
    """Cameras and joints at 20 Hz on the wall clock, with faults that can be switched on."""

    def __init__(self, robot: FakeRobot) -> None:
        self.robot = robot
        self.silent: set[str] = set()
        self.frozen: int | None = None
        self.ahead_ns = 0
        self._frame = image_of(0)

    def tick(self) -> None:
        stamp = (self.frozen or now_ns()) + self.ahead_ns
        for camera in CAMERAS:
            if camera not in self.silent:
                self.robot.send_image(camera, self._frame, stamp)
        if "joints" not in self.silent:
            self.robot.send_joints(self.robot.sample_now())


def test_what_may_stop_in_real_time():
    # An input that is silent may be so for longer here than commands may be refused that start from what is old.
    options = {"clock_mode": "realtime", "max_age_s": 2.0, "safety__max_rejections": [200.0]}
    with policy_node("TinyPolicy", **options) as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        still(robot, "has not sent anything usable")
        driver = Driver(robot)

        def moves() -> bool:
            before = len(robot.commands)
            return robot.until(lambda: len(robot.commands) > before + 3)

        with Pace(robot, 0.05, driver.tick):
            assert moves(), robot.sentence()
            for silent, words in (
                ("wrist", "Camera 'wrist' has been silent"),
                ("joints", "joint_states has been silent"),
            ):
                driver.silent = {silent}
                still(robot, words)
                driver.silent = set()
                assert moves(), robot.sentence()
            # A driver that hangs repeats its last stamp.
            driver.frozen = now_ns()
            still(robot, "silent")
            driver.frozen = None
            assert moves(), robot.sentence()
            driver.ahead_ns = 10_000_000_000
            still(robot, "ahead of this node's clock")
            driver.ahead_ns = -3_600_000_000_000
            still(robot, "s behind this node's clock", "chrony")
            driver.ahead_ns = 0
            assert moves(), robot.sentence()
            robot.send_instruction("")
            still(robot, "The instruction is empty")
            robot.send_instruction()
            assert moves(), robot.sentence()


def test_a_camera_whose_topic_carries_another_kind_of_message_is_told_which():
    options = {"clock_mode": "realtime", "max_age_s": 2.0, "cameras.wrist.compressed": True}
    with policy_node("TinyPolicy", **options) as (robot, _):
        assert robot.change("configure") and robot.change("activate"), robot.log_text()
        robot.send_instruction()
        others = robot.cameras["agentview"], robot.joint_states, robot.instruction
        assert robot.until(lambda: all(publisher.get_subscription_count() for publisher in others))
        with Pace(robot, 0.05, Driver(robot).tick):
            robot.client.trigger("policy_node/start")
            still(robot, "Camera 'wrist' looks for sensor_msgs/msg/CompressedImage", "wrist.compressed to false")
            assert not robot.commands


def test_a_policy_that_hangs_in_real_time_stops_the_robot():
    with policy_node("HangingPolicy", clock_mode="realtime", max_age_s=10.0, command_timeout_s=1.0) as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        driver = Driver(robot)
        with Pace(robot, 0.05, driver.tick):
            robot.client.trigger("policy_node/start")
            still(robot, "gave no usable action", "command_timeout_s")
            assert not robot.commands


def test_an_instruction_publisher_whose_qos_cannot_match_is_reported():
    with policy_node() as (robot, _):
        robot.bring_up()
        robot.node.create_publisher(String, "instruction", 1)  # volatile, where transient local is asked for
        assert robot.until(lambda: robot.status("qos instruction") is not None)
        assert "DURABILITY" in robot.status("qos instruction").message


def test_a_joint_state_without_a_listener_for_the_answer_is_not_answered():
    with policy_node(controller="somebody_else") as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        robot.send_images(1)
        still(robot, "Nobody listens to /somebody_else/joint_trajectory", again=lambda: robot.send_joints(sample_at(1)))
        assert int(robot.values("joint_states")["received"]) >= 1
        assert "commands" not in robot.values()


def test_messages_of_all_lengths_do_not_bring_the_node_down():
    rng = np.random.default_rng(0)
    with policy_node() as (robot, child):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        for _ in range(300):
            message = conversions.image_message(
                rng.integers(0, 256, (2, 3, 3), dtype=np.uint8), int(rng.integers(1e12))
            )
            message.height, message.width, message.step = (int(v) for v in rng.integers(0, 2**32, 3))
            message.encoding = rng.choice(["rgb8", "bgra8", "\u00e9\U0001f916", "mono8", ""])
            robot.cameras["wrist"].publish(message)
            joints = JointState(name=[str(n) for n in rng.choice([*JOINTS, *FINGERS, "\u00e9"], rng.integers(0, 12))])
            joints.position = [float(v) for v in rng.choice([0.0, np.nan, np.inf, 1e300], rng.integers(0, 12))]
            joints.velocity = [float(v) for v in rng.choice([0.0, np.nan, -np.inf], rng.integers(0, 12))]
            robot.joint_states.publish(joints)
        still(robot)
        assert not robot.commands and child.returncode is None
