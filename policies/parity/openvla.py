"""OpenVLA-OFT against the reference: every stage from prepared inputs, the way from the simulator, the tokenizer.

Two properties of the vectors matter here.  `libero_observation.npz` was computed from the files of the
checkpoint, `cases.npz` before they were written.  So the rotary frequencies of the latter had gone through bf16
with the rest of the model; and the gripper's bias in its head, a large number, lost digits on its way into the
bf16 file (in `openvla_oft_tiny` it was 4 - 0.1259765625, and the file has 3.875).  That loss is one number for all
steps and cases: it is found as their median difference and has a line of its own, held to half a bf16 step of the
bias; all columns of all steps are held to the common tolerance beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from policies.parity.golden import NETWORK_TOLERANCE, Case, Line, largest, read_cases

STATISTICS_KEY = "libero_spatial_no_noops"
STATE_TOLERANCE = 1e-6
ACTION_RANGE_TOLERANCE = 1e-2
IMAGE_SHARE_TOLERANCE = 0.01  # share of values that may be off by more than one level
SAMPLE_STEP = 37  # golden token samples hold every 37th token
# What one level on one value in a hundred can do to the mean or deviation of a normalised channel.
PIXEL_STATS_TOLERANCE = 1e-3


def golden_statistics(model: OpenVLAOFT) -> Mapping[str, Any]:
    """The statistics the golden actions were made with: the only ones, or those of the suite they are from."""
    statistics = model.info.statistics
    return statistics_for(statistics, STATISTICS_KEY if len(statistics) > 1 else next(iter(statistics)))


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


def check_prompts(folder: Path) -> Iterator[Line]:
    """Token ids of instructions, as the tokenizer's own library gives them."""
    model = load_openvla_oft(folder, dtype=torch.float32)
    for i, (instruction, golden) in enumerate(read_json(folder / "prompts.json").items()):
        yield f"prompt{i}/ids", largest(np.asarray(model.encode_prompt(instruction)), np.asarray(golden)), 0.0


# What a folder may hold, and what is compared with it.
FILES: dict[str, Callable[[Path], Iterator[Line]]] = {
    "prompts.json": check_prompts,
    "cases.npz": check_openvla_cases,
    "libero_observation.npz": check_libero_observation,
}
