"""One or many processes through `accelerate`, and that they are what was asked for.

accelerate 1.15 leaves out silently what it cannot do: on a CPU its FSDP, and under torchrun without ACCELERATE_USE_CPU
even data parallelism.  A run that is not spread would train so many policies instead of one, so it is refused.
"""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from policies.types import VegaError


def open_engine(device: str, dtype: str, accumulation: int) -> Accelerator:
    """The processes that this one was started among.  Raises VegaError where accelerate knows of fewer, or of FSDP."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
        raise VegaError("This trainer spreads data and not weights: take FSDP out of the accelerate configuration.")
    engine = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if dtype == "bfloat16" else "no",
        gradient_accumulation_steps=accumulation,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if engine.num_processes != started:
        raise VegaError(
            f"{started} processes were started but accelerate knows of {engine.num_processes}: on CPUs give "
            "--device cpu, and start them with `python -m torch.distributed.run --nproc-per-node N -m ...`."
        )
    return engine


def spread(engine: Accelerator, module: nn.Module) -> nn.Module:
    """`module` as every process has it, its gradients shared.  Raises VegaError where they are not."""
    prepared = cast(nn.Module, engine.prepare(module))
    if engine.num_processes > 1 and not isinstance(prepared, DistributedDataParallel):
        raise VegaError(
            f"accelerate left a {type(prepared).__name__}, with which {engine.num_processes} processes would share no "
            "gradients: start them with torch.distributed.run."
        )
    return prepared


def mean_over_processes(engine: Accelerator, value: Tensor) -> float:
    """Of a scalar, one in every process."""
    return float(cast(Any, engine.reduce(value.detach().double(), reduction="mean")))


def rounded_time(seconds: float) -> str:
    """For people: 1.5 h, 12 min."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def device_of(engine: Accelerator) -> torch.device:
    """Where this process computes."""
    return cast(torch.device, engine.device)
