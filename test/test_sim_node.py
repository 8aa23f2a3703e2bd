"""sim_node on the wire: what an arm's driver must do right, and what it must never do.

Each test talks over real DDS to a node in a process of its own.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")

from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from ros_harness import storm
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from policies.types import VegaError
from sim.robot.ros_client import RosClient, unused_domain
from sim.robot.sim_node import COMMAND_TOPIC
from sim.worlds.libero_env import FINGER_NAMES, JOINT_NAMES
from vega3d_ros.inference.process import ChildProcess
from vega3d_ros.ros.conversions import stamp_ns, trajectory_message

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
NAMES = (*JOINT_NAMES, FINGER_NAMES[0])
OPEN, CLOSED = 0.04, 0.0
PERIOD_NS = 50_000_000
DEADLINE_S = 120.0


class Robot:
    """A user's view of sim_node: every message in order of arrival, and a way to answer."""

    def __init__(self, *command, parameters=()):
        self.domain = unused_domain()
        arguments = [part for name, value in parameters for part in ("-p", f"{name}:={value}")]
        self.process = ChildProcess(
            "sim_node",
            [sys.executable, *command, "--ros-args", *arguments],
            environment={**os.environ, "ROS_DOMAIN_ID": str(self.domain), "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self.client = RosClient("test", self.domain, self._watch)
        self.log, self.latched = [], {}
        node = self.client.node
        self.commands = node.create_publisher(JointTrajectory, COMMAND_TOPIC, 1)
        for camera in ("agentview", "wrist"):
            node.create_subscription(
                Image, f"{camera}/image_raw", lambda m, c=camera: self.log.append((c, m)), qos_profile_sensor_data
            )
        node.create_subscription(
            JointState, "joint_states", lambda m: self.log.append(("joints", m)), qos_profile_sensor_data
        )
        node.create_subscription(Clock, "/clock", lambda m: self.log.append(("clock", m)), 10)
        for name, kind in (
            ("instruction", String),
            ("robot_description", String),
            ("sim_node/success", Bool),
            ("sim_node/episode_over", Bool),
        ):
            node.create_subscription(kind, name, lambda m, n=name: self.latched.__setitem__(n, m.data), LATCHED)

    def _watch(self):
        assert self.process.returncode is None, "\n".join(self.process.tail())

    def close(self):
        self.client.close()
        return self.process.stop()

    def wait(self, condition):
        assert self.client.until(condition, DEADLINE_S), "\n".join(
            ["the event did not come in time; the node said:", *self.process.tail()]
        )

    def of(self, kind):
        return [message for name, message in self.log if name == kind]

    def stamps(self, kind):
        return [stamp_ns(message.header.stamp) for message in self.of(kind)]

    def start(self, **parameters):
        self.wait(lambda: self.commands.get_subscription_count() > 0)
        self.client.set_parameters("sim_node", parameters, DEADLINE_S)
        sentence = self.client.trigger("sim_node/reset", 120.0, 60.0)
        self.wait(lambda: self.latched.get("sim_node/episode_over") is False)
        self.log.clear()
        self.client.trigger("sim_node/run", DEADLINE_S)
        return sentence

    def answer(self, message, positions, velocities=None, gripper=OPEN):
        velocities = np.zeros(7) if velocities is None else velocities
        stamp = stamp_ns(message.header.stamp)
        self.commands.publish(trajectory_message(stamp, NAMES, [*positions, gripper], [*velocities, 0.0], 0.05))

    def next_joints(self, count):
        self.wait(lambda: len(set(self.stamps("joints"))) >= count)
        return self.of("joints")[-1]

    def over(self):
        return self.latched.get("sim_node/episode_over") is True

    def report(self):
        response = self.client.call(Trigger, "sim_node/success", Trigger.Request(), DEADLINE_S)
        return {**json.loads(response.message), "service": response.success}


@pytest.fixture(scope="module")
def robot():
    robot = Robot(
        str(Path(__file__).with_name("fake_sim_node.py")),
        parameters=[("suite", "fake"), ("command_deadline_s", DEADLINE_S)],
    )
    try:
        robot.wait(lambda: robot.commands.get_subscription_count() > 0)  # once here: each test would wait in vain
    except AssertionError:
        robot.close()
        raise
    yield robot
    assert robot.close() == 0, "Ctrl-C must end the node cleanly"


DEFAULTS = {
    "task": 0,
    "trial": 0,
    "suite": "fake",
    "clock_mode": "lockstep",
    "camera_every": 1,
    "command_deadline_s": DEADLINE_S,
}


def test_lockstep_waits_for_the_answer_and_solves_the_task(robot):
    sentence = robot.start(**{**DEFAULTS, "task": 1, "trial": 2})
    assert "task 1 trial 2" in sentence and "turn joint 1" in sentence
    joints = robot.next_joints(1)
    assert list(joints.name) == [*JOINT_NAMES, *FINGER_NAMES]
    np.testing.assert_array_equal(joints.position[:7], np.full(7, 0.2))
    np.testing.assert_array_equal(joints.position[7:], [OPEN, OPEN])
    for step in range(1, 5):
        robot.answer(joints, np.full(7, 0.1 * step), gripper=CLOSED)
        joints = robot.next_joints(step + 1)
        np.testing.assert_array_equal(joints.position[:7], np.full(7, 0.1 * step))
        np.testing.assert_array_equal(joints.position[7:], [0.0, 0.0])
        assert robot.client.trigger("sim_node/run", DEADLINE_S) == "The episode runs.", "asked again, it runs on"
    robot.answer(joints, np.full(7, 1.5))
    robot.wait(robot.over)
    report = robot.report()
    assert report["service"] and report["success"] and report["steps"] == 5 and report["error"] == ""
    assert robot.latched["sim_node/success"] is True
    assert robot.latched["instruction"] == "turn joint 1"
    assert "panda_joint7" in robot.latched["robot_description"]
    stamps = sorted(set(robot.stamps("joints")))
    assert np.all(np.diff(stamps) == PERIOD_NS), "simulated time is steps x 50 ms"


def test_images_come_every_nth_step_with_the_stamp_of_their_joint_states(robot):
    robot.start(**{**DEFAULTS, "camera_every": 3})
    joints = robot.next_joints(1)
    first = stamp_ns(joints.header.stamp)
    for step in range(1, 8):
        robot.answer(joints, np.zeros(7))
        joints = robot.next_joints(step + 1)
    due = [first + n * PERIOD_NS for n in (0, 3, 6)]
    for camera, index in (("agentview", 0), ("wrist", 1)):
        robot.wait(lambda camera=camera: set(robot.stamps(camera)) == set(due))
        values = {stamp_ns(m.header.stamp): (m.data[0], m.encoding, m.height, m.width) for m in robot.of(camera)}
        assert values == {s: (8 * n + index, "rgb8", 256, 256) for s, n in zip(due, (0, 3, 6), strict=True)}


def test_every_picture_comes_with_its_calibration(robot):
    heard = []
    robot.client.node.create_subscription(CameraInfo, "wrist/camera_info", heard.append, qos_profile_sensor_data)
    robot.start(**{**DEFAULTS, "camera_every": 2})
    robot.wait(lambda: heard and robot.of("wrist"))
    stamps = {stamp_ns(message.header.stamp) for message in heard}
    assert stamps & set(robot.stamps("wrist")) and heard[-1].header.frame_id == "wrist_optical_frame"
    assert heard[-1].k.tolist() == [300.0, 0.0, 127.5, 0.0, 300.0, 127.5, 0.0, 0.0, 1.0]


def test_in_realtime_an_ordinary_commander_is_obeyed_and_refused_as_by_its_controller(robot):
    robot.start(**{**DEFAULTS, "clock_mode": "realtime", "camera_every": 30})
    robot.next_joints(2)
    wrong = trajectory_message(0, NAMES[1:7], [0.9] * 6, [0.0] * 6, 0.05)
    robot.commands.publish(wrong)
    robot.wait(lambda: robot.report()["ignored_commands"] == {"malformed": 1})
    robot.wait(lambda: any("Joints on incoming trajectory don't match" in line for line in robot.process.tail(50)))
    way = trajectory_message(0, JOINT_NAMES, [0.2] * 7, [0.0] * 7, 0.1)
    last = trajectory_message(0, JOINT_NAMES, [0.4] * 7, [0.0] * 7, 0.3).points[0]
    way.points = [way.points[0], last]
    for point in way.points:
        point.velocities = []
    robot.commands.publish(way)
    robot.wait(lambda: max(m.position[0] for m in robot.of("joints")) >= 0.4)
    seen = sorted({round(m.position[0], 6) for m in robot.of("joints")})
    assert seen == [0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4]


def test_a_new_episode_never_shows_stamps_that_jump_back(robot):
    robot.start(**DEFAULTS)
    last = stamp_ns(robot.next_joints(1).header.stamp)
    robot.start(**DEFAULTS)
    assert stamp_ns(robot.next_joints(1).header.stamp) >= last + 1_000_000_000


def test_a_lost_observation_is_sent_again(robot):
    robot.start(**DEFAULTS)
    joints = robot.next_joints(1)
    robot.wait(lambda: len(robot.of("joints")) >= 2 and len(robot.of("wrist")) >= 2)
    assert len(set(robot.stamps("joints"))) == 1, "the world stood still"
    robot.answer(joints, np.zeros(7))
    robot.next_joints(2)


def bad_commands(joints):
    stamp = stamp_ns(joints.header.stamp)
    good = trajectory_message(stamp, NAMES, [0.0] * 8, [0.0] * 8, 0.05)
    two_points = trajectory_message(stamp, NAMES, [0.0] * 8, [0.0] * 8, 0.05)
    two_points.points = [*two_points.points, *good.points]
    nan = trajectory_message(stamp, NAMES, [0.0] * 8, [0.0] * 8, 0.05)
    nan.points[0].positions[3] = float("nan")
    short = trajectory_message(stamp, NAMES, [0.0] * 7, [0.0] * 8, 0.05)
    renamed = trajectory_message(stamp, ["joint1", *NAMES[1:]], [0.0] * 8, [0.0] * 8, 0.05)
    six = trajectory_message(stamp, NAMES[1:], [0.0] * 7, [0.0] * 7, 0.05)
    late = trajectory_message(stamp - PERIOD_NS, NAMES, [0.0] * 8, [0.0] * 8, 0.05)
    return {"malformed": [two_points, nan, short, renamed, six], "wrong_stamp": [late]}


def test_bad_commands_are_counted_and_move_nothing(robot):
    robot.start(**DEFAULTS)
    joints = robot.next_joints(1)
    expected = {}
    for reason, messages in bad_commands(joints).items():
        for message in messages:
            robot.commands.publish(message)
            expected[reason] = expected.get(reason, 0) + 1
            robot.wait(lambda: robot.report()["ignored_commands"] == expected)
    assert robot.report()["steps"] == 0
    robot.answer(joints, np.zeros(7))
    robot.next_joints(2)


def test_a_missing_command_ends_the_episode_with_an_error(robot):
    robot.start(**{**DEFAULTS, "command_deadline_s": 0.3})
    robot.wait(robot.over)
    report = robot.report()
    assert not report["success"] and "No command" in report["error"] and report["steps"] == 0


def test_a_simulator_that_breaks_is_an_error_of_the_episode_and_the_next_one_runs(robot):
    robot.start(**DEFAULTS)
    robot.answer(robot.next_joints(1), np.full(7, 2.5))
    robot.wait(robot.over)
    assert "the world broke" in robot.report()["error"]
    robot.start(**DEFAULTS)
    robot.answer(robot.next_joints(1), np.zeros(7))
    robot.next_joints(2)


def test_realtime_holds_the_last_command_and_ends_at_the_step_limit(robot):
    robot.start(**{**DEFAULTS, "trial": 3, "clock_mode": "realtime", "camera_every": 10})
    joints = robot.next_joints(3)
    np.testing.assert_array_equal(joints.position[:7], np.full(7, 0.1 * 3))
    robot.commands.publish(trajectory_message(0, NAMES, [*np.full(7, 0.5), CLOSED], [0.0] * 8, 0.05))
    robot.wait(robot.over)
    report = robot.report()
    assert report["steps"] == 30 and not report["success"] and report["error"] == ""
    last = robot.of("joints")[-1]
    np.testing.assert_array_equal(last.position[:7], np.full(7, 0.5))
    np.testing.assert_array_equal(last.velocity[:7], np.zeros(7))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"suite": "none"}, "suite fake"),
        ({"task": 7}, "tasks 0 and 1"),
        ({"trial": 9}, "trials 0 to 4"),
        ({"clock_mode": "warp"}, "lockstep, realtime"),
        ({"camera_every": 0}, "camera_every"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(robot, parameters, words):
    with pytest.raises(VegaError, match=words):
        robot.start(**{**DEFAULTS, **parameters})


def test_run_without_reset_is_refused(robot):
    robot.start(**{**DEFAULTS, "command_deadline_s": 0.1})
    robot.wait(robot.over)
    with pytest.raises(VegaError, match="~/reset"):
        robot.client.trigger("sim_node/run")


def test_ctrl_c_again_and_again_ends_it_as_cleanly_as_once():
    robot = Robot(str(Path(__file__).with_name("fake_sim_node.py")), parameters=[("suite", "fake")])
    try:
        robot.start(**{**DEFAULTS, "clock_mode": "realtime"})
        storm(robot.process)
    finally:
        robot.close()


def test_libero_over_ros_ends_in_the_same_state_as_the_direct_path_bit_for_bit():
    from sim.worlds.episode import Episode
    from sim.worlds.libero_env import LiberoEnvironment

    steps = 12
    rng = np.random.default_rng(0)
    environment = LiberoEnvironment("libero_object", 2)
    environment.reset(1)
    start = environment.state().joint_positions
    targets = start + np.cumsum(rng.uniform(-0.01, 0.01, (steps, 7)), axis=0)
    velocities = rng.uniform(-0.1, 0.1, (steps, 7))
    grippers = np.where(np.arange(steps) < 6, OPEN, CLOSED)
    direct, images = Episode(environment), [environment.render("wrist")]
    for target, velocity, gripper in zip(targets, velocities, grippers, strict=True):
        direct.step(target, velocity, -1.0 if gripper == OPEN else 1.0)
        images.append(environment.render("wrist"))
    environment.close()

    robot = Robot("-m", "sim.robot.sim_node")
    try:
        robot.start(suite="libero_object", task=2, trial=1)
        joints = robot.next_joints(1)
        np.testing.assert_array_equal(joints.position[:7], start)
        for step in range(steps):
            robot.answer(joints, targets[step], velocities[step], grippers[step])
            joints = robot.next_joints(step + 2)
        report = robot.report()
        assert report["steps"] == steps
        assert report["actions_sha256"] == direct.result().actions_sha256
        assert report["states_sha256"] == direct.result().states_sha256
        last = stamp_ns(joints.header.stamp)
        robot.wait(lambda: last in robot.stamps("wrist"))
        seen = np.array(robot.of("wrist")[-1].data, dtype=np.uint8).reshape(256, 256, 3)
        np.testing.assert_array_equal(seen, images[-1])
    finally:
        robot.close()


def test_a_parameter_out_of_range_at_start_up_is_one_sentence_and_a_non_zero_exit():
    robot = Robot("-m", "sim.robot.sim_node", parameters=[("clock_mode", "warp")])
    try:
        assert robot.process.wait(DEADLINE_S) == 1
        assert "sim_node: " in robot.process.tail()[-1] and "lockstep, realtime" in robot.process.tail()[-1]
    finally:
        robot.close()
