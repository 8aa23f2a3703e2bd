"""A small ROS client for scripts: calls with deadlines, waiting for events, a domain of one's own."""

from __future__ import annotations

import random
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from policies.types import VegaError
from vega3d_ros.ros.dds import apply_defaults, check_discovery
from vega3d_ros.ros.service_calls import AGAIN_S, ServiceClients

# Linux hands out ephemeral ports from 32768 on; domains up to 101 keep their UDP ports below.
LAST_DOMAIN = 101
# A claim has to last until the first participant holds the domain's ports.  A process that asks again and again, as a
# test suite does, gives its oldest claim back, or it would take every domain from everybody.
CLAIMS = 8
_claims: deque[socket.socket] = deque(maxlen=CLAIMS)


def unused_domain() -> int:
    """A ROS domain on which no participant of this machine listens, and which no other caller gets at the same time.

    The participants of a domain hold its fixed unicast ports, two each (RTPS 9.6.1.1: 7400 + 250 d + 10 and on); the
    first ten are looked at, since those that came first may have gone.  Until a port is held, this process holds a
    claim to the domain, which the kernel gives back when the process ends.  The search starts at a random place.
    Raises VegaError where no domain is left.
    """
    start = random.SystemRandom().randrange(1, LAST_DOMAIN + 1)
    for offset in range(LAST_DOMAIN):
        domain = 1 + (start + offset - 1) % LAST_DOMAIN
        claim = _claim(domain)
        if claim is None:
            continue
        if all(_is_free(7400 + 250 * domain + 10 + port) for port in range(20)):
            _claims.append(claim)
            return domain
        claim.close()
    raise VegaError("Every ROS domain from 1 to 101 is in use on this machine: end the ROS nodes that are not needed.")


def _claim(domain: int) -> socket.socket | None:
    """A socket that nobody else on this machine can have while it is open, None where somebody has it.

    Its name is an abstract one (unix(7)): no file is left behind, no port is opened, and users need no common folder.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0vega3d_ros/domain/{domain}")
    except OSError:
        claim.close()
        return None
    return claim


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


class RosClient(ServiceClients):
    """One node with a context of its own.  Single-threaded: callbacks run inside `until` and the calls.

    `watch` is called while waiting; what it raises ends the wait (a child process died, say).
    Raises VegaError where ROS_AUTOMATIC_DISCOVERY_RANGE lets no node find another.
    """

    def __init__(self, name: str, domain: int, watch: Callable[[], None] = lambda: None) -> None:
        check_discovery()
        apply_defaults()
        self._context = Context()
        # Signals stay with the caller: Ctrl-C raises KeyboardInterrupt in the wait.
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node(name, context=self._context, enable_rosout=False, start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._watch = watch
        super().__init__(self.node, self.until)

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

    def trigger(self, name: str, timeout_s: float = 30.0, again_s: float = AGAIN_S) -> str:
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
