"""OpenVLA-OFT: images, robot state and a prompt to a chunk of actions in one forward pass.

DINOv2 and SigLIP see every image; their tokens, projected to the language model's width, stand
between the prompt's BOS and its text; one token carries the robot's state; then come as many
zeroed placeholders as there are numbers in the chunk.  A Llama with *bidirectional* attention turns
the placeholders into hidden states and an L1 head turns those into actions, all at once (parallel
decoding, arXiv 2502.19645, section IV).

    pixels ─► vision_tokens ─► project = f_sem ─► [fusion] ─► action_hidden ─► head ─► (B, chunk, A) in [-1, 1]

Loads the published folders; nothing about sizes is assumed, they are read from the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from policies.openvla_heads import (
    ImageProjector,
    L1ActionHead,
    ProprioProjector,
    build_action_head,
    build_projector,
    build_proprio_projector,
)
from policies.openvla_vision import VisionTower, build_dinov2, build_siglip, fill_tower, merged_backbone
from policies.preprocessing import DINOV2_MEAN_STD, SIGLIP_MEAN_STD, prompt, with_empty_token
from policies.types import VegaError
from policies.weight_files import (
    SafetensorsSource,
    TensorSource,
    check_memory,
    depth,
    fill,
    find_component,
    read_json,
    read_torch_file,
    resolve_folder,
    shape_of,
)

PLACEHOLDER_ID, STOP_ID = 1, 2
# Chunk lengths and normalisation of the published robots (OpenVLA-OFT constants.py), by action width;
# the tensors do not show them.  Other checkpoints say theirs in config.json or in from_pretrained.
_PUBLISHED = {7: (8, "bounds_q99"), 14: (25, "bounds")}

_HUB_PATTERNS = ("*.json", "*.safetensors", "*.pt", "tokenizer.model", "lora_adapter/adapter_config.json")


@dataclass(frozen=True)
class OpenVLAOFTInfo:
    """What a loaded checkpoint says about itself.

    chunk_length, action_dim: shape of a chunk.  proprio_dim: 0 where it takes no robot state.
    patches: tokens of one image, row-major.  normalization: "bounds_q99" or "bounds".
    image_mean_std: per tower (mean, std) over RGB in [0, 1].
    statistics: data set -> its action and proprio statistics.
    """

    folder: str
    chunk_length: int
    action_dim: int
    proprio_dim: int
    image_size: int
    patches: int
    normalization: str
    image_mean_std: tuple[tuple[Sequence[float], Sequence[float]], ...]
    statistics: Mapping[str, Any]


class OpenVLAOFT(nn.Module):
    """The network.  Inference only; used from one thread at a time.  Tokens are row-major, images in order."""

    def __init__(
        self,
        info: OpenVLAOFTInfo,
        towers: Sequence[VisionTower],
        projector: ImageProjector,
        llama: LlamaModel,
        head: L1ActionHead,
        proprio_projector: ProprioProjector | None,
    ):
        super().__init__()
        self.info = info
        self.towers = nn.ModuleList(towers)
        self.projector = projector
        self.embed_tokens = llama.embed_tokens
        self.layers = llama.layers
        self.norm = llama.norm
        # Rotary frequencies are computed, not loaded: made here, off the meta device.
        self.rotary = LlamaRotaryEmbedding(llama.config)
        self.head = head
        self.proprio_projector = proprio_projector
        self._tokenizer: Any = None
        for layer in self.layers:
            layer.self_attn.is_causal = False

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def language_dim(self) -> int:
        return self.embed_tokens.weight.shape[1]

    def encode_prompt(self, instruction: str) -> list[int]:
        """Token ids of the prompt, BOS first, with the checkpoint's own tokenizer."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            path = Path(self.info.folder) / "tokenizer.json"
            if not path.is_file():
                raise VegaError(f"File '{path}' is missing: copy the tokenizer that came with the checkpoint there.")
            self._tokenizer = Tokenizer.from_file(str(path))
        ids = self._tokenizer.encode(prompt(instruction)).ids
        bos = self._tokenizer.token_to_id("<s>")
        return with_empty_token(ids if ids and ids[0] == bos else [bos, *ids])

    def vision_tokens(self, pixels: torch.Tensor, input_ids: Sequence[Sequence[int]] | None = None) -> torch.Tensor:
        """Tokens of both towers, concatenated on channels: pixels (B, 6 n, S, S) -> (B, n * patches, V).

        input_ids: the prompts, needed by FiLM checkpoints only.
        """
        batch, channels, height, width = pixels.shape
        size = self.info.image_size
        if channels % 6 or channels == 0 or (height, width) != (size, size):
            raise VegaError(f"Pixels have shape {tuple(pixels.shape)}: give (B, 6 per image, {size}, {size}).")
        images = pixels.to(self.device, self.dtype).reshape(batch * (channels // 6), 2, 3, height, width)
        language = None
        if self.towers[0].films is not None:
            if input_ids is None:
                raise VegaError("This checkpoint looks at images in the light of the text (FiLM): give input_ids.")
            language = self._mean_language(input_ids).repeat_interleave(channels // 6, 0)
        tokens = torch.cat([tower(images[:, i], language) for i, tower in enumerate(self.towers)], dim=-1)
        return tokens.reshape(batch, -1, tokens.shape[-1])

    def _mean_language(self, input_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, D): mean embedding of BOS, prompt and stop token, which is what FiLM was trained on."""
        rows = [torch.tensor([*with_empty_token(ids), STOP_ID], device=self.device) for ids in input_ids]
        return torch.stack([self.embed_tokens(row).mean(0) for row in rows])

    def project(self, vision_tokens: torch.Tensor) -> torch.Tensor:
        """f_sem: (B, N, V) -> (B, N, D)."""
        return self.projector(vision_tokens)

    def action_hidden(
        self, input_ids: Sequence[Sequence[int]], f_sem: torch.Tensor, proprio: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states that the head reads: (B, chunk * A, D), after the final norm.

        input_ids: one prompt per sample, BOS first, any lengths.  f_sem: (B, N, D), fused or not.
        proprio: (B, P) in [-1, 1], exactly where the checkpoint has a proprio projector.
        """
        embeddings, lengths, starts = self._sequence(input_ids, f_sem, proprio)
        mask = None
        if len(set(lengths)) > 1:
            positions = torch.arange(embeddings.shape[1], device=self.device)
            mask = (positions[None] < torch.tensor(lengths, device=self.device)[:, None])[:, None, None]
        hidden = self._trunk(embeddings, mask)
        count = self.info.chunk_length * self.info.action_dim
        return torch.stack([hidden[i, start : start + count] for i, start in enumerate(starts)])

    def _sequence(
        self, input_ids: Sequence[Sequence[int]], f_sem: torch.Tensor, proprio: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[int], list[int]]:
        """Embeddings (B, L, D), zero-padded on the right; true lengths; index of the first hidden state of the window.

        The window starts one before the placeholders: each state predicts the token after it.
        """
        if (proprio is None) != (self.proprio_projector is None):
            wanted = "needs" if proprio is None else "takes no"
            raise VegaError(f"This checkpoint {wanted} robot state: look at info.proprio_dim.")
        f_sem = f_sem.to(self.dtype)
        middle = [f_sem]
        if self.proprio_projector is not None and proprio is not None:
            if proprio.shape[-1] != self.info.proprio_dim:
                raise VegaError(
                    f"Proprio has {proprio.shape[-1]} numbers: this checkpoint needs {self.info.proprio_dim}."
                )
            middle.append(self.proprio_projector(proprio.to(self.device, self.dtype))[:, None])
        middle_tokens = torch.cat(middle, dim=1)
        zeros = f_sem.new_zeros(self.info.chunk_length * self.info.action_dim, self.language_dim)
        rows, starts = [], []
        for sample, ids in zip(middle_tokens, input_ids, strict=True):
            text = self.embed_tokens(torch.tensor([*with_empty_token(ids), STOP_ID], device=self.device))
            rows.append(torch.cat([text[:1], sample, text[1:-1], zeros, text[-1:]]))
            starts.append(len(sample) + len(text) - 2)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), [len(row) for row in rows], starts

    def _trunk(self, embeddings: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Llama on (B, L, D), every token seeing every other; mask: (B, 1, 1, L) True where there is a token."""
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        rotary = self.rotary(embeddings, position_ids=positions)
        x = embeddings
        for layer in self.layers:
            x = layer(x, attention_mask=mask, position_embeddings=rotary)
        return self.norm(x)

    @torch.no_grad()
    def forward(
        self,
        pixels: torch.Tensor,
        input_ids: Sequence[Sequence[int]],
        proprio: torch.Tensor | None = None,
        fuse: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Normalised actions (B, chunk, A) float32.

        pixels: (B, 6 n, S, S) normalised.  input_ids: a prompt per sample.  proprio: (B, P) in [-1, 1].
        fuse: changes f_sem (B, N, D) on its way to the language model (gated fusion).
        """
        f_sem = self.project(self.vision_tokens(pixels, input_ids))
        if fuse is not None:
            f_sem = fuse(f_sem)
        return self.head(self.action_hidden(input_ids, f_sem, proprio)).float()

    @torch.no_grad()
    def check_bidirectional(self) -> None:
        """Raise VegaError if the first token does not see the last one.

        A causal kernel gives plausible actions and loses two thirds of the successes (openvla-oft #135).
        """
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 8, self.language_dim, generator=generator).to(self.device, self.dtype)
        changed = x.clone()
        changed[:, -1] = -changed[:, -1]
        if torch.equal(self._trunk(x, None)[:, 0], self._trunk(changed, None)[:, 0]):
            raise VegaError(
                "The language model's attention kernel is causal, OpenVLA-OFT needs a bidirectional one: choose "
                "attention 'sdpa' or 'eager', or install the pinned transformers."
            )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        chunk_length: int | None = None,
        normalization: str | None = None,
        attention: str = "sdpa",
        rotary_dtype: torch.dtype = torch.float32,
    ) -> OpenVLAOFT:
        """Load a published checkpoint folder or hub id (LoRA merged), streaming the weights to `device` in `dtype`.

        chunk_length, normalization: only where neither the checkpoint nor its action width says them.
        attention: transformers' name of a kernel ("sdpa", "eager", "flash_attention_2").
        rotary_dtype: precision the rotary frequencies are rounded to.  Published results were run with float32;
            bfloat16 is what `model.to(torch.bfloat16)` makes of them, and moves actions by about 0.01.
        """
        folder = resolve_folder(path_or_id, _HUB_PATTERNS)
        model = _load(cls, folder, torch.device(device), dtype, chunk_length, normalization, attention)
        model.rotary.inv_freq = model.rotary.inv_freq.to(rotary_dtype).float()
        model.check_bidirectional()
        return model


def _load(
    cls: type[OpenVLAOFT],
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    chunk_length: int | None,
    normalization: str | None,
    attention: str,
) -> OpenVLAOFT:
    config = read_json(folder / "config.json")
    weights = SafetensorsSource(folder)
    llama = _build_llama(config.get("text_config", {}), weights, attention)
    width = llama.embed_tokens.weight.shape[1]
    head_source = _component(folder, "action_head--*_checkpoint.pt", "action head")
    if head_source is None:
        raise VegaError(f"Folder '{folder}' has no 'action_head--*_checkpoint.pt': add the one of this checkpoint.")
    head = build_action_head(head_source, width)
    proprio_source = _component(folder, "proprio_projector--*_checkpoint.pt", "proprio projector")
    proprio = build_proprio_projector(proprio_source, width) if proprio_source else None
    vision = _component(folder, "vision_backbone--*_checkpoint.pt", "FiLM vision backbone")
    vision_source: TensorSource = weights if vision is None else merged_backbone(vision, _lora_scale(folder))
    film_dim = 0 if vision is None else width
    prefixes = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    towers = [build_dinov2(vision_source, prefixes[0], film_dim), build_siglip(vision_source, prefixes[1], film_dim)]
    projector = build_projector(weights)
    parts = [llama, head, *towers, projector, *([proprio] if proprio else [])]
    check_memory(parts, device, dtype, f"Checkpoint '{folder}'")

    info = _info(folder, config, head, proprio, towers, chunk_length, normalization)
    fill(llama, weights, lambda name: (f"language_model.model.{name}", None), device, dtype)
    fill(projector, weights, lambda name: (f"projector.{name}", None), device, dtype)
    fill(head, head_source, lambda name: (f"model.{name}", None), device, dtype)
    if proprio is not None and proprio_source is not None:
        fill(proprio, proprio_source, lambda name: (name, None), device, dtype)
    for tower, prefix in zip(towers, prefixes, strict=True):
        fill_tower(tower, vision_source, prefix, device, dtype)
    model = cls(info, towers, projector, llama, head, proprio).eval()
    model.rotary.to(device)
    return model


def _component(folder: Path, pattern: str, purpose: str) -> TensorSource | None:
    path = find_component(folder, pattern, purpose)
    return None if path is None else read_torch_file(path)


def _lora_scale(folder: Path) -> float | None:
    path = folder / "lora_adapter" / "adapter_config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    return config["lora_alpha"] / config["r"] if "lora_alpha" in config and config.get("r") else None


def _build_llama(text_config: Mapping[str, Any], weights: TensorSource, attention: str) -> LlamaModel:
    """Llama on the meta device.  Sizes come from the tensors, the rest from the shipped config.

    The config is a default LlamaConfig with few changes (eps 1e-6), never Llama-2's own.
    """
    prefix = "language_model.model."
    vocabulary, width = shape_of(weights, f"{prefix}embed_tokens.weight")
    kept = ("num_attention_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act")
    heads = int(text_config.get("num_attention_heads", LlamaConfig().num_attention_heads))
    if width % heads:
        raise VegaError(f"'{weights.name}' has width {width}, which {heads} heads do not divide: use its own config.json.")
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape_of(weights, f"{prefix}layers.0.mlp.gate_proj.weight")[0],
        num_hidden_layers=depth(weights, f"{prefix}layers."),
        num_key_value_heads=shape_of(weights, f"{prefix}layers.0.self_attn.k_proj.weight")[0] * heads // width,
        rope_parameters={"rope_type": "default", "rope_theta": float(text_config.get("rope_theta", 10000.0))},
        attn_implementation=attention,
        **{name: text_config[name] for name in kept if name in text_config},
    )
    if text_config.get("rope_scaling"):
        raise VegaError(f"'{weights.name}' scales its rotary positions, which no OpenVLA-OFT does: use a published one.")
    with torch.device("meta"):
        return LlamaModel(config)


def _info(
    folder: Path,
    config: Mapping[str, Any],
    head: L1ActionHead,
    proprio: ProprioProjector | None,
    towers: Sequence[VisionTower],
    chunk_length: int | None,
    normalization: str | None,
) -> OpenVLAOFTInfo:
    published_chunk, published_normalization = _PUBLISHED.get(head.action_dim, (None, None))
    chunk_length = chunk_length or config.get("chunk_length") or published_chunk
    normalization = normalization or config.get("normalization") or published_normalization
    if chunk_length is None or normalization is None:
        raise VegaError(
            f"Checkpoint '{folder}' has {head.action_dim}-D actions and does not say its chunk length and normalisation: "
            "give chunk_length and normalization, or write them into its config.json."
        )
    path = folder / "dataset_statistics.json"
    statistics = read_json(path) if path.is_file() else config.get("norm_stats", {})
    if not statistics:
        raise VegaError(f"Checkpoint '{folder}' has no statistics: add its dataset_statistics.json.")
    size = int(config.get("image_sizes", [224])[0])
    patches = {round((size // tower.patch_pixels) ** 2) for tower in towers}
    if len(patches) != 1:
        raise VegaError(f"The vision towers of '{folder}' have different grids: use a fused OpenVLA backbone.")
    return OpenVLAOFTInfo(
        folder=str(folder),
        chunk_length=int(chunk_length),
        action_dim=head.action_dim,
        proprio_dim=0 if proprio is None else proprio.fc1.in_features,
        image_size=size,
        patches=patches.pop(),
        normalization=str(normalization),
        image_mean_std=_image_mean_std(folder),
        statistics=statistics,
    )


def _image_mean_std(folder: Path) -> tuple[tuple[Sequence[float], Sequence[float]], ...]:
    """Per tower (mean, std) from preprocessor_config.json, or the published constants."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return DINOV2_MEAN_STD, SIGLIP_MEAN_STD
    params = read_json(path).get("tvf_normalize_params")
    if not isinstance(params, list) or len(params) != 2 or not all("mean" in p and "std" in p for p in params):
        raise VegaError(f"File '{path}' does not give 'tvf_normalize_params' of two towers: copy the published one.")
    return tuple((tuple(p["mean"]), tuple(p["std"])) for p in params)
