"""The policy that a training begins with: as it learns, in plain weights, whatever it is configured to act with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from policies.openvla.config import VegaOpenVLAConfig, openvla_folder
from policies.openvla.policy import VegaOpenVLA, load_configured, takes_state
from policies.openvla.robots import platform
from policies.openvla.statistics import choose, read_statistics
from policies.training.vega.demonstrations import Demonstration, check_numbers, statistics
from policies.types import VegaError


def asked_data_set(folder: Path, config: VegaOpenVLAConfig, dataset: str | None, behind: str | None) -> str | None:
    """The data set that the user names, None where he leaves it to the policy in `folder`.

    dataset: as --dataset says it, one of the checkpoint's or a new one.  behind: one of the checkpoint's, or a suite,
    behind '#' of the policy's name.  Raises VegaError where the checkpoint does not have that, or both say different.
    """
    if behind is None:
        return dataset
    checkpoint = openvla_folder(folder, config)
    named = choose(read_statistics(checkpoint), config.robot, config.name, suite=behind).key
    if dataset not in (None, named):
        raise VegaError(f"The policy's name asks for '#{behind}' and --dataset for '{dataset}': leave one of them out.")
    return named


def data_set_of(folder: Path, config: VegaOpenVLAConfig, asked: str | None) -> str:
    """The data set by whose statistics the policy is trained; one that is asked for goes before the configuration's."""
    known = read_statistics(openvla_folder(folder, config))
    if asked is not None:
        return asked
    try:
        return choose(known, config.robot, config.name, config.statistics_key).key
    except VegaError as error:
        raise VegaError(
            f"Nothing says which statistics of policy '{config.name}' the demonstrations are scaled by: give --dataset "
            f"with one of {sorted(known)}, or with a new name for statistics of the demonstrations."
        ) from error


def open_policy(
    folder: Path,
    config: VegaOpenVLAConfig,
    key: str,
    demonstrations: Sequence[Demonstration],
    scaled_by: Sequence[Demonstration],
    device: torch.device,
    dtype: str,
) -> tuple[VegaOpenVLA, str]:
    """The policy by the statistics of data set `key`, and whose they are, for people.

    A data set that the checkpoint does not know has the statistics of `scaled_by`, some of the demonstrations.  dtype:
    "float32" for a policy in float32; else it has the dtype of its configuration.  Raises VegaError for demonstrations
    that do not fit.
    """
    checkpoint, robot = openvla_folder(folder, config), platform(config.robot)
    check_numbers(demonstrations, robot.action_space.dim, robot.proprio_dim if takes_state(checkpoint) else 0)
    known = read_statistics(checkpoint)
    entry = known[key] if key in known else statistics(scaled_by)
    own = replace(config, statistics_key=key)
    # LoRA and gradients know neither codes nor kernels made for inference.
    plain = replace(own, compiled=False, weights="plain", dtype="float32" if dtype == "float32" else own.dtype)
    policy = load_configured(folder, plain, device, statistics={key: entry})
    policy.config = own  # which is how what comes out acts
    return policy, "of the checkpoint" if key in known else "of these demonstrations"
