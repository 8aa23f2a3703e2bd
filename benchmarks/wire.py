"""Is the arm asked for nothing beyond its limits, whatever the node believes?  `python -m benchmarks.wire`

Rows `name value threshold ok|FAIL`, exit 1 where one fails; rows without a threshold are information.  `--rows`:

    offline     random and adversarial command sequences through the guard, judged as whole polynomials
    situations  lying measurements against a live node
    refused     a policy that throws the tool about, so that much is refused at speed
    faults      the faults of `benchmarks.control`, against the same judge
    drift       zero actions with 5 mrad between commanded and measured
    time        guard and braking path against the control law's own time, in the same loop

The judge is a process that imports nothing of ours (`wire_judge/driver.py`): a driver with offset, lag and noise that
runs each message as joint_trajectory_controller would, from its own state, and judges its whole path.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.arm.fault_matrix import FAULTS, NotAsked, Sabotage
from benchmarks.arm.stand_in import DEADLINE_S, HOME, JOINTS
from benchmarks.rows import Rows
from policies.files.command_line import command_parser
from policies.types import ActionChunk, ActionSpace, Observation, PolicySpec, VegaError
from vega3d_ros.control.control_law import ImpedanceLaw
from vega3d_ros.control.guard.limits import combine_limits
from vega3d_ros.control.guard.safety_guard import SafetyGuard
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.control.resources import resolve

URDF = "package://vega3d_ros/config/robots/libero_panda.urdf"
ACCELERATION = 20.0
OFFSET_RAD, LAG_S, NOISE_RAD = -0.005, 0.02, 1e-4
REST_MS, DRIFT_RAD = 200.0, 0.002
# Velocities that lie slowly are told by differences over a window; no command begins with them.
SLOW_LIE_MS = 450.0
ATTEMPTS, SETTLE_S = 5, 10.0
LIES = ("glitch", "degrees", "second", "offset", "wrong_sign")
SITUATIONS = {f"joint_states_{kind}": kind for kind in LIES}


class StillPolicy:
    """Answers zero, always."""

    spec = PolicySpec("still", ("agentview", "wrist"), ActionSpace("eef_delta"), chunk_length=8, open_loop_horizon=8)

    def act(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.zeros((8, 7)), observation.stamp_ns, observation.instruction)

    def reset(self) -> None:
        """Nothing is remembered."""


def arm() -> Kinematics:
    """The arm of the stand-in."""
    return Kinematics(resolve(URDF).read_text(), JOINTS[:7], "panda_tcp")


def unkind_driver() -> list[str]:
    """Words that start it, with the limits of the arm that the node was given."""
    kinematics = arm()
    limits = combine_limits(kinematics, {"acceleration": ACCELERATION})
    values: dict[str, Any] = {"offset_rad": OFFSET_RAD, "lag_s": LAG_S, "noise_rad": NOISE_RAD}
    for name in ("lower", "upper", "velocity", "acceleration"):
        values[name] = [*map(float, getattr(limits, name)), 0.0]  # the finger is not judged
    words = ["-m", "benchmarks.wire_judge.driver", "--ros-args"]
    for name, value in values.items():
        words += ["-p", f"{name}:={json.dumps(value)}"]
    return words


class WildPolicy(StillPolicy):
    """Throws the tool about at all scales, so that much of it is refused at speed."""

    def act(self, observation: Observation) -> ActionChunk:
        rng = np.random.default_rng(observation.stamp_ns % 2**32)
        actions = rng.uniform(-1.0, 1.0, (8, 7)) * 10.0 ** rng.uniform(-1.5, 0.0, (8, 1))
        return ActionChunk(actions, observation.stamp_ns, observation.instruction)


class Judged:
    """A live node in front of the judge.  told: its last account.  outside: messages outside so far, of all drivers."""

    def __init__(self, policy: str | None = None) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from std_msgs.msg import String

        more = {} if policy is None else {"policy": policy}
        self.sabotage = Sabotage(driver=unkind_driver(), **more)
        self.bench = self.sabotage.bench
        self.told: dict[str, Any] = {"messages": 0, "outside": 0}
        self.messages = self.outside = 0
        self.first = ""
        self.positions: list[Any] = []
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.bench.client.node.create_subscription(String, "driver/judged", self._on_judged, latched)

    def _on_judged(self, message: Any) -> None:
        told = json.loads(message.data)
        restarted = told["messages"] < self.told["messages"]
        before = {"messages": 0, "outside": 0} if restarted else self.told
        self.messages += told["messages"] - before["messages"]
        self.outside += told["outside"] - before["outside"]
        self.first = self.first or told["first"]
        self.told = told

    def rest_ms(self, fault: Callable[[Sabotage], int | None]) -> float:
        for _ in range(ATTEMPTS - 1):
            try:
                return self.sabotage.rest_ms(fault)
            except NotAsked as error:
                print(f"# {error}", flush=True)
        return self.sabotage.rest_ms(fault)


def _lie(kind: str) -> Callable[[Sabotage], None]:
    def fault(sabotage: Sabotage) -> None:
        from std_msgs.msg import String

        sabotage.bench.driver_fault.publish(String(data=kind))

    return fault


def offline(rows: Rows, options: argparse.Namespace) -> None:
    from benchmarks.arm.guard import judged_commands

    judged = judged_commands(options.commands)
    rows.at_most(f"paths_outside_limits_of_{judged.commands}_commands", judged.outside, 0)
    rows.at_most(f"paths_outside_the_box_of_{judged.commands}_commands", judged.out_of_box, 0)
    rows.information("commands_that_the_guard_passed", judged.passed)


def _against_judge(rows: Rows, faults: dict[str, Callable[[Sabotage], int | None]], repetitions: int) -> None:
    judged: Judged | None = None
    try:
        for name, fault in faults.items():
            judged = judged or Judged()
            before, outside = judged.messages, judged.outside
            times = [judged.rest_ms(fault) for _ in range(repetitions)]
            if name == "qos_mismatch" and judged.bench.state() == "inactive":
                judged.bench.change("CLEANUP")  # what could not be heard is remembered until then
            seen, outside = judged.messages - before, judged.outside - outside
            rows.at_most(f"messages_outside_of_{seen}_{name}", outside, 0)
            allowed = SLOW_LIE_MS if name == "joint_states_wrong_sign" else REST_MS
            rows.at_most(f"at_rest_ms_max_of_{repetitions}_{name}", max(times), allowed)
            if outside:
                print(f"# first: {judged.first}", flush=True)
            if not seen:
                raise VegaError(f"The judge heard no message during {name}: read the driver's output.")
    finally:
        if judged is not None:
            judged.bench.close()


def situations(rows: Rows, options: argparse.Namespace) -> None:
    _against_judge(rows, {name: _lie(kind) for name, kind in SITUATIONS.items()}, options.repetitions)


def faults(rows: Rows, options: argparse.Namespace) -> None:
    chosen = options.faults or list(FAULTS)
    _against_judge(rows, {name: FAULTS[name] for name in chosen}, options.repetitions)


def _bring_up(judged: Judged) -> None:
    """Until it commands: the arm is taken over, and a policy that asks for no motion does not make it move."""
    from std_srvs.srv import Trigger

    bench, deadline, wanted = judged.bench, time.monotonic() + DEADLINE_S, judged.messages + 5
    while judged.messages < wanted:
        if time.monotonic() > deadline:
            raise VegaError(f"The node does not command: {' '.join(bench.node.tail(3))}")
        if bench.state() == "unconfigured":
            bench.change("CONFIGURE")
        if bench.state() == "inactive":
            bench.change("ACTIVATE")
        bench.instruction.publish(_text("go"))
        bench.client.call(Trigger, "policy_node/start", Trigger.Request(), DEADLINE_S)
        bench.client.until(lambda: judged.messages >= wanted, 3.0)


def refused(rows: Rows, options: argparse.Namespace) -> None:
    judged = Judged(policy="benchmarks.wire:WildPolicy")
    try:
        for _ in range(options.repetitions):
            _bring_up(judged)
            judged.bench.client.until(lambda: False, 2.0)
        rows.at_most(f"messages_outside_of_{judged.messages}_wild_policy", judged.outside, 0)
        rows.information("latest_arrival_ms_after_its_stamp", judged.told["latest_ms"])
        rows.information("most_of_the_velocity_limit_on_the_wire", judged.told["velocity"])
        rows.information("most_of_the_acceleration_limit_on_the_wire", judged.told["acceleration"])
        if judged.first:
            print(f"# first: {judged.first}", flush=True)
    finally:
        judged.bench.close()


def drift(rows: Rows, options: argparse.Namespace) -> None:
    from sensor_msgs.msg import JointState

    judged = Judged(policy="benchmarks.wire:StillPolicy")
    bench = judged.bench
    places: list[Any] = []

    def on_truth(message: Any) -> None:
        places.append(np.array(message.position[:7]))

    try:
        bench.client.node.create_subscription(JointState, "driver/truth", on_truth, 100)
        _bring_up(judged)
        # The redundant arm was taken over 5 mrad beside home; its posture goes there while the tool stands still.
        bench.client.until(lambda: False, SETTLE_S)
        settled = float(np.abs(places[-1] - places[0]).max())
        rows.information(f"posture_settled_rad_in_{SETTLE_S:g}_s", settled)
        places.clear()
        before = judged.messages
        bench.client.until(lambda: False, options.drift_s)
        moved = float(np.abs(np.array(places) - places[0]).max())
        rows.at_least("drift_messages", judged.messages - before, 10.0 * options.drift_s)
        rows.at_most(f"drift_rad_in_{options.drift_s:g}_s_with_5_mrad_of_offset", moved, DRIFT_RAD)
        rows.at_most(f"messages_outside_of_{judged.messages}_drift", judged.outside, 0)
    finally:
        bench.close()


def _text(data: str) -> Any:
    from std_msgs.msg import String

    return String(data=data)


def cost(rows: Rows, options: argparse.Namespace) -> None:
    kinematics = arm()
    home = np.array(HOME[:7])
    box = {"workspace_lower": [0.0, -0.6, 0.0], "workspace_upper": [0.9, 0.6, 1.2]}
    guard = SafetyGuard(kinematics, combine_limits(kinematics, {"acceleration": ACCELERATION, **box}), 0.05)
    law = ImpedanceLaw(kinematics, ActionSpace("eef_delta"), home)
    rng, now = np.random.default_rng(0), 0
    lead, _ = guard.take_over(home, np.zeros(7), now)
    assert lead is not None
    now += round(lead.motion.times_s[-1] * 1e9)
    spent: dict[str, list[float]] = {"law": [], "guard": []}
    measured = home
    for index in range(2000):
        action = 0.2 * np.append(np.sin(0.1 * index + np.arange(6)), 0.0) * rng.uniform(0.5, 1.0)
        began = time.perf_counter()
        start = guard.start(measured, np.zeros(7), now)
        middle = time.perf_counter()
        target = law.step(*start, action)
        end = time.perf_counter()
        decision = guard.check(*target, 1.0, now)
        spent["guard"].append(middle - began + time.perf_counter() - end)
        spent["law"].append(end - middle)
        now += 50_000_000
        measured = decision.motion.at(now)[0]
    p99 = {name: 1e3 * float(np.percentile(values, 99.0)) for name, values in spent.items()}
    rows.information("control_law_ms_p99", p99["law"])
    rows.information("guard_and_braking_path_ms_p99", p99["guard"])
    rows.at_most("guard_over_control_law_p99", p99["guard"] / p99["law"], 1.0)


MEASURES: dict[str, Callable[[Rows, argparse.Namespace], None]] = {
    "offline": offline,
    "situations": situations,
    "refused": refused,
    "faults": faults,
    "drift": drift,
    "time": cost,
}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = command_parser("python -m benchmarks.wire", __doc__, paragraphs=4)
    parser.add_argument("--rows", nargs="+", choices=MEASURES, default=list(MEASURES), help="which (default: all)")
    parser.add_argument("--commands", type=int, default=1_000_000, help="offline: commands")
    parser.add_argument("--repetitions", type=int, default=20, help="situations and faults: of each")
    parser.add_argument(
        "--faults", nargs="+", choices=FAULTS, default=[], metavar="FAULT", help="faults: only these (default: all)"
    )
    parser.add_argument("--drift-s", type=float, default=60.0, help="drift: for so long, s")
    options, rows = parser.parse_args(argv), Rows()
    try:
        for name in options.rows:
            MEASURES[name](rows, options)
    except VegaError as error:
        print(error, file=sys.stderr)
        return 1
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
