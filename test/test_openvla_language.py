"""What OpenVLA-OFT's tokenizer and language model are told by a checkpoint's files, as transformers reads them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from policies.openvla.loading import load_openvla_oft
from policies.openvla.preprocessing import EMPTY_TOKEN, prompt
from policies.types import VegaError

GOLDEN = Path(__file__).parent / "golden" / "openvla_oft_tiny"


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden checkpoint that a test may change."""
    ignored = shutil.ignore_patterns("*.npz", "state_dict_shapes.json")
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint", ignore=ignored))


def test_prompt_is_tokenised_as_in_training(folder):
    vocabulary = {"<s>": 1, "<unk>": 0, "In:": 7, "milk?": 8, "Out:": 9}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = load_openvla_oft(folder).encode_prompt("Pick up the MILK")
    assert ids[:2] == [1, 7] and ids[-3:] == [8, 9, EMPTY_TOKEN]


@pytest.mark.parametrize(("padding", "length"), [("max_length", 40), (False, 3)])
def test_padding_and_truncation_stored_with_the_tokenizer_are_not_obeyed(padding, length, folder):
    vocabulary = {"<s>": 1, "<unk>": 0, "In:": 7, "milk?": 8, "Out:": 9}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")
    theirs("milk?", padding=padding, truncation=True, max_length=length)
    theirs.save_pretrained(folder)
    saved = json.loads((folder / "tokenizer.json").read_text())
    assert saved["truncation"] is not None and (saved["padding"] is not None) == bool(padding)
    words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))(prompt("pick up the milk")).input_ids
    ids = load_openvla_oft(folder).encode_prompt("pick up the milk")
    assert ids == [1, *words, EMPTY_TOKEN] and len(words) > 3


def test_missing_tokenizer_is_named(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(VegaError, match=r"tokenizer\.json"):
        load_openvla_oft(folder, dtype=torch.float32).encode_prompt("pick up the milk")


def rewrite_text_config(folder, changes, removed=("rope_theta", "rope_scaling")):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {k: v for k, v in config["text_config"].items() if k not in removed} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return config["text_config"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 100.0, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_scaling": {"type": "default"}, "rope_theta": 5e5},
    ],
)
def test_rotary_positions_are_those_of_transformers_whichever_way_they_are_written(changes, folder):
    text = rewrite_text_config(folder, changes)
    theirs = LlamaModel(LlamaConfig(**(text | {"num_hidden_layers": 1}))).rotary_emb
    assert torch.equal(load_openvla_oft(folder, dtype=torch.float32).rotary.inv_freq, theirs.inv_freq)
    written_anew = rewrite_text_config(folder, LlamaConfig(**text).to_dict(), removed=(*text, "rope_theta"))
    assert "rope_parameters" in written_anew and "rope_theta" not in written_anew
    assert torch.equal(load_openvla_oft(folder, dtype=torch.float32).rotary.inv_freq, theirs.inv_freq)


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}, "scales its rotary positions"),
        ({"type": "linear", "factor": 4.0}, "scales its rotary positions"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "scales its rotary positions"),
        ({"full_attention": {"rope_type": "default", "rope_theta": 5e5}}, "scales its rotary positions"),
        ({"rope_type": "default", "rope_theta": "5e5"}, "rope_theta.*'5e5'"),
        ({"rope_type": "default", "rope_theta": 0}, "rope_theta.*0"),
        ([4.0], "scales its rotary positions"),
    ],
)
def test_other_rotary_positions_are_refused_under_both_names(name, value, sentence, folder):
    rewrite_text_config(folder, {name: value})
    with pytest.raises(VegaError, match=sentence):
        load_openvla_oft(folder)
