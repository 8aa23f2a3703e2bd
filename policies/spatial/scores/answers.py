"""Short answers (SQA3D, ScanQA) and captions (Scan2Cap): exact match, CIDEr, BLEU, ROUGE-L.

Sources: `llava/eval/eval_sqa3d.py`, `eval_scanqa.py`, `eval_scan2cap.py` of VEGA-3D's branch main (9c96924).  METEOR is
left out: its reference implementation is a Java program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

# What SQA3D's own clean-up takes for a slip of the pen, in its order.
SLIPS = {
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
}
# fmt: off
UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
# fmt: on
WORDS = {"none": "zero", **{str(number): word for number, word in enumerate(UNITS)}, "23": "twenty-three"}


def clean(answer: str) -> str:
    """An answer as SQA3D compares it."""
    text = re.sub(" {2,}", " ", answer.lower().strip(" "))
    text = re.sub(r"[^a-zA-Z0-9,'\s\-:]+", "", text)
    for slip, meant in SLIPS.items():
        text = re.sub(rf"\b{slip}\b", meant, text)
    text = re.sub(r"\bo' +clock\b", "o'clock", text)
    for figure, word in WORDS.items():
        text = re.sub(rf"\b{figure}\b", word, text)
    text = re.sub(r"\b([a-zA-Z]+)[0-9]\b", r"\1", text)
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article}\b ([a-zA-Z]+)", r"\1", text)
    return re.sub(r"\bbackwards\b", "backward", text)


def sqa3d_match(answer: str, truth: str) -> bool:
    """Exact match after the clean-up of both."""
    return clean(answer) == clean(truth)


def scanqa_match(answer: str, answers: Sequence[str]) -> bool:
    """Exact match with one of the answers, as it is: a final dot breaks it."""
    return answer in answers


def scanqa_text(answer: str) -> str:
    """An answer as ScanQA's caption metrics see it."""
    return answer.rstrip(".")


def scan2cap_text(caption: str) -> str:
    """A caption as Scan2Cap's metrics see it."""
    spaced = caption.replace(".", " . ").replace(",", " , ").lower()
    return f"sos {spaced} eos"


def caption_scores(predicted: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Per cent of CIDEr (1 number), BLEU-1 to -4 (4) and ROUGE-L (1) over all captions.

    predicted, references: by the same keys, already in the form that the benchmark compares.
    """
    ours = {key: [text] for key, text in predicted.items()}
    theirs = {key: list(references[key]) for key in ours}
    cider, _ = Cider().compute_score(theirs, ours)
    bleu, _ = Bleu(4).compute_score(theirs, ours, verbose=0)
    rouge, _ = Rouge().compute_score(theirs, ours)
    return {
        "cider": [100 * float(cider)],
        "bleu": [100 * float(value) for value in bleu],
        "rouge": [100 * float(rouge)],
    }
