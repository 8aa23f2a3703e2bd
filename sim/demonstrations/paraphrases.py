"""Other wordings of a LIBERO instruction: verbs, prepositions and politeness change, the things named stay."""

from __future__ import annotations

import re

import numpy as np

SYNONYMS = {
    r"^pick up": ("pick up", "take", "grab", "lift", "get"),
    r"\bplace it\b": ("place it", "put it", "set it down", "leave it"),
    r"^put both\b": ("put both", "place both", "move both"),
    r"^put\b": ("put", "place", "set", "move"),
    r"\band put\b": ("and put", "and place", "and set", "then put"),
    r"^open\b": ("open", "pull open"),
    r"\band close it\b": ("and close it", "and shut it", "then close it"),
    r"^push\b": ("push", "slide", "move"),
    r"^turn on\b": ("turn on", "switch on", "light"),
    r"\bon top of\b": ("on top of", "on"),
    r"\bin the\b": ("in the", "into the", "inside the"),
}
FRAMES = ("{}", "{}", "please {}", "{} please", "now {}", "your task : {}")


def paraphrase(sentence: str, rng: np.random.Generator) -> str:
    """A random wording; in half of the cases the sentence itself."""
    if rng.random() < 0.5:
        return sentence
    text = sentence
    for pattern, options in SYNONYMS.items():
        # "in the top drawer of the cabinet" says where the bowl is: only the last place is a destination.
        last = [match.start() for match in re.finditer(pattern, text)][-1:]
        for start in last:
            text = text[:start] + re.sub(pattern.lstrip("^"), str(rng.choice(options)), text[start:], count=1)
    return FRAMES[int(rng.integers(len(FRAMES)))].format(text)
