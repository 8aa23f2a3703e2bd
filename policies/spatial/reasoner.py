"""`SpatialReasoner`: Qwen2.5-VL, its visual tokens fused with the world simulator's, answers questions about frames.

    frame ─► Qwen's vision tower = f_sem ─┐
         └─► GenerativeBranch = f_gen ────┴► fused tokens, kept ─► language model: frames, kept ─► question ─► answer

A frame is encoded once, when it comes; the language model reads the frames once, and a second question about the same
frames only reads the question.  Greedy, with fixed noise: the same frames and question give the same answer.

Source: VEGA-3D, arXiv 2603.19235, and its branch spatial-reasoning (ca64583).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from policies.files.json_config import read_json
from policies.files.weight_files import resolve_folder
from policies.spatial.branch import GenerativeBranch, load_branch
from policies.spatial.config import read_branch
from policies.spatial.frames import EVALUATION_PIXELS, Patches, crop_frame, to_patches
from policies.types import Image, VegaError

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.pt")
MAX_QUESTION_CHARS = 4096
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
IMAGE_TYPE = 1  # what transformers calls an image's tokens


@dataclass(frozen=True, eq=False)
class FrameTokens:
    """A frame as the language model sees it: tokens (n, D), and the grid (rows, columns) of its patches."""

    tokens: torch.Tensor
    grid: tuple[int, int]


@dataclass
class _Prefix:
    """What the language model remembers of frames it has read; `frames` are told apart by identity."""

    frames: tuple[FrameTokens, ...]
    cache: DynamicCache
    length: int
    position: int


class SpatialReasoner:
    """Used from one thread at a time.  branch: None for a plain Qwen2.5-VL."""

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        branch: GenerativeBranch | None,
        folder: Path,
        pixels: tuple[int, int] | None = EVALUATION_PIXELS,
    ):
        self.model, self.branch, self.folder, self._pixels = model, branch, folder, pixels
        self._tokenizer: Tokenizer | None = None
        self._prefix: _Prefix | None = None
        config = model.config
        self._image, self._start, self._end = (
            config.image_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        )
        stops = model.generation_config.eos_token_id
        self._stops = {stops} if isinstance(stops, int) else set(stops or ())

    @torch.inference_mode()
    def see(self, frame: Image) -> FrameTokens:
        """Encode a camera's (H, W, 3) uint8 RGB frame; about 2 MB at 7B."""
        picture = crop_frame(frame)
        patches = to_patches(picture, self._pixels)
        f_sem = self.semantic([patches])[0]
        if self.branch is None:
            return FrameTokens(f_sem, patches.grid)
        pictures = torch.from_numpy(picture.copy())[None]
        return FrameTokens(self.branch(pictures, patches.grid, f_sem[None])[0], patches.grid)

    @torch.inference_mode()
    def semantic(self, patches: Sequence[Patches]) -> list[torch.Tensor]:
        """f_sem of several pictures, each (n, D): Qwen's own vision tower and merger."""
        values = torch.cat([p.values for p in patches]).to(self.model.device, self.model.dtype)
        grid = torch.tensor([[1, *p.grid] for p in patches], device=self.model.device)
        return list(self.model.model.get_image_features(values, grid).pooler_output)

    @torch.inference_mode()
    def ask(self, frames: Sequence[FrameTokens], question: str, max_tokens: int = 16) -> str:
        """Answer a question about frames, oldest first.  Raises VegaError for a question that cannot be asked."""
        question = question.strip()
        if not question:
            raise VegaError("The question is empty: ask for instance 'How far is the milk from the basket?'.")
        if len(question) > MAX_QUESTION_CHARS:
            raise VegaError(f"The question has {len(question)} characters: shorten it to {MAX_QUESTION_CHARS}.")
        if not frames:
            raise VegaError("There is no frame to look at yet: wait for the camera.")
        prefix = self._read(tuple(frames))
        ids = self.tokenizer.encode(question + ASSISTANT, add_special_tokens=False).ids
        answer = self._decode(self._greedy(torch.tensor([ids], device=self.model.device), prefix, max_tokens))
        return answer.strip()

    def forget(self) -> None:
        """Drop what was read of frames."""
        self._prefix = None

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            path = self.folder / "tokenizer.json"
            if not path.is_file():
                raise VegaError(f"File '{path}' is missing: copy the tokenizer that came with the checkpoint there.")
            self._tokenizer = Tokenizer.from_file(str(path))
        return self._tokenizer

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _read(self, frames: tuple[FrameTokens, ...]) -> _Prefix:
        """The language model's memory of these frames, read now unless they were read last time."""
        known = self._prefix
        if (
            known is None
            or len(known.frames) != len(frames)
            or any(a is not b for a, b in zip(known.frames, frames, strict=True))
        ):
            ids = self.tokenizer.encode(SYSTEM, add_special_tokens=False).ids
            for frame in frames:
                ids += [self._start, *[self._image] * len(frame.tokens), self._end]
            cache = DynamicCache(config=self.model.config.get_text_config())
            _, position = self.logits(torch.tensor([ids], device=self.model.device), frames, cache)
            known = self._prefix = _Prefix(frames, cache, len(ids), position)
        return known

    @torch.inference_mode()
    def logits(
        self, ids: torch.Tensor, frames: Sequence[FrameTokens], cache: DynamicCache | None = None
    ) -> tuple[torch.Tensor, int]:
        """Logits (1, L, V) of a sequence (1, L) with the frames' tokens in their places, and the next position."""
        kinds = (ids == self._image).int() * IMAGE_TYPE
        positions = self.positions(ids, frames)
        embedded = self.model.get_input_embeddings()(ids)
        if frames:
            tokens = torch.cat([frame.tokens for frame in frames]).to(embedded)
            if int(kinds.sum()) != len(tokens):
                raise VegaError(f"{int(kinds.sum())} places do not take the frames' {len(tokens)} tokens.")
            embedded = embedded.masked_scatter((kinds == IMAGE_TYPE)[..., None], tokens)
        return self._run(embedded, positions, cache), int(positions.max()) + 1

    def positions(self, ids: torch.Tensor, frames: Sequence[FrameTokens]) -> torch.Tensor:
        """(3, 1, L): time, row and column of every token of a sequence (1, L), for Qwen's rotary embedding."""
        kinds = (ids == self._image).int() * IMAGE_TYPE
        grid = torch.tensor([[1, *frame.grid] for frame in frames], device=ids.device) if frames else None
        return self.model.model.get_rope_index(ids, kinds, image_grid_thw=grid)[0]

    def _run(self, embedded: torch.Tensor, positions: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        hidden = self.model.model.language_model(
            inputs_embeds=embedded, position_ids=positions, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return self.model.lm_head(hidden)

    def _greedy(self, ids: torch.Tensor, prefix: _Prefix, max_tokens: int) -> list[int]:
        """Token ids of the answer to `ids` (1, L) after the prefix, without the one that ends it."""
        position = prefix.position
        found: list[int] = []
        try:
            while len(found) < max_tokens:
                places = position + torch.arange(ids.shape[1], device=ids.device)
                logits = self._run(self.model.get_input_embeddings()(ids), places.expand(3, 1, -1), prefix.cache)
                position += ids.shape[1]
                best = int(logits[0, -1].argmax())
                if best in self._stops:
                    break
                found.append(best)
                ids = torch.tensor([[best]], device=ids.device)
        finally:
            prefix.cache.crop(prefix.length - prefix.cache.get_seq_length())
        return found

    @torch.inference_mode()
    def continue_ids(self, ids: torch.Tensor, frames: Sequence[FrameTokens], max_tokens: int) -> list[int]:
        """Greedy continuation of a whole sequence (1, L)."""
        cache = DynamicCache(config=self.model.config.get_text_config())
        logits, position = self.logits(ids, frames, cache)
        first = int(logits[0, -1].argmax())
        if first in self._stops or max_tokens < 1:
            return []
        prefix = _Prefix(tuple(frames), cache, ids.shape[1], position)
        return [first, *self._greedy(torch.tensor([[first]], device=ids.device), prefix, max_tokens - 1)]


def load_reasoner(
    path_or_id: str | os.PathLike[str],
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    framing: str = "official",
    pixels: tuple[int, int] | None = EVALUATION_PIXELS,
) -> SpatialReasoner:
    """A published spatial-reasoning checkpoint or a plain Qwen2.5-VL: a folder, or a hub id `owner/name`.

    framing: "official", what published checkpoints were trained with, or "registered".  Both tensor layouts of
    transformers are read.  Raises VegaError.
    """
    if framing not in ("official", "registered"):
        raise VegaError(f"Framing '{framing}' is unknown: choose official or registered.")
    folder = resolve_folder(path_or_id, CHECKPOINT_FILES)
    branch_config = read_branch(folder)
    model = _load_qwen(folder, torch.device(device), dtype)
    branch = None
    if branch_config is not None:
        dim = model.config.get_text_config().hidden_size
        branch = load_branch(folder, branch_config, dim, framing, torch.device(device), dtype)
    return SpatialReasoner(model, branch, folder, pixels)


def _load_qwen(folder: Path, device: torch.device, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL without the generative branch's tensors, every one of which is somebody else's."""
    report = logging.getLogger("transformers")
    level = report.level
    report.setLevel(logging.ERROR)  # it would list the branch's tensors as unexpected
    try:
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            config=Qwen2_5_VLConfig(**_plain(folder)),
            dtype=dtype,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VegaError(f"Qwen2.5-VL in '{folder}' cannot be loaded ({reason}): copy it again.") from error
    finally:
        report.setLevel(level)
    unknown = [name for name in info["unexpected_keys"] if not name.startswith("generative_")]
    if info["missing_keys"] or unknown:
        name = min([*info["missing_keys"], *unknown])
        what = "lacks" if info["missing_keys"] else "holds, and no part of Qwen2.5-VL uses,"
        raise VegaError(f"The checkpoint '{folder}' {what} tensor '{name}': copy the whole folder again.")
    return model.to(device).eval().requires_grad_(False)


def _plain(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in read_json(folder / "config.json").items() if "generative" not in k}
