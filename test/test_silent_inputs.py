"""What /diagnostics says of inputs that are silent, before and after the start, and of a stop that was lifted."""

from __future__ import annotations

from typing import Any

from ros_harness import CAMERAS, REAL, Arm, Pace, image_of, moving, now_ns, policy_node, start
from scene_harness import picture, scene_node
from std_srvs.srv import Trigger

from vega3d_ros.ros.diagnostics import is_news

OK, WARN, ERROR = 0, 1, 2
HOUR_NS = 3600 * 10**9


def shows(robot: Any, name: str, level: int, words: str) -> bool:
    """Wait for a report, made from now on, of that status."""
    robot.diagnostics.clear()

    def shown() -> bool:
        status = robot.status(name)
        return status is not None and status.level == bytes([level]) and words in status.message

    return bool(robot.until(shown))


def test_an_input_that_brings_nothing_to_use_is_told_before_the_start_and_in_its_own_status():
    with policy_node(**{**REAL, "max_age_s": 4.0}) as (robot, _):
        arm = Arm(robot)
        late: set[str] = set()

        def tick() -> None:
            arm.silent |= late
            arm.tick()
            for camera in late:
                robot.send_image(camera, image_of(0), now_ns() - HOUR_NS)

        arm.silent = {"agentview"}
        robot.bring_up()
        with Pace(robot, 0.05, tick):
            assert shows(robot, "agentview", ERROR, "has not sent anything usable yet"), robot.status("agentview")
            assert shows(robot, "wrist", OK, "ok")
            still = "Active and still, and after ~/start it would wait: Camera 'agentview' has not sent"
            assert robot.shows(WARN, still), robot.sentence()
            late.add("agentview")
            assert shows(robot, "agentview", ERROR, "behind this node's clock"), robot.status("agentview")
            assert robot.shows(WARN, "Active and still", "behind this node's clock"), robot.sentence()
            late.clear()
            arm.silent.clear()
            assert robot.shows(OK, "Active and still: call ~/start to command."), robot.sentence()
            assert all(shows(robot, camera, OK, "ok") for camera in (*CAMERAS, "joint_states"))
            robot.send_instruction()
            start(robot)
            assert arm.moves(), robot.sentence()
            arm.silent.add("wrist")
            assert robot.shows(ERROR, "Camera 'wrist' has been silent"), robot.sentence()
        # It has deactivated itself, and hears nobody: that the others are silent now, it does not know.
        assert shows(robot, "agentview", OK, "ok"), robot.status("agentview")
        lines = [line for line in robot.log_text().split(" | ") if "Active and still" in line]
        assert len(lines) <= 3, "what differs in its numbers only is no news"


def test_the_fault_of_a_stop_goes_when_the_stop_is_lifted():
    with policy_node(**REAL) as (robot, _), moving(robot) as arm:
        robot.client.trigger("policy_node/e_stop")
        assert robot.shows(ERROR, "emergency stop")

        def cleared() -> bool:
            answer = robot.client.call(Trigger, "policy_node/clear_stop", Trigger.Request(), 20.0)
            return str(answer.message).startswith("Cleared")

        assert robot.until(cleared)
        assert robot.shows(OK, "Not active: activate policy_node, then call ~/start."), robot.sentence()
        assert robot.change("cleanup"), robot.log_text()
        robot.bring_up()
        assert robot.shows(OK, "Active and still: call ~/start to command."), robot.sentence()
        assert arm.rests()


def test_a_fault_that_deactivated_is_told_until_the_activation():
    with policy_node(**{**REAL, "max_age_s": 4.0}) as (robot, _), moving(robot) as arm:
        arm.silent.add("wrist")
        assert robot.shows(ERROR, "then activate policy_node"), robot.sentence()
        arm.silent.clear()
        assert robot.change("activate"), robot.log_text()
        assert robot.shows(OK, "Active and still: call ~/start to command."), robot.sentence()
        assert arm.rests()


def test_scene_node_tells_in_a_cameras_status_what_it_does_not_send_where_ages_are_judged() -> None:
    with scene_node("tiny_scene:RedScene", max_age_s=0.5) as (camera, _):
        camera.bring_up()
        assert shows(camera, "eye", WARN, "has not sent anything usable yet"), camera.status("eye")
        camera.show(picture(2))
        assert shows(camera, "eye", WARN, "silent for"), camera.status("eye")
        assert camera.change("deactivate")
        camera.client.set_parameters("scene_node", {"use_sim_time": True})
        assert camera.change("activate"), camera.log_text()
        assert shows(camera, "eye", WARN, "has not sent anything usable yet"), camera.status("eye")
        camera.show(picture(2))
        # Two reports of a camera that has been silent for longer than max_age_s: its age is not judged.
        for _ in range(2):
            assert camera.shows(OK, "Answers from 1 frames"), camera.sentence()
            assert camera.status("eye").level == bytes([OK]), camera.status("eye")
            assert float(camera.values("eye")["age_s"]) > 0.5 or _ == 0


def test_what_differs_in_a_name_is_news_and_what_differs_in_a_number_is_not() -> None:
    assert not is_news("Camera 'wrist' has been silent for 0.41 s.", "Camera 'wrist' has been silent for 0.30 s.")
    assert is_news("Camera 'camera_2' has been silent for 1 s.", "Camera 'camera_1' has been silent for 1 s.")
    assert is_news("Joint fr3_joint3 is outside.", "Joint fr3_joint5 is outside.")
