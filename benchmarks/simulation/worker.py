"""One build's simulator for `benchmarks.simulation`: reads jobs from stdin as JSON lines, answers each with a line.

    PYTHONPATH=FOLDER python benchmarks/simulation/worker.py FOLDER

It stands alone, and knows the names that modules had in older builds: nothing but FOLDER's code may answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(sys.argv[1]).resolve()


def load(*names: str) -> Any:
    """The first of these modules that FOLDER has.

    A virtual environment in which another build is installed would answer for a missing one: never asked for that.
    """
    name = next(name for name in names if (FOLDER / (name.replace(".", "/") + ".py")).is_file())
    module = importlib.import_module(name)
    for key, loaded in list(sys.modules.items()):
        if key.split(".")[0] in ("sim", "policies", "vega3d_ros") and getattr(loaded, "__file__", None):
            assert FOLDER in Path(str(loaded.__file__)).resolve().parents, f"{key} is not from {FOLDER}"
    return module


def digest(*arrays: Any) -> str:
    """Of the arrays' bytes, in order."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def spent_s() -> float:
    """CPU time of this process and of its children that have ended, among them the encoders of videos."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Worker:
    """Keeps one environment, and one policy, between jobs."""

    def __init__(self) -> None:
        self.environment: Any = None
        self.wanted: tuple[str, int, bool] | None = None
        self.episodes: Any = None
        self.policy: Any = None
        self.policy_name = ""

    def steps(self, suite: str, task: int, actions: list[list[float]], pictures: int) -> dict[str, Any]:
        """Step a trial through actions; CPU seconds of the steps and of the pictures drawn every `pictures` steps."""
        environment = self._environment(suite, task)
        environment.reset(0)
        states, drawn, stepping, drawing = [], [], 0.0, 0.0
        for i, action in enumerate(np.array(actions)):
            begun = time.process_time()
            environment.step_eef(action)
            stepping += time.process_time() - begun
            states.append(environment.states_digest())
            if i % pictures == 0:
                begun = time.process_time()
                drawn += [environment.render(camera) for camera in environment.cameras]
                drawing += time.process_time() - begun
        return {
            "cpu_s": stepping, "states": [hashlib.sha256(state).hexdigest() for state in states],
            "drawing_cpu_s": drawing, "pictures": [digest(picture) for picture in drawn],
        }  # fmt: skip

    def episode(self, suite: str, task: int, trial: int, policy: str) -> dict[str, Any]:
        """One episode as `run_libero.py --command eef` runs it."""
        if self.episodes is None:
            loaded = load("policies.checkpoints").load_policy(policy, threads=1)
            self.episodes = load("sim.evaluation.direct_episodes", "sim.direct_episodes").DirectEpisodes(
                suite, loaded, "eef"
            )
            self.episodes.run(task, trial)
        begun = time.process_time()
        result = self.episodes.run(task, trial)
        return {"cpu_s": time.process_time() - begun, **result.to_dict()}

    def act(self, policy: str, looks: int, repeats: int, compiled: bool = False) -> dict[str, Any]:
        """CPU seconds of decisions on one core, `repeats` for each of `looks` scenes of coloured squares; actions."""
        types, rng = load("policies.types"), np.random.default_rng(0)
        if self.policy_name != (name := f"{policy}, compiled" if compiled else policy):
            speed = {"speed": types.SpeedOptions(compiled=True)} if compiled else {}
            self.policy, self.policy_name = load("policies.checkpoints").load_policy(policy, threads=1, **speed), name
        times, decided = [], []
        for look in range(looks):
            squares = rng.integers(0, 255, (len(self.policy.spec.cameras), 1, 16, 16, 3), dtype=np.uint8)
            images = dict(zip(self.policy.spec.cameras, squares.repeat(16, axis=2).repeat(16, axis=3), strict=True))
            place = np.array([0.45, 0.05 * look, 0.26]), np.array([1.0, 0.0, 0.0, 0.0])
            state = types.RobotState(0, (), np.zeros(7), np.zeros(7), np.full(2, 0.04), *place)
            seen = types.Observation(images, state, "pick up the milk and place it in the basket", 0)
            self.policy.reset()
            decided.append(self.policy.act(seen).actions.tolist())
            for _ in range(repeats):
                begun = time.process_time()
                self.policy.act(seen)
                times.append(time.process_time() - begun)
        return {"times_s": times, "cpu_s": float(np.median(times)), "actions": decided}

    def demonstration(self, suite: str, task: int, seed: int) -> dict[str, Any]:
        """One demonstration of the build's own expert, every fourth step drawn; None of it where it failed."""
        module = load("sim.demonstrations.collect_skills", "sim.demonstrations.collect_demos", "sim.collect_demos")
        skilled = module.__name__.endswith("collect_skills")
        environment, rng = self._environment(suite, task, quickly=skilled), np.random.default_rng(seed)
        begun = spent_s()
        if skilled:
            views = load("sim.demonstrations.views").Views(environment)
            dyes = load("sim.demonstrations.dyes").Dyes(environment)
            with tempfile.TemporaryDirectory() as folder:
                kept = module.collect_episode(environment, views, dyes, rng, Path(folder) / "tape.npz", 4)
        else:
            kept = module.collect_episode(environment, rng, 4) is not None
        return {"cpu_s": spent_s() - begun, "kept": bool(kept)}

    def quick_drawing(self, suite: str, task: int, repeats: int) -> dict[str, Any]:
        """Pictures as scored, and quickly drawn: CPU seconds, and the mean difference of a pixel, levels of 255."""
        seen, spent = [], []
        for quickly in (False, True):
            environment = self._environment(suite, task, quickly=quickly)
            environment.reset(0)
            pictures = [environment.render(camera).astype(int) for camera in environment.cameras]
            begun = time.process_time()
            for _ in range(repeats):
                pictures = [environment.render(camera).astype(int) for camera in environment.cameras]
            spent.append(time.process_time() - begun)
            seen.append(np.stack(pictures))
        return {"all_s": spent[0], "quick_s": spent[1], "apart": float(np.abs(seen[0] - seen[1]).mean())}

    def _environment(self, suite: str, task: int, quickly: bool = False) -> Any:
        """quickly: drawn and stepped as demonstrations are, where the build knows how."""
        wanted = (suite, task, quickly and (FOLDER / "sim/demonstrations/quick_drawing.py").is_file())
        if wanted != self.wanted:
            if self.environment is not None:
                self.environment.close()
            self.environment = load("sim.worlds.libero_env", "sim.libero_env").LiberoEnvironment(suite, task)
            self.wanted = wanted
            if wanted[2]:
                load("sim.demonstrations.quick_drawing").draw_quickly(self.environment)
                if hasattr(self.environment, "step_quickly"):
                    self.environment.step_quickly()
        return self.environment


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    worker = Worker()
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            job = json.loads(line)
            answers.write(json.dumps(getattr(worker, job.pop("do"))(**job)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
