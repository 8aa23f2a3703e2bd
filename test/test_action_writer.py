"""Commands as FollowJointTrajectory and GripperCommand goals, against a stand-in controller over real DDS."""

from __future__ import annotations

import importlib.util
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from action_msgs.msg import GoalInfo, GoalStatus, GoalStatusArray
from action_msgs.srv import CancelGoal
from ros_harness import CAMERAS, FINGERS, JOINTS, Pace, image_of, now_ns, policy_node

from vega3d_ros.control.control_loop import JointCommand
from vega3d_ros.topics import action_writer

INSTALLED = importlib.util.find_spec("control_msgs") is not None
needs_actions = pytest.mark.skipif(not INSTALLED, reason="control_msgs is not installed")
ERROR = 2
ARM = "panda_arm_controller/follow_joint_trajectory"
SETTINGS = {
    "clock_mode": "realtime",
    "max_age_s": 5.0,
    "max_skew_s": 1.0,
    "committed": True,
    "command_interface": "follow_joint_trajectory",
}


# What joint_trajectory_controller says of a goal that another replaces: until July 2026 (as in Humble) its C++ handle
# goes and so it is cancelled, though nobody asked for that; since then it is aborted (Jazzy 4.42, Kilted 5.17).
INVALID_GOAL, PREEMPTED = -1, "Current goal preempted by new incoming action."


class Controller:
    """Accepts goals as joint_trajectory_controller does: a new one takes the place of the one before.

    replaced: how that one ends then.
    """

    def __init__(self, node, name, kind, replaced="canceled") -> None:
        from rclpy.action import ActionServer, CancelResponse, GoalResponse

        self.refuses = self.closed = False
        self.on_goal = None
        self.replaced = replaced
        self.goals, self.ended = [], []
        self._kind, self._active = kind, None
        self._server = ActionServer(
            node,
            kind,
            name,
            execute_callback=lambda handle: None,
            goal_callback=lambda goal: GoalResponse.REJECT if self.refuses else GoalResponse.ACCEPT,
            handle_accepted_callback=self._accept,
            cancel_callback=lambda handle: CancelResponse.ACCEPT,
        )

    def _accept(self, handle) -> None:
        if self._active is not None and self._active.is_active:
            self.end("canceled" if self.cancel_requested else self.replaced, PREEMPTED, INVALID_GOAL)
        self._active = handle
        self.goals.append(handle.request)
        if self.on_goal is not None:
            self.on_goal(handle.request)
        handle._update_state(_events().EXECUTE)

    def end(self, how: str, sentence: str = "", code: int = 0) -> None:
        """End the goal under way as `aborted`, `succeeded` or `canceled`."""
        handle, result = self._active, self._kind.Result()
        if how == "aborted" and hasattr(result, "error_code"):
            result.error_string, result.error_code = sentence, code
        if how == "canceled" and not handle.is_cancel_requested:
            handle._goal_handle.update_goal_state(_events().CANCEL_GOAL)  # nobody is told of this between
        {"aborted": handle.abort, "succeeded": handle.succeed, "canceled": handle.canceled}[how]()
        self.ended.append(how)
        # What rclpy does after an execute callback, which here has nothing to wait for.
        self._server._result_futures[bytes(handle.goal_id.uuid)].set_result(_response(self._kind, handle, result))

    @property
    def cancel_requested(self) -> bool:
        return self._active is not None and self._active.is_cancel_requested

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._server.destroy()


def _events():
    from rclpy.action.server import GoalEvent

    return GoalEvent


def _response(kind, handle, result):
    response = kind.Impl.GetResultService.Response()
    response.status, response.result = handle.status, result
    return response


@pytest.fixture
def arm(request):
    """A node that commands a stand-in controller: robot, controller of the arm, and of the gripper (or None)."""
    from control_msgs.action import FollowJointTrajectory, GripperCommand

    extra = dict(getattr(request, "param", {}))
    replaced = extra.pop("replaced", "canceled")
    with policy_node(**SETTINGS, **extra) as (robot, child):
        controller = Controller(robot.node, ARM, FollowJointTrajectory, replaced)
        controller.on_goal = lambda goal: robot.obey(goal.trajectory)
        gripper = Controller(robot.node, "hand/gripper_cmd", GripperCommand) if extra else None
        pictures, count = [image_of(seed) for seed in range(4)], [0]

        def tick() -> None:
            stamp = now_ns()
            for index, camera in enumerate(CAMERAS):
                robot.send_image(camera, pictures[(count[0] + index) % 4], stamp)
            robot.send_joints(robot.sample_now())
            count[0] += 1

        robot.bring_up()
        robot.send_instruction()
        with Pace(robot, 0.05, tick):
            robot.client.trigger("policy_node/start")
            assert robot.until(lambda: len(controller.goals) > 5), robot.sentence() + robot.log_text()
            yield robot, controller, gripper
        controller.close()
        if gripper is not None:
            gripper.close()
        assert child.returncode is None


def sends_nothing_more(robot, controller):
    sent = len(controller.goals)
    robot.diagnostics.clear()
    assert robot.until(lambda: len(robot.diagnostics) > 1)
    assert len(controller.goals) == sent


def sends_nothing_until_start(robot, controller):
    sends_nothing_more(robot, controller)
    sent = len(controller.goals)
    robot.client.trigger("policy_node/start")
    assert robot.until(lambda: len(controller.goals) > sent)


@needs_actions
def test_every_command_is_a_goal_that_ends_at_rest_and_a_stop_lets_it(arm):
    robot, controller, _ = arm
    goal = controller.goals[-1].trajectory
    assert list(goal.joint_names) == [*JOINTS, FINGERS[0]]
    assert goal.header.stamp.sec == 0 and len(goal.points) == 2
    assert max(abs(v) for v in goal.points[-1].velocities) == 0.0
    assert goal.points[-1].time_from_start.sec == 0, "a short horizon"
    assert not robot.commands, "the topic is not used beside the action"
    robot.client.trigger("policy_node/stop")
    robot.until(lambda: False, 0.1)  # what was on its way
    sends_nothing_more(robot, controller)
    # A cancelled goal would be held at once, at whatever speed.
    assert not controller.cancel_requested


@needs_actions
def test_a_goal_that_is_given_up_stops_the_robot_until_start(arm):
    robot, controller, _ = arm
    assert "aborted" not in controller.ended
    controller.end("aborted", "joint 3 left its path")
    assert robot.shows(ERROR, "gave up a goal (joint 3 left its path)")
    sends_nothing_until_start(robot, controller)


@needs_actions
@pytest.mark.parametrize("arm", [{"replaced": "canceled"}, {"replaced": "aborted"}], indirect=True)
def test_a_goal_that_others_cancel_stops_the_robot_though_another_took_its_place_before_it_ended(arm):
    robot, controller, _ = arm
    assert len(controller.ended) > 3 and set(controller.ended) == {controller.replaced}
    cancel = robot.node.create_client(CancelGoal, f"{ARM}/_action/cancel_goal")
    assert robot.until(cancel.service_is_ready)
    cancel.call_async(CancelGoal.Request())
    # That controller says how a goal ended in a timer of its own, by when the next may have come.
    assert robot.shows(ERROR, "was cancelled by somebody else")
    sends_nothing_until_start(robot, controller)


@needs_actions
def test_a_refused_goal_stops_the_robot(arm):
    robot, controller, _ = arm
    controller.refuses = True
    assert robot.shows(ERROR, f"{ARM} refused a goal")


@needs_actions
def test_a_controller_that_goes_away_is_named(arm):
    robot, controller, _ = arm
    controller.close()
    assert robot.shows(ERROR, f"No action server offers {ARM}")


@needs_actions
@pytest.mark.parametrize("arm", [{"gripper__controller": "hand", "gripper__max_effort": 20.0}], indirect=True)
def test_the_gripper_gets_a_goal_for_each_change(arm):
    robot, controller, gripper = arm
    assert robot.until(lambda: len(gripper.goals) >= 3)
    positions = [goal.command.position for goal in gripper.goals]
    assert set(positions) == {0.0, 0.04} and all(a != b for a, b in itertools.pairwise(positions))
    assert gripper.goals[0].command.max_effort == 20.0
    assert list(controller.goals[0].trajectory.joint_names) == list(JOINTS)
    assert len(gripper.goals) < len(controller.goals)


class Goals:
    """A stand-in for an action client: accepts every goal, and ends it as told."""

    def __init__(self, _node=None, _kind=None, _name="") -> None:
        self.goals, self.ids, self._ends = [], [], []

    def send_goal_async(self, goal, goal_uuid):
        self.goals.append(goal)
        self.ids.append(goal_uuid)
        handle = SimpleNamespace(accepted=True)
        handle.get_result_async = lambda: SimpleNamespace(add_done_callback=self._ends.append)
        return SimpleNamespace(add_done_callback=lambda answered: answered(SimpleNamespace(result=lambda: handle)))

    def server_is_ready(self) -> bool:
        return True

    def cancelling(self, which: int) -> None:
        """Its server tells that it was asked to cancel a goal."""
        told = GoalStatus(goal_info=GoalInfo(goal_id=self.ids[which]), status=GoalStatus.STATUS_CANCELING)
        self.tell_status(GoalStatusArray(status_list=[told]))

    def end(self, which: int = -1, status: int = GoalStatus.STATUS_ABORTED, **result) -> None:
        """Give up the last goal, or end another otherwise."""
        answer = SimpleNamespace(status=status, result=SimpleNamespace(**result))
        self._ends[which](SimpleNamespace(result=lambda: answer))


def action_writer_of(monkeypatch):
    """A writer for an arm and a gripper, and their stand-ins."""

    class Action:
        def Goal(self, **fields):
            return SimpleNamespace(command=SimpleNamespace(), **fields)

    for name, stand_in in (("ActionClient", Goals), ("FollowJointTrajectory", Action()), ("GripperCommand", Action())):
        monkeypatch.setattr(action_writer, name, stand_in)
    parameters = SimpleNamespace(
        controller="arm", gripper_controller="hand", gripper_action="gripper_cmd", gripper_max_effort=20.0,
        gripper_command_joint=FINGERS[0], gripper_open=0.04, gripper_closed=0.0, joint_names=JOINTS, committed=False,
        command_ahead_s=0.0,
    )  # fmt: skip
    cancel = SimpleNamespace(call_async=lambda request: None)
    statuses = []
    node = SimpleNamespace(
        create_client=lambda *_: cancel, create_subscription=lambda kind, topic, hear, qos: statuses.append(hear)
    )
    writer = action_writer.ActionWriter(node, parameters)
    for client, hear in zip(writer._clients, statuses, strict=True):
        client.tell_status = hear
    return writer, *writer._clients


COMMAND = JointCommand(0, np.zeros(7), np.zeros(7), 0.0, 0.05)


@pytest.mark.parametrize("whose", ["arm", "hand"])
def test_the_last_goal_alone_is_cancelled_by_nobody_but_others(monkeypatch, whose):
    writer, *clients = action_writer_of(monkeypatch)
    cancelled = {"status": GoalStatus.STATUS_CANCELED, "reached_goal": False}
    client = clients[whose == "hand"]
    for gripper in (0.04, 0.0):
        writer.write(COMMAND, gripper, None)
    client.end(0, **cancelled)
    assert not writer.unheard(), "the second took the place of the first"
    if whose == "hand":
        writer.stop()
        client.end(1, **cancelled)
        assert not writer.unheard(), "the stop itself"
        writer.write(COMMAND, 0.04, None)
    client.end(-1, **cancelled)
    assert f"A goal of {whose}/" in writer.unheard()
    # Of the gripper it says nothing about where the arm is.
    assert writer.lost() == (whose == "arm")
    writer.reset()
    assert not writer.unheard() and not writer.lost()


@pytest.mark.parametrize("whose", ["arm", "hand"])
def test_a_goal_that_somebody_asked_to_cancel_is_told_once_though_the_next_has_replaced_it(monkeypatch, whose):
    writer, *clients = action_writer_of(monkeypatch)
    client = clients[whose == "hand"]
    for gripper in (0.04, 0.0):
        writer.write(COMMAND, gripper, None)
    client.cancelling(0)
    # One of the gripper's that was replaced may be one that a stop cancelled.
    assert bool(writer.unheard()) == (whose == "arm") == writer.lost()
    client.cancelling(1)
    assert f"A goal of {whose}/" in writer.unheard()
    writer.reset()
    client.cancelling(1)
    client.end(1, status=GoalStatus.STATUS_CANCELED)
    assert not writer.unheard(), "it was told before the start"


@pytest.mark.parametrize(
    ("which", "code", "said"),
    [(0, INVALID_GOAL, ""), (1, INVALID_GOAL, "gave up a goal (why)"), (0, -4, "gave up a goal (why)")],
)
def test_a_goal_that_ends_as_invalid_was_replaced_but_for_the_last(monkeypatch, which, code, said):
    writer, arm, _ = action_writer_of(monkeypatch)
    for _ in range(2):
        writer.write(COMMAND, None, None)
    arm.end(which, error_code=code, error_string="why")
    assert said in writer.unheard() and bool(said) == bool(writer.unheard()) == writer.lost()


@pytest.mark.parametrize(
    ("opens", "stalled", "said"),
    [(False, True, ""), (False, False, "gripper_cmd gave up a goal"), (True, True, "gripper_cmd gave up a goal")],
)
def test_a_gripper_that_stalls_as_it_closes_holds_something(monkeypatch, opens, stalled, said):
    writer, arm, gripper = action_writer_of(monkeypatch)
    writer.write(COMMAND, 0.04 if opens else 0.0, None)
    assert len(arm.goals) == len(gripper.goals) == 1 and writer.unheard() == ""
    gripper.end(stalled=stalled, reached_goal=False)
    assert said in writer.unheard() and bool(writer.unheard()) == bool(said)


@pytest.mark.skipif(INSTALLED, reason="control_msgs is installed")
def test_without_control_msgs_activation_says_what_to_install():
    with policy_node(**SETTINGS) as (robot, _):
        assert robot.change("configure"), robot.log_text()
        assert not robot.change("activate")
        assert robot.until(lambda: "control_msgs" in robot.log_text())


@pytest.mark.parametrize(
    ("settings", "said"),
    [({**SETTINGS, "clock_mode": "lockstep"}, "lockstep"), ({**SETTINGS, "committed": False}, "committed")],
)
def test_goals_that_could_not_end_at_rest_are_refused_at_configuration(settings, said):
    with policy_node(**settings) as (robot, _):
        assert not robot.change("configure")
        assert robot.until(lambda: said in robot.log_text())
