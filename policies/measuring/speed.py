"""What a policy's options for speed bring, and what each costs in exactness.

Queries of the reduced size on a CPU are measured against an older build's, in turns, in processes with one thread, by
the CPU time that each takes.  Errors are relative: the norm of the difference over that of the plain path's values;
those of streams and of refreshing are the shipped world simulator's, which is trained, on pictures that move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from policies.fusion.gated_fusion import build_fusion
from policies.fusion.world_view import CameraView, WorldView
from policies.measuring.benchmark_meter import Meter
from policies.measuring.benchmark_models import Sizes
from policies.measuring.builds import Job, Worker
from policies.world_simulator.simulator import LatentWorldSimulator

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("query_worker.py")
WINDOW = 17
WINDOW_TIMES, COMPILED_TIMES = 5.0, 1.3
CYCLE = 4  # frames of a latent frame, and ways to group them: after so many queries a stream has begun all of them
FRAME = (256, 256)


def measure_speed(meter: Meter, base: Path, sizes: Sizes, rounds: int, windows_only: bool = False) -> None:
    """Rows of both builds.  base: a checkout with its environment.  rounds: cycles of queries on windows."""
    plain, fast, old = (Worker(folder, SCRIPT) for folder in (ROOT, ROOT, base.resolve()))
    try:
        shape = asdict(replace(sizes, window=WINDOW))
        for worker, compiled in ((plain, False), (fast, True), (old, False)):
            worker("build", sizes=shape, dtype="float32", options={"compiled": compiled})
        _windows(meter, plain, fast, old, rounds)
        if windows_only:
            return
        _per_frame(meter, plain, fast, old)
        for worker, weights in ((plain, "plain"), (fast, "int8")):
            worker("build", sizes=shape, dtype="bfloat16", options={"weights": weights})
        _int8(meter, plain, fast)
    finally:
        for worker in (plain, fast, old):
            worker.close()


def relative(ours: Job, theirs: Job, key: str) -> float:
    """Norm of the difference of two answers over that of the second."""
    one, other = np.asarray(ours[key]), np.asarray(theirs[key])
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def farthest(ours: Sequence[Job], theirs: Sequence[Job], key: str) -> float:
    """The largest `relative` of answers to the same queries; NaN where one is, which `max` may pass over."""
    return float(np.max([relative(a, b, key) for a, b in zip(ours, theirs, strict=True)]))


def _per_frame(meter: Meter, plain: Worker, fast: Worker, old: Worker) -> None:
    answers = _in_turns({"plain": plain, "fast": fast, "old": old}, "per_frame", {}, 6)
    meter.information("per_frame_query_times_faster", _times(answers["old"], answers["plain"]))
    meter.at_least("per_frame_query_compiled_times_faster", _times(answers["old"], answers["fast"]), COMPILED_TIMES)
    for name in ("plain", "fast"):
        for key in ("actions", "tokens"):
            error = farthest(answers[name], answers["old"], key)
            meter.at_most(f"per_frame_{key}_relative_change_{name}", error, 1e-4)


def _windows(meter: Meter, plain: Worker, fast: Worker, old: Worker, rounds: int) -> None:
    """One new frame a query, as it is once a stream has begun; its first queries are told apart."""
    kinds: dict[str, tuple[Worker, dict[str, Any]]] = {
        "causal_compiled": (fast, {"stream": "causal"}),
        "causal": (plain, {"stream": "causal"}),
        "joint": (plain, {"stream": "joint"}),
        "joint_compiled": (fast, {"stream": "joint"}),
        f"joint_compiled_refreshed_every_{CYCLE}th": (fast, {"stream": "joint", "refresh_every": CYCLE}),
        "off": (plain, {"stream": "off"}),
    }
    # The older build has no options, and every query of it costs the same.
    before = _in_turns({"old": old}, "window", {}, rounds * CYCLE)["old"]
    for name, (worker, options) in kinds.items():
        answers = _in_turns({name: worker}, "window", {name: options}, (1 + rounds) * CYCLE)[name]
        times = _mean(before[1:]) / _mean(answers[1 + CYCLE :])
        if name == "causal_compiled":
            meter.at_least(f"window_query_{name}_times_faster", times, WINDOW_TIMES)
            begun = _mean(before[1:]) / _mean(answers[:CYCLE])
            meter.information(f"window_query_{name}_first_cycle_times_faster", begun)
        else:
            meter.information(f"window_query_{name}_times_faster", times)
        first = relative(answers[0], before[0], "tokens")
        meter.at_most(f"window_query_{name}_first_tokens_relative_change", first, 1e-4)
    _curve(meter, fast, _mean(before[1:]))


def _curve(meter: Meter, fast: Worker, before: float) -> None:
    """CPU time of a query against the frames it encodes, and how fast it would be if it encoded none."""
    seconds: dict[int, float] = {}
    for frames in (1, 8, WINDOW):
        fast("begin", mode="window", options={"stream": "joint"})
        fast("ask", moved=0)
        seconds[frames] = min(fast("ask", moved=frames)["cpu_s"] for _ in range(2))
        meter.information(f"window_query_joint_compiled_cpu_s_with_{frames}_new_frames", seconds[frames])
    none = seconds[1] - (seconds[8] - seconds[1]) / 7
    meter.information("window_query_joint_compiled_times_faster_if_encoding_were_free", before / none)


def _int8(meter: Meter, plain: Worker, eight: Worker) -> None:
    answers = _in_turns({"plain": plain, "int8": eight}, "per_frame", {}, 2)
    error = farthest(answers["int8"], answers["plain"], "actions")
    meter.information("int8_bfloat16_actions_relative_change", error)
    meter.information("int8_query_times_faster_on_cpu", _times(answers["plain"], answers["int8"]))


def _in_turns(workers: dict[str, Worker], mode: str, options: dict[str, Any], queries: int) -> dict[str, list[Job]]:
    """Answers of all to the same queries; the first, which nothing is known before, is asked but not timed."""
    for name, worker in workers.items():
        worker("begin", mode=mode, options=options.get(name, {}))
    answers: dict[str, list[Job]] = {name: [] for name in workers}
    for query in range(queries + 1):
        for name, worker in workers.items():
            answers[name].append(worker("ask", moved=int(query > 0)))
    return answers


def _times(slow: Sequence[Job], fast: Sequence[Job]) -> float:
    """How many times less CPU a query takes, the first one aside."""
    return _mean(slow[1:]) / _mean(fast[1:])


def _mean(answers: Sequence[Job]) -> float:
    """CPU seconds of a query."""
    return float(np.mean([answer["cpu_s"] for answer in answers]))


def measure_errors(meter: Meter, folder: Path, queries: int = 12) -> None:
    """What streams and refreshing change in a trained world simulator's tokens, query by query of one new frame."""
    simulator = LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32, mode="window", window=WINDOW)
    single = LatentWorldSimulator.from_pretrained(folder, dtype=torch.float32)
    video = moving_pictures(WINDOW + queries)
    windows = [video[:, i : i + WINDOW] for i in range(queries + 1)]
    exact = [simulator(window) for window in windows]
    for stream in ("joint", "causal"):
        seen = _looks(simulator, windows, stream=stream)
        meter.information(f"stream_{stream}_tokens_relative_change", _worst(seen, exact))
    seen = _looks(simulator, windows, stream="joint", refresh_every=CYCLE)
    meter.information(f"stream_joint_refreshed_every_{CYCLE}th_tokens_relative_change", _worst(seen, exact))
    frames = [window[:, -1:] for window in windows]
    exact = [single(frame) for frame in frames]
    for name, options in (
        ("every_4th", {"refresh_every": 4}),
        ("by_change_of_40", {"refresh_every": 99, "refresh_change": 40.0}),
    ):
        meter.information(f"refreshed_{name}_tokens_relative_change", _worst(_looks(single, frames, **options), exact))


def _looks(simulator: LatentWorldSimulator, frames: Sequence[torch.Tensor], **options: Any) -> list[torch.Tensor]:
    config = simulator.config
    view = CameraView(config.canvas, config.grid, config.view)
    world = WorldView(simulator, {"camera": view}, build_fusion("token_gate", 8, simulator.dim), **options)
    return [world.look({"camera": frame})[0]["camera"] for frame in frames]


def _worst(seen: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    return float(np.max([float((a - b).norm() / b.norm()) for a, b in zip(seen, exact, strict=True)]))


def moving_pictures(count: int) -> torch.Tensor:
    """A coarse picture with a disc that crosses it, ten pixels a frame: (1, count, H, W, 3) uint8."""
    coarse = torch.randint(0, 256, (1, 3, 9, 9), generator=torch.Generator().manual_seed(0)).float()
    ground = F.interpolate(coarse, FRAME, mode="bilinear")[0].permute(1, 2, 0)
    y, x = torch.meshgrid(torch.arange(FRAME[0]), torch.arange(FRAME[1]), indexing="ij")
    shots = []
    for i in range(count):
        disc = ((y - 120) ** 2 + (x - 10 * i % FRAME[1]) ** 2 < 30**2)[..., None]
        shots.append(torch.where(disc, torch.tensor([200.0, 40.0, 30.0]), ground).byte())
    return torch.stack(shots)[None]
