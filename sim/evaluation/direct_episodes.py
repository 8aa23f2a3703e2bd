"""Episodes in one process: simulator and policy take turns, commands are eef deltas or joint targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from policies.types import Image, Policy, VegaError
from sim.results.film import Film
from sim.results.lerobot_dataset import EEF_ACTION_NAMES, EpisodeTape, tape_path
from sim.worlds.environment import Environment
from sim.worlds.episode import Episode, EpisodeResult
from sim.worlds.frames import FrameWindow
from sim.worlds.libero_env import JOINT_NAMES, LiberoEnvironment
from vega3d_ros.control.chunk_scheduler import LockstepQueue
from vega3d_ros.control.control_loop import ControlLoop, JointSample, guarded_loop
from vega3d_ros.control.kinematics import Kinematics
from vega3d_ros.control.resources import resolve

if TYPE_CHECKING:
    from sim.demonstrations.views import Views

ROBOT_FILE = "package://vega3d_ros/config/robots/libero.yaml"


def load_robot(path: str = ROBOT_FILE) -> dict[str, Any]:
    """The `/**` parameters of a robot YAML file."""
    return dict(yaml.safe_load(resolve(path).read_text())["/**"]["ros__parameters"])


def build_control_loop(policy: Policy, robot: dict[str, Any]) -> ControlLoop:
    """The control loop as `policy_node` builds it from the same robot file, guard included."""
    kinematics = Kinematics(resolve(robot["robot_description"]).read_text(), robot["joint_names"], robot["tip_frame"])
    safety = dict(robot["safety"])
    mode, home = safety.pop("mode"), np.array(robot["home"], dtype=float)
    return guarded_loop(policy, kinematics, home, safety, mode, robot["committed"])[0]


class DirectEpisodes:
    """Runs trials one after the other, one environment per task.

    command: `eef` steps robosuite's own OSC_POSE with the policy's deltas (the published protocol); `joint` goes the
    robot's way, through kinematics, law and guard.
    pictures: folder for the last frames that the policy saw of each episode not solved, and for videos.
    video: draw every second step besides, and keep a video of each episode.
    perturb: what of the view is drawn anew for each episode, from seed, task and trial (sim/demonstrations/views.py).
    tapes: folder for everything of each episode (sim/results/lerobot_dataset.py); draws both cameras at every step.
    """

    def __init__(
        self, suite: str, policy: Policy, command: Literal["eef", "joint"], *, seed: int = 0,
        pictures: Path | None = None, video: bool = False, tapes: Path | None = None, perturb: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if command == "eef" and policy.spec.action_space.kind != "eef_delta":
            raise VegaError(f"Policy {policy.spec.name} commands joints: run it with --command joint.")
        self.suite, self.policy, self.command, self.seed = suite, policy, command, seed
        self.latencies_ms: list[float] = []
        self._pictures, self._video, self._tapes = pictures, video, tapes
        self._perturb = tuple(perturb)
        self._views: Views | None = None
        self._environment: LiberoEnvironment | None = None
        self._loop = build_control_loop(policy, load_robot()) if command == "joint" else None

    def run(self, task: int, trial: int) -> EpisodeResult:
        """One episode.  Whatever breaks is the result's `error`; the environment is then built afresh."""
        try:
            environment = self._for_task(task)
            environment.reset(trial)
            drawn = self._perturbed(environment, trial)
            film = Film(environment, (*self.policy.spec.cameras, *environment.cameras)[0], self._video)
            names = (*JOINT_NAMES, "gripper") if self._loop else EEF_ACTION_NAMES
            tape = EpisodeTape(environment, names) if self._tapes is not None else None
            run = self._run_joint if self._loop else self._run_eef
            result = run(Episode(environment, drawn), film, tape)
        except Exception as error:
            self.close()
            text = str(error) if isinstance(error, VegaError) else f"{type(error).__name__}: {error}"
            return EpisodeResult(False, 0, text, "", "")
        if self._pictures is not None:
            film.keep(self._pictures, task, trial, result.success)
        if tape is not None and self._tapes is not None:
            tape.keep(tape_path(self._tapes, task, trial), result.success)
        return result

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None
            self._views = None

    def _for_task(self, task: int) -> LiberoEnvironment:
        if self._environment is None or self._environment.task != task:
            self.close()
            self._environment = make_environment(self.suite, task, self.seed)
        return self._environment

    def _draw(self, environment: Environment, frames: FrameWindow, film: Film, step: int) -> dict[str, Image]:
        """What the policy will look at of this step's moment."""
        if not frames.needed(step):
            return {}
        images = {camera: environment.render(camera) for camera in self.policy.spec.cameras}
        frames.add(step, images)
        if film.camera in images:
            film.saw(step, images[film.camera])
        return images

    def _perturbed(self, environment: LiberoEnvironment, trial: int) -> dict[str, Any]:
        """Draw what is perturbed about this trial's view."""
        if not self._perturb:
            return {}
        if self._views is None:
            from sim.demonstrations.views import Views  # MuJoCo is imported here and not before

            self._views = Views(environment)
        return self._views.draw(self._perturb, np.random.default_rng([self.seed, environment.task, trial]))

    def _run_eef(self, episode: Episode, film: Film, tape: EpisodeTape | None) -> EpisodeResult:
        environment = episode.environment
        queue, frames = LockstepQueue(self.policy.spec), FrameWindow(self.policy.spec)
        self.policy.reset()
        while not episode.over:
            drawn = self._draw(environment, frames, film, episode.steps)
            if queue.empty:
                chunk = self.policy.act(frames.observation(environment, episode.steps, environment.instruction))
                self.latencies_ms.append(sum(chunk.timings_ms.values()))
                queue.submit(chunk)
            action = queue.pop().action
            if tape is not None:
                tape.step(action, drawn)
            episode.step_eef(action)
            film.step(episode.steps)
        return episode.result()

    def _run_joint(self, episode: Episode, film: Film, tape: EpisodeTape | None) -> EpisodeResult:
        environment, loop = episode.environment, self._loop
        assert loop is not None
        loop.base_position, loop.base_quaternion = environment.base_position, environment.base_quaternion
        loop.reset()
        frames = FrameWindow(self.policy.spec)
        while not episode.over:
            drawn = self._draw(environment, frames, film, episode.steps)
            state = environment.state()
            sample = JointSample(state.stamp_ns, state.joint_positions, state.joint_velocities, state.gripper_positions)
            images = frames.images(episode.steps) if loop.needs_images else None
            command = loop.step(sample, images, environment.instruction)
            if "policy" in command.timings_ms:
                self.latencies_ms.append(command.timings_ms["policy"])
            if tape is not None:
                tape.step(np.append(command.positions, command.gripper), drawn)
            episode.step(command.positions, command.velocities, command.gripper)
            film.step(episode.steps)
        return episode.result()


def make_environment(suite: str, task: int, seed: int) -> LiberoEnvironment:
    """The environment of a task.  Raises VegaError where it does not exist."""
    if suite == "robosuite":
        from sim.worlds.robosuite_env import RobosuiteEnvironment

        return RobosuiteEnvironment(task, seed=seed)
    return LiberoEnvironment(suite, task, seed=seed)
