"""Qwen2.5-VL from a checkpoint's folder, and the token it says next: the likeliest that generation_config.json lets be.

Source of the rules: transformers' `generate(do_sample=False)`, whose processors of scores these are, in its order.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.generation import logits_process as transformers_rules

from policies.files.json_config import read_json
from policies.files.tensor_sources import TensorSource
from policies.files.weight_files import read_as
from policies.types import VegaError

GENERATION_CONFIG = "generation_config.json"
QWEN_SECTION = [16, 24, 24]  # mrope_section where a config has none
# Settings of generation_config.json that do not change which token is likeliest, or that whoever asks decides.
_WITHOUT_EFFECT = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "num_beams", "early_stopping", "length_penalty", "max_length", "max_new_tokens", "num_return_sequences",
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory",
    "compile_config", "disable_compile", "continuous_batching_config", "renormalize_logits",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind",
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id",
    "transformers_version", "_from_model_config",
    # Of other programs and older versions, seen in published files.
    "attn_implementation", "_attn_implementation", "chat_format", "max_window_size", "trust_remote_code",
    "return_legacy_cache",
}  # fmt: skip
_FOLLOWED = (
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "suppress_tokens",
    "begin_suppress_tokens",
)  # fmt: skip
_ONE_IS_NONE = ("repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "num_beam_groups")


class GreedyRules:
    """How a checkpoint chooses its next token.  stops: ids that end an answer."""

    def __init__(self, config: GenerationConfig, folder: Path, vocabulary: int, device: torch.device) -> None:
        """vocabulary: how many tokens have a score.  Raises VegaError that names a rule which is not kept here."""
        path = folder / GENERATION_CONFIG
        path = path if path.is_file() else folder / "config.json"
        stops = config.eos_token_id
        stops = [stops] if isinstance(stops, int) else stops or []
        if not isinstance(stops, list) or not all(type(stop) is int for stop in stops):
            raise VegaError(f"Setting 'eos_token_id' in '{path}' is {stops!r}: give an id, or a list of ids.")
        self.stops, self._device = set(stops), device
        rules = {name: value for name, value in config.to_dict().items() if _has_effect(name, value)}
        if unknown := sorted(set(rules) - set(_FOLLOWED)):
            raise VegaError(
                f"Setting '{unknown[0]}' in '{path}' changes answers, and this package does not follow it: remove it, "
                "or choose another checkpoint."
            )
        self._rules = rules
        try:
            # Some of what is wrong with them shows only when they are applied.
            self.of_prompt(1)(torch.zeros(1, 1, dtype=torch.long, device=device), torch.zeros(1, vocabulary).to(device))
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise VegaError(f"File '{path}' holds a rule that cannot be kept ({reason}): correct it.") from error

    def of_prompt(self, length: int) -> transformers_rules.LogitsProcessorList:
        """For an answer to a prompt of `length` tokens: ids read and said so far (1, L), scores (1, V) -> scores."""
        rules, device = self._rules, self._device
        stops: Any = torch.tensor(sorted(self.stops), device=device) if self.stops else None
        processors: list[Any] = []
        if (penalty := rules.get("repetition_penalty")) is not None:
            processors.append(transformers_rules.RepetitionPenaltyLogitsProcessor(penalty))
        if (size := rules.get("no_repeat_ngram_size")) is not None:
            processors.append(transformers_rules.NoRepeatNGramLogitsProcessor(size))
        if (words := rules.get("bad_words_ids")) is not None:
            processors.append(transformers_rules.NoBadWordsLogitsProcessor(words, stops))
        if (least := rules.get("min_length")) is not None and stops is not None:
            processors.append(transformers_rules.MinLengthLogitsProcessor(least, stops, device=device))
        if (least := rules.get("min_new_tokens")) is not None and stops is not None:
            kept = transformers_rules.MinNewTokensLengthLogitsProcessor(length, least, stops, device=device)
            processors.append(kept)
        if (never := rules.get("suppress_tokens")) is not None:
            processors.append(transformers_rules.SuppressTokensLogitsProcessor(never, device=device))
        if (not_first := rules.get("begin_suppress_tokens")) is not None:
            processors.append(transformers_rules.SuppressTokensAtBeginLogitsProcessor(not_first, length, device=device))
        return transformers_rules.LogitsProcessorList(processors)


def _has_effect(name: str, value: Any) -> bool:
    """Whether a setting may change which token is chosen."""
    if name in _WITHOUT_EFFECT or value is None or value is False or value in ([], {}, ""):
        return False
    return name.endswith("_id") or value != (1 if name in _ONE_IS_NONE else 0)


def newer_name(name: str) -> str:
    """A tensor of Qwen2.5-VL as transformers names it since 4.52; others' stay."""
    if name.startswith("visual."):
        return f"model.{name}"
    rest = name.removeprefix("model.")
    return name if rest == name or rest.startswith(("visual.", "language_model.")) else f"model.language_model.{rest}"


def load_qwen(
    folder: Path, stored: TensorSource, device: torch.device, dtype: torch.dtype
) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL, of whose tensors in `stored` those of the generative branch are none.  Raises VegaError."""
    config = _config(folder)
    rules = _generation_config(folder, config)
    names = [name for name in stored.names() if not name.startswith("generative_")]
    state = {name: read_as(stored, name, None, stored.shape(name), "cpu", dtype) for name in names}
    report = logging.getLogger("transformers")
    level = report.level
    report.setLevel(logging.ERROR)  # it would list what is surplus, which is told below
    try:
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # whatever a value of the wrong kind leads to inside
        reason = " ".join(str(error).split())[:200]
        raise VegaError(f"Qwen2.5-VL in '{folder}' cannot be loaded ({reason}): copy it again.") from error
    finally:
        report.setLevel(level)
    if info["missing_keys"] or info["unexpected_keys"]:
        name = min([*info["missing_keys"], *info["unexpected_keys"]])
        what = "lacks" if info["missing_keys"] else "holds, and no part of Qwen2.5-VL uses,"
        raise VegaError(f"The checkpoint '{folder}' {what} tensor '{name}': copy the whole folder again.")
    model.generation_config = rules
    return model.to(device).eval().requires_grad_(False)


def _generation_config(folder: Path, config: Qwen2_5_VLConfig) -> GenerationConfig:
    """generation_config.json, or, without one, what config.json says of it, as transformers reads them."""
    path = folder / GENERATION_CONFIG
    try:
        if not path.is_file():
            return GenerationConfig.from_model_config(config)  # what ends an answer may stand in its text_config
        return GenerationConfig.from_dict(read_json(path))
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VegaError(f"File '{path}' holds a rule that cannot be kept ({reason}): correct it.") from error


def _config(folder: Path) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's own settings, under the names of either age of transformers.

    Raises VegaError for rotary positions that share a head out as none of its size can.
    """
    path = folder / "config.json"
    try:
        config = Qwen2_5_VLConfig(**{k: v for k, v in read_json(path).items() if "generative" not in k})
    except VegaError:
        raise
    except Exception as error:  # whatever a value of the wrong kind leads to inside
        reason = " ".join(str(error).split())[:200]
        raise VegaError(f"Qwen2.5-VL in '{folder}' cannot be loaded ({reason}): copy it again.") from error
    text = config.get_text_config()
    section = text.rope_parameters.get("mrope_section", QWEN_SECTION)
    half = text.hidden_size // text.num_attention_heads // 2
    if not isinstance(section, list) or not all(type(n) is int and n > 0 for n in section) or sum(section) != half:
        raise VegaError(
            f"Setting 'mrope_section' in '{path}' is {section!r}: give a list of how many of {half} pairs turn with "
            "time, rows and columns."
        )
    return config
