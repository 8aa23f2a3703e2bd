"""Compare this package with what the reference implementations computed: `python -m policies.check_parity DIR`.

DIR is a folder of golden vectors, of one of three kinds: a Wan transformer (`transformer/`, `cases.npz`), an
OpenVLA-OFT checkpoint (`config.json`, ..., `cases.npz` and/or `libero_observation.npz`), or spatial reasoning (see
`policies/spatial/parity.py`).  Prints a line
`quantity max_error tolerance ok|FAIL` for each and exits 1 if one fails.

Two properties of the vectors matter here.  `libero_observation.npz` was computed from the files of the
checkpoint, `cases.npz` before they were written.  So the rotary frequencies of the latter had gone through bf16
with the rest of the model; and the gripper's bias in its head, a large number, lost digits on its way into the
bf16 file (in `openvla_oft_tiny` it was 4 - 0.1259765625, and the file has 3.875).  That loss is one number for all
steps and cases: it is found as their median difference and has a line of its own, held to half a bf16 step of the
bias; all columns of all steps are held to the common tolerance beside it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from policies.files.command_line import command, command_parser
from policies.files.json_config import read_json
from policies.openvla.loading import load_openvla_oft
from policies.openvla.model import OpenVLAOFT
from policies.openvla.preprocessing import (
    libero_gripper,
    libero_state,
    normalize_proprio,
    pixel_values,
    policy_image,
    rotate_180,
    statistics_for,
    unnormalize_actions,
    with_empty_token,
)
from policies.spatial import parity
from policies.types import VegaError
from policies.world_simulator.simulator import add_noise, noise_level
from policies.world_simulator.transformer import WanTrunk, load_transformer

STATISTICS_KEY = "libero_spatial_no_noops"
NETWORK_TOLERANCE = 1e-4
STATE_TOLERANCE = 1e-6
ACTION_RANGE_TOLERANCE = 1e-2
IMAGE_SHARE_TOLERANCE = 0.01  # share of values that may be off by more than one level
SAMPLE_STEP = 37  # golden token samples hold every 37th token
# What one level on one value in a hundred can do to the mean or deviation of a normalised channel.
PIXEL_STATS_TOLERANCE = 1e-3

Case = Mapping[str, NDArray]
Line = tuple[str, float, float]


def read_cases(path: Path) -> dict[str, dict[str, NDArray]]:
    """Arrays of a golden file by case, or VegaError."""
    cases: dict[str, dict[str, NDArray]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                case, _, quantity = key.partition("_")
                cases.setdefault(case, {})[quantity] = arrays[key]
    except (OSError, ValueError) as error:
        raise VegaError(f"File '{path}' is no readable .npz ({error}): copy the golden folder again.") from None
    if not cases:
        raise VegaError(f"File '{path}' holds no case: copy the golden folder again.")
    return cases


def largest(ours: NDArray | torch.Tensor, golden: NDArray) -> float:
    """Largest absolute difference; infinite where shapes differ or a number is not finite."""
    array = ours.detach().float().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    if array.shape != golden.shape or not np.isfinite(array).all():
        return float("inf")
    return float(np.abs(array.astype(np.float64) - golden.astype(np.float64)).max())


def golden_statistics(model: OpenVLAOFT) -> Mapping[str, Any]:
    """The statistics the golden actions were made with: the only ones, or those of the suite they are from."""
    statistics = model.info.statistics
    return statistics_for(statistics, STATISTICS_KEY if len(statistics) > 1 else next(iter(statistics)))


@torch.no_grad()
def check_wan(folder: Path) -> Iterator[Line]:
    """Noising, block outputs and velocity of a Wan transformer."""
    blocks = read_json(folder / "transformer" / "config.json")["num_layers"]
    files = [folder / "cases.npz", *sorted(folder.glob("*_case.npz"))]
    for name, case in [item for file in files for item in read_cases(file).items()]:
        timestep, sigma = noise_level(300)
        yield f"{name}/timestep", largest(np.asarray(timestep), case["timestep"]), 0.0
        yield f"{name}/sigma", largest(np.asarray(sigma), case["sigma"]), 1e-6
        noisy = add_noise(torch.from_numpy(case["latents"]), torch.from_numpy(case["noise"]), sigma)
        yield f"{name}/noisy", largest(noisy, case["noisy"]), NETWORK_TOLERANCE
        model = load_transformer(folder / "transformer", None, torch.device("cpu"), torch.float32)
        trunk = WanTrunk(model, torch.from_numpy(case["prompt_embedding"]), int(case["timestep"]), head=True)
        taps = sorted(int(m.group(1)) for key in case if (m := re.fullmatch(r"features_block(\d+)", key)))
        if any(tap >= blocks for tap in taps):
            raise VegaError(f"'{folder}' has features of block {taps[-1]} but {blocks} blocks: copy the folder again.")
        for tap, features in zip(taps, trunk(noisy, taps) if taps else [], strict=True):
            yield f"{name}/features_block{tap}", largest(features, case[f"features_block{tap}"]), NETWORK_TOLERANCE
        yield f"{name}/velocity", largest(trunk.velocity(noisy), case["velocity"]), NETWORK_TOLERANCE


@torch.no_grad()
def check_openvla_cases(folder: Path) -> Iterator[Line]:
    """Every stage of OpenVLA-OFT from prepared inputs."""
    model = load_openvla_oft(folder, dtype=torch.float32, rotary_dtype=torch.bfloat16)
    statistics = golden_statistics(model)
    gripper = ~np.asarray(statistics["action"]["mask"], dtype=bool)
    cases = read_cases(folder / "cases.npz")
    normalized: dict[str, NDArray] = {}
    for name, case in cases.items():
        ids = [case["input_ids"].tolist()]
        vision = model.vision_tokens(torch.from_numpy(case["pixel_values"].astype(np.float32)), ids)
        yield f"{name}/vision_sample", largest(vision[0, ::SAMPLE_STEP], case["vision_sample"]), NETWORK_TOLERANCE
        f_sem = model.project(vision)
        yield f"{name}/projected_sample", largest(f_sem[0, ::SAMPLE_STEP], case["projected_sample"]), NETWORK_TOLERANCE
        proprio = torch.from_numpy(case["proprio"])[None] if model.info.proprio_dim else None
        hidden = model.action_hidden(ids, f_sem, proprio)
        yield f"{name}/action_hidden", largest(hidden[0], case["action_hidden"]), NETWORK_TOLERANCE
        normalized[name] = model.head(hidden)[0].numpy()

    yield from _padded_batch(model, cases)
    lost = np.zeros(len(gripper))
    if all(ours.shape == cases[name]["normalized_actions"].shape for name, ours in normalized.items()):
        differences = np.concatenate([ours - cases[name]["normalized_actions"] for name, ours in normalized.items()])
        lost[gripper] = np.median(differences, axis=0)[gripper]
    # Half the distance of neighbouring bf16 numbers is what rounding can take.
    half_step = 2.0 ** (torch.frexp(model.head.fc2.bias.abs()).exponent.double().numpy() - 9)
    for i in np.flatnonzero(gripper):
        yield f"head/bias_of_action_{i}_lost_in_file", abs(float(lost[i])), float(half_step[i])
    for name, ours in normalized.items():
        case = cases[name]
        actions = unnormalize_actions(ours, statistics, model.info.normalization)
        yield f"{name}/normalized_actions", largest(ours - lost, case["normalized_actions"]), NETWORK_TOLERANCE
        yield f"{name}/actions", largest(actions - lost, case["actions"]), NETWORK_TOLERANCE
        decisions = libero_gripper(actions) != libero_gripper(case["actions"])
        yield f"{name}/gripper_decisions", float(decisions[:, -1].sum()), 0.0


@torch.no_grad()
def _padded_batch(model: OpenVLAOFT, cases: Mapping[str, Case]) -> Iterator[Line]:
    """Every case in one batch with a longer prompt, so that whatever sees padding shows."""
    for name, case in cases.items():
        ids = case["input_ids"].tolist()
        f_sem = model.project(model.vision_tokens(torch.from_numpy(case["pixel_values"].astype(np.float32)), [ids]))
        longer = [*ids, *ids[1:], *ids[1:]]
        proprio = torch.from_numpy(case["proprio"])[None].expand(2, -1) if model.info.proprio_dim else None
        hidden = model.action_hidden([ids, longer], f_sem.expand(2, -1, -1), proprio)
        yield (
            f"{name}/action_hidden_beside_a_longer_prompt",
            largest(hidden[0], case["action_hidden"]),
            NETWORK_TOLERANCE,
        )


@torch.no_grad()
def check_libero_observation(folder: Path) -> Iterator[Line]:
    """The whole way from the simulator's raw output to the simulator's action."""
    model = load_openvla_oft(folder, dtype=torch.float32)
    info = model.info
    statistics = golden_statistics(model)
    high, low = (np.asarray(statistics["action"][bound]) for bound in ("q99", "q01"))
    for name, case in read_cases(folder / "libero_observation.npz").items():
        state = libero_state(case["robot0_eef_pos"], case["robot0_eef_quat"], case["robot0_gripper_qpos"])
        yield f"{name}/state", largest(state, case["state"]), STATE_TOLERANCE
        proprio = normalize_proprio(state, statistics, info.normalization)
        yield f"{name}/normalized_proprio", largest(proprio, case["normalized_proprio"]), STATE_TOLERANCE
        images = []
        for raw, seen in (("agentview_image", "policy_image"), ("robot0_eye_in_hand_image", "policy_wrist_image")):
            image = policy_image(rotate_180(case[raw]), info.image_size)
            images.append(image)
            same = image.shape == case[seen].shape
            share = float((np.abs(image.astype(int) - case[seen].astype(int)) > 1).mean()) if same else float("inf")
            yield f"{name}/{seen}_off_by_2", share, IMAGE_SHARE_TOLERANCE
        pixels = pixel_values(images, info.image_mean_std)
        channels = pixels.reshape(len(pixels), -1)
        ours = np.stack([channels.mean(1), channels.std(1)])
        yield f"{name}/pixel_stats", largest(ours, case["pixel_stats"]), PIXEL_STATS_TOLERANCE
        ids = [with_empty_token(case["input_ids"].tolist())]
        normalized = model(torch.from_numpy(pixels)[None], ids, torch.from_numpy(proprio)[None].float())[0].numpy()
        actions = unnormalize_actions(normalized, statistics, info.normalization)
        error = np.abs(actions - case["actions"]) / (high - low)
        yield f"{name}/actions_per_range", float(error.max()), ACTION_RANGE_TOLERANCE
        sent = libero_gripper(actions)
        error = np.abs(sent - case["env_actions"])[:, :-1] / (high - low)[:-1]
        yield f"{name}/env_actions_per_range", float(error.max()), ACTION_RANGE_TOLERANCE
        yield f"{name}/gripper_signs", float((sent != case["env_actions"])[:, -1].sum()), 0.0


def check(folder: Path) -> Iterator[Line]:
    """(quantity, largest error, tolerance) for everything a golden folder holds."""
    if parity.is_golden(folder):
        yield from parity.check(folder)
        return
    if (folder / "transformer").is_dir():
        yield from check_wan(folder)
        return
    files = {"cases.npz": check_openvla_cases, "libero_observation.npz": check_libero_observation}
    present = [file for file in files if (folder / file).is_file()]
    if not (folder / "config.json").is_file() or not present:
        raise VegaError(
            f"'{folder}' is no golden folder: it needs 'transformer/' and 'cases.npz', or an OpenVLA-OFT checkpoint "
            "with 'cases.npz' or 'libero_observation.npz'."
        )
    for file in present:
        yield from files[file](folder)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 if everything agrees."""
    parser = command_parser("python -m policies.check_parity", __doc__, paragraphs=2)
    parser.add_argument("folder", type=Path, help="folder of golden vectors")
    options = parser.parse_args(arguments)
    failed = False
    try:
        for quantity, error, tolerance in check(options.folder):
            good = error <= tolerance
            failed |= not good
            print(f"{quantity} {error:.3e} {tolerance:.3e} {'ok' if good else 'FAIL'}", flush=True)
    except KeyError as error:
        raise VegaError(f"The golden vectors in '{options.folder}' lack {error}: copy the folder again.") from None
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise VegaError(
            f"The golden vectors in '{options.folder}' do not fit their model ({reason}): copy the folder again."
        ) from error
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
