"""From a sentence to word ids: a bag of the words a checkpoint knows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from policies.types import VegaError, check_instruction


def words(text: str) -> list[str]:
    """Lower-case words of a sentence."""
    return re.findall(r"[a-z0-9]+", text.lower())


class Vocabulary:
    """The words of a checkpoint, id 0 being padding, and those among them that name things.

    Words it does not know are left out; a sentence that names no known thing is refused, since the policy could only
    guess what to take.
    """

    def __init__(self, known: Sequence[str], things: Sequence[str]) -> None:
        self.known, self.things = tuple(known), tuple(things)
        self._ids = {word: i for i, word in enumerate(self.known, 1)}
        self._thing_words = {word for thing in self.things for word in words(thing)}

    def __len__(self) -> int:
        return len(self.known) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of the known words, in order.  Raises VegaError on an empty, endless or unanswerable instruction."""
        found = [word for word in words(check_instruction(text)) if word in self._ids]
        if not self._thing_words.intersection(found):
            raise VegaError(
                f"The instruction '{text.strip()}' names nothing that this policy knows: use one of "
                f"{', '.join(self.things)}."
            )
        return [self._ids[word] for word in found]
