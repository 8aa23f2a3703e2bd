"""Latencies of the parts of the full-size policy and of whole queries, with random weights.

The table shows what each measure brings: the reference schedule of the official code against this package's exact
shortcuts, re-encoding a window against streaming it, refreshing on every n-th query, and as effects other attention
kernels, another precision, compiled networks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from policies.files.weight_files import check_free
from policies.fusion.gated_fusion import build_fusion
from policies.fusion.world_view import CameraView, WorldView
from policies.measuring.benchmark_meter import Latency, Meter, Work, added_gb
from policies.measuring.benchmark_models import (
    ReferenceSchedule,
    Sizes,
    WanModels,
    fill_randomly,
    fill_with_zeros,
    full_size_weights_gb,
    random_openvla,
    random_simulator,
    wan_on_meta,
    windowed,
)
from policies.openvla.model import OpenVLAOFT
from policies.openvla.preprocessing import EMPTY_TOKEN
from policies.types import VegaError
from policies.world_simulator.frame_encoder import Past
from policies.world_simulator.simulator import LatentWorldSimulator

FRAME_SIZE = (256, 256)
MEMORY_GB = 20.0


@dataclass(frozen=True)
class Effect:
    """A way to run the same policy.  backend: of torch's fused attention; compiled: a mode of torch.compile."""

    attention: str = "sdpa"
    backend: SDPBackend | None = None
    dtype: torch.dtype | None = None
    compiled: str | None = None
    gpu_only: bool = False


EFFECTS = {
    "eager": Effect(attention="eager"),
    "math": Effect(backend=SDPBackend.MATH),
    "flash": Effect(backend=SDPBackend.FLASH_ATTENTION),
    "bfloat16": Effect(dtype=torch.bfloat16),
    "float32": Effect(dtype=torch.float32),
    "compile": Effect(compiled="default"),
    "cuda-graphs": Effect(compiled="reduce-overhead", gpu_only=True),
}


class Query:
    """One query with random weights: what VegaOpenVLA.act computes between pixels and normalised actions."""

    def __init__(
        self,
        policy: OpenVLAOFT,
        simulator: LatentWorldSimulator,
        frames: torch.Tensor,
        refresh_every: int = 1,
        stream: str = "off",
    ) -> None:
        """frames: (cameras, T, H, W, 3) uint8.  stream: see `WorldView`."""
        names = [f"camera{i}" for i in range(len(frames))]
        fusion = build_fusion("token_gate", policy.language_dim, simulator.dim, unchanged=True)
        fusion = fusion.to(policy.device, policy.dtype).eval().requires_grad_(False)
        config = simulator.config
        view = CameraView(config.canvas, config.grid, config.view)
        self.policy = policy
        self.world = WorldView(simulator, dict.fromkeys(names, view), fusion, refresh_every, stream=stream)
        self.frames: dict[str, torch.Tensor] = {}
        self.show(frames)
        generator = torch.Generator().manual_seed(0)
        self._pixels = torch.randn(1, 6 * len(names), 224, 224, generator=generator).to(policy.device, policy.dtype)
        self._ids = [[1, *range(500, 520), EMPTY_TOKEN]]
        self._proprio = torch.zeros(1, 8, device=policy.device)

    def show(self, frames: torch.Tensor) -> None:
        """What the cameras see at the next query: (cameras, T, H, W, 3) uint8."""
        self.frames = {f"camera{i}": frames[i : i + 1] for i in range(len(frames))}

    @torch.inference_mode()
    def alone(self) -> torch.Tensor:
        """Without the world simulator."""
        return self.policy(self._pixels, self._ids, self._proprio)

    @torch.inference_mode()
    def fused(self, f_gen: Callable[[], torch.Tensor] | None = None) -> torch.Tensor:
        """With it; f_gen replaces how its tokens (cameras, cells, G) come about."""
        if f_gen is None:
            seen = self.world.look(self.frames)[0]
        else:
            seen = dict(zip(self.frames, f_gen().split(1), strict=True))
        patches = self.policy.info.patches

        def fuse(f_sem: torch.Tensor) -> torch.Tensor:
            parts = dict(zip(self.frames, f_sem.split(patches, dim=1), strict=True))
            return torch.cat(list(self.world.fuse(parts, seen)[0].values()), dim=1)

        return self.policy(self._pixels, self._ids, self._proprio, fuse=fuse)

    @property
    def parts(self) -> list[nn.Module]:
        return [self.policy, self.world, self.world.simulator]


def measure_world_simulator(meter: Meter, wan: WanModels, single: LatentWorldSimulator, video: torch.Tensor) -> None:
    """Latencies of the world simulator alone, and how exact its shortcuts are."""
    frame, window = video[:, -1:], windowed(single)
    reference = ReferenceSchedule(wan, single)
    error = (reference(frame) - single(frame).float()).abs().max().item()
    slow, fast = meter.measure(
        Work("world simulator, reference schedule", lambda: reference(frame), [wan.vae, wan.transformer]),
        Work("world simulator, per frame", lambda: single(frame), [single]),
    )
    encoder, canvas, past = window.encoder, window.to_canvas(video), Past()
    with torch.no_grad():
        for frame in canvas[:, :, : 2 * encoder.temporal_stride].split(1, dim=2):
            _, past = encoder.step(frame, past)
        whole, step = meter.measure(
            Work(f"VAE, window of {window.config.window} encoded again", lambda: encoder.window(canvas), [encoder]),
            Work("VAE, one more frame of a stream", lambda: encoder.step(frame, past), [encoder]),
        )
        meter.measure(Work(f"world simulator, window of {window.config.window}", lambda: window(video), [window]))
    if next(single.parameters()).dtype == torch.float32:
        meter.at_most("features_largest_difference_from_reference", error, 1e-4)
    else:
        meter.information("features_largest_difference_from_reference", error)
    meter.at_least("per_frame_features_times_faster_than_reference", slow.median_ms / fast.median_ms, 1.8)
    meter.at_least("vae_stream_step_times_faster_than_window", whole.median_ms / step.median_ms, 20.0)


def measure_policy(meter: Meter, query: Query, video: torch.Tensor, refresh: int, full: bool) -> list[Latency]:
    """Latencies of whole queries; returns those of OpenVLA-OFT alone and with the world simulator per frame."""
    window = windowed(query.world.simulator)
    stream = window.open_stream()
    stream.push(video)

    def streamed() -> torch.Tensor:
        stream.push(video[:, :1])
        return stream.tokens()

    every = Query(query.policy, query.world.simulator, video[:, -1:], refresh)
    alone, fused, rare = meter.measure(
        Work("OpenVLA-OFT alone", query.alone, [query.policy]),
        Work("OpenVLA-OFT + world simulator per frame", query.fused, query.parts),
        Work(f"OpenVLA-OFT + per frame on every {refresh}th query", every.fused, every.parts, refresh),
    )
    window_row, stream_row = meter.measure(
        Work("OpenVLA-OFT + window", partial(query.fused, lambda: window(video)), query.parts),
        Work("OpenVLA-OFT + streamed window", partial(query.fused, streamed), query.parts),
    )
    gpu = meter.device.type == "cuda" and full
    ratios = {
        "query_per_frame_over_openvla_alone": (fused, 1.5),
        f"query_every_{refresh}th_over_openvla_alone": (rare, 1.15 if refresh == 4 else None),
        "query_window_over_openvla_alone": (window_row, None),
        "query_streamed_window_over_openvla_alone": (stream_row, None),
    }
    for name, (row, limit) in ratios.items():
        value = row.median_ms / alone.median_ms
        # What is asked is asked of the full size on a GPU; elsewhere the shares of the stages are others.
        if gpu and limit is not None:
            meter.at_most(name, value, limit)
        else:
            meter.information(name, value)
    if gpu:
        meter.at_most("full_size_peak_gpu_memory_gb", fused.memory_mb / 1e3, MEMORY_GB)
    return [alone, fused]


@contextlib.contextmanager
def running(effect: Effect, query: Query) -> Iterator[None]:
    """The query's networks compiled and torch's attention chosen as the effect says, for as long as it lasts."""
    if effect.compiled is not None:
        torch.compiler.reset()
        blocks = [query.world.simulator.trunk.blocks, query.policy.layers]
        blocks += [tower.get_submodule("blocks") for tower in query.policy.towers]
        for block in (block for group in blocks for block in group.children()):
            block.compile(mode=effect.compiled)
    with contextlib.nullcontext() if effect.backend is None else sdpa_kernel(effect.backend):
        yield


def measure_effect(
    meter: Meter, name: str, make: Callable[[Effect], Query], baseline: Sequence[Latency], usual: torch.Tensor
) -> None:
    """Latencies under one effect, how many times faster it is, and how much it changes the actions."""
    effect = EFFECTS[name]
    query = make(effect)
    try:
        with running(effect, query):
            moved = ((query.fused() - usual).abs().max() / usual.abs().max()).item()
            rows = meter.measure(
                Work(f"OpenVLA-OFT alone, {name}", query.alone, [query.policy]),
                Work(f"OpenVLA-OFT + per frame, {name}", query.fused, query.parts),
            )
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise VegaError(
            f"Effect '{name}' does not run on this device ({reason}): leave it out of --effects."
        ) from error
    for before, row, what in zip(baseline, rows, ("openvla_alone", "query_per_frame"), strict=True):
        meter.information(f"{what}_times_faster_with_{name}", before.median_ms / row.median_ms)
    meter.information(f"actions_relative_change_by_{name}", moved)


def measure_full_size(meter: Meter, cameras: int, sizes: Sizes) -> None:
    """What a query of the full-size policy in bf16 adds to its weights, measured on the CPU.

    The weights are zeros that take no memory, so that a machine without room for them can tell.
    """
    device, dtype = torch.device("cpu"), torch.bfloat16
    check_free(int(4e9), device, "One query of the full size")
    vae, transformer = wan_on_meta(sizes, sizes.tap + 1)
    for model in (vae, transformer):
        fill_with_zeros(model, device, dtype)
    simulator = random_simulator(sizes, vae, transformer, device)
    frames = torch.zeros(cameras, 1, *FRAME_SIZE, 3, dtype=torch.uint8)
    query = Query(random_openvla(sizes, device, dtype, "sdpa", fill_with_zeros), simulator, frames)
    seconds: list[float] = []
    added = added_gb(lambda: seconds.append(meter.seconds_of(query.fused)))
    meter.information("full_size_query_on_cpu_s", seconds[0])
    meter.information("full_size_query_adds_gb", added)
    meter.at_most("full_size_weights_and_query_gb", full_size_weights_gb() + added, MEMORY_GB)


def measure_all(
    meter: Meter, sizes: Sizes, dtype: torch.dtype, cameras: int, refresh: int, effects: Sequence[str], full: bool
) -> None:
    """The table, and the rows that follow from it.  effects: names of EFFECTS to add."""
    device = meter.device
    generator = torch.Generator().manual_seed(0)
    shape = (cameras, sizes.window, *FRAME_SIZE, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    meter.table_head()
    wan = WanModels(sizes, device)
    measure_world_simulator(meter, wan, wan.simulator(dtype), video)
    del wan  # the reference's float32 copies would count as the policy's memory

    def make(effect: Effect) -> Query:
        vae, transformer = wan_on_meta(sizes, sizes.tap + 1)
        for model in (vae, transformer):
            fill_randomly(model, device, effect.dtype or dtype)
        simulator = random_simulator(sizes, vae, transformer, device)
        return Query(random_openvla(sizes, device, effect.dtype or dtype, effect.attention), simulator, video[:, -1:])

    query = make(Effect())
    baseline = measure_policy(meter, query, video, refresh, full)
    actions = query.fused()
    del query
    for name in effects:
        measure_effect(meter, name, make, baseline, actions)
