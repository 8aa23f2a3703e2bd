"""What things are called: the nouns that a checkpoint was shown, and a refusal by name of all others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from policies.nano import vocabulary
from policies.types import VegaError

ARTICLES = frozenset(["a", "an", "the", "this", "that", "these", "those", "my", "your", "our", "all", "any", "of"])


def words(text: str) -> list[str]:
    """Lower-case words without articles."""
    return [word for word in vocabulary.words(text) if word not in ARTICLES]


def singular(word: str) -> str:
    """Such as box, mug, loaf."""
    if word.endswith(("xes", "ses", "shes", "ches")):
        return word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


class Nouns:
    """The categories of a checkpoint, by their numbers, and the words that they are made of, 0 being padding."""

    def __init__(self, things: Sequence[str]) -> None:
        self.things = tuple(things)
        self._words = {thing: words(thing) for thing in self.things}
        self.word_ids = {w: i for i, w in enumerate(sorted({w for said in self._words.values() for w in said}), 1)}

    def __len__(self) -> int:
        """Words, padding too."""
        return len(self.word_ids) + 1

    def ids(self) -> Tensor:
        """(things, longest) of all categories."""
        longest = max(map(len, self._words.values()))
        rows = [[self.word_ids[word] for word in said] for said in self._words.values()]
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])

    @cached_property
    def _forms(self) -> dict[str, set[str]]:
        """Word as it may be said -> words of categories."""
        found: dict[str, set[str]] = {}
        for word in self.word_ids:
            for form in (word, singular(word)):
                found.setdefault(form, set()).add(word)
        return found

    def find(self, phrase: str) -> int:
        """The category that a phrase means, such as 2 for "the milk" where there is one with that word.

        Raises VegaError that names what is unknown, or what the phrase could mean.
        """
        said = words(phrase)
        known = [self._forms.get(word, set()) | self._forms.get(singular(word), set()) for word in said]
        unknown = [word for word, found in zip(said, known, strict=True) if not found]
        if unknown or not said:
            raise VegaError(
                f"'{' '.join(said) or phrase.strip()}' is nothing that this model was shown: ask about "
                f"{', '.join(self.things)}."
            )
        fits = [i for i, t in enumerate(self.things) if all(found.intersection(self._words[t]) for found in known)]
        whole = [i for i in fits if len(self._words[self.things[i]]) == len(said)]
        if len(whole) == 1:
            return whole[0]
        if len(fits) != 1:
            meant = fits or [
                i for i, t in enumerate(self.things) if any(found.intersection(self._words[t]) for found in known)
            ]
            names = " or ".join(f"'{self.things[i]}'" for i in meant)
            raise VegaError(f"'{' '.join(said)}' is not clear: say {names}.")
        return fits[0]
