"""Makes tokenizer.json and prompts.json:  pip install sentencepiece; python make_prompts.py

A sentencepiece model with Llama's own settings (BPE, byte fallback, dummy prefix, its special tokens), trained on the
sentences below; ids are sentencepiece's, with the token that OpenVLA-OFT's reference puts behind them; tokenizer.json
is what transformers makes of the same model.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer

HERE = Path(__file__).parent
EMPTY_TOKEN = 29871
TRAINING = (
    "In: What action should the robot take to pick up the milk and place it in the basket?\nOut:",
    "In: What action should the robot take to open the top drawer and put the bowl inside?\nOut:",
    "In: What action should the robot take to turn on the stove and put the moka pot on it?\nOut:",
    "In: What action should the robot take to push the plate to the front of the stove?\nOut:",
    "In: What action should the robot take to put both the alphabet soup and the tomato sauce in the basket?\nOut:",
)
INSTRUCTIONS = (
    "pick up the milk and place it in the basket",
    "Turn ON the stove, and put the moka pot on it",
    "put the  crème brûlée left of the plate",
    "stack 12 blocks; then stop!",
    "ok",
)


def main() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING * 50), model_writer=model, vocab_size=360, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.99995, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = {}
    for instruction in INSTRUCTIONS:
        text = f"In: What action should the robot take to {instruction.lower()}?\nOut:"
        ids[instruction] = [own.bos_id(), *own.encode(text), EMPTY_TOKEN]
    (HERE / "prompts.json").write_text(json.dumps(ids, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(model.getvalue())
        converted = LlamaTokenizer.from_pretrained(folder, legacy=True)
        converted.save_pretrained(folder)
        (HERE / "tokenizer.json").write_bytes((Path(folder) / "tokenizer.json").read_bytes())
    for instruction in INSTRUCTIONS:
        print(ids[instruction])


if __name__ == "__main__":
    main()
