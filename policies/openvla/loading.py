"""Loading OpenVLA-OFT from the folders its authors publish: which file holds which part, and how large it is.

Every part is first built without memory, sized by the tensors; then, if all of them fit on the device,
filled tensor by tensor.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.activations import ACT2FN

from policies.files.json_config import read_config, read_json
from policies.files.tensor_sources import TensorSource, depth, refuse_unread, shape_of
from policies.files.weight_files import CHECKPOINT_FILES, check_memory, fill, resolve_folder
from policies.openvla.checkpoint import (
    LanguageSettings,
    OpenVLAOFTInfo,
    PublishedSettings,
    check_components,
    check_published,
    component,
    film_backbone,
    image_mean_std,
    open_checkpoint,
    unneeded,
)
from policies.openvla.heads import (
    ImageProjector,
    L1ActionHead,
    ProprioProjector,
    build_action_head,
    build_projector,
    build_proprio_projector,
)
from policies.openvla.model import OpenVLAOFT
from policies.openvla.statistics import read_statistics
from policies.openvla.vision import VisionTower, build_dinov2, build_siglip, fill_tower
from policies.types import VegaError

# Chunk lengths and normalisation of the published robots (OpenVLA-OFT constants.py), by action width;
# the tensors do not show them.  Other checkpoints say theirs in config.json, or the caller does.
_PUBLISHED = {7: (8, "bounds_q99"), 14: (25, "bounds")}
LONGEST_CHUNK = 1000  # more than anybody trains; a number that is too large fails only when memory is taken


@dataclass(frozen=True)
class _Plan:
    """A checkpoint's files, and its parts on the meta device, sized by them."""

    folder: Path
    settings: PublishedSettings
    weights: TensorSource
    head_source: TensorSource
    proprio_source: TensorSource | None
    vision_source: TensorSource
    llama: LlamaModel
    projector: ImageProjector
    head: L1ActionHead
    proprio: ProprioProjector | None
    towers: tuple[VisionTower, VisionTower]

    @property
    def parts(self) -> list[nn.Module]:
        return [self.llama, self.projector, self.head, *self.towers, *([self.proprio] if self.proprio else [])]


TOWER_PREFIXES = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")


def _plan(path_or_id: str | os.PathLike[str], attention: str) -> _Plan:
    folder = resolve_folder(path_or_id, CHECKPOINT_FILES)
    path = folder / "config.json"
    values = read_json(path)
    settings = read_config(PublishedSettings, values, path, foreign=True)
    check_published(values, path)
    check_components(folder)
    weights = open_checkpoint(folder)
    llama = build_llama(settings.text_config, weights, attention)
    width = llama.embed_tokens.weight.shape[1]
    head = component(folder, "action_head--*_checkpoint.pt", "action head")
    if head is None:
        raise VegaError(f"Folder '{folder}' has no 'action_head--*_checkpoint.pt': add the one of this checkpoint.")
    proprio = component(folder, "proprio_projector--*_checkpoint.pt", "proprio projector")
    film = film_backbone(folder)
    vision = weights if film is None else film
    film_dim = 0 if film is None else width
    return _Plan(
        folder,
        settings,
        weights,
        head,
        proprio,
        vision,
        llama,
        build_projector(weights),
        build_action_head(head, width),
        None if proprio is None else build_proprio_projector(proprio, width),
        (build_dinov2(vision, TOWER_PREFIXES[0], film_dim), build_siglip(vision, TOWER_PREFIXES[1], film_dim)),
    )


def weight_count(path_or_id: str | os.PathLike[str]) -> int:
    """Numbers that a checkpoint puts on the device; a download if it is a hub id, but nothing is loaded."""
    return sum(p.numel() for part in _plan(path_or_id, "sdpa").parts for p in part.parameters())


def load_openvla_oft(
    path_or_id: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    chunk_length: int | None = None,
    normalization: str | None = None,
    attention: str = "sdpa",
    rotary_dtype: torch.dtype = torch.float32,
) -> OpenVLAOFT:
    """A published checkpoint folder or hub id (LoRA merged), its weights streamed to `device` in `dtype`.

    chunk_length, normalization: only where neither the checkpoint nor its action width says them.
    attention: transformers' name of a kernel ("sdpa", "eager", "flash_attention_2").
    rotary_dtype: precision the rotary frequencies are rounded to.  Published results were run with float32;
        bfloat16 is what `model.to(torch.bfloat16)` makes of them, and moves actions by about 0.01.
    """
    plan, device = _plan(path_or_id, attention), torch.device(device)
    check_memory(plan.parts, device, dtype, f"Checkpoint '{plan.folder}'")
    info = _info(plan, chunk_length, normalization)
    fill(plan.llama, plan.weights, lambda name: (f"language_model.model.{name}", None), device, dtype)
    fill(plan.projector, plan.weights, lambda name: (f"projector.{name}", None), device, dtype)
    fill(plan.head, plan.head_source, lambda name: (f"model.{name}", None), device, dtype)
    if plan.proprio is not None and plan.proprio_source is not None:
        fill(plan.proprio, plan.proprio_source, lambda name: (name, None), device, dtype)
    for tower, prefix in zip(plan.towers, TOWER_PREFIXES, strict=True):
        fill_tower(tower, plan.vision_source, prefix, device, dtype)
    _refuse_unread(plan)
    model = OpenVLAOFT(info, plan.towers, plan.projector, plan.llama, plan.head, plan.proprio).eval()
    model.rotary.to(device)
    model.rotary.inv_freq = model.rotary.inv_freq.to(rotary_dtype).float()
    model.check_attention()
    return model


def _refuse_unread(plan: _Plan) -> None:
    """Raise VegaError for a tensor of the checkpoint that nobody has read: ignoring it would change the policy."""
    blocks = {prefix: depth(plan.vision_source, f"{prefix}blocks.") for prefix in TOWER_PREFIXES}
    own_towers = plan.vision_source is plan.weights
    refuse_unread(plan.weights, lambda name: unneeded(name, blocks, film=not own_towers))
    for source in (None if own_towers else plan.vision_source, plan.head_source, plan.proprio_source):
        if source is not None:
            refuse_unread(source, lambda name: unneeded(name, blocks, film=False))


def build_llama(settings: LanguageSettings, weights: TensorSource, attention: str) -> LlamaModel:
    """Llama on the meta device.  Sizes come from the tensors, the rest from the shipped config."""
    prefix = "language_model.model."
    vocabulary, width = shape_of(weights, f"{prefix}embed_tokens.weight", 2)
    keys, read = shape_of(weights, f"{prefix}layers.0.self_attn.k_proj.weight", 2)
    heads = settings.num_attention_heads
    if width % heads or keys * heads % width or heads % (keys * heads // width):
        raise VegaError(
            f"'{weights.name}' has width {width} and keys of {keys}, which {heads} heads do not divide: use its own "
            "config.json."
        )
    if read != width:
        raise VegaError(
            f"'{weights.name}' has embeddings of width {width} and layers of {read}: it is damaged, download it again."
        )
    if settings.hidden_act not in ACT2FN:
        raise VegaError(f"'{weights.name}' knows no hidden_act '{settings.hidden_act}': use its own config.json.")
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape_of(weights, f"{prefix}layers.0.mlp.gate_proj.weight", 2)[0],
        num_hidden_layers=depth(weights, f"{prefix}layers."),
        num_attention_heads=heads,
        num_key_value_heads=keys * heads // width,
        rms_norm_eps=float(settings.rms_norm_eps),
        max_position_embeddings=settings.max_position_embeddings,
        hidden_act=settings.hidden_act,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rotary_theta(weights.name)},
        attn_implementation=attention,
    )
    try:
        with torch.device("meta"):
            return LlamaModel(config)
    except (ImportError, ValueError) as error:
        reason = str(error).split(".")[0]
        raise VegaError(
            f"Attention '{attention}' is not to be had here ({reason}): choose 'sdpa' or 'eager'."
        ) from error


def _info(plan: _Plan, chunk_length: int | None, normalization: str | None) -> OpenVLAOFTInfo:
    folder, settings, head = plan.folder, plan.settings, plan.head
    published_chunk, published_normalization = _PUBLISHED.get(head.action_dim, (None, None))
    chunk_length = chunk_length or settings.chunk_length or published_chunk
    normalization = normalization or settings.normalization or published_normalization
    if chunk_length is None or normalization is None:
        raise VegaError(
            f"Checkpoint '{folder}' has {head.action_dim}-D actions and says no chunk length and normalisation: give "
            "chunk_length and normalization, or write them into its config.json."
        )
    if not 1 <= chunk_length <= LONGEST_CHUNK:
        raise VegaError(
            f"Checkpoint '{folder}' is to give chunks of {chunk_length} actions: set chunk_length to 1 to "
            f"{LONGEST_CHUNK}, as it was trained."
        )
    statistics = read_statistics(folder)
    if not statistics:
        raise VegaError(f"Checkpoint '{folder}' has no statistics: add its dataset_statistics.json.")
    size = settings.image_sizes[0]
    patches = {(size // tower.patch_pixels) ** 2 for tower in plan.towers}
    if len(patches) != 1:
        raise VegaError(f"The vision towers of '{folder}' have different grids: use a fused OpenVLA backbone.")
    if wrong := {tower.patches for tower in plan.towers} - patches:
        raise VegaError(
            f"Images of {size} pixels are not the {wrong.pop()} patches that the vision towers of '{folder}' know: "
            "correct image_sizes in its config.json."
        )
    return OpenVLAOFTInfo(
        folder=str(folder),
        chunk_length=chunk_length,
        action_dim=head.action_dim,
        proprio_dim=0 if plan.proprio is None else plan.proprio.fc1.in_features,
        image_size=size,
        patches=patches.pop(),
        normalization=normalization,
        image_mean_std=image_mean_std(folder),
        statistics=statistics,
    )
