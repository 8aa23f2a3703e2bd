"""Commands as actions: FollowJointTrajectory for the arm, GripperCommand for a gripper with a controller of its own.

Where the package control_msgs is installed.  Each command is a goal of its own that ends at rest after one control
period and braking, and takes the place of the one before; so the arm rests by itself if this process dies.  Unlike a
topic, an action tells when the controller refuses or gives up: no command is sent then until `~/start`.

How a goal ends does not tell why: joint_trajectory_controller lets one that another replaced end as cancelled, or as
aborted (since ros2_controllers 6.8, 5.17 and 4.42), and one that somebody cancelled up to a period of its timer later,
by when the next may have replaced it.  That somebody asked for it the action's status says at once.
"""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from action_msgs.msg import GoalStatus, GoalStatusArray
from action_msgs.srv import CancelGoal
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from unique_identifier_msgs.msg import UUID

from policies.types import FloatArray, VegaError
from vega3d_ros.control.control_loop import JointCommand, JointSample
from vega3d_ros.ros.node_parameters import NodeParameters
from vega3d_ros.topics.trajectories import trajectories

try:
    from control_msgs.action import FollowJointTrajectory, GripperCommand
except ImportError:
    FollowJointTrajectory = GripperCommand = None

INVALID_GOAL = -1  # of FollowJointTrajectory's result
# Deep enough that none of what the server says is passed over, as the client's own subscription would.
STATUS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
REMEMBERED = 100  # of goals that never seem to end, the last


class ActionWriter:
    """`<controller>/follow_joint_trajectory`, and `<gripper.controller>/<gripper.action>`; see `Writer`.

    Raises VegaError where control_msgs is missing.
    """

    # The same controller obeys its topic too, where others would be rivals.
    own_publishers, own_clients, held, late_ns = 0, 1, None, 0

    def __init__(self, node: Node, parameters: NodeParameters) -> None:
        if FollowJointTrajectory is None:
            raise VegaError(
                "The package control_msgs, which command_interface follow_joint_trajectory needs, is not installed: "
                "install it, or set command_interface to joint_trajectory."
            )
        self._node, self._parameters = node, parameters
        names = [f"{parameters.controller}/follow_joint_trajectory"]
        self._clients = [ActionClient(node, FollowJointTrajectory, names[0])]
        if parameters.gripper_controller:
            names.append(f"{parameters.gripper_controller}/{parameters.gripper_action}")
            self._clients.append(ActionClient(node, GripperCommand, names[1]))
        self._names = names
        # One request ends every goal, those too that the controller has not accepted yet.
        self._cancels = [node.create_client(CancelGoal, f"{name}/_action/cancel_goal") for name in names[1:]]
        self._goals: list[dict[int, bytes]] = [{} for _ in names]  # by number, the ids of those that may still end
        self._statuses = [
            node.create_subscription(GoalStatusArray, f"{name}/_action/status", partial(self._on_status, index), STATUS)
            for index, name in enumerate(names)
        ]
        self._gripper_sent: float | None = None
        self._last_lead: Any = None  # the future of what the server says to it
        self._problems: dict[int, str] = {}  # by client, the first of each
        self._newest = [0 for _ in names]  # number of the last goal of each; of one that is done with, another's

    def unheard(self) -> str:
        if self._problems:
            return next(iter(self._problems.values()))
        return self.missing()

    def missing(self) -> str:
        for client, name in zip(self._clients, self._names, strict=True):
            if not client.server_is_ready():
                return f"No action server offers {name}: start the controller or correct its name."
        return ""

    def lost(self) -> bool:
        return 0 in self._problems or not self._clients[0].server_is_ready()

    def behind(self) -> str:
        return ""

    def confirmed(self) -> bool:
        return self._last_lead is not None and self._last_lead.done()

    def write(self, command: JointCommand, gripper: float | None, sample: JointSample) -> None:
        for message in trajectories(command, gripper, self._parameters)[:1]:
            answer = self._send(0, FollowJointTrajectory.Goal(trajectory=message))
            if command.lead:
                self._last_lead = answer
        if len(self._clients) == 1 or gripper is None or command.lead or command.rejected:
            return
        # Said once: repeating it would make the gripper begin its motion anew at every step.
        if gripper != self._gripper_sent:
            goal = GripperCommand.Goal()
            goal.command.position = float(gripper)
            goal.command.max_effort = float(self._parameters.gripper_max_effort)
            self._send(1, goal, holds=gripper == self._parameters.gripper_closed)
            self._gripper_sent = gripper

    def leave(self) -> None:
        """The next goal takes the place of the one under way."""

    def forget_gripper(self) -> None:
        self._gripper_sent = None

    def stop(self, alone: bool = True) -> None:
        """End the gripper's goal.  The arm's ends at rest by itself: a controller that is told to cancel one holds the
        position it has at once, at whatever speed."""
        if self._gripper_sent is not None:
            self._newest[1:] = [number + 1 for number in self._newest[1:]]
            for cancel in self._cancels:
                cancel.call_async(CancelGoal.Request())
        self._gripper_sent = None

    def reset(self) -> None:
        self._problems.clear()
        self._gripper_sent = None

    def destroy(self) -> tuple[bool, FloatArray | None]:
        if self._node.context.ok():  # after a signal nothing can be sent any more; the goals end at rest by themselves
            self.stop()
        for status in self._statuses:
            self._node.destroy_subscription(status)
        for cancel in self._cancels:
            self._node.destroy_client(cancel)
        for client in self._clients:
            client.destroy()
        return False, None

    def _send(self, index: int, goal: Any, holds: bool = False) -> Any:
        """holds: what the goal may end at before it is reached, since it is there to be held."""
        self._newest[index] += 1
        made = UUID(uuid=list(uuid.uuid4().bytes))
        self._goals[index][self._newest[index]] = bytes(made.uuid)
        for number in list(self._goals[index])[:-REMEMBERED]:
            del self._goals[index][number]
        answer = self._clients[index].send_goal_async(goal, goal_uuid=made)
        answer.add_done_callback(partial(self._answered, index, self._newest[index], holds))
        return answer

    def _on_status(self, index: int, message: GoalStatusArray) -> None:
        """Nobody here cancels a goal of the arm, nor the last one of the gripper that is not done with."""
        asked = {
            bytes(told.goal_info.goal_id.uuid)
            for told in message.status_list
            if told.status == GoalStatus.STATUS_CANCELING
        }
        for number, made in list(self._goals[index].items()):
            if made in asked and (index == 0 or number == self._newest[index]):
                self._say_cancelled(index, number)

    def _answered(self, index: int, number: int, holds: bool, future: Any) -> None:
        handle = future.result()
        if handle is None or not handle.accepted:
            self._say(index, f"{self._names[index]} refused a goal: see the controller's log, then call ~/start again.")
            return
        handle.get_result_async().add_done_callback(partial(self._ended, index, number, holds))

    def _ended(self, index: int, number: int, holds: bool, future: Any) -> None:
        answer = future.result()
        # With allow_stalling at its default a gripper controller gives up wherever there is something to hold.
        if answer is None or (holds and getattr(answer.result, "stalled", False)):
            return
        last = number == self._newest[index]
        if answer.status == GoalStatus.STATUS_ABORTED:
            # One that was accepted is invalid only as another has replaced it, or as its controller ends, and refuses.
            if not last and getattr(answer.result, "error_code", 0) == INVALID_GOAL:
                return
            why = str(getattr(answer.result, "error_string", "")).strip().rstrip(".") or "no reason given"
            self._say(index, f"{self._names[index]} gave up a goal ({why}): mend the cause, then call ~/start again.")
        # One that was replaced may end as cancelled; the last one nobody here has cancelled, and from then on its
        # controller holds the arm beside our path.
        elif answer.status == GoalStatus.STATUS_CANCELED and last:
            self._say_cancelled(index, number)
        self._goals[index].pop(number, None)

    def _say_cancelled(self, index: int, number: int) -> None:
        """Once of each goal: it may be told as being cancelled, and as having been, with a ~/start between the two."""
        if self._goals[index].pop(number, None) is not None:
            self._say(
                index,
                f"A goal of {self._names[index]} was cancelled by somebody else, or with its controller: find out by "
                "whom, then call ~/start again.",
            )

    def _say(self, index: int, sentence: str) -> None:
        self._problems.setdefault(index, sentence)
