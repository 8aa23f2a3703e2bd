"""policy_node over real DDS, in a process of its own: its lifecycle, lockstep and real time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ros_harness import (
    CAMERAS,
    COMMANDS,
    DEADLINE_S,
    FINGERS,
    INSTRUCTION,
    JOINTS,
    FakeRobot,
    Pace,
    image_of,
    now_ns,
    policy_node,
    sample_at,
    start_node,
    storm,
)
from sensor_msgs.msg import Image
from tiny_policy import TinyPolicy
from trajectory_msgs.msg import JointTrajectory

from policies.types import VegaError
from sim.evaluation.direct_episodes import build_control_loop, load_robot
from sim.robot.ros_client import unused_domain
from vega3d_ros.inference.process import ChildProcess, children_of
from vega3d_ros.ros.conversions import GripperMemory, image_array, stamp_ns

OK, ERROR = 0, 2


def test_each_state_of_the_lifecycle_keeps_its_promise():
    with policy_node() as (robot, child):
        node = robot.node
        assert robot.state() == "unconfigured"
        assert not robot.change("activate"), "a transition that this state lacks is refused and ends nothing"
        with pytest.raises(VegaError, match="not active"):
            robot.client.trigger("policy_node/start")

        assert robot.change("configure"), robot.log_text()
        robot.send_instruction()
        assert robot.until(robot.connected)
        assert node.count_publishers(COMMANDS) == 0, "a configured node must not look like one that commands"
        robot.send_images(1)
        robot.send_joints(sample_at(1))
        assert robot.quiet_for(0.5)
        assert not robot.diagnostics

        assert robot.change("activate"), robot.log_text()
        assert robot.until(lambda: node.count_publishers(COMMANDS) == 1)
        robot.send_images(2)
        robot.send_joints(sample_at(2))
        assert robot.shows(OK, "~/start")
        assert not robot.commands, "active alone must not command"

        robot.client.trigger("policy_node/start")
        for step in range(3, 8):
            robot.ask(step)
        robot.client.trigger("policy_node/stop")
        before = len(robot.commands)
        robot.send_images(8)
        robot.send_joints(sample_at(8))
        assert robot.quiet_for(0.5) and len(robot.commands) == before

        robot.client.trigger("policy_node/start")
        robot.ask(9)
        assert robot.change("deactivate")
        assert robot.until(lambda: node.count_publishers(COMMANDS) == 0)
        robot.send_images(10)
        robot.send_joints(sample_at(10))
        assert robot.quiet_for(0.5)

        assert robot.change("activate"), robot.log_text()
        assert robot.change("shutdown")
        assert robot.until(lambda: node.count_publishers(COMMANDS) == 0)
        assert robot.until(lambda: node.count_publishers("/diagnostics") == 0)
        assert robot.state() == "finalized"
        assert child.returncode is None


def test_lockstep_equals_the_direct_loop_bit_for_bit_and_answers_each_stamp_once():
    loop = build_control_loop(TinyPolicy(), load_robot())
    loop.base_position = np.array([-0.6, 0.0, 0.9])
    gripper = GripperMemory(0.04, 0.0)
    with policy_node() as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        for episode in range(2):
            robot.client.trigger("policy_node/stop")
            robot.client.trigger("policy_node/start")
            loop.reset()
            gripper.reset()
            # The second episode begins at an earlier time, as a simulator that starts anew does.
            for step in range(10 - 9 * episode, 40 - 9 * episode):
                received = robot.ask(step, joints_first=True, with_images=loop.needs_images)
                images = {camera: image_of(2 * step + i)[None] for i, camera in enumerate(CAMERAS)}
                expected = loop.step(sample_at(step), images, INSTRUCTION)
                assert received.joint_names == [*JOINTS, FINGERS[0]]
                (point,) = received.points
                assert np.array(point.positions[:7]).tobytes() == expected.positions.tobytes()
                assert np.array(point.velocities[:7]).tobytes() == expected.velocities.tobytes()
                assert point.positions[7] == gripper.position(expected.gripper, 0.04)
        robot.diagnostics.clear()
        assert robot.until(lambda: robot.status() is not None)
        assert robot.quiet_for(0.3)
        # Every answer beyond one for a joint state repeats it: the harness asks again where a message was lost.
        assert len(robot.commands) == 60 + int(robot.values().get("answers_repeated", 0))


def test_a_repeated_joint_state_gets_the_same_answer_again():
    with policy_node() as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        first = robot.ask(5)
        second = robot.ask(5)
        assert first == second
        third = robot.ask(6)
        assert third.points[0].positions != first.points[0].positions


def drive(robot, period_s: float = 0.05) -> Pace:
    """Cameras and joints at 20 Hz with stamps of the wall clock."""
    frames = [image_of(i) for i in range(4)]
    count = [0]

    def tick() -> None:
        stamp = now_ns()
        for index, camera in enumerate(CAMERAS):
            robot.send_image(camera, frames[(count[0] + index) % 4], stamp)
        robot.send_joints(robot.sample_now())
        count[0] += 1

    return Pace(robot, period_s, tick)


@contextmanager
def commanding_in_real_time() -> Iterator[tuple[FakeRobot, ChildProcess]]:
    """A node that has begun to command, and a robot whose sensors go on."""
    with policy_node(clock_mode="realtime", max_age_s=10.0) as (robot, child):
        robot.bring_up()
        robot.send_instruction()
        with drive(robot):
            robot.client.trigger("policy_node/start")
            assert robot.until(lambda: len(robot.commands) > 3), robot.sentence()
            yield robot, child


def test_in_real_time_commands_go_on_while_inference_runs_beside_them():
    with policy_node("StuckPolicy", clock_mode="realtime", max_age_s=10.0, command_timeout_s=5.0) as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        with drive(robot):
            robot.client.trigger("policy_node/start")
            # The second query, which is put long before the first chunk is used up, never returns.
            assert robot.shows(ERROR, "gave no usable action")
            assert len(robot.commands) == TinyPolicy.spec.chunk_length
            stamps = [stamp_ns(command.header.stamp) for command in robot.commands]
            assert stamps == sorted(stamps)
            assert float(robot.values("agentview")["rate_hz"]) > 0.0
            assert int(robot.values("latency")["image_to_command_count"]) == 1


def test_real_time_goes_on_from_chunk_to_chunk_until_it_is_stopped():
    with commanding_in_real_time() as (robot, _):

        def go_on() -> None:
            # Where this process stood still, its arm moved otherwise than it said, and the node rightly stopped.
            with contextlib.suppress(VegaError):
                robot.client.trigger("policy_node/start")

        assert robot.until(lambda: len(robot.commands) >= 30, again=go_on), robot.sentence()
        robot.diagnostics.clear()
        assert robot.until(lambda: int(robot.values().get("scheduler_chunks", 0)) >= 4, again=go_on)
        robot.client.trigger("policy_node/stop")
        robot.until(lambda: False, 0.1)  # what was on its way
        assert robot.quiet_for(0.3)


def test_the_gate_is_published_to_who_looks_at_it_and_its_age_is_reported():
    gates: list[Image] = []
    with policy_node() as (robot, _):
        robot.node.create_subscription(Image, "policy_node/gate/wrist", gates.append, 10)
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        deadline, step = time.monotonic() + DEADLINE_S, 0
        # The node's publisher learns of who looks at any time; the first gate after that stays.
        while not gates and time.monotonic() < deadline:
            robot.ask(step := step + 1)
        assert robot.until(lambda: bool(gates))
        assert gates[0].encoding == "mono8" and list(gates[0].data) == [0, 85, 170, 255]
        with pytest.raises(VegaError):
            image_array(gates[0], "gate")
        # Of three chunks of this policy the second comes with tokens of the first.  The world stops there, so that the
        # age stays as it is.
        horizon = TinyPolicy.spec.open_loop_horizon
        while step % (3 * horizon) != horizon + 1:
            robot.ask(step := step + 1)
        robot.diagnostics.clear()
        assert robot.until(lambda: robot.values().get("world_age") == "1"), robot.values()


def test_autostart_commands_without_a_call():
    with policy_node(autostart=True) as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        robot.ask(1)
        # What is set while the node is inactive holds from the next activation on.
        assert robot.change("deactivate")
        robot.client.set_parameters("policy_node", {"autostart": False})
        assert robot.change("activate"), robot.log_text()
        robot.diagnostics.clear()
        assert robot.until(lambda: robot.sentence() == "Active and still: call ~/start to command."), robot.sentence()


def test_a_policy_that_cannot_be_loaded_fails_the_transition_and_says_why():
    with policy_node("UnloadablePolicy") as (robot, child):
        assert not robot.change("configure")
        assert robot.until(lambda: "cut short: download it again." in robot.log_text())
        assert robot.state() == "unconfigured"
        assert child.returncode is None


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"policy": "no-such-policy"}, "There is no policy 'no-such-policy'"),
        ({"robot_description": "package://vega3d_ros/config/robots/none.urdf"}, "none.urdf does not exist"),
        ({"joint_names": ["elbow"], "home": [0.0]}, "elbow"),
        ({"home": [0.0, 1.0]}, "2 angles for 7 joints"),
        ({"clock_mode": "warp"}, "choose one of lockstep, realtime"),
        ({"tip_frame": "nose"}, "nose"),
        ({"cameras__wrist__topic": "/agentview/image_raw"}, "'agentview' and 'wrist' are both to come from '/agen"),
        ({"policy": "vega-nano", "cameras__wrist__width": 640}, "256x256 pixels of camera 'wrist'"),
    ],
)
def test_settings_that_cannot_work_fail_configure_with_one_sentence(parameters, words):
    with policy_node(**parameters) as (robot, _):
        assert not robot.change("configure")
        assert robot.until(lambda: words in robot.log_text()), robot.log_text()
        assert robot.state() == "unconfigured"


def test_a_parameter_out_of_range_ends_the_process_with_one_sentence():
    child = start_node(unused_domain(), parameters={"threads": 0})
    try:
        assert child.wait(DEADLINE_S) == 1
        assert any("threads" in line for line in child.tail())
        assert not any("Traceback" in line for line in child.tail())
    finally:
        child.stop()


def test_a_second_commander_is_refused_and_one_that_sneaks_in_stops_the_first():
    with policy_node() as (robot, _):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        robot.ask(1)
        domain = robot.node.context.get_domain_id()
        with start_node(domain, parameters={"clock_mode": "lockstep"}, name="other_policy") as second:
            assert robot.change("configure", "other_policy")
            robot.ask(2)  # a second node that is only configured disturbs nobody
            assert not robot.change("activate", "other_policy")
            assert robot.state("other_policy") == "inactive"
            text = "is already commanded by /policy_node"
            assert robot.until(lambda: any(text in message.msg for message in robot.log)), [m.msg for m in robot.log]
            robot.ask(3)
            assert second.returncode is None
        robot.node.create_publisher(JointTrajectory, COMMANDS, 1)
        assert robot.shows(ERROR, "already commanded by /fake_robot")
        robot.send_images(4)
        robot.send_joints(sample_at(4))
        assert robot.quiet_for(0.4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly_while_it_commands(number):
    with commanding_in_real_time() as (_, child):
        os.kill(child.pid, number)
        # Of a callback that does not return it would end itself with status 1.
        assert child.wait(DEADLINE_S) == 0, child.tail()
        assert not any("Traceback" in line for line in child.tail()), child.tail()


def test_ctrl_c_again_and_again_ends_it_as_cleanly_as_once():
    with policy_node(clock_mode="realtime") as (robot, child):
        robot.bring_up()
        storm(child)


def scheduling(pid: int) -> set[str]:
    """Scheduling policies of all threads of a process, as the kernel numbers them: 0 ordinary, 1 SCHED_FIFO."""
    stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {stat.rpartition(")")[2].split()[38] for stat in stats}


def test_in_real_time_it_goes_before_other_processes_where_that_is_allowed_and_its_policy_does_not():
    with commanding_in_real_time() as (robot, child):
        refused = any("real-time priority" in message.msg for message in robot.log)
        assert scheduling(child.pid) == ({"0"} if refused else {"1"})
        children = children_of(child.pid)
        assert children and all(scheduling(pid) == {"0"} for pid in children)
        assert robot.change("deactivate")
        assert scheduling(child.pid) == {"0"}


def test_the_death_of_the_policys_process_stops_the_arm_and_configuring_again_mends_it():
    with commanding_in_real_time() as (robot, child):
        for pid in children_of(child.pid):
            os.kill(pid, signal.SIGKILL)
        assert robot.shows(ERROR, "policy's process has ended", "configure it again")
        before = len(robot.commands)
        assert robot.quiet_for(0.5) and len(robot.commands) == before
        for transition in ("deactivate", "cleanup", "configure", "activate"):
            assert robot.change(transition), robot.log_text()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        assert robot.until(lambda: len(robot.commands) > before + 3)


def test_a_hanging_policy_cannot_keep_the_process_alive():
    with policy_node("HangingPolicy") as (robot, child):
        robot.bring_up()
        robot.send_instruction()
        robot.client.trigger("policy_node/start")
        robot.send_images(1)
        robot.send_joints(sample_at(1))
        assert robot.quiet_for(0.5)
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(DEADLINE_S) == 1
        assert any("did not return" in line for line in child.tail())
