"""Episodes in which the simulated arm and the policy are two processes that talk over DDS, the world waiting.

Used by `run_libero --transport ros` and by the demonstration.  The processes are those of `vega3d_ros.bringup.bringup`.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from policies.types import VegaError
from sim.robot.ros_client import RosClient, unused_domain
from sim.worlds.episode import EpisodeResult
from vega3d_ros.bringup.bringup import ARGUMENTS, node_command, node_table
from vega3d_ros.inference.process import ChildProcess, stop_all

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
START_S = 300.0
CALL_S = 30.0
WORDS_S = 5.0
RESET_S = 300.0
RESET_AGAIN_S = 100.0  # building a world takes long, and must not be asked for meanwhile


class RosEpisodes:
    """Runs trials one after the other; call it from the main thread.

    suite, policy: as `run_libero` names them.  robot, device, threads: as `vega3d-bringup`.
    camera_every: images every n-th control step; the policy's open_loop_horizon where its window is one frame.
    command_deadline_s: wall time (s) within which the policy must answer an observation.
    domain: ROS domain; None picks one that nobody uses.
    on_line(process, line): gets the processes' output, in a thread of its own.
    observe(node): may subscribe to whatever it wants to see; called at each start of the processes.  Its callbacks run
        inside `run`.
    on_phase(sentence), on_wait(): for showing progress; the latter is called again and again while waiting.

    report: what sim_node/success said last (see SimNode.report).
    latencies_ms: stays empty, policy_node publishes its latencies in its diagnostics.
    """

    def __init__(
        self,
        suite: str,
        policy: str,
        *,
        robot: str = "libero",
        device: str = "cpu",
        threads: int = 1,
        world_simulator: str = "on",
        camera_every: int = 1,
        command_deadline_s: float = 60.0,
        domain: int | None = None,
        on_line: Callable[[str, str], None] | None = None,
        observe: Callable[[Node], None] | None = None,
        on_phase: Callable[[str], None] = lambda _: None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.suite = suite
        self._values = {argument.name: argument.default for argument in ARGUMENTS}
        self._values |= {"robot": robot, "policy": policy, "device": device, "threads": str(threads), "suite": suite}
        self._values["world_simulator"] = world_simulator
        self._values["clock_mode"] = "lockstep"
        self._sim_parameters = {"camera_every": camera_every, "command_deadline_s": command_deadline_s}
        self._fixed_domain = domain
        self._on_line = on_line
        self._observe = observe
        self.on_phase = on_phase
        self.on_wait = on_wait
        self.report: dict[str, Any] = {}
        self.latencies_ms: list[float] = []
        self._children: list[ChildProcess] = []
        self._client: RosClient | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._over: bool | None = None
        self._complaint = ""

    def start(self) -> None:
        """Start both processes and activate the policy; does nothing if they run.

        Raises VegaError with the reason if one of them cannot start.
        """
        if self._client is not None:
            return
        self._over = None
        try:
            domain = unused_domain() if self._fixed_domain is None else self._fixed_domain
            self._folder = tempfile.TemporaryDirectory(prefix="vega3d-")
            environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
            for entry in node_table(self._values):
                if entry.name in ("sim_node", "policy_node"):
                    # Episodes are started one by one from here.
                    own = self._sim_parameters if entry.name == "sim_node" else {"autostart": False}
                    entry = replace(entry, parameters={**entry.parameters, **own})
                    command = node_command(entry, Path(self._folder.name))
                    child = ChildProcess(entry.name, command, environment=environment, on_line=self._on_line)
                    self._children.append(child)
            self.on_phase(f"sim_node and policy_node started in ROS domain {domain}; loading the policy.")
            self._client = RosClient("ros_episodes", domain, self._watch)
            node = self._client.node
            node.create_subscription(Bool, "sim_node/episode_over", self._on_over, LATCHED)
            node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
            if self._observe is not None:
                self._observe(node)
            self._transition("configure", Transition.TRANSITION_CONFIGURE)
            self._transition("activate", Transition.TRANSITION_ACTIVATE)
        except BaseException:
            self.close()
            raise

    def run(self, task: int, trial: int) -> EpisodeResult:
        """One episode.  Whatever goes wrong in a process is the result's `error`; both then start afresh."""
        try:
            self.start()
            result = self._run(task, trial)
        except VegaError as error:
            result = EpisodeResult(False, 0, str(error), "", "")
        if result.error:
            self.close()
        return result

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of sim_node and policy_node while they run."""
        return {child.name: child.pid for child in self._children}

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Let the observer's callbacks run until the condition holds; False if it does not within the time."""
        return self._client is not None and self._client.until(condition, timeout_s)

    def close(self) -> None:
        """End both processes.  The next `run` starts them again."""
        if self._client is not None:
            self._client.close()
            self._client = None
        stop_all(self._children)
        self._children = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> RosEpisodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, task: int, trial: int) -> EpisodeResult:
        client = self._client
        assert client is not None
        client.trigger("policy_node/stop", CALL_S)
        client.set_parameters("sim_node", {"suite": self.suite, "task": task, "trial": trial}, CALL_S)
        self._complaint = ""
        self.on_phase("Policy active; building the simulated task.")
        sentence = client.trigger("sim_node/reset", RESET_S, RESET_AGAIN_S)
        if not client.until(lambda: self._over is False, CALL_S):
            raise VegaError("sim_node did not announce the new episode on ~/episode_over: check its log.")
        client.trigger("policy_node/start", CALL_S)
        client.trigger("sim_node/run", CALL_S)
        self.on_phase(f"Episode runs: {sentence}")
        limit_s = self._limit_s()
        if not client.until(lambda: self._over is True, limit_s):
            raise VegaError(f"The episode did not end within {limit_s:.0f} s: check the log of sim_node.")
        report = self._read_report()
        error = str(report["error"])
        if error and self._complaint:
            error = f"{error} policy_node said: {self._complaint}"
        return EpisodeResult(
            success=bool(report["success"]),
            steps=int(report["steps"]),
            error=error,
            actions_sha256=str(report["actions_sha256"]),
            states_sha256=str(report["states_sha256"]),
        )

    def _read_report(self) -> dict[str, Any]:
        assert self._client is not None
        answer = self._client.call(Trigger, "sim_node/success", Trigger.Request(), CALL_S)
        self.report = dict(json.loads(answer.message))
        return self.report

    def _limit_s(self) -> float:
        """Every step may take the command's deadline; a bound that is reached only if sim_node itself hangs."""
        return float(self._read_report()["max_steps"]) * (self._sim_parameters["command_deadline_s"] + 2.0)

    def _transition(self, label: str, transition: int) -> None:
        client = self._client
        assert client is not None
        if not client.change_state("policy_node", transition, START_S):
            with contextlib.suppress(VegaError):  # its answer may be here before what it says is read
                self._child("policy_node").wait_for_line("[ERROR]", WORDS_S)
            raise VegaError(f"policy_node could not {label}: {self._last_words('policy_node')}")

    def _watch(self) -> None:
        """Raise VegaError once a process has ended."""
        self.on_wait()
        for child in self._children:
            status = child.returncode
            if status is not None:
                child.wait(1.0)
                raise VegaError(f"{child.name} ended with status {status}: {self._last_words(child.name)}")

    def _child(self, name: str) -> ChildProcess:
        return next(child for child in self._children if child.name == name)

    def _last_words(self, name: str) -> str:
        lines = [line for line in self._child(name).tail(200) if line.strip()]
        errors = [line for line in lines if "[ERROR]" in line or "[FATAL]" in line]
        return (errors or lines or ["it printed nothing"])[-1].rsplit("]: ", 1)[-1]

    def _on_over(self, message: Bool) -> None:
        self._over = bool(message.data)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.level == b"\x02" and status.name.startswith("policy_node"):
                self._complaint = status.message
