"""Node that brings the others up: lifecycle transitions, the first instruction, the simulated episode.

It does what a person would do with `ros2 lifecycle set`, `ros2 topic pub` and `ros2 service call`, in
that order, each with a deadline.  If a step fails it ends with status 1 and one sentence that says
why, and the launch file or vega3d-bringup then ends everything.  Afterwards it only keeps the
instruction available to subscribers that come late.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

from policies.types import VegaError, check_instruction
from vega3d_ros.ros.dds import apply_defaults

apply_defaults()

from lifecycle_msgs.msg import State, Transition  # noqa: E402
from rcl_interfaces.msg import Log, ParameterDescriptor, ParameterType  # noqa: E402
from rclpy.exceptions import InvalidParameterTypeException  # noqa: E402
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from vega3d_ros.ros.node_help import answer_help  # noqa: E402
from vega3d_ros.ros.node_process import asked_to_end, end_ros, start_ros  # noqa: E402
from vega3d_ros.ros.service_calls import ServiceClients  # noqa: E402

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
ROSOUT = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
PROGRESS_S = 5.0
LONG_AGAIN_S = 60.0  # building a world takes long, and must not be asked for meanwhile
# (transition, the state it leads to) of a node that is not yet active.
STEPS = {
    State.PRIMARY_STATE_UNCONFIGURED: ("configure", Transition.TRANSITION_CONFIGURE),
    State.PRIMARY_STATE_INACTIVE: ("activate", Transition.TRANSITION_ACTIVATE),
}


class Interrupted(Exception):
    """The process was asked to end."""


def declare(node: Node) -> None:
    """Declare its parameters."""

    def one(name: str, default: object, description: str, kind: int = ParameterType.PARAMETER_NOT_SET) -> None:
        node.declare_parameter(name, default, ParameterDescriptor(type=kind, description=description, read_only=True))

    names = ParameterType.PARAMETER_STRING_ARRAY
    one("lifecycle_nodes", [""], "Names of the nodes to configure and activate, in this order.", names)
    one("configured_services", [""], "Trigger services to call between the two.", names)
    one("start_services", [""], "Trigger services to call once all nodes are active.", names)
    one("instruction", "", "What to do; empty: nothing is published.")
    one("timeout_s", 120.0, "For everything together, s.")


class StartupManager(Node):  # type: ignore[misc]
    """Brings up the nodes named by its parameters (`declare`); single-threaded."""

    def __init__(self) -> None:
        super().__init__("startup_manager")
        self._errors: dict[str, deque[str]] = {}
        self._calls = ServiceClients(self, self._until)
        self._doing = "starting"
        self._begun_s = self._told_s = time.monotonic()
        declare(self)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        # A transition's answer is only yes or no: the reason is what the node logged.
        self.create_subscription(Log, "/rosout", self._remember_error, ROSOUT)
        self._instruction = self.create_publisher(String, "instruction", LATCHED)

    def bring_up(self) -> None:
        """Do all steps.  Raises VegaError with the reason of the first that fails."""
        timeout_s = float(self.get_parameter("timeout_s").value)
        deadline = time.monotonic() + timeout_s
        try:
            self._bring_up(deadline)
        except VegaError as error:
            if time.monotonic() < deadline:
                raise
            cause = str(error).rstrip(".")
            remedy = f"or raise startup_timeout_s, which is {timeout_s:g} s, on a slow machine"
            raise VegaError(f"{cause}, {remedy}.") from error

    def _bring_up(self, deadline: float) -> None:
        for name in self._names("configured_services") + self._names("start_services"):
            self._calls.client(Trigger, name)  # now, so that both sides know each other long before the call
        for name in self._names("lifecycle_nodes"):
            self._lead(name, State.PRIMARY_STATE_INACTIVE, deadline)
        self._call_all("configured_services", deadline)
        for name in self._names("lifecycle_nodes"):
            self._lead(name, State.PRIMARY_STATE_ACTIVE, deadline)
            self.get_logger().info(f"{name} is active.")
        instruction = str(self.get_parameter("instruction").value)
        if instruction:
            self._instruction.publish(String(data=check_instruction(instruction)))
        self._call_all("start_services", deadline)
        self.get_logger().info("Everything is up.")

    def keep(self) -> None:
        """Stay in the graph until asked to end."""
        while not asked_to_end():
            self._executor.spin_once(timeout_sec=0.5)

    def close(self) -> None:
        self._executor.remove_node(self)
        self._executor.shutdown(timeout_sec=1.0)
        self.destroy_node()

    def _names(self, parameter: str) -> list[str]:
        return [str(name) for name in self.get_parameter(parameter).value if name]

    def _call_all(self, parameter: str, deadline: float) -> None:
        for service in self._names(parameter):
            self._doing = f"waiting for the answer of {service}"
            answer = self._calls.call(Trigger, service, Trigger.Request(), _remaining_s(deadline), LONG_AGAIN_S)
            if not answer.success:
                raise VegaError(f"Service {service} refused: {answer.message}")
            self.get_logger().info(f"{service}: {answer.message}")

    def _lead(self, name: str, goal: int, deadline: float) -> None:
        """Take a lifecycle node to the state `goal`, or leave it where it is beyond that."""
        while True:
            self._doing = f"waiting for {name} to start"
            state = self._calls.state(name, _remaining_s(deadline))
            if state.id in (goal, State.PRIMARY_STATE_ACTIVE):
                return
            if state.id not in STEPS:
                raise VegaError(f"{name} is {state.label} and cannot be activated: start it again.")
            label, transition = STEPS[state.id]
            self._doing = f"waiting for {name} to {label}"
            if not self._calls.change_state(name, transition, _remaining_s(deadline)):
                raise VegaError(f"{name} did not {label}: {self._reason(name)}")

    def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if asked_to_end():
                raise Interrupted
            if time.monotonic() > deadline:
                return False
            self._tell_progress()
            self._executor.spin_once(timeout_sec=0.05)
        return True

    def _tell_progress(self) -> None:
        """A line every few seconds: silence looks like a process that hangs."""
        now_s = time.monotonic()
        if now_s - self._told_s >= PROGRESS_S:
            self._told_s = now_s
            self.get_logger().info(f"{now_s - self._begun_s:.0f} s: {self._doing}.")

    def _remember_error(self, message: Log) -> None:
        if message.level >= 40:  # Log.ERROR, which is bytes in some distributions
            self._errors.setdefault(message.name, deque(maxlen=1)).append(message.msg)

    def _reason(self, name: str) -> str:
        """The node's last logged error, for which it gets a second to arrive."""
        deadline = time.monotonic() + 1.0
        while name not in self._errors and time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.05)
        return self._errors[name][-1] if name in self._errors else "it gave no reason: read its output."


def _remaining_s(deadline: float) -> float:
    """s that are left until time.monotonic() is `deadline`."""
    return max(0.0, deadline - time.monotonic())


def main() -> int:
    """Entry point of lib/vega3d_ros/startup_manager; returns the exit status."""
    if answer_help("startup_manager", __doc__, declare):
        return 0
    try:
        start_ros(sys.argv)
        manager = StartupManager()
    except (VegaError, InvalidParameterTypeException) as error:
        print(f"startup_manager: {error}", file=sys.stderr)
        end_ros()
        return 1
    status = 0
    try:
        manager.bring_up()
        manager.keep()
    except VegaError as error:
        manager.get_logger().error(str(error))
        status = 1
    except (Interrupted, ExternalShutdownException):
        pass
    finally:
        manager.close()
        end_ros()
    return status


if __name__ == "__main__":
    sys.exit(main())
