"""Episodes over ROS against the same episodes in one process, and what happens when a process fails."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState

from policies.checkpoints import load_policy
from sim.evaluation.direct_episodes import DirectEpisodes
from sim.robot.ros_episodes import RosEpisodes

TEST_FOLDER = str(Path(__file__).resolve().parent)


@pytest.fixture(autouse=True)
def _policies_of_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(TEST_FOLDER).parent), TEST_FOLDER]))
    monkeypatch.syspath_prepend(TEST_FOLDER)


def test_over_ros_is_the_direct_path_bit_for_bit_and_a_killed_process_is_an_error_of_its_episode_alone():
    policy = "tiny_policy:TinyPolicy"
    direct = DirectEpisodes("libero_object", load_policy(policy), "joint")
    expected = direct.run(2, 1)
    direct.close()
    assert expected.steps == 280 and not expected.error

    seen: list[JointState] = []
    listen = partial(listen_to_joints, seen)
    with RosEpisodes("libero_object", policy, camera_every=4, observe=listen) as episodes:
        assert episodes.run(2, 1) == expected

        seen.clear()
        victim = episodes.pids["policy_node"]

        def kill_in_mid_episode():
            if len(seen) >= 20 and victim in episodes.pids.values():
                os.kill(victim, signal.SIGKILL)

        episodes.on_wait = kill_in_mid_episode
        result = episodes.run(2, 0)
        assert "policy_node ended with status -9" in result.error and not result.success

        episodes.on_wait = lambda: None
        assert episodes.run(2, 1) == expected, "both processes started afresh"
        assert episodes.pids["policy_node"] != victim


def listen_to_joints(seen, node):
    node.create_subscription(JointState, "joint_states", seen.append, qos_profile_sensor_data)


def test_a_policy_that_fails_is_an_error_that_says_why():
    with RosEpisodes("libero_object", "tiny_policy:RaisingPolicy", camera_every=4, command_deadline_s=10.0) as episodes:
        result = episodes.run(0, 0)
    assert "No command" in result.error and "CUDA error: device lost" in result.error


def test_a_policy_that_cannot_be_loaded_is_an_error_that_says_why():
    with RosEpisodes("libero_object", "tiny_policy:UnloadablePolicy") as episodes:
        result = episodes.run(0, 0)
    assert "cut short" in result.error and result.steps == 0
