"""What trainings here share: the course of the learning rate, averages, and states that survive being killed."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from policies.files.command_line import results_folder
from policies.files.made_once import differing, replacing
from policies.fusion.fused_policy import CONFIG_FILE
from policies.training.curves import LOG
from policies.types import VegaError

DECIDES = "decides"  # where a state keeps what decided it
LEFT_OUT = "--data (episodes that failed)"
# What states have learned with that were written before they said it.
OLDER: dict[str, Any] = {"--progress-loss": "l1", LEFT_OUT: 0, "--base": [0.0, 0.0, 0.0]}


def begin(seed: int, threads: int, output: Path) -> None:
    """What every training does first.  Raises VegaError where nothing can be written to its folder, or another's
    checkpoint lies there (a training has a log from its beginning on, before its first weights)."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    results_folder(output)
    if (output / CONFIG_FILE).exists() and not (output / LOG).exists():
        raise VegaError(
            f"The folder {output} holds a checkpoint that this training did not make: give another --output."
        )


def set_learning_rate(optimizer: Optimizer, step: int, steps: int, peak: float, warm_up: int, floor: float) -> None:
    """Linear over `warm_up` steps, then a cosine from `peak` to `floor` times it."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    rate = peak * min(1.0, (step + 1) / warm_up) * (floor + (1 - floor) * cosine)
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def average_in(average: nn.Module, new: nn.Module, step: int, longest: float) -> None:
    """`average` follows the weights of `new` after `step` steps: EMA whose decay grows to `longest`."""
    decay = min(longest, step / (step + 19))
    for mean, weight in zip(average.parameters(), new.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def smoothed(running: Mapping[str, float], parts: Mapping[str, Tensor]) -> dict[str, float]:
    """The parts of a loss, averaged over the last fifty steps or so."""
    return {key: 0.98 * running.get(key, float(v)) + 0.02 * float(v) for key, v in parts.items()}


def check_finite(step: int, *values: float) -> None:
    """Raise VegaError where a loss or a gradient's norm is none, before it is in weights or in what is kept."""
    if not all(map(math.isfinite, values)):
        raise VegaError(
            f"The loss or its gradient of step {step} is no number any more, and what was kept before stays as it is: "
            "begin anew with a lower --lr in another --output, or look for such numbers in --data and in cached tokens."
        )


def decisive(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Option -> value, of those that decide what is learned."""
    return {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}


def begun_with(init: nn.Module | None, warm_start: nn.Module | None) -> dict[str, Any]:
    """The options that name weights to begin with -> a fingerprint of these, None where there are none."""
    begun = {"--init": init, "--warm-start": warm_start}
    return {name: None if module is None else fingerprint_of(module.state_dict()) for name, module in begun.items()}


def fingerprint_of(weights: Mapping[str, Tensor]) -> str:
    """Tells a module's weights (its `state_dict`) from others of the same shapes."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def save_state(path: Path, state: Mapping[str, Any], decides: Mapping[str, Any] | None = None) -> None:
    """Write whole or not at all.  Raises VegaError where there is no room for it.

    decides: option -> value or fingerprint of all that decided it, and that `going_on` wants again.
    """
    try:
        with replacing(path, partial := path.with_suffix(".partial")):
            torch.save({**state, DECIDES: dict(decides or {})}, partial)
    except (OSError, RuntimeError) as error:  # of torch's own writer
        raise VegaError(
            f"The training's state {path} cannot be written ({str(error).splitlines()[0][:120]}): make room there and "
            "run the command again, which goes on from the last one."
        ) from error


def check_decided(path: Path, decides: Mapping[str, Any]) -> None:
    """Where there is a state that cannot go on with this, raise VegaError before anything that takes long."""
    if path.is_file():
        _check_same(_read(path, (), mmap=True), decides, path)


def decided(path: Path) -> dict[str, Any] | None:
    """What decided the state there, None where there is none.  Raises VegaError for a damaged one."""
    return dict(_read(path, (), mmap=True).get(DECIDES, {})) if path.is_file() else None


@contextlib.contextmanager
def going_on(
    path: Path, *names: str, decides: Mapping[str, Any] | None = None, device: torch.device | str = "cpu"
) -> Iterator[dict[str, Any]]:
    """The state that `save_state` put there, to be taken over within.

    names: what it holds at least.  Raises VegaError where it is damaged, another training's, does not fit, or something
    else decided what it has learned.
    """
    device = torch.device(device)
    # Among several processes accelerate's is cpu:0, onto which torch.load reads nothing.
    state = _read(path, names, map_location="cpu" if device.type == "cpu" else device)
    _check_same(state, decides or {}, path)
    try:
        yield state
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # of load_state_dict
        raise VegaError(
            f"The state {path} is of a training of other sizes: go on with the options that it began with, or give "
            "another --output."
        ) from error


def _read(path: Path, names: Sequence[str], **how: Any) -> dict[str, Any]:
    """how: as torch.load has it."""
    try:
        state = torch.load(path, weights_only=True, **how)
    except Exception as error:  # archives, pickles, ends of files: whatever the bytes lead to
        raise VegaError(
            f"The training's state {path} cannot be read ({str(error).splitlines()[0][:120] if str(error) else 'empty'}"
            "): remove it to begin anew there, or give another --output."
        ) from error
    lacking = [name for name in (*names, "step") if not isinstance(state, dict) or name not in state]
    if lacking:
        raise VegaError(f"The state {path} is another program's (it has no '{lacking[0]}'): give another --output.")
    return dict(state)


def _check_same(state: Mapping[str, Any], decides: Mapping[str, Any], path: Path) -> None:
    for option, began in differing(state.get(DECIDES, {}), decides, OLDER):
        raise VegaError(
            f"The training in {path.parent} began with another {option} ({began}, now {decides[option]}): give the "
            "same again, or another --output."
        )
