"""What was once seen to go wrong on the wire, one situation after another; `python -m benchmarks.wire` plays them.

A `Live` one happens while the arm moves, and the arm must rest; a refusal is a setting with which nothing may move at
all.  What only the guard sees (a box, the arm's body) is judged offline (`guard.py`, `low_body.py`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.arm.fault_matrix import FAULTS, Sabotage
from benchmarks.arm.judged import Judged
from benchmarks.arm.stand_in import DEADLINE_S
from policies.types import VegaError
from vega3d_ros.inference.process import LAUNCHER, ChildProcess
from vega3d_ros.ros.qos_events import PublisherEventCallbacks

Fault = Callable[[Sabotage], int | None]
FROZEN_S = 1.0
LOOKS_S = 0.5
# Which node: what it is given beside the settings of the fault matrix.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "simulated clock": {"use_sim_time": True},
    "stream": {
        "command_interface": "forward_position", "forward_position.jerk": [2000.0], "gripper.command_joint": "",
    },
}


def nothing_wrong(_: Judged) -> str:
    return ""


@dataclass(frozen=True)
class Live:
    """fault: as in `fault_matrix`.  setting: of SETTINGS.  before: done before the arm moves.  after: what is wrong at
    rest, '' if nothing is."""

    fault: Fault
    setting: str = "plain"
    before: Callable[[Judged], None] = lambda _: None
    after: Callable[[Judged], str] = nothing_wrong


def lie(kind: str) -> Fault:
    def fault(sabotage: Sabotage) -> None:
        from std_msgs.msg import String

        sabotage.bench.driver_fault.publish(String(data=kind))

    return fault


def _press(sabotage: Sabotage) -> None:
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import Bool

    node = sabotage.bench.client.node
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    button = node.create_publisher(Bool, "e_stop", latched)
    button.publish(Bool(data=True))

    def release() -> None:
        button.publish(Bool(data=False))
        node.destroy_publisher(button)

    sabotage.bench.before_move.append(release)


def _still_pressed(judged: Judged) -> str:
    """Neither cleared nor activated nor started."""
    from std_srvs.srv import Trigger

    bench, before = judged.bench, judged.messages
    for service in ("clear_stop", "start"):
        if bench.client.call(Trigger, f"policy_node/{service}", Trigger.Request(), DEADLINE_S).success:
            return f"{service} succeeds"
        if service == "clear_stop" and bench.change("ACTIVATE"):
            return "activation succeeds"
    return _sent_since(judged, before)


def _vanish(sabotage: Sabotage) -> int:
    """A publisher of the button that the node knows, and that goes."""
    from std_msgs.msg import Bool

    client = sabotage.bench.client
    quiet = PublisherEventCallbacks(use_default_callbacks=False)
    button = client.node.create_publisher(Bool, "e_stop", 1, event_callbacks=quiet)
    button.publish(Bool(data=False))
    if not client.until(lambda: button.get_subscription_count() >= 2, DEADLINE_S):
        raise VegaError("The node does not listen to the button: read its output.")
    client.until(lambda: False, LOOKS_S)  # within which it looks who publishes
    vanished_ns = time.time_ns()
    client.node.destroy_publisher(button)
    return vanished_ns


def _freeze(sabotage: Sabotage) -> int:
    frozen_ns = time.time_ns()
    os.kill(sabotage.bench.node.pid, signal.SIGSTOP)
    try:
        sabotage.bench.client.until(lambda: False, FROZEN_S)
    finally:
        os.kill(sabotage.bench.node.pid, signal.SIGCONT)
    return frozen_ns


def _stays_inactive(judged: Judged) -> str:
    return _sent_since(judged, judged.messages) or ("" if judged.bench.state() == "inactive" else "it is active still")


def _sent_since(judged: Judged, before: int) -> str:
    judged.bench.client.until(lambda: judged.messages > before, LOOKS_S)
    return f"{judged.messages - before} messages leave" if judged.messages > before else ""


def _simulate(sabotage: Sabotage) -> int | None:
    """It may not change its clock; and its supervision goes on."""
    try:
        sabotage.bench.client.set_parameters("policy_node", {"use_sim_time": True}, DEADLINE_S)
    except VegaError:
        return FAULTS["camera_agentview_lost"](sabotage)
    raise VegaError("policy_node takes use_sim_time while it commands: see fix_parameters_while.")


def _other_client(sabotage: Sabotage) -> None:
    """What an action client is in the graph: a client of the service that takes goals."""
    from std_srvs.srv import Trigger

    node = sabotage.bench.client.node
    client = node.create_client(Trigger, "panda_arm_controller/follow_joint_trajectory/_action/send_goal")
    sabotage.bench.before_move.append(lambda: node.destroy_client(client))


def _set_clock_back(sabotage: Sabotage) -> None:
    sabotage.bench.clock_offset_ns -= 60_000_000_000


def _launch(judged: Judged) -> None:
    """A node that knows who started it."""
    bench = judged.bench
    sleeps = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(3600)"]
    launcher = ChildProcess("launcher", sleeps, on_line=None)
    launcher.wait_for_line("up", DEADLINE_S)
    bench.node.stop(3.0)
    bench.environment[LAUNCHER] = str(launcher.pid)


def _kill_launcher(sabotage: Sabotage) -> None:
    os.kill(int(sabotage.bench.environment.pop(LAUNCHER)), signal.SIGTERM)


def _has_ended(judged: Judged) -> str:
    node = judged.bench.node
    ended = judged.bench.client.until(lambda: node.returncode is not None, DEADLINE_S)
    return "" if ended and not node.returncode else "it does not end"


LIVE: dict[str, Live] = {
    "s01_joint_states_glitch": Live(lie("glitch")),
    "s02_joint_states_in_degrees": Live(lie("degrees")),
    "s03_second_joint_states": Live(lie("second")),
    "s04_joint_states_with_an_offset": Live(lie("offset")),
    "s08_button_stays_pressed": Live(_press, after=_still_pressed),
    "s09_button_vanishes": Live(_vanish),
    "s10_node_frozen": Live(_freeze, after=_stays_inactive),
    "s11_use_sim_time_set_and_a_camera_lost": Live(_simulate),
    "s13_velocities_with_the_wrong_sign": Live(lie("wrong_sign")),
    "s15_action_client": Live(_other_client),
    "s17_simulated_clock_set_back": Live(_set_clock_back, "simulated clock"),
    "s18_launcher_killed": Live(_kill_launcher, before=_launch, after=_has_ended),
    "s19_stream_of_positions_and_a_camera_lost": Live(FAULTS["camera_wrist_lost"], "stream"),
    "s21_stream_of_positions_and_the_node_frozen": Live(_freeze, "stream", after=_stays_inactive),
}
# With any of these nothing may be sent at all.
REFUSALS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "s07_misspelt_keys": (
        {"safety.velocity_scal": [0.2]},
        {"safty.mode": "clamp"},
        {"after_problm": "deactivate"},
        {"safety.workspace_lowr": [0.2, -0.4, 0.0]},
        {"max_age": 0.1},
    ),
    "s20_impossible_values": (
        {"home": [0.0, -9.2, 0.0, -140.1, 0.0, 127.6, 45.0]},
        {"home": [0.0, -0.16, 0.0, 1.0, 0.0, 2.2, 0.8]},
        {"tip_frame": "panda_link0"},
        {"gripper.open": 10.0},
        {"safety.acceleration": [1e9]},
    ),
}


def refused(judged: Judged, parameters: Mapping[str, Any], number: int) -> str:
    """Start another node with these parameters, '' if it says no; what is wrong if it can be configured."""
    from lifecycle_msgs.msg import Transition

    name = f"wrong_{number}"
    client = judged.bench.client
    with judged.bench.start_node({**SETTINGS["plain"], **parameters}, name) as child:
        service = f"/{name}/change_state"

        def known() -> bool:
            services = [offered for offered, _ in client.node.get_service_names_and_types()]
            return child.returncode is not None or service in services

        if not client.until(known, DEADLINE_S):
            return "it does not come up"
        # One that reads its parameters and ends had its services for a moment.
        client.until(lambda: child.returncode is not None, LOOKS_S)
        try:
            if child.returncode is None and client.change_state(name, Transition.TRANSITION_CONFIGURE, DEADLINE_S):
                return f"{dict(parameters)} is accepted"
        except VegaError:
            if child.returncode is None:
                raise
        return "it ends as if all were well" if child.returncode == 0 else ""
