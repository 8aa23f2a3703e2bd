"""Circles, reversals and five faults: policy_node moves franka-sim's FR3 through franka_driver, limits enforced.

The robot is the judge: it aborts every motion that breaks a limit of Franka's interface, and says which.
"""

from __future__ import annotations

import json
import re
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.arm.fault_matrix import FAULTS, CirclingPolicy, NotAsked, Sabotage
from benchmarks.arm.stand_in import CAMERAS, DEADLINE_S, Arm
from benchmarks.clients.environments import OutOfReach
from benchmarks.franka.network import own_network
from benchmarks.franka.simulator import VARIABLE, Simulator
from benchmarks.rows import Rows
from policies.types import VegaError
from vega3d_ros.control.resources import share_folder
from vega3d_ros.node import priority
from vega3d_ros.parameters.robot_file import read_robot_file

POLICY = "benchmarks.franka.row:RoundAndBackPolicy"
FILE = "franka_fr3"
FILE_PATH = share_folder() / "config" / "robots" / f"{FILE}.yaml"
COMMANDS = "fr3_arm_controller/joint_trajectory"
BACK_AFTER_NS = 3_000_000_000
FREEZE_S = 1.0
LOOK_S = 1.0
HOME_S, HOME_RAD = 4.0, 0.002
JOINT_STATES_HZ = 100.0
LEAST_RAD_PER_MINUTE = 3.0
ATTEMPTS = 5
PRIORITY = 30
# Each packet that a busy machine loses costs a jerk of 1000/s times the acceleration, of the 5000 that are allowed.
SHARE = 0.25
ARM: dict[str, Any] = {
    "franka.address": "127.0.0.1",
    "franka.realtime": "ignore",
    "franka.fraction": SHARE,
    "safety.acceleration_scale": [SHARE],
}


_Result = TypeVar("_Result")


class RoundAndBackPolicy(CirclingPolicy):
    """A circle that turns back every `BACK_AFTER_NS`, within the accelerations that the FR3's file allows."""

    centre = np.array([0.45, 0.0, 0.45])
    share = 0.1

    def turning(self, stamp_ns: int) -> float:
        return 1.0 if stamp_ns // BACK_AFTER_NS % 2 else -1.0


def arm() -> Arm:
    """The FR3 of config/robots behind franka_driver, which tells of the arm as the robot measures it."""
    words = ["-m", "vega3d_ros.driver.franka_driver", "--ros-args"]
    words += ["--params-file", str(FILE_PATH)]
    for name, value in ARM.items():
        words += ["-p", f"{name}:={json.dumps(value)}"]
    return Arm(FILE, words, "joint_states", COMMANDS)


def parameters(simulator: Simulator) -> dict[str, Any]:
    """Of policy_node, where they differ from the robot's file; the model has no meshes to watch."""
    topics = {f"cameras.{name}.topic": f"{name}/image_raw" for name in CAMERAS}
    return {
        "robot_description": str(simulator.urdf),
        "body.check": False,
        "safety.acceleration": [10.0],
        "safety.acceleration_scale": [SHARE],
        "safety.mode": "clamp",
        **topics,
    }


def _freeze_node(sabotage: Sabotage) -> None:
    node = sabotage.bench.node
    node.signal(signal.SIGSTOP)
    sabotage.bench.client.until(lambda: False, FREEZE_S)
    node.signal(signal.SIGCONT)


def _interrupt_driver(sabotage: Sabotage) -> None:
    """Ctrl-C; then another takes its place."""
    bench = sabotage.bench
    bench.driver.signal(signal.SIGINT)
    bench.client.until(lambda: bench.driver.returncode is not None, DEADLINE_S)
    if bench.driver.returncode != 0:
        raise VegaError(f"franka_driver did not end as it was told to: {' '.join(bench.driver.tail(3))}")
    bench.driver = bench.start_driver()


CHOSEN: dict[str, Callable[[Sabotage], int | None]] = {
    **{name: FAULTS[name] for name in ("camera_agentview_lost", "e_stop_topic", "node_killed")},
    "node_frozen": _freeze_node,
    "driver_interrupted": _interrupt_driver,
}


class Travel:
    """What joint_states said: how many messages, and how far all joints went, rad."""

    def __init__(self, sabotage: Sabotage) -> None:
        from sensor_msgs.msg import JointState

        self.messages, self.travelled = 0, 0.0
        self._place: Any = None
        sabotage.bench.client.node.create_subscription(JointState, "joint_states", self._on_state, 100)

    def _on_state(self, message: Any) -> None:
        place = np.array(message.position[:7])
        if self._place is not None:
            self.travelled += float(np.abs(place - self._place).sum())
        self._place = place
        self.messages += 1


def go_home(sabotage: Sabotage) -> None:
    """A person leads the arm to the posture of the robot's file, before anybody else commands it."""
    from sensor_msgs.msg import JointState
    from trajectory_msgs.msg import JointTrajectory

    from vega3d_ros.ros.conversions import trajectory_message

    values = read_robot_file(FILE_PATH)
    bench, home = sabotage.bench, np.array(values["home"])
    node = bench.client.node
    places: list[Any] = []

    def on_state(message: Any) -> None:
        places.append(message.position[:7])

    listener = node.create_subscription(JointState, "joint_states", on_state, 10)
    commander = node.create_publisher(JointTrajectory, COMMANDS, 1)
    there = lambda: bool(places) and np.abs(np.array(places[-1]) - home).max() < HOME_RAD  # noqa: E731
    try:
        if not bench.client.until(lambda: commander.get_subscription_count() > 1, DEADLINE_S):
            raise VegaError(f"franka_driver does not listen: {' '.join(bench.driver.tail(3))}")
        commander.publish(trajectory_message(0, values["joint_names"], home, np.zeros(7), HOME_S))
        if not bench.client.until(there, DEADLINE_S):
            raise VegaError(f"The arm did not go where franka_driver was told: {' '.join(bench.driver.tail(3))}")
    finally:
        node.destroy_publisher(commander)
        node.destroy_subscription(listener)


class Stops:
    """Why the arm stood still although nobody stopped it.

    aborted, lost: what the robot said where it ended the motion, every packet having come in time or not (one that is
    lost it replaces by a guess, from which the next may be too far).  other: how often it was something else.
    """

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.lost: list[str] = []
        self.other = 0

    def recovered(self, sabotage: Sabotage) -> bool:
        """Whether the robot had ended the motion; it is ready again then."""
        from std_srvs.srv import Trigger

        bench = sabotage.bench
        if not bench.client.call(Trigger, "franka_driver/recover", Trigger.Request(), DEADLINE_S).success:
            return False
        said = next(line for line in reversed(bench.driver.tail(200)) if "The robot stopped" in line)
        rate = re.search(r"control_command_success_rate: ([\d.]+)", said)
        (self.aborted if rate is None or float(rate[1]) == 1.0 else self.lost).append(said)
        return True

    def insist(self, sabotage: Sabotage, action: Callable[[], _Result]) -> _Result:
        """`action`, again where it failed because the robot or a busy machine stopped the arm."""
        for _ in range(ATTEMPTS - 1):
            try:
                return action()
            except NotAsked:
                self.other += 1
            except VegaError:
                if not self.recovered(sabotage):
                    raise
        return action()


def _go_round(sabotage: Sabotage, until_s: float, stops: Stops) -> None:
    """Moving, whatever stops it, until then (time.monotonic())."""
    bench = sabotage.bench
    while time.monotonic() < until_s:
        if not bench.moving():
            stops.other += not stops.recovered(sabotage)
            stops.insist(sabotage, bench.move)
        bench.client.until(lambda: False, min(LOOK_S, max(0.0, until_s - time.monotonic())))


def measure(rows: Rows, minutes: float) -> None:
    """Print the rows.  Raises VegaError where robot, driver or node do not come up."""
    with own_network(), tempfile.TemporaryDirectory(prefix="vega3d-franka-") as folder:
        try:
            simulator = Simulator(Path(folder))
        except OutOfReach as error:
            raise VegaError(f"franka-sim cannot be had here ({error}): install it, see {VARIABLE}.") from error
        # Cameras and the person, which this process is, are not slowed down by a busy machine either.
        priority.take(PRIORITY)
        try:
            _measure(rows, minutes, simulator)
        finally:
            priority.take(0)
            simulator.close()


def _measure(rows: Rows, minutes: float, simulator: Simulator) -> None:
    sabotage = Sabotage(POLICY, parameters(simulator), arm=arm())
    try:
        travel, stops, rates = Travel(sabotage), Stops(), []
        stops.insist(sabotage, partial(go_home, sabotage))
        stops.insist(sabotage, sabotage.bench.move)
        part_s = 60.0 * minutes / (len(CHOSEN) + 1)
        for name in [*CHOSEN, ""]:
            began_s, before = time.monotonic(), travel.messages
            _go_round(sabotage, began_s + part_s, stops)
            rates.append((travel.messages - before) / (time.monotonic() - began_s))
            if name:
                rest_ms = stops.insist(sabotage, partial(sabotage.rest_ms, CHOSEN[name]))
                rows.information(f"at_rest_ms_after_{name}", rest_ms)
                stops.insist(sabotage, sabotage.bench.move)
        rows.at_least("joint_states_hz_least", min(rates), JOINT_STATES_HZ)
        rows.at_least("joints_travelled_rad", travel.travelled, LEAST_RAD_PER_MINUTE * minutes)
        rows.at_most(f"motions_aborted_for_limits_in_{minutes:g}_min", len(stops.aborted), 0)
        rows.information("motions_aborted_after_lost_packets", len(stops.lost))
        rows.information("stops_for_other_reasons", stops.other)
        for line in stops.aborted[:1] + stops.lost[:1]:
            print(f"# {line}", flush=True)
    finally:
        sabotage.bench.close()
