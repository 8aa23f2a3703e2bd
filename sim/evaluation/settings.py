"""How the episodes of a run are run; handed to every worker, which builds its runner from it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from policies.checkpoints import for_suite
from policies.types import Policy
from sim.evaluation.open_policy import open_policy
from sim.evaluation.shared_policy import Place, SharedPolicy
from sim.results.evaluation import EpisodeRecord
from sim.results.film import PICTURES
from sim.worlds.episode import EpisodeResult

SEED = 0  # env.seed(0), once per task, as in the reference
TAPES = "tapes"


class Runner(Protocol):
    """Runs single episodes; `latencies_ms` grows by one number with each decision of the policy."""

    latencies_ms: list[float]

    def run(self, task: int, trial: int) -> EpisodeResult: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class EpisodeSettings:
    """How episodes are run; see the options of the same names.

    folder: where an episode leaves pictures, films and tapes; None keeps none.
    shared: where the one policy of all workers answers; None loads one here.
    """

    suite: str
    policy: str
    transport: str = "direct"
    command: str = "eef"
    device: str = "cpu"
    threads: int = 1
    seed: int = SEED
    folder: Path | None = None
    video: bool = False
    record: bool = False
    world_simulator: str = "on"
    perturb: tuple[str, ...] = ()
    shared: Place | None = None

    @property
    def unit(self) -> str:
        return "episode"

    @property
    def policy_for_suite(self) -> str:
        """The policy's name, with the suite behind it where its statistics depend on that."""
        return for_suite(self.policy, self.suite)

    def build(self) -> Runner:
        name = self.policy_for_suite
        if self.shared is not None:
            policy: Policy = SharedPolicy(self.shared)
        else:
            policy = open_policy(name, self.device, self.threads, self.world_simulator)
        if self.transport == "direct":
            from sim.evaluation.direct_episodes import DirectEpisodes

            return DirectEpisodes(
                self.suite, policy, "joint" if self.command == "joint" else "eef", seed=self.seed,
                pictures=self.folder and self.folder / PICTURES, video=self.video,
                tapes=self.folder / TAPES if self.folder and self.record else None, perturb=self.perturb,
            )  # fmt: skip
        from sim.robot.ros_episodes import RosEpisodes

        # The policy itself lives in policy_node; here it only tells how often it looks.
        camera_every = policy.spec.open_loop_horizon if policy.spec.window == 1 else 1
        return RosEpisodes(
            self.suite, name, device=self.device, threads=self.threads, camera_every=camera_every,
            world_simulator=self.world_simulator,
        )  # fmt: skip

    def run_trial(self, runner: Runner, task: int, trial: int) -> EpisodeRecord:
        """One episode and what is written about it."""
        begun, queries = time.monotonic(), len(runner.latencies_ms)
        result = runner.run(task, trial)
        return EpisodeRecord(
            task=task, trial=trial, success=result.success, steps=result.steps, seed=self.seed, error=result.error,
            wall_s=round(time.monotonic() - begun, 2), actions_sha256=result.actions_sha256,
            states_sha256=result.states_sha256, perturbed=dict(result.perturbed),
            latency_ms=tuple(round(value, 2) for value in runner.latencies_ms[queries:]),
        )  # fmt: skip

    def lost(self, task: int, trial: int, error: str) -> EpisodeRecord:
        """What is written about an episode in which processes died."""
        return EpisodeRecord(task, trial, False, 0, self.seed, error, 0.0, "", "")
