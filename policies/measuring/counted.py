"""What the full size costs, counted on tensors without memory: operations of a query, and bytes of weights.

Operations are those that torch's FlopCounterMode knows, products of matrices and convolutions: a multiplication and an
addition count as two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from policies.measuring.benchmark_meter import Meter
from policies.measuring.benchmark_models import FULL, Sizes, random_openvla, random_simulator, wan_on_meta
from policies.measuring.latencies import FRAME_SIZE, Query
from policies.openvla.acceleration import linears

META = torch.device("meta")
CAMERAS, WINDOW, REFRESH = 2, 17, 4
PRIOR_SHARE, REFRESHED_SHARE, INT8_GB = 0.5, 0.13, 11.0


@dataclass(frozen=True)
class Counted:
    """Operations of one query with two cameras: bare VLA; all with the prior per frame; with windows encoded anew."""

    alone: float
    per_frame: float
    window: float


def operations(run: Callable[[], object]) -> float:
    """Of what `run` computes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def on_meta(sizes: Sizes, dtype: torch.dtype = torch.bfloat16) -> Query:
    """A per-frame query of networks without memory."""
    vae, transformer = wan_on_meta(sizes, sizes.tap + 1)
    for model in (vae, transformer):
        nn.Module.to(model, dtype)  # diffusers' own `to` warns of every cast
    simulator = random_simulator(sizes, vae, transformer, META)
    policy = random_openvla(sizes, META, dtype, "sdpa", _in_kind)
    return Query(policy, simulator, torch.empty(CAMERAS, 1, *FRAME_SIZE, 3, dtype=torch.uint8, device=META))


def _in_kind(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    module.to(dtype)


def count_query(sizes: Sizes) -> Counted:
    """Operations of a query of these sizes, at their window or the policy's usual one."""
    query = on_meta(sizes)
    window = copy.copy(query.world.simulator)
    window.config = replace(window.config, mode="window", window=WINDOW)
    frames = torch.empty(CAMERAS, WINDOW, *FRAME_SIZE, 3, dtype=torch.uint8, device=META)
    return Counted(
        operations(query.alone), operations(query.fused), operations(lambda: query.fused(lambda: window(frames)))
    )


def count_stream(sizes: Sizes, attention: str) -> float:
    """Operations that one new frame costs the world simulator, once a stream has begun all ways of grouping frames."""
    simulator = copy.copy(on_meta(sizes).world.simulator)
    simulator.config = replace(simulator.config, mode="window", window=WINDOW)
    frames = torch.empty(CAMERAS, WINDOW, *FRAME_SIZE, 3, dtype=torch.uint8, device=META)
    stream = simulator.open_stream(attention)

    def see(shown: torch.Tensor) -> None:
        stream.push(shown)
        stream.tokens()

    see(frames)
    for _ in range(simulator.encoder.temporal_stride):
        see(frames[:, :1])
    return operations(lambda: see(frames[:, :1]))


def int8_weights_gb(sizes: Sizes = FULL) -> float:
    """GB of all weights with those of the blocks in eight bits, a bf16 scale for each of their rows, the rest bf16."""
    query = on_meta(sizes)
    simulator = query.world.simulator
    every = sum(p.numel() for module in (query.policy, query.world, simulator) for p in module.parameters())
    every += sum(buffer.numel() for buffer in simulator.trunk.buffers())
    small = [layer.weight for layer in linears(query.policy, simulator)]
    return (2 * every - sum(w.numel() for w in small) + 2 * sum(w.shape[0] for w in small)) / 1e9


def measure_counted(meter: Meter, reduced: Sizes) -> None:
    """Rows of the full size, and the shares of the stages beside those of the reduced one."""
    full, small = count_query(FULL), count_query(reduced)
    prior = full.per_frame / full.alone - 1
    meter.information("full_size_tflop_of_the_bare_vla", full.alone / 1e12)
    meter.at_most("full_size_share_that_the_prior_adds", prior, PRIOR_SHARE)
    meter.at_most(f"full_size_share_refreshed_on_every_{REFRESH}th", prior / REFRESH, REFRESHED_SHARE)
    meter.information("full_size_share_that_a_window_of_17_adds", full.window / full.alone - 1)
    for attention in ("joint", "causal"):
        added = count_stream(FULL, attention) / full.alone
        meter.information(f"full_size_share_that_a_{attention}_stream_of_17_adds", added)
    meter.information("reduced_size_share_that_the_prior_adds", small.per_frame / small.alone - 1)
    meter.information("reduced_size_share_that_a_window_of_17_adds", small.window / small.alone - 1)
    meter.at_most("full_size_int8_weights_gb", int8_weights_gb(), INT8_GB)
