"""Who else could command the same arm: publishers of any topic of its controllers, and clients of their actions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from rclpy.node import Node, NodeNameNonExistentError

from vega3d_ros.ros.node_parameters import NodeParameters

UNNAMED = "a node yet unnamed"
SAME_NAME = "another node of the same name"
_HIDDEN = "_UNKNOWN_"


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
