"""Other wordings of an instruction: verbs, prepositions, articles and politeness change, the things named stay."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from policies.nano.vocabulary import FILLERS, words

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
BARE = 0.15  # share of the wordings that leave articles out
# Words for what sentences of demonstrations say with others; a teacher of language tells what each is like.
RELATED = """
bring fetch carry transfer relocate shift position deposit drop lay rest stow load insert retrieve collect choose select
find remove raise hold grasp close shut open pull push slide press rotate turn twist switch start ignite activate light
into inside within onto atop upon over beside near nearby adjacent by between behind front left right rear back centre
center middle top upper bottom lower topmost lowest first both two then and after door handle knob layer
"""
# After an article: how far a name reaches.  Colours joined by "and" belong to one thing.
_NAME = re.compile(
    r"\b(?:the|both|a|an)\s+((?:yellow and white\s)?\w+"
    r"(?:\s+(?!(?:and|on|in|into|inside|next|between|from|of|to|then|it|please)\b)\w+){0,3})"
)
_NO_NAMES = {"it", "front", "back", "left", "right", "task", "the"}


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
    if rng.random() < BARE:
        text = re.sub(r"\bthe ", "", text)
    return FRAMES[int(rng.integers(len(FRAMES)))].format(text)


def vocabulary(sentences: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(words, things) of a policy that learns from these sentences: all that it can be told, and what is named."""
    said = [sentence.lower() for sentence in sentences]
    options = [option for options in (*SYNONYMS.values(), FRAMES) for option in options]
    known = {word for text in (*said, *options, RELATED) for word in words(text)}
    names = {name for text in said for name in _NAME.findall(text) if name.split()[0] not in _NO_NAMES}
    return tuple(sorted(known)), tuple(sorted(name for name in names if not set(words(name)) <= FILLERS))
