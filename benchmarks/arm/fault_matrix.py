"""How soon a stand-in arm rests after each fault, and whether it stays so.

A real policy_node process, in real time with the settings of a real arm, moves `test/driver_node.py`; this process is
the cameras, the person and the saboteur.  Time counts from the fault to the last moment at which the arm moved, by the
driver's own account (`driver/truth`); where the fault is the policy's, from the moment at which it misbehaves.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arm.stand_in import CAMERAS, COMMANDS, DEADLINE_S, MOVING_RAD_S, Bench
from policies.types import ActionChunk, ActionSpace, Image, Observation, PolicySpec, VegaError
from vega3d_ros.inference.process import children_of

SIZE = 64
CENTRE = np.array([0.45, 0.0, 0.26])  # base frame, m; near where the arm begins
RADIUS_M = 0.08
STAYS_S = 1.0
FRESH_NS = 300_000_000
ATTEMPTS = 5
POLICY = "benchmarks.arm.fault_matrix:CirclingPolicy"
SENTENCE = "go round in a circle"
PARAMETERS: dict[str, Any] = {
    "after_problem": "deactivate",
    "max_age_s": 0.1,
    "policy_timeout_s": 0.1,
    **{f"cameras.{name}.{key}": SIZE for name in CAMERAS for key in ("width", "height")},
    **{f"cameras.{name}.max_identical": 1 for name in CAMERAS},
}
# What the policy does when the first pixel of the first camera has this value.
POLICY_FAULTS = {"hangs": 1, "raises": 2, "nan": 3, "shape": 4, "slow": 5}


class CirclingPolicy:
    """Moves the tool on a circle about `centre`; misbehaves when the first pixel says so, and prints when it does."""

    spec = PolicySpec("circling", CAMERAS, ActionSpace("eef_delta"), chunk_length=8, open_loop_horizon=8)
    centre = CENTRE
    share = 0.2  # of the largest action

    def act(self, observation: Observation) -> ActionChunk:
        code = int(observation.images[CAMERAS[0]][0, 0, 0, 0])
        if code:
            print(f"misbehaves {time.time_ns()}", flush=True)
        if code in (1, 5):
            time.sleep(5.0 if code == 1 else 1.0)
        if code == 2:
            raise RuntimeError("CUDA error: device lost")
        away = observation.state.eef_position - self.centre
        radius = max(1e-3, float(np.hypot(away[0], away[1])))
        outward = np.array([away[0] / radius, away[1] / radius, 0.0])
        along = self.turning(observation.stamp_ns) * np.array([-outward[1], outward[0], 0.0])
        actions = np.zeros((8, 7))
        steer = along + 10.0 * (RADIUS_M - radius) * outward - [0.0, 0.0, 10.0 * away[2]]
        actions[:, :3] = self.share * np.clip(steer, -1, 1)
        if code == 3:
            actions[3, 1] = np.nan
        return ActionChunk(actions[:, :6] if code == 4 else actions, observation.stamp_ns, observation.instruction)

    def turning(self, stamp_ns: int) -> float:
        """1: counterclockwise, -1: clockwise."""
        return 1.0

    def reset(self) -> None:
        """Nothing is remembered."""


class NotAsked(VegaError):
    """The arm stopped for another reason than the fault (a busy machine makes frames too old), which proves nothing."""


class Sabotage:
    """The bench and what the faults switch on.  parameters: beside `PARAMETERS`.  bench: more of what `Bench` takes."""

    def __init__(self, policy: str = POLICY, parameters: Mapping[str, Any] | None = None, **bench: Any) -> None:
        self._rng = np.random.default_rng(0)
        self.code = 0
        self.misbehaved_ns: list[int] = []  # when the policy did
        chosen = {**PARAMETERS, **(parameters or {})}
        self.bench = Bench(policy, chosen, self._picture, SENTENCE, self._on_line, **bench)

    def _on_line(self, _: str, line: str) -> None:
        if line.startswith("misbehaves"):
            self.misbehaved_ns.append(int(line.split()[1]))

    def _picture(self, _: str) -> Image:
        """Noise, as a sensor has it; its first pixel tells the policy how to misbehave."""
        picture = self._rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        picture[0, 0] = self.code
        return picture

    def rest_ms(self, fault: Callable[[Sabotage], int | None]) -> float:
        """Time from the fault to the last motion, ms; `fault` returns its time in ns, None for now."""
        bench = self.bench
        self.code = 0
        bench.move()
        bench.samples.clear()
        started = time.time_ns()
        told = fault(self)
        began = started if told is None else told
        bench.client.until(lambda: False, STAYS_S)
        if not bench.client.until(
            lambda: bool(bench.samples) and bench.samples[-1][0] > time.time_ns() - FRESH_NS, DEADLINE_S
        ):
            raise VegaError("The driver does not say where the arm is: read its output.")
        moved = [ns for ns, speed in bench.samples if speed > MOVING_RAD_S]
        return max(0.0, (max(moved) - began) / 1e6) if moved else 0.0

    def rest(self, fault: Callable[[Sabotage], int | None]) -> float:
        """`rest_ms`, again where the arm stopped for another reason."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self.rest_ms(fault)
            except NotAsked as error:
                print(f"# {error}", flush=True)
        return self.rest_ms(fault)


def _camera(name: str, kind: str) -> Callable[[Sabotage], None]:
    def fault(sabotage: Sabotage) -> None:
        sabotage.bench.frozen_ns = time.time_ns()
        sabotage.bench.camera_fault = {name: kind}

    return fault


def _driver(kind: str) -> Callable[[Sabotage], None]:
    def fault(sabotage: Sabotage) -> None:
        from std_msgs.msg import String

        sabotage.bench.driver_fault.publish(String(data=kind))

    return fault


def _policy(kind: str) -> Callable[[Sabotage], int]:
    def fault(sabotage: Sabotage) -> int:
        sabotage.misbehaved_ns.clear()
        sabotage.code = POLICY_FAULTS[kind]
        if not sabotage.bench.client.until(lambda: bool(sabotage.misbehaved_ns), 5.0):
            raise NotAsked("The node stopped asking the policy before it could misbehave: use a less busy machine.")
        return sabotage.misbehaved_ns[0]

    return fault


def _kill_node(sabotage: Sabotage) -> None:
    os.kill(sabotage.bench.node.pid, signal.SIGKILL)


def _kill_policy(sabotage: Sabotage) -> None:
    for pid in children_of(sabotage.bench.node.pid):
        os.kill(pid, signal.SIGKILL)
    sabotage.bench.before_move.append(lambda: sabotage.bench.change("CLEANUP"))


def _restart_driver(sabotage: Sabotage) -> None:
    bench = sabotage.bench
    os.kill(bench.driver.pid, signal.SIGKILL)
    bench.driver.wait(5.0)
    bench.samples.clear()
    bench.driver = bench.start_driver()


def _stop_service(sabotage: Sabotage) -> None:
    from std_srvs.srv import Trigger

    sabotage.bench.client.call(Trigger, "policy_node/e_stop", Trigger.Request(), DEADLINE_S)


def _stop_topic(sabotage: Sabotage) -> None:
    from std_msgs.msg import Bool

    sabotage.bench.button.publish(Bool(data=True))


def _publisher(kind: str, topic: str) -> Callable[[Sabotage], None]:
    """Somebody else's publisher, volatile, that says nothing; gone before the next motion."""

    def fault(sabotage: Sabotage) -> None:
        from std_msgs.msg import String
        from trajectory_msgs.msg import JointTrajectory

        from vega3d_ros.ros.qos_events import PublisherEventCallbacks

        node = sabotage.bench.client.node
        message = {"String": String, "JointTrajectory": JointTrajectory}[kind]
        quiet = PublisherEventCallbacks(use_default_callbacks=False)
        other = node.create_publisher(message, topic, 1, event_callbacks=quiet)
        sabotage.bench.before_move.append(lambda: node.destroy_publisher(other))

    return fault


def _flood(sabotage: Sabotage) -> None:
    from std_msgs.msg import String

    bench, number = sabotage.bench, iter(range(1_000_000))
    timer = bench.client.node.create_timer(
        0.01, lambda: bench.instruction.publish(String(data=f"{SENTENCE} {next(number)}"))
    )
    bench.before_move.append(lambda: bench.client.node.destroy_timer(timer))


FAULTS: dict[str, Callable[[Sabotage], int | None]] = {
    **{
        f"camera_{name}_{kind}": _camera(name, kind)
        for name in CAMERAS
        for kind in ("lost", "frozen", "same_picture", "garbled", "resized", "late", "back")
    },
    **{f"joint_states_{kind}": _driver(kind) for kind in ("lost", "nan", "renamed", "frozen", "back")},
    **{f"policy_{kind}": _policy(kind) for kind in POLICY_FAULTS},
    "policy_killed": _kill_policy,
    "node_killed": _kill_node,
    "driver_restarted": _restart_driver,
    "e_stop_service": _stop_service,
    "e_stop_topic": _stop_topic,
    "second_commander": _publisher("JointTrajectory", COMMANDS),
    "qos_mismatch": _publisher("String", "instruction"),  # volatile; the node asks for transient local
    "instruction_flood": _flood,
}


def run(names: list[str], repetitions: int, results: Path | None, say: Callable[[str, list[float]], None]) -> None:
    """Run each fault `repetitions` times; `say(name, milliseconds of each)` after each fault.

    results: JSON file of the times of each fault; what it holds already is not measured again.
    """
    found: dict[str, list[float]] = json.loads(results.read_text()) if results and results.is_file() else {}
    sabotage: Sabotage | None = None
    try:
        for name in names:
            times = found.setdefault(name, [])
            while len(times) < repetitions:
                sabotage = sabotage or Sabotage()
                times.append(sabotage.rest(FAULTS[name]))
                if name == "qos_mismatch" and sabotage.bench.state() == "inactive":
                    sabotage.bench.change("CLEANUP")  # what could not be heard is remembered until then
                if results is not None:
                    results.write_text(json.dumps(found))
            say(name, times)
    finally:
        if sabotage is not None:
            sabotage.bench.close()
