"""What latency costs: LIBERO in real time with a policy that answers late, exactly, in simulated time.

The shipped `Realtime` and `ChunkScheduler` run unchanged, one `tick` per control period; only the worker is another: a
question asked at control step k is answered before step k + ceil(latency / period), however long it really took.  So a
run depends on nothing but its seeds, takes the time of the simulation, and can be compared with lockstep trial by
trial.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from policies.types import FloatArray, Observation, Policy, VegaError
from sim.evaluation.direct_episodes import DirectEpisodes, build_control_loop, load_robot, make_environment
from sim.worlds.episode import Episode
from sim.worlds.libero_env import LiberoEnvironment
from vega3d_ros.control.chunk_scheduler import MergeMode, Query
from vega3d_ros.control.control_loop import CommandMaker, JointSample
from vega3d_ros.control.frame_buffer import FrameBuffer, FrameSet
from vega3d_ros.inference.realtime import Answer, Realtime

COMMAND_TIMEOUT_S = 5.0
WARM_UP_CHUNKS = 3  # two are left out of the latency's percentile, and the third is the first that counts


class LateWorker:
    """Answers `periods` control periods after the question, and says that it took `latency_s`."""

    def __init__(self, policy: Policy, latency_s: float, period_s: float) -> None:
        self.step = 0  # control periods so far; the world counts them
        self.periods = math.ceil(latency_s / period_s - 1e-6)
        self._policy, self._latency_s = policy, latency_s
        self._answers: deque[tuple[int, Answer]] = deque()

    def ask(self, observation: Observation, query: Query, frames_ns: int) -> None:
        chunk = self._policy.act(observation)
        self._answers.append((self.step + self.periods, Answer(query, frames_ns, chunk, None, self._latency_s)))

    def reset(self) -> None:
        self._answers.clear()
        self._policy.reset()

    def answer(self) -> Answer | None:
        due = bool(self._answers) and self._answers[0][0] <= self.step
        return self._answers.popleft()[1] if due else None

    def close(self, timeout_s: float) -> bool:
        return True


class DrawnFrames(FrameBuffer):
    """The frames of an environment: drawn when asked for, or at every step where the policy wants several."""

    def __init__(self, policy: Policy, environment: LiberoEnvironment) -> None:
        spec = policy.spec
        super().__init__(spec.cameras, spec.window, spec.stride * round(1e9 / spec.action_space.rate_hz))
        self._environment = environment

    def begin_step(self) -> None:
        if self.window > 1:
            self._draw()

    def sample(
        self, at_ns: int | None = None, tolerance_ns: int | None = None, from_rest: bool = False
    ) -> FrameSet | None:
        if self.window == 1:
            self._draw()
        return super().sample(at_ns, tolerance_ns, from_rest)

    def _draw(self) -> None:
        stamp_ns = self._environment.state().stamp_ns
        for camera in self.cameras:
            self.push(camera, stamp_ns, self._environment.render(camera))


@dataclass
class Outcome:
    """What came of the trials of one setting.

    seam_jumps: where a chunk takes over, how far the commanded joint velocities are from those which the chunk under
    way would have commanded in the same control period from the same state (largest of the joints, rad/s).
    changes: of the commanded joint velocities from one control period to the next, at those seams and elsewhere.
    slowed: episodes in which the scheduler said that the latency is too long to hide, and the arm then waited for each
    chunk: it stood still for that long between two of them.
    """

    solved: list[bool] = field(default_factory=list)
    seam_jumps: list[float] = field(default_factory=list)
    seam_changes: list[float] = field(default_factory=list)
    other_changes: list[float] = field(default_factory=list)
    slowed: int = 0

    @property
    def percent(self) -> float:
        return 100.0 * float(np.mean(self.solved))


def run(
    policy: Policy, trials: Sequence[tuple[int, int]], latency_s: float, merge: MergeMode, suite: str = "libero_object"
) -> Outcome:
    """The trials (task, trial), in this order, with answers that come `latency_s` late."""
    outcome = Outcome()
    environment: LiberoEnvironment | None = None
    loop = build_control_loop(policy, load_robot())
    home = np.array(load_robot()["home"], dtype=float)
    try:
        for task, trial in trials:
            if environment is None or environment.task != task:
                if environment is not None:
                    environment.close()
                environment = make_environment(suite, task, 0)
            environment.reset(trial)
            loop.base_position, loop.base_quaternion = environment.base_position, environment.base_quaternion
            worker = LateWorker(policy, latency_s, environment.control_period_s)
            frames = DrawnFrames(policy, environment)
            realtime = Realtime(loop, frames, home, merge, COMMAND_TIMEOUT_S, worker=worker)
            _episode(realtime, worker, frames, environment, CommandMaker(policy, loop.kinematics, home), outcome)
    finally:
        if environment is not None:
            environment.close()
    return outcome


def lockstep(policy: Policy, trials: Sequence[tuple[int, int]], suite: str = "libero_object") -> float:
    """Percent solved of the same trials with the world waiting for the policy, by the same joint commands."""
    episodes = DirectEpisodes(suite, policy, "joint")
    try:
        results = [episodes.run(task, trial) for task, trial in trials]
    finally:
        episodes.close()
    for result in results:
        if result.error:
            raise VegaError(result.error)
    return 100.0 * float(np.mean([result.success for result in results]))


def _episode(
    realtime: Realtime,
    worker: LateWorker,
    frames: DrawnFrames,
    environment: LiberoEnvironment,
    maker: CommandMaker,
    outcome: Outcome,
) -> None:
    episode = Episode(environment)
    realtime.reset()
    # As the simulated driver does without a command: the last position is held, not passed through.
    target = environment.state().joint_positions
    velocities: FloatArray | None = None
    waited = chunks = 0
    while not episode.over:
        state = environment.state()
        sample = JointSample(state.stamp_ns, state.joint_positions, state.joint_velocities, state.gripper_positions)
        worker.step = episode.steps
        frames.begin_step()
        planned = realtime.scheduler.planned
        command = realtime.tick(sample, environment.instruction)
        chunks += realtime.new_chunk is not None
        if command is None:
            waited += 1
            episode.step(target, np.zeros_like(target), 0.0)
            velocities = None
            continue
        if command.rejected:
            raise VegaError(f"The guard refused a command ({', '.join(command.rejected)}): check the robot's limits.")
        if velocities is not None:
            change = float(np.abs(command.velocities - velocities).max())
            (outcome.seam_changes if realtime.new_chunk else outcome.other_changes).append(change)
            if realtime.new_chunk and planned is not None:
                _, otherwise = maker.targets(sample.positions, sample.velocities, planned.action)
                outcome.seam_jumps.append(float(np.abs(command.velocities - otherwise).max()))
        velocities, target = command.velocities, command.positions
        episode.step(command.positions, command.velocities, command.gripper)
    outcome.solved.append(episode.success)
    # The first chunks only measure the latency, and the next observation is made while the last of them runs out.
    known = chunks - WARM_UP_CHUNKS
    outcome.slowed += bool(realtime.scheduler.notice) and waited >= worker.periods * (known - 1)
