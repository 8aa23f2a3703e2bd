"""A live policy_node in front of a driver that judges every message: `benchmarks/wire_judge`, a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.arm.fault_matrix import Sabotage
from benchmarks.arm.stand_in import DEADLINE_S, JOINTS, stand_in
from policies.types import VegaError
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.control.resources import resolve

URDF = "package://vega3d_ros/config/robots/libero_panda.urdf"
ACCELERATION = 20.0
OFFSET_RAD, LAG_S, NOISE_RAD = -0.005, 0.02, 1e-4
CLOCK_HZ = 200.0


def arm() -> Kinematics:
    """The arm of the stand-in."""
    return Kinematics(resolve(URDF).read_text(), JOINTS[:7], "panda_tcp")


def unkind_driver() -> list[str]:
    """Words that start the judge, with the limits of the arm that the node was given."""
    kinematics = arm()
    limits = combine_limits(kinematics, {"acceleration": ACCELERATION})
    values: dict[str, Any] = {"offset_rad": OFFSET_RAD, "lag_s": LAG_S, "noise_rad": NOISE_RAD}
    for name in ("lower", "upper", "velocity", "acceleration"):
        values[name] = [*map(float, getattr(limits, name)), 0.0]  # the finger is not judged
    words = ["-m", "benchmarks.wire_judge.driver", "--ros-args"]
    for name, value in values.items():
        words += ["-p", f"{name}:={json.dumps(value)}"]
    return words


class Judged(Sabotage):
    """messages, outside: heard so far and outside the limits, of all drivers.  told: the last driver's account.

    parameters: of policy_node, beside those of `fault_matrix`.  With use_sim_time this process is the clock.
    """

    def __init__(self, policy: str = "", parameters: Mapping[str, Any] | None = None) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from std_msgs.msg import String

        self.told: dict[str, Any] = {"messages": 0, "outside": 0}
        self.messages = self.outside = 0
        self.first = self.sentence = ""
        chosen = {"policy": policy} if policy else {}
        simulated = bool(parameters and parameters.get("use_sim_time"))
        driver = [*unkind_driver(), *(["-p", "use_sim_time:=true"] if simulated else [])]
        super().__init__(**chosen, parameters=parameters or {}, arm=stand_in(driver))
        node = self.bench.client.node
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(String, "driver/judged", self._on_judged, latched)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        if simulated:
            self._be_the_clock()

    def bring_up(self) -> None:
        """Until it commands, without asking that the arm moves: a policy may want it to stand."""
        from std_srvs.srv import Trigger

        bench, deadline, wanted = self.bench, time.monotonic() + DEADLINE_S, self.messages + 5
        while self.messages < wanted:
            if time.monotonic() > deadline:
                raise VegaError(f"The node does not command: {' '.join(bench.node.tail(3))}")
            self.activate()
            bench.client.call(Trigger, "policy_node/start", Trigger.Request(), DEADLINE_S)
            bench.client.until(lambda: self.messages >= wanted, 3.0)

    def activate(self) -> None:
        """Configure and activate it where it is not, and give it its instruction."""
        from std_msgs.msg import String

        if self.bench.state() == "unconfigured":
            self.bench.change("CONFIGURE")
        if self.bench.state() == "inactive":
            self.bench.change("ACTIVATE")
        self.bench.instruction.publish(String(data="go"))

    def close(self) -> None:
        self.bench.close()

    def _be_the_clock(self) -> None:
        from rosgraph_msgs.msg import Clock

        node = self.bench.client.node
        publisher = node.create_publisher(Clock, "/clock", 10)

        def tick() -> None:
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(self.bench.now_ns(), 10**9)
            publisher.publish(message)

        node.create_timer(1.0 / CLOCK_HZ, tick)

    def _on_judged(self, message: Any) -> None:
        told = json.loads(message.data)
        restarted = told["messages"] < self.told["messages"]
        before = {"messages": 0, "outside": 0} if restarted else self.told
        self.messages += told["messages"] - before["messages"]
        self.outside += told["outside"] - before["outside"]
        self.first = self.first or told["first"]
        self.told = told

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith(": command"):
                self.sentence = "" if status.level == b"\x00" else status.message


class Follow:
    """Where the arm really is: places (k, 7) rad since the last `clear`."""

    def __init__(self, judged: Judged) -> None:
        from sensor_msgs.msg import JointState

        self._places: list[Any] = []
        judged.bench.client.node.create_subscription(JointState, "driver/truth", self._on_truth, 100)

    @property
    def places(self) -> Any:
        return np.array(self._places)

    def clear(self) -> None:
        self._places.clear()

    def _on_truth(self, message: Any) -> None:
        self._places.append(np.array(message.position[:7]))
