"""The evaluation harness in numbers: `python -m benchmarks.evaluation`.

- Wall time of an episode against a loop that resets and draws as the published evaluation script does (model rebuilt
  for each episode, both cameras at every step), same policy and machine, with one and with two workers; success and
  states must be the same.
- States after 200 steps of fixed actions against the stock environment, ten tasks.
- `kill -9` at random moments and `--resume`: the summary of an undisturbed run.
- One, two and four workers, and a Ray cluster of two nodes on this machine: identical episodes.
- What the harness adds to its control steps: no policy, no rendering.

`--rows` picks some of them, by the names in ROWS.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import Rows
from policies.files.command_line import command, command_parser, results_folder
from policies.types import ActionChunk, ActionSpace, Image, Observation, PolicySpec, VegaError
from sim import run_libero
from sim.evaluation.settings import EpisodeSettings
from sim.evaluation.workers import make_shards, run_here, run_in_workers
from sim.results.evaluation import EpisodeRecord, ResultWriter
from sim.worlds.environment import Environment

SUITE = "libero_object"
POLICY = "benchmarks.evaluation.__main__:WavingPolicy"
SHIPPED = "vega-nano"
SPEED_TRIALS = 6
FIRST_LIFE_S = 5.0
EPISODE_S = 600.0
ROOT = Path(__file__).resolve().parents[2]


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


def comparable(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without what was measured."""
    return {**summary, "episodes": outcomes(summary), "wall_s": None, "latency_ms": None}


def speed(rows: Rows, folder: Path) -> None:
    """Wall time of an episode in a researcher's loop over that of the harness, both with the shipped policy."""
    tasks, trials = (0, 1), range(1, SPEED_TRIALS)
    naive_s, found = naive_loop(tasks, trials)
    same = 0
    for workers, name, threshold in ((1, "one", 4.0), (2, "two", 7.0)):
        records, spent_s = timed_episodes(folder / name, tasks, SPEED_TRIALS, workers)
        rows.at_least(f"speed_with_{name}_worker{'s' * (workers > 1)}", naive_s / spent_s, threshold)
        same += sum(found.get(r.key) == (r.success, r.states_sha256) for r in records)
    rows.at_least(f"same_success_and_states_of_{2 * len(found)}", same, 2 * len(found))
    rows.information("naive_loop_s_per_episode", naive_s)


def naive_loop(tasks: Sequence[int], trials: Sequence[int]) -> tuple[float, dict[tuple[int, int], tuple[bool, str]]]:
    """What the published evaluation script does, with the stock environment in its stock settings but for one thing.

    The stock environment's camera observables draw one physics substep before a step's end; here the same two pictures
    are drawn at its end, where the harness draws them, so that the policy sees the same.
    Returns seconds per episode, building the environment not counted, and (success, hash of states) by task and trial.
    """
    from libero.libero.envs.env_wrapper import ControlEnv

    from policies.checkpoints import load_policy
    from sim.worlds.episode import Episode
    from sim.worlds.libero_env import NO_OP, WAIT_STEPS, LiberoEnvironment, switch_off_observables
    from sim.worlds.suites import load_suite
    from vega3d_ros.control.chunk_scheduler import LockstepQueue

    policy, spent, found = load_policy(SHIPPED), 0.0, {}
    for task in tasks:
        view = LiberoEnvironment(SUITE, task)  # the arm's state and the pictures of `env`, in this package's form
        with contextlib.redirect_stdout(io.StringIO()):
            env = ControlEnv(load_suite(SUITE).get_task_bddl_file_path(task), use_camera_obs=False)
            env.seed(0)
        for trial in range(max(trials) + 1):
            begun = time.perf_counter()
            env.reset()
            if trial not in trials:
                continue  # its random draws come before those of the next
            switch_off_observables(env.env)
            view.env = env.env
            env.set_init_state(view.initial_states[trial])
            for _ in range(WAIT_STEPS):
                env.step(NO_OP)
                draw(view)
            view._steps = 0
            episode, queue = Episode(view), LockstepQueue(policy.spec)
            policy.reset()
            while not episode.over:
                images = draw(view)
                if queue.empty:
                    state = view.state()
                    observation = Observation(
                        {camera: images[camera] for camera in policy.spec.cameras}, state, view.instruction,
                        state.stamp_ns, view.base_position, view.base_quaternion,
                    )  # fmt: skip
                    queue.submit(policy.act(observation))
                episode.step_eef(queue.pop().action)
            spent += time.perf_counter() - begun
            found[task, trial] = (episode.success, episode.result().states_sha256)
        view.close()
    return spent / len(found), found


def draw(environment: Environment) -> dict[str, Image]:
    """Both cameras now."""
    return {camera: environment.render(camera)[None] for camera in environment.cameras}


def timed_episodes(folder: Path, tasks: Sequence[int], trials: int, workers: int) -> tuple[list[EpisodeRecord], float]:
    """The episodes but the first of each task, which builds its environment, and seconds per episode.

    Several workers: while all of them run, an episode under way counting in part.
    """
    settings = EpisodeSettings(SUITE, SHIPPED)
    writer = ResultWriter(results_folder(folder), {"suite": SUITE})
    ends: dict[int, list[float]] = {task: [] for task in tasks}

    def on_record(record: EpisodeRecord) -> None:
        writer.add(record)
        ends[record.task].append(time.perf_counter())

    shards = make_shards(tasks, trials, workers)
    if workers == 1:
        run_here(settings, shards, on_record)
        spent = sum(times[-1] - times[0] for times in ends.values()) / (len(tasks) * (trials - 1))
    else:
        run_in_workers(settings, shards, workers, on_record)
        begin, end = max(times[0] for times in ends.values()), min(times[-1] for times in ends.values())
        count = np.arange(trials)
        done = sum(float(np.diff(np.interp([begin, end], times, count))[0]) for times in ends.values())
        spent = (end - begin) / done
    writer.close()
    return writer.records, spent


def stock(rows: Rows, folder: Path, steps: int = 200) -> None:
    """Tasks whose state after fixed actions equals the stock environment's, byte for byte."""
    from libero.libero.envs import OffScreenRenderEnv

    from sim.worlds.libero_env import NO_OP, WAIT_STEPS, LiberoEnvironment
    from sim.worlds.suites import load_suite

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
    options = ["--tasks", "0-1", "--trials", "12", "--workers", "2"]
    calm = run(folder / "calm", *options)
    killed = folder / "killed"
    script = [sys.executable, str(ROOT / "sim" / "run_libero.py"), "--suite", SUITE, "--policy", POLICY, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rng, whole, alive, start_s = random.Random(0), 0, 0, FIRST_LIFE_S
    for _ in range(kills):
        command = [*script, "--resume", "--output", str(killed)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            # Fast or busy, a machine comes far enough for every kill to hit a run that has begun or ended an episode.
            if rng.random() < 0.4:
                start_s, longest_s = wait_for_an_episode(process, killed)
            else:
                longest_s = start_s
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.0, longest_s))
            alive += process.poll() is None
            process.kill()
        path = killed / "summary.json"
        whole += not path.exists() or "episodes" in json.loads(path.read_text())
    rows.at_least(f"kills_of_a_run_under_way_of_{kills}", alive, kills)
    rows.at_least(f"valid_summaries_of_{kills}_kills", whole, kills)
    rows.information("episodes_kept_when_the_last_kill_came", len(wall_times(killed)))
    ended = run(killed, *options, "--resume")
    same = comparable(ended) == comparable(calm)
    rows.at_least("resumed_equals_undisturbed", float(same), 1)


def wall_times(folder: Path) -> list[float]:
    """Seconds of each finished episode of a run, in the order in which they ended."""
    path = folder / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line)["wall_s"] for line in lines if line.endswith("\n")]


def wait_for_an_episode(process: subprocess.Popen[bytes], folder: Path) -> tuple[float, float]:
    """Seconds until one more episode is on the disk, and the seconds which that one took."""
    begun, before = time.perf_counter(), len(wall_times(folder))
    while process.poll() is None and time.perf_counter() - begun < EPISODE_S:
        if len(found := wall_times(folder)) > before:
            return time.perf_counter() - begun, found[-1]
        time.sleep(0.05)
    return time.perf_counter() - begun, 0.0


def workers(rows: Rows, folder: Path) -> None:
    """One, two and four workers and a Ray cluster of two nodes: how many find the episodes of one worker."""
    from benchmarks.evaluation.ray_cluster import two_nodes

    options = ["--tasks", "0,1", "--trials", "2"]
    found = [outcomes(run(folder / str(n), *options, "--workers", str(n))) for n in (1, 2, 4)]
    with two_nodes() as address:
        found.append(outcomes(run(folder / "ray", *options, "--ray", address)))
    rows.at_least("ways_to_run_with_identical_episodes_of_4", sum(f == found[0] for f in found), 4)


def overhead(rows: Rows, folder: Path) -> None:
    """Time of an episode that neither thinks nor draws over as many of its own control steps, median of five pairs."""
    from sim.evaluation.direct_episodes import DirectEpisodes

    runner = DirectEpisodes(SUITE, StillPolicy(), "eef")
    runner.run(0, 0)
    environment = runner._for_task(0)
    ratios = []
    for _ in range(5):
        environment.reset(0)
        begun = time.perf_counter()
        for _ in range(280):
            environment._control_step(np.zeros(7))
            environment.env._check_success()
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
    parser = command_parser("python -m benchmarks.evaluation", __doc__, paragraphs=3)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS), help="which")
    args = parser.parse_args(argv)
    rows = Rows()
    for name in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            ROWS[name](rows, Path(folder))
    return rows.status


if __name__ == "__main__":
    sys.exit(main())
