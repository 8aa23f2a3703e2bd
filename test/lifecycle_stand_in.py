"""A lifecycle node for tests of the bringup: says what happens to it, and refuses when told to.

Parameters: `refuse` (`configure`, `activate` or empty), `lose` (names of services whose first answer gets lost).
Its Trigger service `~/run` prints what it was told before.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from vega3d_ros.ros.dds import apply_defaults

apply_defaults()

import rclpy  # noqa: E402
from rclpy.executors import ExternalShutdownException  # noqa: E402
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402


def lose_an_answer(node: Node, name: str, times: int = 1) -> None:
    """Let the next answers of a service get lost, as Fast DDS loses them (vega3d_ros/ros/service_calls.py)."""
    service = next(service for service in node.services if service.srv_name.endswith(f"/{name}"))
    send, left = service.send_response, times

    def drop(response: Any, header: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            send(response, header)

    service.send_response = drop


class StandIn(LifecycleNode):
    def __init__(self, **options: Any) -> None:
        super().__init__("stand_in", **options)
        self.told: list[str] = []
        self.declare_parameter("refuse", "")
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(String, "instruction", lambda message: self.say(f"told '{message.data}'"), latched)
        self.create_service(Trigger, "~/run", self.on_run)
        for name in self.declare_parameter("lose", [""]).value:
            if name:
                lose_an_answer(self, name)
        self.say(f"pid {os.getpid()}")

    def say(self, text: str) -> None:
        self.told.append(text)
        print(text, flush=True)

    def transition(self, name: str) -> TransitionCallbackReturn:
        self.told.append(f"asked to {name}")
        if self.get_parameter("refuse").value == name:
            self.get_logger().error(f"I was told not to {name}.")
            return TransitionCallbackReturn.FAILURE
        self.say(f"did {name}")
        return TransitionCallbackReturn.SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.transition("configure")

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        super().on_activate(state)
        return self.transition("activate")

    def on_run(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.say("runs")
        response.success, response.message = True, "it runs"
        return response


if __name__ == "__main__":
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(StandIn())
