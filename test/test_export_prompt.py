"""The prompt's embedding is computed once, by the text encoder that a checkpoint brings, and kept beside it."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import tiny_checkpoints as tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import TEXT
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from policies.files import weight_files
from policies.types import VegaError
from policies.world_simulator.__main__ import main
from policies.world_simulator.simulator import LatentWorldSimulator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.wan_folder(tmp_path_factory.mktemp("wan") / "wan")


def test_export_prompt_runs_the_text_encoder_once(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "wan")
    (copy / "prompt_embedding.safetensors").unlink()
    with pytest.raises(VegaError, match="export-prompt"):
        LatentWorldSimulator.from_pretrained(copy)
    assert main(["export-prompt", str(copy)]) == 2 and "tokenizer" in capsys.readouterr().err

    torch.manual_seed(0)
    config = UMT5Config(vocab_size=16, d_model=TEXT, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    encoder = UMT5EncoderModel(config).eval()
    encoder.save_pretrained(copy / "text_encoder")
    words = Tokenizer(models.WordLevel({"</s>": 1, "<pad>": 0, "milk": 5}, unk_token="</s>"))
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(copy / "tokenizer")
    assert main(["export-prompt", str(copy)]) == 0 and "1 row" in capsys.readouterr().out
    embedding = load_file(copy / "prompt_embedding.safetensors")["prompt_embedding"]
    with torch.no_grad():
        expected = encoder.to(torch.bfloat16)(torch.tensor([[1]])).last_hidden_state[0].float()
    torch.testing.assert_close(embedding, expected, atol=1e-2, rtol=1e-2)
    frame = torch.zeros(1, 1, 40, 40, 3, dtype=torch.uint8)
    load = partial(LatentWorldSimulator.from_pretrained, canvas=(64, 64), grid=(4, 4))
    assert load(copy)(frame).shape == load(folder)(frame).shape == (1, 16, 48)
    assert main(["export-prompt", str(copy), "--prompt", "milk", "--output", str(tmp_path / "milk.safetensors")]) == 0
    assert load_file(tmp_path / "milk.safetensors")["prompt_embedding"].shape == (2, TEXT)


def test_export_prompt_says_what_is_wrong(folder, tmp_path, monkeypatch, capsys):
    def complaint(*arguments):
        assert main(["export-prompt", *arguments]) == 2
        return capsys.readouterr().err

    assert "no checkpoint folder" in complaint(str(tmp_path / "nowhere"))
    copy = shutil.copytree(folder, tmp_path / "wan")
    (copy / "tokenizer").mkdir()
    assert "'text_encoder/'" in complaint(str(copy))
    (copy / "text_encoder").mkdir()
    assert "holds no *.safetensors" in complaint(str(copy))
    assert "cannot be written" in complaint(str(copy), "--output", str(tmp_path / "nowhere" / "prompt.safetensors"))
    save_file(
        {"shared.weight": torch.zeros(1000, 1000, dtype=torch.float32)}, copy / "text_encoder" / "model.safetensors"
    )
    assert "does not load" in complaint(str(copy))
    monkeypatch.setattr(weight_files, "available_bytes", lambda device: 1_000_000)
    assert "needs 0.0 GB on cpu but 0.0 GB are free" in complaint(str(copy))
