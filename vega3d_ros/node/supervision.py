"""The ROS side of the emergency stop, in every state of the lifecycle: `~/e_stop`, topic `e_stop`, `~/clear_stop`.

And the heartbeat of an active node.  Everything runs in the executor's thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Header
from std_srvs.srv import Trigger

from policies.types import VegaError
from vega3d_ros.control.stop_latch import StopLatch
from vega3d_ros.node.watches import KEPT, LastValue, came_s
from vega3d_ros.ros.node_parameters import getter
from vega3d_ros.ros.qos_events import SubscriptionEventCallbacks

RECEIVED = "received_timestamp"
HEARTBEAT_S = 0.1
WATCH_S = 0.05
LISTEN_S = 0.02
# A reliable subscription is deaf to a best-effort publisher, a transient-local one to a volatile publisher, and a
# best-effort one may lose the message: a stop must be heard from all of them, and hearing it twice does no harm.
_EVERY_PUBLISHER = tuple(
    QoSProfile(depth=KEPT, reliability=reliability, durability=durability)
    for reliability, durability in (
        (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
    )
)


class EmergencyStop:
    """Latches, tells `on_stop(sentence)`, and refuses to be cleared before the arm rests and the button is released.

    on_clear: told the same sentence once the stop is lifted.

    The last value of the topic counts.  A publisher of it that goes away sets the stop too, and so does its silence
    where the parameter e_stop.heartbeat_s says how often it has to speak.  While the stop is set, it listens to
    joint_states itself, since an inactive node does not.
    """

    def __init__(
        self, node: Node, on_stop: Callable[[str], None], on_clear: Callable[[str], None] = lambda sentence: None
    ) -> None:
        self.latch = StopLatch()
        self._node = node
        self._on_stop, self._cleared = on_stop, on_clear
        self._joints: Any = None
        self._button = LastValue(safe=True)
        self._known: set[bytes] = set()
        self._watched_s, self._just_back = time.monotonic(), False
        quiet = SubscriptionEventCallbacks(use_default_callbacks=False)
        self._subscriptions = [
            node.create_subscription(Bool, "e_stop", self._on_topic, qos, event_callbacks=quiet)
            for qos in _EVERY_PUBLISHER
        ]
        self._topic = self._subscriptions[0].topic_name
        node.create_service(Trigger, "~/e_stop", self._on_service)
        node.create_service(Trigger, "~/clear_stop", self._on_clear)
        node.create_timer(WATCH_S, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def sentence(self) -> str:
        """Why nothing may be commanded, '' while the stop is not set."""
        if not self.latch.reason:
            return ""
        return (
            f"The emergency stop was set by {self.latch.reason}: mend the cause, call ~/clear_stop, activate "
            "policy_node and call ~/start."
        )

    def check(self) -> None:
        """Raises VegaError while the stop is set, or its button is not heard that has to be.

        What the button said while no callback ran counts, whatever the executor would have taken before it.
        """
        self._take_waiting()
        if self.latch.reason:
            raise VegaError(self.sentence)
        silent = self._silent()
        if silent:
            raise VegaError(f"Nothing may move, because of {silent}: connect the button, then activate policy_node.")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While a callback may take so long that more comes than DDS keeps: it is kept, and told at the end."""
        heard: list[tuple[Bool, Mapping[str, Any]]] = []
        over = threading.Event()

        def listen() -> None:
            while not over.wait(LISTEN_S):
                for message, info in self._waiting():
                    if heard and heard[-1][0].data == message.data:
                        heard.pop()  # of equal ones the last says all
                    heard.append((message, info))

        thread = threading.Thread(target=listen, name="e_stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for message, info in [*heard, *self._waiting()]:
                self._on_topic(message, info)

    def _take_waiting(self) -> None:
        for message, info in self._waiting():
            self._on_topic(message, info)

    def _waiting(self) -> list[tuple[Bool, Mapping[str, Any]]]:
        """What has come and no callback has taken, in the order in which it came; it is taken by this."""
        taken = []
        for subscription in self._subscriptions:
            with subscription.handle:
                while (came := subscription.handle.take_message(subscription.msg_type, False)) is not None:
                    taken.append(came)
        return sorted(taken, key=lambda came: came[1].get(RECEIVED, 0))

    def _set(self, reason: str) -> None:
        if self.latch.set(reason, time.monotonic()):
            self._on_stop(self.sentence)
            self._joints = self._node.create_subscription(
                JointState, "joint_states", self._on_joint_state, qos_profile_sensor_data
            )

    def _on_topic(self, message: Bool, info: Mapping[str, Any] | None = None) -> None:
        told = info or {}
        heard_s = came_s(told.get(RECEIVED, 0), time.monotonic())
        self._button.take(bool(message.data), told.get("source_timestamp", 0), heard_s)
        if message.data:
            self._set("the topic e_stop")

    def _watch(self) -> None:
        """What does not come: a publisher that has gone, a button that is silent."""
        if not self._node.context.ok():
            return
        if self._known or self._node.count_publishers(self._topic):
            infos = self._node.get_publishers_info_by_topic(self._topic)
            present = {bytes(info.endpoint_gid) for info in infos}
            lost, self._known = self._known - present, present
            if lost:
                self._set("the loss of a publisher of the topic e_stop")
        # What was sent while this process stood may yet have to come.
        now_s = time.monotonic()
        self._just_back = now_s - self._watched_s > 2 * WATCH_S and not self._just_back
        self._watched_s = now_s
        # Before the first message there is nothing to lose; `check` waits for it.
        if self._button.value is None or self._just_back or not self._silent():
            return
        self._take_waiting()  # what came while no callback ran, as the node was activated
        if silent := self._silent():
            self._set(silent)

    def _silent(self) -> str:
        """What is missing of the button where it has to speak, '' if nothing is."""
        limit_s = float(self._node.get_parameter("e_stop.heartbeat_s").value)
        age_s = self._button.age_s(time.monotonic())
        if not limit_s or age_s <= limit_s:
            return ""
        return f"silence on the topic e_stop for more than {limit_s:g} s (e_stop.heartbeat_s)"

    def _on_service(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._set("the service ~/e_stop")
        response.success, response.message = True, self.sentence
        return response

    def _on_clear(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._check_button()
            sentence = self.sentence
            self.latch.clear(self._joint_names(), time.monotonic())
            self._node.destroy_subscription(self._joints)
            self._joints = None
            self._cleared(sentence)
            response.success = True
            response.message = "Cleared; activate policy_node and call ~/start to command."
        except VegaError as error:
            response.message = str(error)
        return response

    def _check_button(self) -> None:
        if self._button.value:
            raise VegaError(
                "The button is still pressed, since the last value on the topic e_stop is true: release it, so that it "
                "says false, then call ~/clear_stop again."
            )
        silent = self._silent()
        if silent:
            raise VegaError(f"There is {silent}: connect the button, then call ~/clear_stop again.")

    def _joint_names(self) -> list[str]:
        return list(getter(self._node)("joint_names") or ())

    def _on_joint_state(self, message: JointState) -> None:
        # Other devices publish here too, and an arm may come in parts.
        ours = set(self._joint_names())
        untold = [math.nan] * len(message.name)
        positions, velocities = (
            values if len(values) == len(untold) else untold for values in (message.position, message.velocity)
        )
        told = zip(message.name, positions, velocities, strict=True)
        joints = {name: (position, velocity) for name, position, velocity in told if name in ours}
        self.latch.observe(joints, time.monotonic())


class Heartbeat:
    """`~/heartbeat` (std_msgs/Header) ten times a second, from the very thread that commands: its silence means that
    the node is dead or stuck.  The frame_id says `commanding` or `still`."""

    def __init__(self, node: Node, commanding: Callable[[], bool]) -> None:
        self._node = node
        self._commanding = commanding
        self._publisher = node.create_publisher(Header, "~/heartbeat", 1)
        # A simulated clock that stands still must not look like a dead node.
        self._timer = node.create_timer(HEARTBEAT_S, self._beat, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _beat(self) -> None:
        stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(Header(stamp=stamp, frame_id="commanding" if self._commanding() else "still"))

    def destroy(self) -> None:
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._publisher)
