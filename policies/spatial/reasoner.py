"""`SpatialReasoner`: Qwen2.5-VL, its visual tokens fused with the world simulator's, answers questions about frames.

    frame ─► Qwen's vision tower = f_sem ─┐
         └─► GenerativeBranch = f_gen ────┴► fused tokens, kept ─► language model: frames, kept ─► question ─► answer

A frame is encoded once, when it comes; the language model reads each frame once, and a second question about the same
frames only reads the question.  Greedy, within the rules that the checkpoint's generation_config.json sets, with fixed
noise, and one frame at a time: the same frames and question give the same answer, whatever was asked before.

Source: VEGA-3D, arXiv 2603.19235, and its branch spatial-reasoning (ca64583).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration
from transformers.generation.logits_process import LogitsProcessorList

from policies.files.tensor_names import by_prefix
from policies.files.tensor_sources import refuse_unread
from policies.files.weight_files import CHECKPOINT_FILES, open_weights, read_tokenizer, resolve_folder
from policies.fusion.fused_policy import StageClock
from policies.spatial.branch import GenerativeBranch, load_branch
from policies.spatial.config import read_branch
from policies.spatial.frames import EVALUATION_PIXELS, Patches, crop_frame, to_patches
from policies.spatial.qwen import GreedyRules, load_qwen, newer_name
from policies.types import Image, SceneAnswer, VegaError, check_question

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
    """What the language model remembers of frames it has read; `frames` are told apart by identity.

    ends: (length, next position) of the sequence before the first frame and after each.  ids: of that sequence.
    """

    frames: list[FrameTokens]
    cache: DynamicCache
    ends: list[tuple[int, int]]
    ids: list[int]

    def rewind(self) -> None:
        """Forget what was read after the last frame."""
        surplus = self.cache.get_seq_length() - self.ends[-1][0]
        if surplus > 0:
            self.cache.crop(-surplus)  # transformers takes no other number
        del self.ids[self.ends[-1][0] :]


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
        self.timings_ms: dict[str, float] = {}  # stages of the last `see` or `answer`
        config = model.config
        self._image, self._start, self._end = (
            config.image_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        )
        vocabulary = model.lm_head.weight.shape[0]
        self._rules = GreedyRules(model.generation_config, folder, vocabulary, model.device)

    @torch.inference_mode()
    def see(self, frame: Image) -> FrameTokens:
        """Encode a camera's (H, W, 3) uint8 RGB frame; about 2 MB at 7B."""
        clock = StageClock(self.model.device, True)
        picture = crop_frame(frame)
        patches = to_patches(picture, self._pixels)
        clock.lap("preprocess")
        tokens = self.semantic([patches])[0]
        clock.lap("semantic_encoder")
        if self.branch is not None:
            pictures = torch.from_numpy(picture.copy())[None]
            tokens = self.branch(pictures, patches.grid, tokens[None])[0]
            clock.lap("world_simulator_and_fusion")
        self.timings_ms = clock.laps
        return FrameTokens(tokens, patches.grid)

    @torch.inference_mode()
    def semantic(self, patches: Sequence[Patches]) -> list[torch.Tensor]:
        """f_sem of several pictures, each (n, D): Qwen's own vision tower and merger."""
        values = torch.cat([p.values for p in patches]).to(self.model.device, self.model.dtype)
        grid = torch.tensor([[1, *p.grid] for p in patches], device=self.model.device)
        return list(self.model.model.get_image_features(values, grid).pooler_output)

    def ask(self, frames: Sequence[FrameTokens], question: str, max_tokens: int = 16) -> str:
        """Answer a question about frames, oldest first.  Raises VegaError for a question that cannot be asked."""
        return self.answer(frames, question, max_tokens).text.strip()

    @torch.inference_mode()
    def answer(self, frames: Sequence[FrameTokens], question: str, max_tokens: int = 16) -> SceneAnswer:
        """The answer as it was decoded, spaces at its ends included, which the reference's scores look at.

        Its confidence is the geometric mean of the chosen tokens' probabilities.
        """
        question = check_question(question)
        if not frames:
            raise VegaError("There is no frame to look at yet: wait for the camera.")
        clock = StageClock(self.model.device, True)
        ids = self.tokenizer.encode(question + ASSISTANT, add_special_tokens=False).ids
        try:
            prefix = self._read(frames)
            clock.lap("read_frames")
            found, logs = self._greedy(torch.tensor([ids], device=self.model.device), prefix, max_tokens)
        except BaseException:
            self.forget()  # some layers may have read on and others not
            raise
        answer = SceneAnswer(self._decode(found), math.exp(sum(logs) / max(1, len(logs))))
        clock.lap("answer")
        self.timings_ms = clock.laps
        return answer

    def forget(self) -> None:
        """Drop what was read of frames."""
        self._prefix = None

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self.folder)
        return self._tokenizer

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _read(self, frames: Sequence[FrameTokens]) -> _Prefix:
        """The language model's memory of these frames; those it read last time, from the first on, it remembers."""
        known = self._prefix
        if known is None:
            cache = DynamicCache(config=self.model.config.get_text_config())
            ids = self.tokenizer.encode(SYSTEM, add_special_tokens=False).ids
            self._prefix = known = _Prefix([], cache, [], [])
            self._append(known, ids, [])
        same = [a is b for a, b in zip(known.frames, frames, strict=False)]
        kept = same.index(False) if False in same else len(same)
        del known.frames[kept:], known.ends[kept + 1 :]
        known.rewind()
        for frame in frames[kept:]:
            self._append(known, [self._start, *[self._image] * len(frame.tokens), self._end], [frame])
            known.frames.append(frame)
        return known

    def _append(self, prefix: _Prefix, ids: Sequence[int], frames: Sequence[FrameTokens]) -> None:
        """Read on: ids with the frames' tokens in their places."""
        length, position = prefix.ends[-1] if prefix.ends else (0, 0)
        embedded, positions = self._embedded(torch.tensor([list(ids)], device=self.model.device), frames)
        self._hidden(embedded, positions + position, prefix.cache)
        prefix.ids.extend(ids)
        prefix.ends.append((length + len(ids), position + int(positions.max()) + 1))

    @torch.inference_mode()
    def logits(
        self, ids: torch.Tensor, frames: Sequence[FrameTokens], cache: DynamicCache | None = None
    ) -> tuple[torch.Tensor, int]:
        """Logits (1, L, V) of a sequence (1, L) with the frames' tokens in their places, and the next position."""
        embedded, positions = self._embedded(ids, frames)
        return self.model.lm_head(self._hidden(embedded, positions, cache)), int(positions.max()) + 1

    def _embedded(self, ids: torch.Tensor, frames: Sequence[FrameTokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the language model reads, (1, L, D), and positions (3, 1, L) from 0."""
        kinds = (ids == self._image).int() * IMAGE_TYPE
        embedded = self.model.get_input_embeddings()(ids)
        if frames:
            tokens = torch.cat([frame.tokens for frame in frames]).to(embedded)
            if int(kinds.sum()) != len(tokens):
                raise VegaError(f"{int(kinds.sum())} places do not take the frames' {len(tokens)} tokens.")
            embedded = embedded.masked_scatter((kinds == IMAGE_TYPE)[..., None], tokens)
        return embedded, self.positions(ids, frames)

    def positions(self, ids: torch.Tensor, frames: Sequence[FrameTokens]) -> torch.Tensor:
        """(3, 1, L): time, row and column of every token of a sequence (1, L), for Qwen's rotary embedding."""
        kinds = (ids == self._image).int() * IMAGE_TYPE
        grid = torch.tensor([[1, *frame.grid] for frame in frames], device=ids.device) if frames else None
        return self.model.model.get_rope_index(ids, kinds, image_grid_thw=grid)[0]

    def _hidden(self, embedded: torch.Tensor, positions: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        return self.model.model.language_model(
            inputs_embeds=embedded, position_ids=positions, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state

    def _greedy(
        self, ids: torch.Tensor, prefix: _Prefix, max_tokens: int, rules: LogitsProcessorList | None = None
    ) -> tuple[list[int], list[float]]:
        """Token ids of the answer to `ids` (1, L) after the prefix, without the one that ends it; log probabilities.

        rules: of the prompt that is answered, where it is not all of this.
        """
        length, position = prefix.ends[-1]
        read = torch.cat([torch.tensor([prefix.ids[:length]], dtype=torch.long, device=ids.device), ids], dim=1)
        rules = self._rules.of_prompt(read.shape[1]) if rules is None else rules
        found: list[int] = []
        logs: list[float] = []
        while len(found) < max_tokens:
            places = position + torch.arange(ids.shape[1], device=ids.device)
            embedded = self.model.get_input_embeddings()(ids)
            hidden = self._hidden(embedded, places.expand(3, 1, -1), prefix.cache)
            position += ids.shape[1]
            best, log = self._best(self.model.lm_head(hidden[:, -1]), read, rules)
            logs.append(log)
            if best in self._rules.stops:
                break
            found.append(best)
            ids = torch.tensor([[best]], device=ids.device)
            read = torch.cat([read, ids], dim=1)
        prefix.rewind()
        return found, logs

    @staticmethod
    def _best(logits: torch.Tensor, read: torch.Tensor, rules: LogitsProcessorList) -> tuple[int, float]:
        """The token to which logits (1, V) give most once the rules for what follows `read` (1, L) are kept, and the
        logarithm of the probability that the model itself gives it."""
        scores = logits.float()
        best = int(rules(read, scores.clone())[0].argmax())
        return best, float(scores[0].log_softmax(0)[best])

    @torch.inference_mode()
    def continue_ids(self, ids: torch.Tensor, frames: Sequence[FrameTokens], max_tokens: int) -> list[int]:
        """Greedy continuation of a whole sequence (1, L)."""
        cache = DynamicCache(config=self.model.config.get_text_config())
        logits, position = self.logits(ids, frames, cache)
        rules = self._rules.of_prompt(ids.shape[1])
        first, _ = self._best(logits[:, -1], ids, rules)
        if first in self._rules.stops or max_tokens < 1:
            return []
        prefix = _Prefix(list(frames), cache, [(ids.shape[1], position)], ids[0].tolist())
        following = torch.tensor([[first]], device=ids.device)
        return [first, *self._greedy(following, prefix, max_tokens - 1, rules)[0]]


def load_reasoner(
    path_or_id: str | os.PathLike[str],
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    framing: str = "official",
    pixels: tuple[int, int] | None = EVALUATION_PIXELS,
) -> SpatialReasoner:
    """A published spatial-reasoning checkpoint or a plain Qwen2.5-VL: a folder, or a hub id `owner/name`.

    framing: "official", what published checkpoints were trained with, or "registered".  Both tensor layouts of
    transformers are read, and adapters merged.  Raises VegaError, also for a tensor that no part of the model reads.
    """
    if framing not in ("official", "registered"):
        raise VegaError(f"Framing '{framing}' is unknown: choose official or registered.")
    folder = resolve_folder(path_or_id, CHECKPOINT_FILES)
    branch_config = read_branch(folder)
    apart = [] if branch_config is None else [folder / branch_config.path]  # where Wan lies within the checkpoint
    stored = open_weights(folder, by_prefix(newer_name), apart)
    model = load_qwen(folder, stored, torch.device(device), dtype)
    branch = None
    if branch_config is not None:
        dim = model.config.get_text_config().hidden_size
        branch = load_branch(folder, stored, branch_config, dim, framing, torch.device(device), dtype)
    refuse_unread(stored, lambda name: False)
    return SpatialReasoner(model, branch, folder, pixels)
