"""`/diagnostics` of a node, once a second, and what it finds wrong with the way in which pictures come to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from vega3d_ros.ros.diagnostics import Status, diagnostic_array
from vega3d_ros.topics.neighbours import Neighbours

PERIOD_S = 1.0
_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


class Reporter:
    """Calls `make` once a second, which builds a report and hands it to `publish`.

    topics: of the cameras; one whose pictures come another way than they should is told in the log.
    """

    def __init__(self, node: Node, hardware_id: str, topics: dict[str, str], make: Callable[[], None]) -> None:
        self._node, self._hardware_id = node, hardware_id
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", _QOS)
        # A steady clock: a simulated one that stands still must not silence the supervision.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(PERIOD_S, make, clock=steady)
        self._neighbours = Neighbours(node, topics)
        self._tell_news()

    def publish(self, statuses: Iterable[Status], now_ns: int) -> None:
        self._publisher.publish(diagnostic_array(statuses, self._node.get_name(), self._hardware_id, now_ns))
        self._tell_news()

    def _tell_news(self) -> None:
        for sentence in self._neighbours.news():
            self._node.get_logger().warning(sentence)

    def destroy(self) -> None:
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._publisher)
