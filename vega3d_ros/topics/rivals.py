"""Who else could command the same arm, publishers of any topic of its controllers and clients of their actions; and who
hears what is commanded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from rclpy.node import Node, NodeNameNonExistentError

from vega3d_ros.ros.node_parameters import NodeParameters

UNNAMED = "a node yet unnamed"
SAME_NAME = "another node of the same name"
_HIDDEN = "_UNKNOWN_"
# Nodes that listen to commands without moving an arm: ours (`recording_node.py`) and that of `ros2 bag record`.
RECORDERS = ("recorder", "rosbag2_recorder")
CONTROLLERS = (("arm", "controller"), ("gripper", "gripper.controller"))  # in the order of the topics
LOOK_AGAIN_S = 0.2


class Rivals:
    """own_topics, own_actions: those on which this node publishes, and of which it is a client, while it commands."""

    def __init__(self, node: Node, parameters: NodeParameters, own_topics: list[str], own_actions: list[str]) -> None:
        self._node = node
        self._own = {*map(node.resolve_topic_name, own_topics), *map(node.resolve_topic_name, own_actions)}
        # A dry run publishes where nobody commands; who really commands the arm is then none of its business.
        self._topics = list(map(node.resolve_topic_name, own_topics))
        self._actions: list[str] = []
        if not parameters.dry_run:
            ends = ("joint_trajectory", "commands")
            controllers = [name for name in (parameters.controller, parameters.gripper_controller) if name]
            every = [node.resolve_topic_name(f"{name}/{end}") for name in controllers for end in ends]
            self._topics += [topic for topic in every if topic not in self._topics]
            self._actions = [node.resolve_topic_name(f"{name}/follow_joint_trajectory") for name in controllers]
            if parameters.gripper_controller:
                self._actions.append(
                    node.resolve_topic_name(f"{parameters.gripper_controller}/{parameters.gripper_action}")
                )

    def find(self, publishers: int, clients: int) -> str:
        """A sentence if somebody else could command, else ''.  How many publishers on each of its own topics, and
        clients of each of its own actions, this node has at present."""
        for topic in self._topics:
            own = publishers if topic in self._own else 0
            if self._node.count_publishers(topic) > own:
                names = {
                    _name(info.node_namespace, info.node_name)
                    for info in self._node.get_publishers_info_by_topic(topic)
                }
                return self._sentence(topic, names)
        for action in self._actions:
            own = clients if action in self._own else 0
            service = f"{action}/_action/send_goal"
            if self._node.count_clients(service) > own:
                return self._sentence(f"The action {action}", set(self._clients_of(service)))
        return ""

    def _clients_of(self, service: str) -> Iterator[str]:
        for name, namespace in self._node.get_node_names_and_namespaces():
            if _HIDDEN in name:
                continue
            with suppress(NodeNameNonExistentError):  # it may have ended meanwhile
                clients = self._node.get_client_names_and_types_by_node(name, namespace)
                if any(service == offered for offered, _ in clients):
                    yield _name(namespace, name)

    def _sentence(self, what: str, names: set[str]) -> str:
        others = sorted(names - {self._node.get_fully_qualified_name()})
        return (
            f"{what} is already commanded by {', '.join(others) or SAME_NAME} in ROS domain "
            f"{self._node.context.get_domain_id()}: stop it, or choose another ROS_DOMAIN_ID."
        )


def may_be_listed_late(rivals: str) -> bool:
    """Whether what `find` says may be an endpoint of one's own that has just been destroyed, or one yet unnamed."""
    return SAME_NAME in rivals or UNNAMED in rivals


def _name(namespace: str, name: str) -> str:
    # An endpoint may be known a moment before the name of its node is.
    return UNNAMED if _HIDDEN in name else f"{namespace.rstrip('/')}/{name}"


class Audience:
    """Whether somebody who could move an arm listens to each of `publishers`: the arm's, then the gripper's."""

    def __init__(self, node: Node, publishers: Sequence[Any]) -> None:
        self._node, self._publishers = node, publishers
        self._counts: list[int] = []
        self._looked_s = 0.0
        self._listens = [False for _ in publishers]

    def missing(self) -> str:
        """A sentence where nobody does."""
        for publisher, listens, (whose, parameter) in zip(self._publishers, self._listen(), CONTROLLERS, strict=False):
            if not listens:
                topic = publisher.topic_name
                return f"Nobody listens to {topic}: start the {whose}'s controller or correct '{parameter}'."
        return ""

    @property
    def arm(self) -> bool:
        """Whether somebody listens to the arm's."""
        return self._listen()[0]

    def listeners(self) -> list[set[bytes]]:
        """Who listens to each, by the number that DDS gives a reader."""
        topics = [publisher.topic_name for publisher in self._publishers]
        return [{bytes(i.endpoint_gid) for i in self._node.get_subscriptions_info_by_topic(name)} for name in topics]

    def look_ahead(self) -> None:
        """After a command has left: what the next ones would look for soon, before they go."""
        if time.monotonic() - self._looked_s > LOOK_AGAIN_S / 2:
            self._look(self._counted())

    def _listen(self) -> list[bool]:
        counts = self._counted()
        # Counting is cheap; asking for names at every command would not be.
        if counts != self._counts or time.monotonic() - self._looked_s > LOOK_AGAIN_S:
            self._look(counts)
        return self._listens

    def _counted(self) -> list[int]:
        return [int(publisher.get_subscription_count()) for publisher in self._publishers]

    def _look(self, counts: list[int]) -> None:
        self._counts, self._looked_s = counts, time.monotonic()
        told = zip(self._publishers, counts, strict=True)
        self._listens = [count > 0 and self._drives(publisher) for publisher, count in told]

    def _drives(self, publisher: Any) -> bool:
        infos = self._node.get_subscriptions_info_by_topic(publisher.topic_name)
        return any(info.node_name not in RECORDERS for info in infos)
