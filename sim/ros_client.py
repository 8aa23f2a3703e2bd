"""A small ROS client for scripts: calls with deadlines, waiting for events, a domain of one's own."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import rclpy
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from policies.types import VegaError
from vega3d_ros import service_calls
from vega3d_ros.dds import apply_defaults

# Linux hands out ephemeral ports from 32768 on; domains up to 101 keep their UDP ports below.
LAST_DOMAIN = 101


def unused_domain() -> int:
    """A ROS domain on which no participant of this machine listens.

    The first participants of a domain hold its fixed unicast ports (RTPS 9.6.1.1: 7400 + 250 d + 10 and on).  The
    search starts at a random place, so that two callers at the same time rarely meet.
    """
    start = random.SystemRandom().randrange(1, LAST_DOMAIN + 1)
    for offset in range(LAST_DOMAIN):
        domain = 1 + (start + offset - 1) % LAST_DOMAIN
        if all(_is_free(7400 + 250 * domain + 10 + port) for port in range(4)):
            return domain
    raise VegaError("Every ROS domain from 1 to 101 is in use on this machine: end the ROS nodes that are not needed.")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


class RosClient:
    """One node with a context of its own.  Single-threaded: callbacks run inside `until` and `call`.

    `watch` is called while waiting; what it raises ends the wait (a child process died, say).
    """

    def __init__(self, name: str, domain: int, watch: Callable[[], None] = lambda: None) -> None:
        apply_defaults()
        self._context = Context()
        # Signals stay with the caller: Ctrl-C raises KeyboardInterrupt in the wait.
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node(name, context=self._context, enable_rosout=False, start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._watch = watch
        self._clients: dict[str, Any] = {}

    def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Serve callbacks until the condition holds; False if it does not within the time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._watch()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            self._executor.spin_once(timeout_sec=min(0.1, remaining))
        return True

    def call(self, kind: Any, name: str, request: Any, timeout_s: float, again_s: float = service_calls.AGAIN_S) -> Any:
        """The response of a service; VegaError if it is not there or silent for the time.

        again_s: as for `service_calls.ask`; longer where the answer takes long and the work is not to be done twice.
        """
        deadline = time.monotonic() + timeout_s
        client = self._ready_client(kind, name, timeout_s)
        response = service_calls.ask(client, request, self.until, deadline - time.monotonic(), again_s)
        if response is None:
            raise VegaError(f"Service {name} did not answer within {timeout_s:.3g} s: check its node's log.")
        return response

    def _ready_client(self, kind: Any, name: str, timeout_s: float) -> Any:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.node.create_client(kind, name)
        if not self.until(client.service_is_ready, timeout_s):
            raise VegaError(f"Service {name} was not offered within {timeout_s:.3g} s: check that its node runs.")
        return client

    def state(self, node: str, timeout_s: float) -> State:
        """The state of a lifecycle node, once it is in no transition; VegaError if none is told in the time."""
        deadline = time.monotonic() + timeout_s
        while (remaining := deadline - time.monotonic()) > 0:
            state = self.call(GetState, f"{node}/get_state", GetState.Request(), remaining).current_state
            if service_calls.is_primary(state):
                return state
        raise VegaError(f"{node} did not end its transition within {timeout_s:.3g} s: check its log.")

    def change_state(self, node: str, transition: int, timeout_s: float) -> bool:
        """Whether a lifecycle node made the transition; VegaError if it is not there or silent for the time."""
        deadline = time.monotonic() + timeout_s
        client = self._ready_client(ChangeState, f"{node}/change_state", timeout_s)
        return service_calls.made(client, transition, self.until, lambda: self.state(node, deadline - time.monotonic()))

    def trigger(self, name: str, timeout_s: float = 30.0, again_s: float = service_calls.AGAIN_S) -> str:
        """Call a Trigger service; its message, or VegaError with its message if it reports failure."""
        response = self.call(Trigger, name, Trigger.Request(), timeout_s, again_s)
        if not response.success:
            raise VegaError(response.message)
        return str(response.message)

    def set_parameters(self, node: str, values: Mapping[str, Any], timeout_s: float = 30.0) -> None:
        """Set parameters of another node; VegaError with its reason if it refuses one."""
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        )
        response = self.call(SetParameters, f"{node}/set_parameters", request, timeout_s)
        for name, result in zip(values, response.results, strict=True):
            if not result.successful:
                raise VegaError(f"{node} refuses {name}={values[name]!r}: {result.reason}")

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        self._context.try_shutdown()
