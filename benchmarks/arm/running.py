"""The shipped policy commands the stand-in arm in real time: how even is its period, and does its memory grow?

Everything comes at the rate of a real robot, in real time: two cameras at 30 Hz that show frames of the simulator
(drawn beforehand), joint states at 100 Hz, a new episode (`~/stop`, `~/start`) every 20 s.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.arm.stand_in import CAMERAS, DEADLINE_S, Bench
from policies.types import Image, VegaError
from vega3d_ros.inference.process import ChildProcess, children_of

EVERY_S = 5.0
SAMPLES = 100  # of the memory at least, however short the run
EPISODE_S = 20.0
WARM_UP = 0.05  # share of the time, and of what is compared after it and at the end
PERIOD_MS = 50.0


@dataclass
class Running:
    """memory: (s since the start, resident MB of policy_node).  intervals_ms: between two commands of an episode, by
    the publisher's own clock at the moment of publishing."""

    memory: list[tuple[float, float]]
    intervals_ms: list[float]

    def off_ms(self, percentile: float) -> float:
        """Percentile of how far the time between two commands is from 50 ms."""
        return float(np.percentile(np.abs(np.array(self.intervals_ms) - PERIOD_MS), percentile))

    def growth_mb(self) -> float:
        """Memory at the end less that after the warm-up, each the median over a twentieth of the time."""
        table = np.array(self.memory)
        share = table[:, 0] / table[-1, 0]
        warm = table[(share >= WARM_UP) & (share < 2 * WARM_UP), 1]
        return float(np.median(table[share >= 1.0 - WARM_UP, 1]) - np.median(warm))


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its children, MB (10^6 bytes).  Raises VegaError once one has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        own = int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6
        return own + sum(resident_mb(child) for child in children_of(pid))
    except (OSError, StopIteration) as error:
        raise VegaError(f"Process {pid} ended before its memory could be read: read its output.") from error


def frames_of_simulator(suite: str, count: int = 10) -> dict[str, list[Image]]:
    """The first frames of `count` trials for each camera."""
    from sim.worlds.libero_env import LiberoEnvironment

    environment = LiberoEnvironment(suite, 0, seed=0)
    frames: dict[str, list[Image]] = {camera: [] for camera in CAMERAS}
    for trial in range(count):
        environment.reset(trial)
        for camera in CAMERAS:
            frames[camera].append(environment.render(camera))
    environment.close()
    return frames


@contextmanager
def simulator_beside() -> Iterator[None]:
    """LIBERO's simulator with both cameras and a policy of its own, as fast as it goes, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="vega3d-") as folder:
        script = Path(__file__).resolve().parents[2] / "sim" / "run_libero.py"
        command = [sys.executable, str(script), "--command", "joint", "--trials", "50", "--output", folder]
        with ChildProcess("simulator", command, on_line=None) as simulator:
            simulator.wait_for_line("task 0 trial 0", 10 * DEADLINE_S)
            yield
            if simulator.returncode is not None:
                raise VegaError("The simulator ended before the measurement did: give fewer minutes.")


def run(minutes: float, policy: str = "vega-nano", say: Callable[[str], None] = lambda _: None) -> Running:
    """policy_node for so long; an episode (`~/stop`, `~/start`) every `EPISODE_S`.

    say(sentence): progress, once a minute.  Raises VegaError if the node ends, faults, or does not begin to command.
    """
    from std_srvs.srv import Trigger

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a simulator keeps its memory as long as its process
        frames = pool.submit(frames_of_simulator, "libero_object").result()
    endless = {camera: itertools.cycle(frames[camera]) for camera in CAMERAS}
    sentence = "pick up the milk and place it in the basket"
    bench = Bench(policy, {"max_age_s": 0.25}, lambda camera: next(endless[camera]), sentence)
    seen = Running([], [])
    try:
        bench.move()
        started = time.monotonic()
        episode_s = said_s = 0.0
        bench.commands_ns.clear()
        while (now_s := time.monotonic() - started) < 60.0 * minutes:
            seen.memory.append((now_s, resident_mb(bench.node.pid)))
            if now_s - said_s >= 60.0:
                said_s = now_s
                say(f"{now_s / 60:.0f} min: {seen.memory[-1][1]:.1f} MB, {len(seen.intervals_ms)} commands")
            if now_s - episode_s >= EPISODE_S:
                episode_s = now_s
                for service in ("stop", "start"):
                    bench.client.call(Trigger, f"policy_node/{service}", Trigger.Request(), DEADLINE_S)
                if not bench.client.until(bench.moving, DEADLINE_S):
                    raise VegaError(f"The arm stood still after ~/start: {' '.join(bench.node.tail(3))}")
                bench.commands_ns.clear()
            bench.client.until(lambda: False, min(EVERY_S, 60.0 * minutes / SAMPLES))
            # Those within an episode; between two of them the arm is to stand still.
            seen.intervals_ms.extend(np.diff(bench.commands_ns) / 1e6)
            del bench.commands_ns[:-1]
        return seen
    finally:
        bench.close()


def draw_memory(seen: Running, path: Path) -> None:
    """A picture (PNG) of the memory over time, and its numbers beside it (JSON)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    table = np.array(seen.memory)
    axes.plot(table[:, 0] / 60.0, table[:, 1])
    axes.set(xlabel="time, min", ylabel="policy_node, resident MB", ylim=(0.0, 1.2 * float(table[:, 1].max())))
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    path.with_suffix(".json").write_text(json.dumps(seen.memory))
