"""The prompt's embedding: exported once from Wan's text encoder (UMT5-XXL, 11 GB), read ever after.

VEGA-3D conditions on the empty prompt, whose embedding is a single row; the transformer pads it.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from policies.files.paths import refuse_pointer
from policies.files.tensor_sources import SafetensorsSource, check_numbers, stored_count
from policies.files.weight_files import check_free, resolve_folder, write_tensors
from policies.types import VegaError

PROMPT_FILE = "prompt_embedding.safetensors"
PROMPT_ROWS = 512  # Wan pads every prompt to this length with zeros and attends to the padding too


def save_prompt(embedding: torch.Tensor, path: Path) -> None:
    """Write a prompt embedding (n, text width)."""
    write_tensors({"prompt_embedding": embedding}, path)


def read_prompt(folder: Path, given: torch.Tensor | str | os.PathLike[str] | None = None) -> torch.Tensor:
    """A prompt embedding (n, text width): `given` itself, the file it names, or the one in a Wan folder."""
    if isinstance(given, torch.Tensor):
        return given
    path = folder / PROMPT_FILE if given is None else Path(given)
    if not path.is_file():
        raise VegaError(
            f"File '{path}' with the prompt's embedding is missing: make it once with "
            f"`python -m policies.world_simulator export-prompt {folder}`."
        )
    try:
        prompt = load_file(path)["prompt_embedding"]
    except (SafetensorError, KeyError, OSError) as error:
        refuse_pointer(path)
        raise VegaError(
            f"File '{path}' holds no 'prompt_embedding' ({type(error).__name__}): make it again with "
            f"`python -m policies.world_simulator export-prompt {folder}`."
        ) from None
    check_numbers({"prompt_embedding": prompt}, path)
    return prompt


def export_prompt(path_or_id: str | os.PathLike[str], text: str = "", output: Path | None = None) -> tuple[Path, int]:
    """Run the text encoder of a diffusers Wan folder on `text` and write the embedding's rows before the padding.

    Returns the file written (`output`, or one in the folder) and its number of rows.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    folder = resolve_folder(path_or_id, ("text_encoder/*", "tokenizer/*"))
    for part in ("tokenizer", "text_encoder"):
        if not (folder / part).is_dir():
            raise VegaError(f"Folder '{folder}' has no '{part}/': give a complete Wan folder in diffusers layout.")
    path = output or folder / PROMPT_FILE
    if not os.access(path.parent, os.W_OK):
        raise VegaError(f"File '{path}' cannot be written: name another with --output.")
    weights = SafetensorsSource(folder / "text_encoder")
    needed = stored_count(weights, weights.names()) * torch.bfloat16.itemsize
    check_free(needed, torch.device("cpu"), f"The text encoder in '{folder}'")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16).eval()
    except Exception as error:  # the tokenizers library raises nothing narrower
        reason = str(error).split("\n")[0]
        raise VegaError(f"The text encoder in '{folder}' does not load ({reason}): download it again.") from error
    tokens = tokenizer(text, add_special_tokens=True, return_tensors="pt")
    if tokens.input_ids.shape[1] > PROMPT_ROWS:
        raise VegaError(f"The prompt has {tokens.input_ids.shape[1]} tokens: shorten it to at most {PROMPT_ROWS}.")
    with torch.no_grad():
        embedding = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0].float()
    save_prompt(embedding, path)
    return path, len(embedding)
