"""One or many processes through `accelerate`, and that they are what was asked for.

accelerate 1.15 leaves out silently what it cannot do: on a CPU its FSDP, and under torchrun without ACCELERATE_USE_CPU
even data parallelism.  A run that is not spread would train so many policies instead of one, so it is refused.  Weights
are spread by torch's own `fully_shard` (FSDP2), which is the same on CPUs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from policies.types import VegaError


def open_engine(device: str, dtype: str, accumulation: int) -> Accelerator:
    """The processes that this one was started among.  Raises VegaError where accelerate knows of fewer, or of FSDP."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
        raise VegaError("This trainer spreads weights with --shard: take FSDP out of the accelerate configuration.")
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


def shard(engine: Accelerator, module: nn.Module, parts: Iterable[nn.Module]) -> nn.Module:
    """`module` with its weights, gradients and the optimiser's state spread over the processes, `parts` one by one.

    In place.  Single numbers cannot be spread, so every process has them (see `settle`).  Raises VegaError where there
    is one process only.
    """
    if engine.num_processes < 2:
        raise VegaError("One process has nobody to share weights with: leave --shard out, or start several.")
    mesh = init_device_mesh(device_of(engine).type, (engine.num_processes,))
    module.to(device_of(engine))
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params={number for number in module.parameters() if number.ndim == 0})
    return module


def settle(engine: Accelerator, parameters: Iterable[nn.Parameter], limit: float) -> float:
    """After backward of a module that `shard` has spread: gradients of single numbers are averaged, all are clipped.

    Returns their norm before that.
    """
    spread_out: list[Tensor] = []
    single: list[Tensor] = []
    for parameter in parameters:
        if isinstance(parameter.grad, DTensor):
            spread_out.append(parameter.grad)
        elif parameter.grad is not None:
            parameter.grad = cast(Tensor, engine.reduce(parameter.grad, reduction="mean"))
            single.append(parameter.grad)
    norm = math.hypot(*(float(whole(nn.utils.get_total_norm(part))) for part in (spread_out, single)))
    for gradient in (*spread_out, *single):
        gradient.mul_(min(1.0, limit / (norm + 1e-6)))
    return norm


def whole(value: Any) -> Any:
    """A tensor as one, on the CPU, where processes have parts of it; inside dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [whole(part) for part in value]
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def collected(engine: Accelerator, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the main process, nothing in the others; to be called in all of them."""
    found = {}
    for name, value in state.items():
        one = whole(value)
        if engine.is_main_process:
            found[name] = one
    return found


def spread_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as the processes have `other`."""
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements) if isinstance(other, DTensor) else value


def mean_over_processes(engine: Accelerator, value: Tensor) -> float:
    """Of a scalar, one in every process."""
    return float(cast(Any, engine.reduce(value.detach().double(), reduction="mean")))


def rounded_time(seconds: float) -> str:
    """For people: 1.5 h, 12 min."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def device_of(engine: Accelerator) -> torch.device:
    """Where this process computes."""
    return cast(torch.device, engine.device)
