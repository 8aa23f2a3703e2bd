"""Which token comes next is decided as transformers decides it with the checkpoint's generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_reasoner import frame, make_plain, write_tiny_reasoner
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from policies.spatial.frames import crop_frame, to_patches
from policies.spatial.reasoner import ASSISTANT, SYSTEM, load_reasoner
from policies.types import VegaError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_reasoner(tmp_path / "checkpoint")


def set_generation(folder: Path, **values: object) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


SAMPLED = {"do_sample": True, "temperature": 1e-6, "top_k": 50, "top_p": 0.9}  # what greedy decoding sets aside


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"repetition_penalty": 1.05},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"repetition_penalty": 0.6, "no_repeat_ngram_size": 3},  # says again what it read, the image's pads foremost
        {"bad_words_ids": [[246], [120], [130, 131]], "suppress_tokens": [*range(60)], "min_new_tokens": 6},
        {"begin_suppress_tokens": [*range(1, 200, 2)], "min_length": 262, "eos_token_id": [246, *range(0, 240, 3)]},
    ],
)
def test_tokens_are_chosen_as_transformers_chooses_them(rules: dict[str, Any], folder: Path) -> None:
    make_plain(folder)
    set_generation(folder, **SAMPLED)
    unruly = load_reasoner(folder, dtype=torch.float32, pixels=None)
    set_generation(folder, **rules)
    reasoner = load_reasoner(folder, dtype=torch.float32, pixels=None)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    shown = frame(1)
    seen, patches = [reasoner.see(shown)], to_patches(crop_frame(shown), None)
    before = []
    for question in ("w5 w6 w7 ?", "w9 w8 w9 w8 w9", "w200 ?"):
        image = "<|vision_start|>" + "<|image_pad|>" * len(seen[0].tokens) + "<|vision_end|>"
        text = SYSTEM + image + question + ASSISTANT
        ids = torch.tensor([reasoner.tokenizer.encode(text, add_special_tokens=False).ids])
        expected = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=patches.values,
            image_grid_thw=torch.tensor([[1, *patches.grid]]),
            mm_token_type_ids=(ids == theirs.config.image_token_id).int(),
            do_sample=False,
            max_new_tokens=16,
        )[0, ids.shape[1] :].tolist()
        stops = rules.get("eos_token_id", [246])
        expected = expected[: next((i for i, token in enumerate(expected) if token in stops), 16)]
        assert reasoner.continue_ids(ids, seen, 16) == expected
        assert reasoner.answer(seen, question, 16).text == reasoner._decode(expected)
        before.append(unruly.continue_ids(ids, seen, 16) == expected)
    assert all(before) == (not rules)  # a rule that changes nothing here would test nothing


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"forced_eos_token_id": 0}, "forced_eos_token_id"),
        ({"forced_bos_token_id": 5}, "forced_bos_token_id"),
        ({"sequence_bias": [[[5], 2.0]]}, "sequence_bias"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"encoder_repetition_penalty": 1.2}, "encoder_repetition_penalty"),
        ({"something_new": 3, "_from_model_config": False}, "something_new"),
        ({"repetition_penalty": -1.0}, r"generation_config\.json.*penalty"),
        ({"repetition_penalty": "high"}, r"generation_config\.json.*penalty"),
        ({"bad_words_ids": [[100000]]}, r"generation_config\.json.*100000"),
        ({"no_repeat_ngram_size": 2.5}, r"generation_config\.json.*ngram"),
        ({"eos_token_id": "end"}, "eos_token_id"),
        ({"eos_token_id": [246, 3.5]}, "eos_token_id"),
    ],
)
def test_a_rule_that_is_not_kept_is_refused_by_name(rules: dict[str, object], sentence: str, folder: Path) -> None:
    set_generation(folder, **rules)
    with pytest.raises(VegaError, match=sentence) as caught:
        load_reasoner(folder, dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_touch_greedy_answers_are_left_aside(folder: Path) -> None:
    set_generation(folder, **SAMPLED, repetition_penalty=1.0, num_beams=4, max_length=20, use_cache=False)
    assert not load_reasoner(folder, dtype=torch.float32)._rules.of_prompt(5)


def test_a_damaged_generation_config_is_one_sentence(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(VegaError, match=r"generation_config\.json"):
        load_reasoner(folder, dtype=torch.float32)


def test_without_a_generation_config_the_text_models_own_config_says_what_ends_an_answer(folder: Path) -> None:
    """As transformers 5 writes it: the id stands in text_config alone."""
    make_plain(folder)
    (folder / "generation_config.json").unlink()
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    config.text_config.eos_token_id = 246
    config.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    written.pop("eos_token_id", None)
    assert written["text_config"]["eos_token_id"] == 246 and written["text_config"]["hidden_size"] < 100
    path.write_text(json.dumps(written))
    assert load_reasoner(folder, dtype=torch.float32, pixels=None)._rules.stops == {246}


def test_what_other_programs_note_there_is_no_rule(folder: Path) -> None:
    make_plain(folder)
    set_generation(folder, attn_implementation="sdpa", chat_format="chatml", max_window_size=6144)
    assert load_reasoner(folder, dtype=torch.float32, pixels=None)._rules.stops == {246}
