"""franka_driver: how a path becomes targets, and what a user can get wrong; `test_franka_sim.py` moves a robot."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from policies.types import VegaError
from vega3d_ros.bringup.bringup import ARGUMENTS, node_table
from vega3d_ros.bringup.entries import parse_arguments
from vega3d_ros.driver import franka_driver
from vega3d_ros.driver.driver_parameters import DriverParameters
from vega3d_ros.driver.following import ACCELERATION, RAMP_S, STEP_S, VELOCITY, look_ahead, stopping_times
from vega3d_ros.driver.franka_arm import ArmState
from vega3d_ros.driver.franka_driver import FrankaDriver
from vega3d_ros.driver.trajectory import TrajectoryController
from vega3d_ros.ros.conversions import duration_message, time_message

ROOT = Path(__file__).resolve().parent.parent
FR3 = ROOT / "config" / "robots" / "franka_fr3.yaml"
DEADLINE_S = 120.0
NAMES = tuple(f"j{index}" for index in range(1, 8))
joints = st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3)


def there_and_rest(distance: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """A cubic from rest to rest, every STEP_S."""
    s = np.arange(0.0, seconds + 1.5 * STEP_S, STEP_S).clip(max=seconds)[:, None] / seconds
    return distance * s**2 * (3.0 - 2.0 * s), 6.0 * distance * s * (1.0 - s) / seconds


@given(joints, st.floats(0.3, 3.0))
def test_targets_lie_on_the_path_ahead_of_it_and_end_where_it_ends(distance, seconds):
    positions, velocities = there_and_rest(np.array(distance), seconds)
    targets = look_ahead(positions, velocities, np.full(3, 5.0), 0.002)
    assert targets.shape == positions.shape and np.allclose(targets[-1], positions[-1], atol=1e-12)
    sign = np.sign(distance)
    assert np.all(sign * (targets - positions) >= -1e-12) and np.all(sign * (positions[-1] - targets) >= -1e-12)


@given(st.floats(0.1, 1.0), st.floats(1.0, 8.0))
def test_at_constant_speed_the_target_is_where_a_generator_comes_to_rest(speed, acceleration):
    times = STEP_S * np.arange(3000)
    slower = 0.3 * speed
    velocities = np.tile([speed, slower], (len(times), 1))
    targets = look_ahead(times[:, None] * velocities, velocities, np.full(2, acceleration), 0.0)
    stops_after = speed / acceleration
    wanted = speed * stops_after / 2.0, slower * stops_after - slower**2 / (2.0 * acceleration)
    assert np.allclose(targets[0], wanted, atol=1e-9)


@given(joints, st.floats(1.0, 4.0), st.floats(0.0, 0.9))
def test_slowing_down_stays_on_the_path_and_needs_half_the_acceleration(distance, seconds, where):
    acceleration = 6.0
    positions, velocities = there_and_rest(np.array(distance), seconds)
    start = int(where * len(positions))
    times = stopping_times(velocities[start:], np.full(3, acceleration))
    assert times[0] == 0.0 and np.all(np.diff(times) >= 0.0)
    along = np.interp(times, STEP_S * np.arange(len(positions) - start), np.arange(start, len(positions)))
    places = np.stack([np.interp(along, np.arange(len(positions)), column) for column in positions.T], axis=1)
    speeds = np.diff(places, axis=0) / STEP_S
    assert np.abs(speeds[-1]).max() < 0.02 and np.abs(speeds[0] - velocities[start]).max() < 0.05
    path = np.abs(np.diff(velocities, axis=0)).max() / STEP_S
    # Two points of a grid make a speed, three an acceleration: rounding counts a little.
    assert np.abs(np.diff(speeds[:-1], axis=0)).max(initial=0.0) / STEP_S <= path + 0.5 * acceleration + 0.5


class StubArm:
    """Takes targets and keeps them."""

    def __init__(self) -> None:
        self.velocity, self.acceleration = 0.5 * np.array(VELOCITY[10]), 0.5 * np.array(ACCELERATION[10])
        self.ramp_s, self.running, self.targets = RAMP_S[10], True, None

    def follow(self, targets: np.ndarray) -> None:
        self.targets = targets


class StubDriver(FrankaDriver):
    """The driver's own judgement of a trajectory, without ROS and a robot: at rest at zero, 0.05 rad/s allowed."""

    def __init__(self) -> None:
        words = "controller", "gripper_command_joint", "gripper_controller", "address", "realtime"
        numbers = "gripper_open", "gripper_closed", "rate_hz", "collision_torque", "collision_force"
        self._own = DriverParameters(
            joint_names=NAMES, lower=np.full(7, -2.0), upper=np.full(7, 2.0), velocity=np.full(7, 0.05),
            acceleration=np.full(7, 5.0), fraction=0.5, hand=False,
            **dict.fromkeys(words, ""), **dict.fromkeys(numbers, 1.0),
        )  # fmt: skip
        self._arm, self._hand, self._problem, self._refused = StubArm(), None, "", 0
        self._controller = TrajectoryController(NAMES)
        self._controller.hold(np.zeros(7))
        self.said: list[str] = []
        self.now_s, self.skew_s = 100.0, 0.0

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(error=lambda sentence, **_: self.said.append(sentence))

    def get_clock(self) -> SimpleNamespace:
        """1000 s ahead of the steady one, and read a little later."""
        ns = round(1e9 * (1000 + self.now_s + self.skew_s))
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=ns, to_msg=lambda: time_message(ns)))

    def send(self, *points: dict, stamp_s: float = 0.0) -> str:
        """Points of one number for all joints; why it is refused, '' if it is not."""
        message = JointTrajectory(joint_names=list(NAMES))
        message.header.stamp = time_message(round((1000 + stamp_s) * 1e9) if stamp_s else 0)
        for fields in points:
            seconds = fields["t"]
            point = JointTrajectoryPoint(positions=[float(fields["q"])] * 7)
            for field, key in (("velocities", "v"), ("accelerations", "a")):
                if key in fields:
                    setattr(point, field, [float(fields[key])] * 7)
            point.time_from_start.sec = math.floor(seconds)
            point.time_from_start.nanosec = round((seconds - math.floor(seconds)) * 1e9)
            message.points.append(point)
        self.said.clear()
        self._arm.targets = None
        self._on_trajectory(message)
        assert (self._arm.targets is None) == bool(self.said)
        return " ".join(self.said)


@pytest.fixture
def driver(monkeypatch) -> StubDriver:
    driver = StubDriver()
    monkeypatch.setattr(franka_driver, "time", SimpleNamespace(monotonic=lambda: driver.now_s))
    return driver


REST = {"v": 0.0}


@pytest.mark.parametrize(
    "points, sentence",
    [
        ([{"t": 1.0, "q": 1.0, **REST}], "send slower ones"),
        ([{"t": 0.0, "q": 1.0, **REST}], "at time 0, is 1.000 rad from where j1 is"),
        ([{"t": 0.0, "q": 1.0}], "at time 0, is 1.000 rad from where j1 is"),
        ([{"t": 0.0, "q": 1.0, **REST}, {"t": 30.0, "q": 1.0, **REST}], "at time 0, is 1.000 rad from where j1 is"),
        ([{"t": 0.0, "q": 0.001, **REST}], "send slower ones"),
        ([{"t": 0.001, "q": 1.0, **REST}], "send slower ones"),
        ([{"t": 1e-9, "q": 1.0, **REST, "a": 0.0}], "send slower ones"),
        ([{"t": -1.0, "q": 1.0, **REST}], "1 s before its start"),
        ([{"t": -1.0, "q": 0.0, **REST}, {"t": 1.0, "q": 0.0, **REST}], "1 s before its start"),
        ([{"t": 10.0001, "q": 0.0, **REST}, {"t": 10.0005, "q": 1.0, **REST}], "send slower ones"),
        ([{"t": 10.0001, "q": 0.0, **REST}, {"t": 10.0005, "q": 1.0, **REST}, {"t": 10.0009, "q": 0.0, **REST}],
         "send slower ones"),
        ([{"t": 1.0, "q": 0.0, **REST}, {"t": 1.002, "q": 0.0001, **REST}], "send slower ones"),
        ([{"t": 1.0, "q": 0.0, "v": 0.0, "a": 900.0}, {"t": 1.001, "q": 0.0, **REST, "a": 0.0}], "send slower ones"),
    ],
)  # fmt: skip
def test_a_trajectory_is_judged_wherever_its_points_lie(driver, points, sentence):
    assert sentence in driver.send(*points)
    assert not driver.send({"t": 1.0, "q": 0.01, **REST})  # it goes on as if nothing had been asked


@pytest.mark.parametrize("opening, fingers", [(0.03, ("finger",)), (None, ())])
def test_fingers_whose_place_is_unknown_are_left_out_of_joint_states(driver, opening, fingers):
    driver._own = replace(driver._own, hand=True, gripper_command_joint="finger")
    driver._hand = SimpleNamespace(opening=opening)
    driver._arm.state = lambda: ArmState(np.arange(7.0), np.zeros(7))
    sent: list[JointState] = []
    driver._states = SimpleNamespace(publish=sent.append)
    driver._publish()
    assert tuple(sent[0].name) == (*NAMES, *fingers)
    assert list(sent[0].position[7:]) == [0.03] * len(fingers) and len(sent[0].velocity) == 7 + len(fingers)
    driver._arm.target = lambda: np.arange(7.0)
    driver._hold()  # as after ~/recover
    assert np.allclose(driver._controller.at(driver.now_s)[0][:7], np.arange(7.0))


def test_the_hand_of_a_robot_that_has_stopped_obeys_nobody_until_it_is_recovered(driver):
    """Somebody's fingers may be what it has stopped for."""
    orders: list[float | str] = []
    driver._own = replace(driver._own, hand=True, gripper_command_joint="finger", gripper_controller="hand")
    driver._own = replace(driver._own, gripper_closed=0.0, gripper_open=0.04)
    driver._hand = SimpleNamespace(opening=0.04, command=orders.append, begin_nothing=lambda: orders.append("nothing"))
    driver._arm.state = lambda: ArmState(np.zeros(7), np.zeros(7))
    driver._arm.end = lambda: "user stop"
    driver._states = SimpleNamespace(publish=lambda message: None)
    point = JointTrajectoryPoint(positions=[0.0], time_from_start=duration_message(0.05))
    close = JointTrajectory(joint_names=["finger"], points=[point])
    driver._on_hand(close)
    driver._arm.running = False
    driver._on_hand(close)  # before the driver has looked whether the robot still runs
    driver._publish()
    driver._on_hand(close)
    assert orders == [0.0, "nothing"] and any("The hand is not moved" in sentence for sentence in driver.said)
    driver._arm.running, driver._problem = True, ""
    driver._on_hand(close)
    assert orders == [0.0, "nothing", 0.0]


def test_a_robot_that_stops_as_the_driver_ends_is_told_in_one_sentence(driver, monkeypatch):
    """Between two looks at whether it runs; the motion has to be ended all the same, and the hand left as it is."""
    ended: list[str] = []

    def refuses(targets: np.ndarray) -> None:
        raise VegaError("The robot takes no targets (user stop): call ~/recover.")

    driver._arm.follow, driver._arm.end = refuses, lambda: ended.append("arm") or "user stop"
    driver._hand = SimpleNamespace(end=lambda: ended.append("hand"))
    monkeypatch.setattr(franka_driver.Node, "destroy_node", lambda node: ended.append("node"))
    driver.destroy_node()
    assert ended == ["arm", "hand", "node"] and driver.said == ["The robot stopped (user stop)."]


def test_the_first_point_may_be_where_the_arm_is(driver):
    assert not driver.send({"t": 0.0, "q": 0.0, **REST})  # to hold is no motion
    # As MoveIt begins: at time 0, where the arm is measured, a little off where it is commanded to be.
    assert not driver.send({"t": 0.0, "q": 0.005, **REST}, {"t": 1.0, "q": 0.01, **REST})
    assert driver._arm.targets[0][0] < 0.001 and np.isclose(driver._arm.targets[-1][0], 0.01)


def test_a_stamped_path_is_joined_under_way_just_before_one_of_its_points(driver):
    """As policy_node sends with `command_ahead_s`: the rest of what is under way first, at any time of its own."""
    points = [{"t": 0.05 * k, "q": 0.002 * k, "v": 0.04} for k in range(1, 40)] + [{"t": 2.1, "q": 0.08, **REST}]
    assert not driver.send(*points, stamp_s=100.0)
    driver.skew_s = 20e-6
    for now_s in (100.0499, 100.04999, 100.0501, 100.149999, 100.15):
        driver.now_s = now_s
        assert not driver.send(*points, stamp_s=100.0)
    driver.now_s = 102.0999
    assert not driver.send(*points, stamp_s=100.0)
    assert "ends in the past" in driver.send(*points, stamp_s=99.0)


@given(*[st.lists(st.floats(-2.0, 2.0), min_size=2, max_size=2) for _ in range(3)], st.sampled_from([0, 1, 2]))
def test_the_extremes_of_a_segment_are_those_of_its_polynomial(places, speeds, accelerations, given_fields):
    controller = TrajectoryController(["a"], allow_motion_at_end=True)
    message = JointTrajectory(joint_names=["a"])
    for k in range(2):
        point = JointTrajectoryPoint(positions=[places[k]])
        point.velocities = [speeds[k]] if given_fields > 0 else []
        point.accelerations = [accelerations[k]] if given_fields > 1 else []
        point.time_from_start = duration_message(1.0 + 0.7 * k)
        message.points.append(point)
    controller.accept(message, 0.0, np.array([places[0]]), np.zeros(1))
    lowest, highest, fastest = (values[-1, 0] for values in controller.extremes()[1:])
    positions, velocities = controller.along(np.linspace(1.0, 1.7, 2001)[:-1])
    assert np.isclose(lowest, min(positions[:, 0].min(), places[1]), atol=1e-5)
    assert np.isclose(highest, max(positions[:, 0].max(), places[1]), atol=1e-5)
    end = abs(speeds[1]) if given_fields else 0.0
    assert np.isclose(fastest, max(np.abs(velocities).max(), end), atol=1e-4)


def bringup(tmp_path: Path, **changes: str) -> str:
    """A robot's file like ours, a line of it changed by its beginning."""
    lines = FR3.read_text().splitlines()
    for start, line in changes.items():
        (index,) = [i for i, old in enumerate(lines) if old.strip().startswith(f"{start}:")]
        lines[index] = " " * (len(lines[index]) - len(lines[index].lstrip())) + f"{start}: {line}"
    path = tmp_path / "fr3.yaml"
    path.write_text("\n".join(lines))
    return str(path)


def test_the_driver_is_started_where_it_is_asked_for_and_the_file_has_what_it_needs(tmp_path):
    file = bringup(tmp_path, address="192.0.2.1", robot_description=str(ROOT / "config/robots/libero_panda.urdf"))
    with pytest.raises(VegaError, match="joint"):  # another arm's URDF
        node_table(parse_arguments([f"robot:={file}", "driver:=franka"], ARGUMENTS))
    for changes, what in (({}, "franka.address"), ({"address": "192.0.2.1"}, "robot_description")):
        file = bringup(tmp_path, **changes)
        names = {entry.name for entry in node_table(parse_arguments([f"robot:={file}"], ARGUMENTS))}
        assert "franka_driver" not in names
        with pytest.raises(VegaError, match=f"driver:=franka needs {what}"):
            node_table(parse_arguments([f"robot:={file}", "driver:=franka"], ARGUMENTS))


def run_driver(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vega3d_ros.driver.franka_driver", "--ros-args", *words]
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=environment, cwd=ROOT)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "franka.address is empty"),
        (["-p", "franka.address:=127.0.0.1", "-p", "franka.fraktion:=0.5"], "did you mean 'franka.fraction'"),
        (["-p", "franka.address:=127.0.0.1", "-p", "franka.realtime:=maybe"], "choose one of enforce, ignore"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(words, sentence):
    done = run_driver("--params-file", str(FR3), *words)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("franka") is None, reason="franka-rs is not installed (extra 'franka')")
def test_a_robot_that_does_not_answer_is_one_sentence():
    done = run_driver("--params-file", str(FR3), "-p", "franka.address:=127.0.0.1", "-p", "franka.hand:=false")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "franka_driver cannot connect to the robot" in done.stderr
