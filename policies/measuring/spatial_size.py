"""What spatial reasoning of full size costs, counted on the meta device: Qwen2.5-VL-7B with Wan2.1-T2V-1.3B.

Frames of 4:3 as at VSI-Bench; the language model reads them one at a time, as `SpatialReasoner` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from policies.measuring.benchmark_meter import Meter
from policies.measuring.benchmark_models import FULL, wan_on_meta
from policies.measuring.counting import Counted, count
from policies.spatial.branch import GenerativeBranch
from policies.spatial.frames import EVALUATION_PIXELS, MERGE, PATCH, TEMPORAL, resized
from policies.spatial.fusing import GenerativeMerger, build_branch_fusion
from policies.spatial.reasoner import SpatialReasoner
from policies.world_simulator.simulator import LatentWorldSimulator, WorldSimulatorConfig
from policies.world_simulator.vae import WanEncoder

# Qwen/Qwen2.5-VL-7B-Instruct's config.json.
TEXT: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
MERGER_HIDDEN = 4096
PICTURE = (392, 504)  # what `crop_frame` makes of 480 x 640
SYSTEM_TOKENS, QUESTION_TOKENS = 14, 100  # VSI-Bench's questions with their options have 30 to 100
FRAMES = 32
MEMORY_GB, SECOND_SHARE = 24.0, 0.02


@dataclass(frozen=True)
class Questions:
    """Floating-point operations of two questions about the same frames, each to its first token; the largest part."""

    first_flops: float
    second_flops: float
    most: Counted


def reasoner_on_meta() -> SpatialReasoner:
    """The full size without weights."""
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=False)
    vae, transformer = wan_on_meta(FULL, FULL.wan_blocks)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
        merger = GenerativeMerger("mlp", FULL.wan_heads * FULL.wan_head_dim, MERGER_HIDDEN, TEXT["hidden_size"])
        fusion = build_branch_fusion("token_gated_residual", TEXT["hidden_size"])
        prompt = torch.empty(FULL.wan_heads, FULL.text_dim)
    for part in (model, vae, transformer, merger, fusion):
        nn.Module.to(part, torch.bfloat16)  # diffusers' own `to` warns of every cast
    settings = WorldSimulatorConfig(tap=FULL.wan_blocks - 1, canvas=(480, 832), framing="official")
    simulator = LatentWorldSimulator(WanEncoder(vae), transformer, prompt, settings)
    branch = GenerativeBranch(simulator, merger, fusion, "official", "")
    return SpatialReasoner(model.eval(), branch.eval(), Path("."))


def count_frame(reasoner: SpatialReasoner, picture: tuple[int, int] = PICTURE) -> tuple[Counted, int]:
    """Encoding a picture (rows, columns) px, and its tokens."""
    size = resized(picture, EVALUATION_PIXELS)
    grid = (size[0] // PATCH, size[1] // PATCH)
    width, tokens = _width(reasoner), grid[0] * grid[1] // MERGE**2
    branch, visual = reasoner.branch, reasoner.model.model.visual
    assert branch is not None
    pictures = torch.empty(1, *picture, 3, dtype=torch.uint8, device="meta")
    patches = _empty(grid[0] * grid[1], 3 * TEMPORAL * PATCH**2)
    # Positions come from the grid, whose numbers have to be known.
    hook = visual.rotary_pos_emb.register_forward_pre_hook(lambda _, given: (given[0], given[1].to("meta")))
    try:
        f_sem = count(lambda: reasoner.model.model.get_image_features(patches, torch.tensor([[1, *grid]])))
    finally:
        hook.remove()
    fused = count(lambda: branch(pictures, grid, _empty(1, tokens, width)))
    return Counted(f_sem.flops + fused.flops, max(f_sem.peak_gb, fused.peak_gb), tokens * width * 2 / 1e9), tokens


def count_questions(
    reasoner: SpatialReasoner, tokens: int, frames: int, system: int = SYSTEM_TOKENS, question: int = QUESTION_TOKENS
) -> Questions:
    """Two questions of so many tokens about frames of `tokens` each, read one at a time between their marks."""
    places = tokens + 2
    beginning = count_reading(reasoner, 0, system)
    # What a frame costs grows evenly with what was read before it.
    first = count_reading(reasoner, system, places)
    last = count_reading(reasoner, system + (frames - 1) * places, places)
    asked = count_reading(reasoner, system + frames * places, question, answers=True)
    read = beginning.flops + frames * (first.flops + last.flops) / 2
    return Questions(read + asked.flops, asked.flops, max(last, asked, key=lambda part: part.peak_gb))


def count_reading(reasoner: SpatialReasoner, before: int, new: int, answers: bool = False) -> Counted:
    """The language model reads `new` tokens after `before`; answers: and tells the next one."""
    config = reasoner.model.config.get_text_config()
    heads = config.num_key_value_heads
    head_dim = config.hidden_size // config.num_attention_heads

    def run() -> object:
        cache = DynamicCache(config=config)
        for layer in range(config.num_hidden_layers if before else 0):
            cache.update(_empty(1, heads, before, head_dim), _empty(1, heads, before, head_dim), layer)
        positions = torch.arange(before, before + new, device="meta").expand(3, 1, -1)
        hidden = reasoner._hidden(_empty(1, new, config.hidden_size), positions, cache)
        return cache, reasoner.model.lm_head(hidden[:, -1]) if answers else None

    return count(run)


def measure_spatial(meter: Meter, frames: int = FRAMES) -> None:
    """Rows on memory for `frames` frames, and on what a second question costs."""
    reasoner = reasoner_on_meta()
    frame, tokens = count_frame(reasoner)
    questions = count_questions(reasoner, tokens, frames)
    branch = reasoner.branch
    assert branch is not None
    # The simulator is a module of the branch.
    weights_gb = sum(p.numel() for part in (reasoner.model, branch) for p in part.parameters()) * 2 / 1e9
    meter.information("spatial_weights_gb", weights_gb)
    meter.information("spatial_frame_tflop", frame.flops / 1e12)
    meter.information("spatial_frame_tokens", tokens)
    meter.information("spatial_kept_frames_gb", frames * frame.kept_gb)
    meter.information("spatial_first_question_tflop", questions.first_flops / 1e12)
    held_gb = weights_gb + frames * frame.kept_gb + max(frame.peak_gb + questions.most.kept_gb, questions.most.peak_gb)
    meter.at_most(f"spatial_memory_for_{frames}_frames_gb", held_gb, MEMORY_GB)
    share = questions.second_flops / questions.first_flops
    meter.at_most("spatial_second_question_share_of_first_prefill", share, SECOND_SHARE)


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


def _width(reasoner: SpatialReasoner) -> int:
    return int(reasoner.model.config.get_text_config().hidden_size)
