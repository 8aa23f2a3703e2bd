"""Turns incompatible-QoS events, which DDS would only count, into sentences.  Import it after `apply_defaults`."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.qos import qos_policy_name_from_kind

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks


def subscription_events(node: Node, topic: str, problems: dict[str, str]) -> SubscriptionEventCallbacks:
    """Callbacks that write into `problems`, by topic, why a publisher of it is not heard."""

    def incompatible(event: Any) -> None:
        _note(node, topic, problems, f"A publisher of '{topic}' cannot be heard", event)

    return SubscriptionEventCallbacks(incompatible_qos=incompatible)


def publisher_events(node: Node, topic: str, problems: dict[str, str]) -> PublisherEventCallbacks:
    """Callbacks that write into `problems`, by topic, why a subscriber of it hears nothing."""

    def incompatible(event: Any) -> None:
        _note(node, topic, problems, f"A subscriber of '{topic}' cannot hear this node", event)

    return PublisherEventCallbacks(incompatible_qos=incompatible)


def _note(node: Node, topic: str, problems: dict[str, str], what: str, event: Any) -> None:
    policy = qos_policy_name_from_kind(event.last_policy_kind)
    problems[topic] = f"{what}, as their QoS differ in {policy}: see docs/interfaces.md for what is needed."
    node.get_logger().error(problems[topic])
