"""franka_driver moves franka-sim, a robot that others wrote, and leaves it at rest when its launcher dies.

Only where the environment variable VEGA3D_FRANKA_SIM names an environment that has franka-sim (it needs an older MuJoCo
than this one has), franka-rs is installed, and this process may have a network of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from benchmarks.franka.network import own_network
from benchmarks.franka.row import COMMANDS, arm
from benchmarks.franka.simulator import VARIABLE, Simulator
from policies.types import VegaError
from sim.robot.ros_client import RosClient
from vega3d_ros.inference.process import LAUNCHER, ChildProcess
from vega3d_ros.ros.conversions import trajectory_message

DEADLINE_S = 120.0
JOINTS = [f"fr3_joint{i}" for i in range(1, 8)]
HOME = np.array([0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398])
DOMAIN = 7  # nobody else is in this network

pytestmark = [
    pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no environment with franka-sim"),
    pytest.mark.skipif(importlib.util.find_spec("franka") is None, reason="franka-rs is not installed"),
]


class Robot:
    """The simulator, the driver, and what joint_states said: (positions (8,), velocities (8,)), newest last."""

    def __init__(self, folder: Path) -> None:
        self.simulator = Simulator(folder)
        self.launcher = subprocess.Popen(["sleep", "600"])
        environment = {**os.environ, "ROS_DOMAIN_ID": str(DOMAIN), LAUNCHER: str(self.launcher.pid)}
        self.driver = ChildProcess("driver", [sys.executable, *arm().driver], environment=environment)
        self.driver.wait_for_line("is held where it is", DEADLINE_S)
        self.client = RosClient("person", DOMAIN)
        self.heard: list[tuple[Any, Any]] = []
        node = self.client.node
        node.create_subscription(
            JointState, "joint_states", lambda m: self.heard.append((np.array(m.position), np.array(m.velocity))), 100
        )
        self._arm = node.create_publisher(JointTrajectory, COMMANDS, 1)
        self._hand = node.create_publisher(JointTrajectory, "fr3_gripper_controller/joint_trajectory", 1)
        self.until(lambda: min(p.get_subscription_count() for p in (self._arm, self._hand)) > 0 and bool(self.heard))

    def until(self, condition: Callable[[], bool]) -> None:
        assert self.client.until(condition, DEADLINE_S), self.driver.tail()

    def send(self, positions: Any, seconds: float) -> None:
        self._arm.publish(trajectory_message(0, JOINTS, positions, np.zeros(7), seconds))

    def is_refused(self, positions: Any, seconds: float, sentence: str) -> bool:
        """Sent once more; what is refused over and over is told once a second."""
        self.send(positions, seconds)
        return any(sentence in line for line in self.driver.tail())

    def finger(self, opening: float) -> None:
        self._hand.publish(trajectory_message(0, ["fr3_finger_joint1"], [opening], [0.0], 0.05))

    def is_at(self, positions: Any) -> bool:
        return bool(np.abs(self.heard[-1][0][:7] - positions).max() < 0.002)

    def close(self) -> None:
        self.launcher.kill()
        self.launcher.wait()
        self.driver.stop(10.0)
        self.client.close()
        self.simulator.close()


@pytest.fixture
def robot(tmp_path, monkeypatch) -> Iterator[Robot]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    try:
        with own_network():
            robot = Robot(tmp_path)
            try:
                yield robot
            finally:
                robot.close()
    except VegaError as error:
        if "network of its own" not in str(error):
            raise
        pytest.skip(str(error))


def test_it_goes_where_it_is_told_refuses_what_it_may_not_and_rests_when_its_launcher_dies(robot):
    robot.send(HOME, 4.0)
    robot.until(lambda: robot.is_at(HOME))
    robot.finger(0.0)
    robot.until(lambda: robot.heard[-1][0][7] < 0.001)
    robot.until(lambda: robot.is_refused(HOME + 3.0, 4.0, "beyond its limits"))
    robot.until(lambda: robot.is_refused(HOME + np.eye(7)[0], 0.2, "send slower ones"))
    assert robot.is_at(HOME)

    goal = HOME + 0.8 * np.eye(7)[0] + np.eye(7)[4]
    robot.send(goal, 4.0)
    robot.until(lambda: robot.heard[-1][1][0] > 0.25)
    robot.launcher.kill()
    robot.launcher.wait()
    robot.until(lambda: robot.driver.returncode is not None)
    assert robot.driver.returncode == 0
    robot.client.until(lambda: False, 0.2)  # what is on its way still arrives
    places, speeds = robot.heard[-1]
    assert np.abs(speeds[:7]).max() < 0.01
    # It left its path nowhere, and its end far off; where on it, depends on what else the machine does.
    share = (places[0] - HOME[0]) / 0.8
    assert 0.05 < share < 0.9 and np.allclose(places[:7], HOME + share * (goal - HOME), atol=0.02)
    assert not [line for line in robot.simulator.process.tail(200) if "aborting the motion" in line]
