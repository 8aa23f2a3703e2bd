"""How long the parts of the full-size policy take: `python -m policies.benchmark`.

Builds OpenVLA-OFT and the world simulator with random weights on the device at hand (full size on a GPU,
a reduced one on a CPU) and prints a table: median and 99th percentile of the latency, memory, ratios.
The rows show what each measure brings: the reference schedule of the official code against this
package's exact shortcuts, re-encoding a window against streaming it, refreshing on every n-th query,
and with `--compile` or `--cuda-graphs` the compiled network.

Memory: on a GPU the peak while the row ran, on a CPU the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from policies.benchmark_models import FULL, REDUCED, ReferenceSchedule, Sizes, WanModels, random_openvla
from policies.gated_fusion import build_fusion
from policies.openvla_oft import OpenVLAOFT
from policies.preprocessing import EMPTY_TOKEN
from policies.types import VegaError
from policies.wan_stream import TokenRefresh
from policies.world_simulator import LatentWorldSimulator

FRAME_SIZE = (256, 256)


@dataclass(frozen=True)
class Row:
    """One line of the table.  Times in milliseconds, memory in megabytes."""

    name: str
    median_ms: float
    p99_ms: float
    memory_mb: float
    repeats: int


class Meter:
    """Measures rows on one device."""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, repeats
        self.rows: list[Row] = []

    def measure(self, name: str, run: Callable[[], object], parts: Sequence[nn.Module], cycle: int = 1) -> Row:
        """Time `run` after warming up and print its row.  cycle: queries after which its work repeats."""
        for _ in range(max(2, cycle)):
            run()
        self._synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        repeats = -(-self.repeats // cycle) * cycle
        times = np.empty(repeats)
        for i in range(repeats):
            start = time.perf_counter()
            run()
            self._synchronise()
            times[i] = time.perf_counter() - start
        # Of a cycle of unlike queries the mean is what one costs; of like ones the median is steadier.
        middle = np.median(times.reshape(-1, cycle).mean(1))
        row = Row(name, middle * 1e3, float(np.percentile(times, 99)) * 1e3, self._memory(parts), repeats)
        self.rows.append(row)
        print(f"{row.name:<58}{row.median_ms:>11.2f}{row.p99_ms:>11.2f}{row.memory_mb:>11.0f}", flush=True)
        return row

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _memory(self, parts: Sequence[nn.Module]) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def ratio(name: str, slow: Row, fast: Row) -> tuple[str, float]:
    """How many times longer `slow` takes than `fast`."""
    return name, slow.median_ms / fast.median_ms


def compiled(model: LatentWorldSimulator | OpenVLAOFT, mode: str) -> None:
    """Compile the networks of a model in place; `mode` is torch.compile's."""
    if isinstance(model, LatentWorldSimulator):
        parts: list[nn.Module] = [*model.trunk.blocks]
    else:
        parts = [
            *model.layers,
            *(block for tower in model.towers.children() for block in tower.get_submodule("blocks").children()),
        ]
    for part in parts:
        part.compile(mode=mode)


def measure_world_simulator(
    meter: Meter, sizes: Sizes, dtype: torch.dtype, video: torch.Tensor
) -> tuple[LatentWorldSimulator, LatentWorldSimulator, list[tuple[str, float]]]:
    """Rows of the world simulator alone; returns one per frame, one for windows, and the ratios.

    The reference's float32 copies live in this function only.
    """
    frame = video[:, -1:]
    wan = WanModels(sizes, meter.device)
    single, window = wan.simulator("per_frame", dtype), wan.simulator("window", dtype)
    reference = ReferenceSchedule(wan, single)
    error = (reference(frame) - single(frame).float()).abs().max().item()
    slow = meter.measure("world simulator, reference schedule", lambda: reference(frame), [wan.vae, wan.transformer])
    fast = meter.measure("world simulator, per frame", lambda: single(frame), [single])
    print(f"{'  largest difference of their features':<58}{error:>11.1e}")
    meter.measure(f"world simulator, window of {sizes.window}", lambda: window(video), [window])

    encoder, stride = window.encoder, window.encoder.temporal_stride
    canvas = window.to_canvas(video)
    with torch.no_grad():
        whole = meter.measure(f"VAE, window of {sizes.window} encoded again", lambda: encoder.window(canvas), [encoder])
        _, state = encoder.step(canvas[:, :, :1], encoder.start())
        _, state = encoder.step(canvas[:, :, 1 : 1 + stride], state)
        part = canvas[:, :, 1 + stride : 1 + 2 * stride]
        step = meter.measure("VAE, one more latent frame of a stream", lambda: encoder.step(part, state), [encoder])
    ratios = [
        ratio("per frame against the reference schedule", slow, fast),
        ratio("VAE stream step against encoding its window", whole, step),
    ]
    return single, window, ratios


def run(options: argparse.Namespace) -> tuple[list[Row], list[tuple[str, float]]]:
    """Measure everything; returns the rows and the ratios."""
    device = torch.device(options.device)
    size = options.size if options.size != "auto" else "full" if device.type == "cuda" else "reduced"
    sizes = FULL if size == "full" else REDUCED
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    meter = Meter(device, options.repeats)
    cameras = options.cameras
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (cameras, sizes.window, *FRAME_SIZE, 3), dtype=torch.uint8, generator=generator)
    video = video.to(device)

    print(f"{size} size, {cameras} cameras, {sizes.canvas} x {sizes.canvas} canvas, {dtype}, {device_name(device)}")
    print(f"{'':<58}{'median ms':>11}{'p99 ms':>11}{'memory MB':>11}")
    single, window, ratios = measure_world_simulator(meter, sizes, dtype, video)
    frame = video[:, -1:]
    stream = window.open_stream()
    stream.push(video)

    def streamed() -> torch.Tensor:
        stream.push(video[:, : window.encoder.temporal_stride])
        return stream.tokens()

    meter.measure("world simulator, streamed", streamed, [window])

    policy = random_openvla(sizes, device, dtype, options.attention)
    fusion = build_fusion("token_gate", policy.language_dim, single.dim).to(device, dtype).eval().requires_grad_(False)
    pixels = torch.randn(1, 6 * cameras, 224, 224, generator=generator).to(device, dtype)
    ids, proprio = [[1, *range(500, 520), EMPTY_TOKEN]], torch.zeros(1, 8, device=device)

    def query(f_gen: Callable[[], torch.Tensor] | None = None) -> torch.Tensor:
        if f_gen is None:
            return policy(pixels, ids, proprio)
        tokens = f_gen().reshape(1, -1, single.dim)
        return policy(pixels, ids, proprio, fuse=lambda f_sem: fusion(f_sem, tokens)[0])

    alone = meter.measure("OpenVLA-OFT alone", query, [policy])
    everything = [policy, fusion, single]
    refresh: TokenRefresh[torch.Tensor] = TokenRefresh(options.refresh)
    variants: list[tuple[str, Callable[[], torch.Tensor], int]] = [
        ("+ world simulator per frame", lambda: single(frame), 1),
        ("+ window", lambda: window(video), 1),
        ("+ streamed window", streamed, 1),
        (f"+ per frame on every {options.refresh}th query", lambda: refresh(lambda: single(frame))[0], options.refresh),
    ]
    for name, f_gen, cycle in variants:
        row = meter.measure(f"OpenVLA-OFT {name}", partial(query, f_gen), everything, cycle)
        ratios.append(ratio(f"OpenVLA-OFT {name}, against it alone", row, alone))

    for wanted, mode, name in (
        (options.compile, "default", "torch.compile"),
        (options.cuda_graphs, "reduce-overhead", "CUDA graphs"),
    ):
        if wanted:
            torch.compiler.reset()
            for model in (policy, single):
                compiled(model, mode)
            bare = meter.measure(f"OpenVLA-OFT alone, {name}", query, [policy])
            fused = meter.measure(f"OpenVLA-OFT + per frame, {name}", lambda: query(lambda: single(frame)), everything)
            ratios.append(ratio(f"OpenVLA-OFT alone without against with {name}", alone, bare))
            ratios.append(ratio(f"OpenVLA-OFT + per frame against it alone, {name}", fused, bare))
    return meter.rows, ratios


def device_name(device: torch.device) -> str:
    """What the table was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m policies.benchmark", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--size", choices=("auto", "full", "reduced"), default="auto", help="auto: full on a GPU")
    parser.add_argument("--cameras", type=int, default=2, help="images per query (default 2)")
    parser.add_argument("--refresh", type=int, default=4, help="queries per refresh in the refreshed row (default 4)")
    parser.add_argument("--repeats", type=int, help="queries measured per row (default 50 on a GPU, 5 on a CPU)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU (default 1)")
    parser.add_argument("--attention", default="sdpa", help="kernel of the language model: sdpa, eager, ...")
    parser.add_argument("--compile", action="store_true", help="add rows with torch.compile")
    parser.add_argument("--cuda-graphs", action="store_true", help="add rows with CUDA graphs (GPU only)")
    parser.add_argument("--json", type=Path, help="also write rows and ratios to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        options.repeats = options.repeats or (50 if options.device.startswith("cuda") else 5)
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise VegaError("There is no CUDA device here: use --device cpu.")
        if options.cuda_graphs and not options.device.startswith("cuda"):
            raise VegaError("CUDA graphs need a GPU: leave out --cuda-graphs or use --device cuda.")
        if min(options.cameras, options.refresh, options.repeats, options.threads) < 1:
            raise VegaError("Cameras, refresh, repeats and threads count from 1: give positive numbers.")
        rows, ratios = run(options)
    except (VegaError, torch.cuda.OutOfMemoryError) as error:
        print(str(error).split("\n")[0], file=sys.stderr)
        return 1
    print("\nratios")
    for name, value in ratios:
        print(f"{name:<69}{value:>10.2f} x")
    if options.json:
        result = {"rows": [asdict(row) for row in rows], "ratios": dict(ratios)}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
