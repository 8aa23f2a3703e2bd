"""Episodes in one process: simulator and policy take turns, commands are eef deltas or joint targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from policies.types import Observation, Policy, VegaError
from sim.episode import Episode, EpisodeResult
from sim.libero_env import LiberoEnvironment
from vega3d_ros.chunk_scheduler import LockstepQueue
from vega3d_ros.control_loop import ControlLoop, JointSample
from vega3d_ros.kinematics import Kinematics
from vega3d_ros.resources import resolve
from vega3d_ros.safety_guard import SafetyGuard, combine_limits

ROBOT_FILE = "package://vega3d_ros/config/robots/libero.yaml"


def load_robot(path: str = ROBOT_FILE) -> dict[str, Any]:
    """The `/**` parameters of a robot YAML file."""
    return dict(yaml.safe_load(resolve(path).read_text())["/**"]["ros__parameters"])


def build_control_loop(policy: Policy, robot: dict[str, Any]) -> ControlLoop:
    """The control loop as `policy_node` builds it from the same robot file, guard included."""
    kinematics = Kinematics(resolve(robot["robot_description"]).read_text(), robot["joint_names"], robot["tip_frame"])
    safety = {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in robot["safety"].items()
    }
    mode = safety.pop("mode")
    limits = combine_limits(kinematics, safety)
    guard = SafetyGuard(kinematics, limits, 1.0 / policy.spec.action_space.rate_hz, mode)
    return ControlLoop(policy, kinematics, np.array(robot["home"], dtype=float), guard)


class DirectEpisodes:
    """Runs trials one after the other, one environment per task.

    command: `eef` steps robosuite's own OSC_POSE with the policy's deltas (the published protocol); `joint` goes the
    robot's way, through kinematics, law and guard.
    """

    def __init__(self, suite: str, policy: Policy, command: Literal["eef", "joint"], *, seed: int = 0) -> None:
        if command == "eef" and policy.spec.action_space.kind != "eef_delta":
            raise VegaError(f"Policy {policy.spec.name} commands joints: run it with --command joint.")
        if policy.spec.window != 1:
            raise VegaError(
                f"Policy {policy.spec.name} wants windows of {policy.spec.window} frames: "
                "this evaluation gives single frames only."
            )
        self.suite, self.policy, self.command, self.seed = suite, policy, command, seed
        self.latencies_ms: list[float] = []
        self._environment: LiberoEnvironment | None = None
        self._loop = build_control_loop(policy, load_robot()) if command == "joint" else None

    def run(self, task: int, trial: int) -> EpisodeResult:
        """One episode.  Whatever breaks is the result's `error`; the environment is then built afresh."""
        try:
            environment = self._for_task(task)
            environment.reset(trial)
            return self._run_joint(environment) if self._loop else self._run_eef(environment)
        except Exception as error:
            self.close()
            text = str(error) if isinstance(error, VegaError) else f"{type(error).__name__}: {error}"
            return EpisodeResult(False, 0, text, "", "")

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _for_task(self, task: int) -> LiberoEnvironment:
        if self._environment is None or self._environment.task != task:
            self.close()
            self._environment = LiberoEnvironment(self.suite, task, seed=self.seed)
        return self._environment

    def _images(self, environment: LiberoEnvironment) -> dict[str, Any]:
        return {camera: environment.render(camera)[None] for camera in self.policy.spec.cameras}

    def _run_eef(self, environment: LiberoEnvironment) -> EpisodeResult:
        episode = Episode(environment)
        queue = LockstepQueue(self.policy.spec)
        self.policy.reset()
        while not episode.over:
            if queue.empty:
                state = environment.state()
                observation = Observation(
                    self._images(environment), state, environment.instruction, state.stamp_ns,
                    environment.base_position, environment.base_quaternion,
                )  # fmt: skip
                chunk = self.policy.act(observation)
                self.latencies_ms.append(sum(chunk.timings_ms.values()))
                queue.submit(chunk)
            episode.step_eef(queue.pop().action)
        return episode.result()

    def _run_joint(self, environment: LiberoEnvironment) -> EpisodeResult:
        loop = self._loop
        assert loop is not None
        loop.base_position, loop.base_quaternion = environment.base_position, environment.base_quaternion
        loop.reset()
        episode = Episode(environment)
        while not episode.over:
            state = environment.state()
            sample = JointSample(state.stamp_ns, state.joint_positions, state.joint_velocities, state.gripper_positions)
            images = self._images(environment) if loop.needs_images else None
            command = loop.step(sample, images, environment.instruction)
            if "policy" in command.timings_ms:
                self.latencies_ms.append(command.timings_ms["policy"])
            episode.step(command.positions, command.velocities, command.gripper)
        return episode.result()


def results_folder(path: Path) -> Path:
    """Create the folder for results; VegaError where nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise VegaError(f"Results cannot be written to {path} ({error.strerror}): give another --output.") from error
    return path
