"""The evaluation harness in numbers: `python -m benchmarks.evaluation` (about half an hour on two free cores).

- Wall time of an episode against a loop that draws both cameras at every step, same policy and machine, with one and
  with two workers; outcome and states must be the same.
- States after 200 steps of fixed actions against the stock environment, ten tasks.
- `kill -9` at random moments and `--resume`: the summary of an undisturbed run.
- One, two and four workers: identical episodes.
- What the harness adds to `env.step`: no policy, no rendering.

`--rows` picks some of them, by the names in ROWS.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Rows
from policies.command_line import command
from policies.types import ActionChunk, ActionSpace, Observation, PolicySpec, VegaError
from sim import run_libero

SUITE = "libero_object"
POLICY = "benchmarks.evaluation:WavingPolicy"
ROOT = Path(__file__).resolve().parent.parent


class WavingPolicy:
    """Costs nothing, looks at both cameras, moves all the time, never solves anything: full-length episodes."""

    spec = PolicySpec("waving", ("agentview", "wrist"), ActionSpace("eef_delta"))

    def act(self, observation: Observation) -> ActionChunk:
        phase = sum(float(image.mean()) for image in observation.images.values())
        actions = 0.3 * np.sin(phase + np.arange(8)[:, None] + np.arange(7))
        return ActionChunk(actions, observation.stamp_ns, observation.instruction)

    def reset(self) -> None:
        """Nothing is remembered."""


class StillPolicy(WavingPolicy):
    """One chunk for the whole episode, without looking: what remains is the harness itself."""

    spec = PolicySpec("still", (), ActionSpace("eef_delta"), chunk_length=280, open_loop_horizon=280)

    def act(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.zeros((280, 7)), observation.stamp_ns, observation.instruction)


def run(folder: Path, *options: str) -> dict[str, Any]:
    """The summary of a run of `sim/run_libero.py` in this process (and its workers)."""
    arguments = ["--suite", SUITE, "--policy", POLICY, *options, "--output", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()):
        status = run_libero.main(arguments)
    if status != 0:
        raise VegaError(f"run_libero.py {' '.join(arguments)} ended with status {status}: run it to see why.")
    return dict(json.loads((folder / "summary.json").read_text()))


def outcomes(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The episodes without their wall time."""
    return [{key: value for key, value in e.items() if key != "wall_s"} for e in summary["episodes"]]


def speed(rows: Rows, folder: Path) -> None:
    """Episodes per second of the harness over that of a loop which draws both cameras at every step."""
    from sim.episode import Episode
    from sim.libero_env import LiberoEnvironment
    from vega3d_ros.chunk_scheduler import LockstepQueue

    # The first trial of a task also builds the environment, as it does in every loop: the second is timed.
    tasks, trial = (0, 1), 1
    policy, naive, found = WavingPolicy(), 0.0, []
    for task in tasks:
        environment = LiberoEnvironment(SUITE, task)
        environment.reset(0)
        begun = time.perf_counter()
        environment.reset(trial)
        episode, queue = Episode(environment), LockstepQueue(policy.spec)
        while not episode.over:
            images = {camera: environment.render(camera)[None] for camera in policy.spec.cameras}
            if queue.empty:
                state = environment.state()
                queue.submit(policy.act(Observation(images, state, environment.instruction, state.stamp_ns)))
            episode.step_eef(queue.pop().action)
        naive += time.perf_counter() - begun
        found.append(episode.result().states_sha256)
        environment.close()
    timed = []
    for workers in (1, 2):
        summary = run(folder / str(workers), "--tasks", "0,1", "--trials", "2", "--workers", str(workers))
        timed.append([e for e in summary["episodes"] if e["trial"] == trial])
    rows.at_least("speed_one_worker", naive / sum(e["wall_s"] for e in timed[0]), 4.0)
    # Two workers run the two tasks at the same time.
    rows.at_least("speed_two_workers", naive / max(e["wall_s"] for e in timed[1]), 7.0)
    same = [[e["states_sha256"] for e in episodes] == found for episodes in timed]
    rows.at_least("same_states_as_the_naive_loop_of_2", sum(same), 2)


def stock(rows: Rows, folder: Path, steps: int = 200) -> None:
    """Tasks whose state after fixed actions equals the stock environment's, byte for byte."""
    from libero.libero.envs import OffScreenRenderEnv

    from sim.libero_env import NO_OP, WAIT_STEPS, LiberoEnvironment, load_suite

    benchmark, equal = load_suite(SUITE), 0
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 7))
    for task in range(10):
        ours = LiberoEnvironment(SUITE, task)
        ours.reset(0)
        for action in actions:
            ours.step_eef(action)
        digest, start = ours.states_digest(), ours.initial_states[0]
        ours.close()
        with contextlib.redirect_stdout(io.StringIO()):
            env = OffScreenRenderEnv(
                bddl_file_name=benchmark.get_task_bddl_file_path(task), camera_heights=16, camera_widths=16
            )
        env.seed(0)
        env.reset()
        env.set_init_state(start)
        for action in [NO_OP] * WAIT_STEPS + list(actions):
            env.step(action)
        equal += env.get_sim_state().tobytes() == digest
        env.close()
    rows.at_least("tasks_bit_equal_to_stock_of_10", equal, 10)


def resume(rows: Rows, folder: Path, kills: int = 20) -> None:
    """Kill a run of two workers again and again, at moments drawn from a fixed seed; then let it end."""
    options = ["--tasks", "0-1", "--trials", "4", "--workers", "2"]
    begun = time.perf_counter()
    calm = run(folder / "calm", *options)
    whole_s = time.perf_counter() - begun
    script = [sys.executable, str(ROOT / "sim" / "run_libero.py"), "--suite", SUITE, "--policy", POLICY, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rng, whole = random.Random(0), 0
    for _ in range(kills):
        command = [*script, "--resume", "--output", str(folder / "killed")]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.0, 0.5 * whole_s))
            process.kill()
        path = folder / "killed" / "summary.json"
        whole += not path.exists() or "episodes" in json.loads(path.read_text())
    rows.at_least(f"valid_summaries_of_{kills}_kills", whole, kills)
    ended = run(folder / "killed", *options, "--resume")
    same = outcomes(ended) == outcomes(calm) and ended["success_rate"] == calm["success_rate"]
    rows.at_least("resumed_equals_undisturbed", float(same), 1)


def workers(rows: Rows, folder: Path) -> None:
    """Numbers of workers whose episodes equal those of one."""
    options = ["--tasks", "0,1", "--trials", "2"]
    found = [outcomes(run(folder / str(n), *options, "--workers", str(n))) for n in (1, 2, 4)]
    rows.at_least("worker_counts_with_identical_episodes_of_3", sum(f == found[0] for f in found), 3)


def overhead(rows: Rows, folder: Path) -> None:
    """Time of an episode that neither thinks nor draws over as many raw steps, median of five pairs."""
    from sim.direct_episodes import DirectEpisodes

    runner = DirectEpisodes(SUITE, StillPolicy(), "eef")
    runner.run(0, 0)
    environment = runner._for_task(0)
    ratios = []
    for _ in range(5):
        environment.reset(0)
        begun = time.perf_counter()
        for _ in range(280):
            environment.env.step(np.zeros(7))
        raw = time.perf_counter() - begun
        begun = time.perf_counter()
        environment.reset(0)
        reset = time.perf_counter() - begun
        begun = time.perf_counter()
        runner.run(0, 0)
        ratios.append((time.perf_counter() - begun - reset) / raw)
    runner.close()
    rows.at_most("harness_overhead_percent", 100 * (float(np.median(ratios)) - 1), 5.0)


ROWS = {"speed": speed, "stock": stock, "resume": resume, "workers": workers, "overhead": overhead}


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed, exactness and robustness of the evaluation.")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args(argv)
    rows = Rows()
    for name in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            ROWS[name](rows, Path(folder))
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
