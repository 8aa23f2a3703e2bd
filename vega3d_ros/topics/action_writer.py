"""Commands as actions: FollowJointTrajectory for the arm, GripperCommand for a gripper with a controller of its own.

Where the package control_msgs is installed.  Each command is a goal of its own that ends at rest after one control
period and braking, and takes the place of the one before; so the arm rests by itself if this process dies.  Unlike a
topic, an action tells when the controller refuses or gives up: no command is sent then until `~/start`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal
from rclpy.action import ActionClient
from rclpy.node import Node

from policies.types import VegaError
from vega3d_ros.control.control_loop import JointCommand, JointSample
from vega3d_ros.ros.node_parameters import NodeParameters
from vega3d_ros.topics.trajectories import trajectories

try:
    from control_msgs.action import FollowJointTrajectory, GripperCommand
except ImportError:
    FollowJointTrajectory = GripperCommand = None


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
        self._gripper_sent: float | None = None
        self._last_lead: Any = None  # the future of what the server says to it
        self._problems: dict[int, str] = {}  # by client, the first of each
        self._newest = [0 for _ in names]  # number of the last goal of each; of one that is done with, another's

    def unheard(self) -> str:
        if self._problems:
            return next(iter(self._problems.values()))
        missing = self.missing()
        if missing and not self.lost():
            self._gripper_sent = None  # a controller that comes up has been told nothing
        return missing

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

    def destroy(self) -> None:
        if self._node.context.ok():  # after a signal nothing can be sent any more; the goals end at rest by themselves
            self.stop()
        for cancel in self._cancels:
            self._node.destroy_client(cancel)
        for client in self._clients:
            client.destroy()

    def _send(self, index: int, goal: Any, holds: bool = False) -> Any:
        """holds: what the goal may end at before it is reached, since it is there to be held."""
        self._newest[index] += 1
        answer = self._clients[index].send_goal_async(goal)
        answer.add_done_callback(partial(self._answered, index, self._newest[index], holds))
        return answer

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
        if answer.status == GoalStatus.STATUS_ABORTED:
            why = str(getattr(answer.result, "error_string", "")).strip().rstrip(".") or "no reason given"
            self._say(index, f"{self._names[index]} gave up a goal ({why}): mend the cause, then call ~/start again.")
        # One that was replaced ends as cancelled, as it should; the last one nobody here has cancelled, and from then
        # on its controller holds the arm beside our path.
        elif answer.status == GoalStatus.STATUS_CANCELED and number == self._newest[index]:
            self._say(
                index,
                f"A goal of {self._names[index]} was cancelled by somebody else, or with its controller: find out by "
                "whom, then call ~/start again.",
            )

    def _say(self, index: int, sentence: str) -> None:
        self._problems.setdefault(index, sentence)
