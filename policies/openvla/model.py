"""OpenVLA-OFT: images, robot state and a prompt to a chunk of actions in one forward pass.

DINOv2 and SigLIP see every image; their tokens, projected to the language model's width, stand
between the prompt's BOS and its text; one token carries the robot's state; then come as many
zeroed placeholders as there are numbers in the chunk.  A Llama with *bidirectional* attention turns
the placeholders into hidden states and an L1 head turns those into actions, all at once (parallel
decoding, arXiv 2502.19645, section IV).

    pixels ─► vision_tokens ─► project = f_sem ─► [fusion] ─► action_hidden ─► head ─► (B, chunk, A) in [-1, 1]

`loading` makes it from the published folders; nothing about sizes is assumed, they are read from the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from policies.files.weight_files import read_tokenizer
from policies.openvla.checkpoint import OpenVLAOFTInfo
from policies.openvla.heads import ImageProjector, L1ActionHead, ProprioProjector
from policies.openvla.preprocessing import EMPTY_TOKEN, prompt, with_empty_token
from policies.openvla.vision import VisionTower
from policies.types import VegaError

PLACEHOLDER_ID, STOP_ID = 1, 2


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
        self._llama_config = llama.config
        self.head = head
        self.proprio_projector = proprio_projector
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

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own.  Raises VegaError unless the language model has an embedding for all it can give."""
        folder = Path(self.info.folder)
        tokenizer = read_tokenizer(folder)
        highest, rows = max(EMPTY_TOKEN, *tokenizer.get_vocab().values()), len(self.embed_tokens.weight)
        if tokenizer.token_to_id("<s>") is None or highest >= rows:
            raise VegaError(
                f"File '{folder / 'tokenizer.json'}' has no '<s>', or token {highest} where the language model knows "
                f"{rows}: copy the checkpoint's own again."
            )
        return tokenizer

    def encode_prompt(self, instruction: str) -> list[int]:
        """Token ids of the prompt, BOS first, with the checkpoint's own tokenizer."""
        ids = self.tokenizer.encode(prompt(instruction)).ids
        bos = self.tokenizer.token_to_id("<s>")
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
            mask = positions[None] < torch.tensor(lengths, device=self.device)[:, None]
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
        """Llama on (B, L, D), every token seeing every other; mask: (B, L), True at tokens, None without padding."""
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        rotary = self.rotary(embeddings, position_ids=positions)
        x = embeddings
        if mask is not None:
            # Every kernel wants another kind: one that is not its own is added to the scores or ignored, silently.
            mask = create_bidirectional_mask(self._llama_config, embeddings, mask)
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
    def check_attention(self) -> None:
        """Raise VegaError unless the first token sees the last one, and in a padded batch too, but no padding.

        A causal kernel gives plausible actions that succeed about four times in ten less (openvla-oft #135), and one
        that sees padding gives a prompt other actions beside a longer one than alone.
        """
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 8, self.language_dim, generator=generator).to(self.device, self.dtype)
        mask = torch.ones(2, 8, dtype=torch.bool, device=self.device)
        mask[1, 5:] = False
        if not torch.isfinite(self._trunk(x[:1], None)).all() or not self._hears(x[:1], None, 0, 0):
            raise self._unusable()  # a token that does not even hear itself: the same numbers whatever comes in
        if self._hears(x[:1], None, 0, 7) and self._hears(x, mask, 0, 7) and self._hears(x, mask, 1, 4):
            if not self._hears(x, mask, 1, 5):
                return
            raise VegaError(
                "The language model's attention kernel sees the padding of shorter prompts: choose attention 'sdpa' or "
                "'eager', or install the pinned transformers."
            )
        raise VegaError(
            "The language model's attention kernel is causal, OpenVLA-OFT needs a bidirectional one: choose attention "
            "'sdpa' or 'eager', or install the pinned transformers."
        )

    def _hears(self, x: torch.Tensor, mask: torch.Tensor | None, row: int, place: int) -> bool:
        """Whether the first token of `row` depends on the one at `place`."""
        changed = x.clone()
        changed[row, place] = -changed[row, place]
        first, other = self._trunk(x, mask)[row, 0], self._trunk(changed, mask)[row, 0]
        if not (torch.isfinite(first).all() and torch.isfinite(other).all()):
            raise self._unusable()
        return not torch.equal(first, other)

    def _unusable(self) -> VegaError:
        return VegaError(
            f"The language model of '{self.info.folder}' gives no usable numbers: download its weights again."
        )
