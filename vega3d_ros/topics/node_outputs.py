"""What policy_node publishes, from activation to deactivation and at no other time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import String

from policies.types import ActionChunk, FloatArray, VegaError
from vega3d_ros.control.control_loop import JointCommand, JointSample
from vega3d_ros.control.guard.limits import GuardLimits
from vega3d_ros.ros import conversions
from vega3d_ros.ros.dds import DISCOVERY_S
from vega3d_ros.ros.node_parameters import NodeParameters
from vega3d_ros.topics.command_writers import LATEST, Writer, command_actions, command_topics, make_writer
from vega3d_ros.topics.notes import Notes
from vega3d_ros.topics.rivals import Rivals, may_be_listed_late

LOOK_S = 0.5
# Latched deep enough that a recorder that connects late misses nothing of a start.
DECISIONS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def gripper_memory(parameters: NodeParameters) -> conversions.GripperMemory:
    """What a node with these parameters remembers of its orders to the gripper."""
    apart = bool(parameters.gripper_controller)
    # A world in lockstep may begin anew with the gripper elsewhere.
    keeps = parameters.committed and not apart
    return conversions.GripperMemory(parameters.gripper_open, parameters.gripper_closed, apart, keeps)


def gripper_position(
    memory: conversions.GripperMemory, parameters: NodeParameters, command: JointCommand, sample: JointSample
) -> float | None:
    """Where the gripper's joint shall be, m or rad, None where nothing is to be said of it; 0 without a gripper."""
    joint = parameters.gripper_command_joint
    if not joint:
        return 0.0
    return memory.position(command.gripper, float(sample.gripper_positions[parameters.gripper_joints.index(joint)]))


class Outputs:
    """The publishers of an active node.

    They exist only while it is active, so that a second node which is merely configured does not
    look like one that commands.  joined_s: time.monotonic() at which the
    process joined the domain.  check: raises VegaError where nothing may be commanded; called before the publishers
    exist, after whatever time that took.  notes: the node's journal, which is told on ~/decisions; None: a new one.
    Raises VegaError if somebody else publishes commands already.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        limits: GuardLimits,
        qos_problems: dict[str, str],
        joined_s: float,
        check: Callable[[], None] = lambda: None,
        notes: Notes | None = None,
    ) -> None:
        self.notes = Notes(gripper_memory(parameters)) if notes is None else notes
        self._node = node
        self._parameters = parameters
        self.world_age = 0  # queries since the world simulator's tokens were computed
        self._gates: dict[str, Any] = {}
        self._writer: Writer | None = None
        self._rivals = Rivals(node, parameters, command_topics(parameters), command_actions(parameters))
        # Others become visible one by one after this process joined the domain, usually while the policy is loaded; a
        # rival that takes longer than this is found by the node's repeated check.
        deadline = max(joined_s + DISCOVERY_S, time.monotonic() + LOOK_S)
        while True:
            rivals, over = self.rivals(), time.monotonic() >= deadline
            # A publisher of our own that has just been destroyed is listed for a moment more.
            if rivals and (over or not may_be_listed_late(rivals)):
                raise VegaError(rivals)
            if over:
                break
            time.sleep(0.05)
        check()
        self._writer = make_writer(node, parameters, limits, qos_problems)
        self._decisions = node.create_publisher(String, "~/decisions", DECISIONS)
        self.notes.begin()

    def heard(self) -> bool:
        """Whether every command topic has a listener; a command nobody hears would be lost.  A dry run needs none."""
        return self._writer is not None and not self.unheard

    @property
    def unheard(self) -> str:
        """What to say where `heard` is false."""
        return "" if self._writer is None or self._parameters.dry_run else self._writer.unheard()

    @property
    def missing(self) -> str:
        """Who does not listen, one sentence, '' where all do; what a start mends does not count."""
        return "" if self._writer is None or self._parameters.dry_run else self._writer.missing()

    @property
    def lost(self) -> bool:
        """Whether the arm's controller may have left our path; in a dry run there is none."""
        return self._writer is not None and not self._parameters.dry_run and self._writer.lost()

    @property
    def late_ns(self) -> int:
        """So long ago the commanded path was where the controller has been told to be by now."""
        return 0 if self._writer is None else self._writer.late_ns

    @property
    def behind(self) -> str:
        """What to say where that is too long ago, '' where it is not."""
        return "" if self._writer is None else self._writer.behind()

    def confirmed(self) -> bool:
        """Whether all who listen to commands have what was sent last."""
        return self._writer is None or self._parameters.dry_run or self._writer.confirmed()

    def rivals(self) -> str:
        """A sentence if somebody else could command this arm, else ''."""
        if self._writer is None:
            return self._rivals.find(0, 0)
        return self._rivals.find(self._writer.own_publishers, self._writer.own_clients)

    def publish(self, command: JointCommand, sample: JointSample) -> None:
        """Send one command; `sample` gives the measured joints and finger openings."""
        assert self._writer is not None
        gripper = gripper_position(self.notes.gripper, self._parameters, command, sample)
        self._writer.write(command, gripper, sample)

    def publish_decisions(self) -> None:
        """Tell `~/decisions` what was noted; to be called after the command has left, as nobody waits for it."""
        for text in self.notes.take():
            if self._node.context.ok():  # after a signal nothing can be published any more
                self._decisions.publish(String(data=text))

    def stop(self, watched: bool = True) -> bool:
        """No command follows until `reset`.  Whether the arm's controller is on our path, as far as one can know; where
        it is not, `held` may tell more.

        watched: false where others may have commanded the arm unseen.
        """
        # After the end of ROS nothing can be said, nor asked.
        alone = watched and self._node.context.ok() and not self.lost and not self.rivals()
        if self._writer is not None:
            self._writer.stop(alone)
        return alone

    @property
    def held(self) -> FloatArray | None:
        """Where the arm's controller holds it (n,) rad, having heard the beginning of a path alone; None if it has not,
        or nobody knows."""
        known = self._writer is not None and self._node.context.ok() and not self.rivals()
        return self._writer.held if known and self._writer is not None else None

    def leave(self) -> None:
        """The arm is taken over anew: what is under way yet does not go on."""
        if self._writer is not None:
            self._writer.leave()

    def forget_gripper(self) -> None:
        """Its controller is away: one that comes up holds the gripper where it is, until the next order."""
        if self._writer is not None:
            self._writer.forget_gripper()
        if self.notes.gripper.remembers:
            self.notes("forget")

    def reset(self) -> None:
        """An episode begins."""
        self.notes.gripper.reset()
        if self._writer is not None:
            self._writer.reset()

    def show(self, chunk: ActionChunk | None) -> None:
        """What the policy's newest chunk lets one see: `~/gate/<camera>` where somebody looks, and `world_age`."""
        if chunk is None:
            return
        self.world_age = chunk.world_age
        for camera, gate in chunk.gates.items():
            if camera not in self._gates:
                self._gates[camera] = self._node.create_publisher(ImageMessage, f"~/gate/{camera}", LATEST)
            if self._gates[camera].get_subscription_count() > 0:
                self._gates[camera].publish(conversions.gate_message(gate, chunk.stamp_ns, camera))

    def end(self) -> tuple[bool, FloatArray | None]:
        """Ends commanding with the arm at rest; whether its controller holds it beside our path's end, and where (n,)
        rad, if that is known."""
        return (False, None) if self._writer is None else self._writer.destroy()

    def destroy(self) -> None:
        """Takes the publishers out of the graph.  After `end`."""
        if self._writer is not None:
            self.publish_decisions()
            self.notes.end()
            self._node.destroy_publisher(self._decisions)
        for publisher in self._gates.values():
            self._node.destroy_publisher(publisher)
