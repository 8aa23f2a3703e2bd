"""Whether the arm's controller still holds it where this node told it last, while nothing is commanded.

Everything runs in the executor's thread.
"""

from __future__ import annotations

import time

from rclpy.node import Node

from vega3d_ros.inference.lockstep import Lockstep
from vega3d_ros.inference.realtime import Realtime
from vega3d_ros.ros.node_parameters import NodeParameters
from vega3d_ros.topics.command_writers import command_actions, command_topics
from vega3d_ros.topics.node_outputs import Outputs
from vega3d_ros.topics.rivals import RECORDERS, Rivals, may_be_listed_late

# A node that did not look for longer may have missed who came, moved the arm and went; its own waits are shorter.
LONGEST_LOOK_S = 5.0
# For so long after a deactivation the node's own publishers may still be listed, as another's of its name.
LISTED_S = 2.0


class StillWatch:
    """Exists from the configuration to the cleanup; `look` is to be called often, in every state between them.

    Where somebody else commanded the arm, or its controller was away, or nobody looked, the place where a controller
    that obeys at once was told to be last is none to begin at: near the measured one it would be a step back.
    """

    def __init__(self, node: Node, parameters: NodeParameters, runner: Lockstep | Realtime) -> None:
        self._node, self._runner = node, runner
        topics = command_topics(parameters)
        self._rivals = Rivals(node, parameters, topics, command_actions(parameters))
        self._topic = node.resolve_topic_name(topics[0])
        self._looked_s = time.monotonic()
        self._missed = False
        self._active_s = -LISTED_S

    def look(self, outputs: Outputs | None, running: bool) -> None:
        """outputs: None while the node is not active.  running: it commands, and sees to who else does itself."""
        before_s, self._looked_s = self._looked_s, time.monotonic()
        self._missed = self._missed or self._looked_s - before_s > LONGEST_LOOK_S
        if outputs is not None:
            self._active_s = self._looked_s
        if running or not isinstance(self._runner, Realtime) or not self._node.context.ok():
            return
        watched, self._missed = not self._missed, False
        known = watched and self._is_ours() if outputs is None else outputs.stop(watched)
        held = outputs.held if watched and not known and outputs is not None else None
        news = not known and self._runner.release(True, held)
        guard = self._runner.loop.guard
        if news and held is None and guard is not None and guard.at_once:
            self._node.get_logger().info(
                "The arm's controller may hold it elsewhere than it was told last: the next commands begin at what "
                "joint_states say."
            )

    def _is_ours(self) -> bool:
        """While this node is not active: whether the controller is there and nobody commands it."""
        infos = self._node.get_subscriptions_info_by_topic(self._topic)
        rivals = self._rivals.find(0, 0)
        if self._looked_s - self._active_s < LISTED_S and may_be_listed_late(rivals):
            rivals = ""
        return not rivals and any(info.node_name not in RECORDERS for info in infos)
