"""What is asked: the kinds of question that the model answers, as VSI-Bench words them and as people do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from policies.types import VegaError

KINDS = (
    "how far one thing is from another", "what is nearest to a thing", "how large or how tall a thing is",
    "how many of a kind there are", "how large the table is", "what is left or right of a thing, in front of it or "
    "behind it", "where a thing is for who stands at a second and faces a third", "in which order things were seen",
    "which way to turn on a route",
)  # fmt: skip
SIDES = ("left", "right", "in front", "behind")


@dataclass(frozen=True)
class Asked:
    """kind: a name below.  nouns: as they were said, in the order in which the kind needs them.

    options: of a choice, without their letters.  detail: of the kind, such as the side that is asked for.
    """

    kind: str
    nouns: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    detail: str = ""


def read(prompt: str) -> Asked:
    """A question, or a benchmark's prompt with its options.  Raises VegaError that lists what can be answered."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    options: tuple[str, ...] = ()
    if "Options:" in lines:
        at = lines.index("Options:")
        found = [re.fullmatch(r"[A-Z]\.\s*(.+)", line) for line in lines[at + 1 :]]
        options = tuple(match[1] for match in found if match)
        lines = lines[:at]
    text = " ".join(line for line in lines if not line.startswith(("These are frames", "Please answer"))).strip()
    text = re.sub(r"\b(what|which|where)['\u2019]s\b", r"\1 is", text, flags=re.IGNORECASE)
    for pattern, make in _PATTERNS:
        if match := re.search(pattern, text, re.IGNORECASE):
            return make(match, options)
    raise VegaError(f"'{_short(text)}' is no question that this model answers: ask {', '.join(KINDS[:-1])}, "
                    f"or {KINDS[-1]}.")  # fmt: skip


def read_expression(prompt: str) -> tuple[str, bool, str, str]:
    """What a description means: noun, whether all of them, "" or "closest" or "farthest", the noun it is told from."""
    text = prompt.strip().splitlines()[-1].strip().rstrip(".") if prompt.strip() else ""
    text = re.sub(r"^(this is|it is|show me|find|point at|point to|where is|where are)\s+", "", text, flags=re.I)
    if match := re.fullmatch(r"all (?:the |of the )?(.+?)(?: in (?:the|this) scene)?\??", text, re.IGNORECASE):
        return match[1], True, "", ""
    pattern = r"(.+?)(?: that is| which is)? (closest|nearest|farthest|furthest) (?:to|from) (.+?)\??"
    if match := re.fullmatch(pattern, text, re.IGNORECASE):
        return match[1], False, "closest" if match[2].lower() in ("closest", "nearest") else "farthest", match[3]
    return text.rstrip("?"), False, "", ""


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nouns(kind: str, *groups: int) -> Callable[[re.Match[str], tuple[str, ...]], Asked]:
    return lambda match, options: Asked(kind, tuple(match[group] for group in groups), options)


def _size(match: re.Match[str], options: tuple[str, ...]) -> Asked:
    return Asked("size", (match[2],), options, "height" if match[1].lower() in ("tall", "high") else "")


def _listed(kind: str, things: int, *others: int) -> Callable[[re.Match[str], tuple[str, ...]], Asked]:
    """Nouns of `others`, then those of a list with commas."""

    def make(match: re.Match[str], options: tuple[str, ...]) -> Asked:
        every = re.split(r",\s*(?:and\s+|or\s+)?|\s+and\s+|\s+or\s+", match[things])
        return Asked(kind, (*(match[i] for i in others), *(name for name in every if name.strip())), options)

    return make


def _facing(match: re.Match[str], options: tuple[str, ...]) -> Asked:
    """Such as "to my left, right, or back"."""
    rest = match[4].lower() if match[4] else ""
    level = "hard" if "front-left" in rest or "quadrant" in rest else "medium" if "back" in rest else "easy"
    return Asked("direction", (match[1], match[2], match[3]), options, level)


def _where_facing(match: re.Match[str], options: tuple[str, ...]) -> Asked:
    return Asked("direction", (match[1], match[2], match[3]), options, "hard")


def _side(word: str) -> str:
    word = word.lower()
    return next((side for side in SIDES if side.split()[-1] in word), "behind")


def _beside(match: re.Match[str], options: tuple[str, ...]) -> Asked:
    return Asked("beside", (match[2],), options, _side(match[1]))


def _is_beside(match: re.Match[str], options: tuple[str, ...]) -> Asked:
    return Asked("is_beside", (match[1], match[3]), options, _side(match[2]))


def _route(match: re.Match[str], options: tuple[str, ...]) -> Asked:
    stops = re.findall(r"Go forward until the ([^.]+)\.", match[0], re.IGNORECASE)
    return Asked("route", (match[1], *stops), options)


_NOUN = r"([a-z0-9][a-z0-9' -]{0,40}?)"  # bounded: a long text must not be tried in every way
_END = r"(?:\s*\?|\s*\(|\s*$|\s*,)"
_SIDE = r"((?:to the |on the )?(?:left|right)(?: side)?(?: hand side)?|in front|behind|at the back)(?: of)?"
_PATTERNS: tuple[tuple[str, Callable[[re.Match[str], tuple[str, ...]], Asked]], ...] = (
    (rf"beginning at {_NOUN} facing {_NOUN}\. .*", _route),
    (rf"(?:i am|i'm|i) stand(?:ing)? (?:by|at|near|next to|beside) {_NOUN},? and (?:i am |i'm )?fac(?:e|ing) {_NOUN},"
     rf" is {_NOUN} (?=to (?:the|my) )(.*)", _facing),
    (rf"(?:i am|i'm|i) stand(?:ing)? (?:by|at|near|next to|beside) {_NOUN},? and (?:i am |i'm )?fac(?:e|ing) {_NOUN},?"
     rf" where is {_NOUN}{_END}", _where_facing),
    (r"order of (?:the following )?(?:categories|things|objects)(?: in the (?:video|film))?: (.+?)\s*\?",
     _listed("order", 1)),
    (r"(?:which|what) (?:did you see|was seen|came|appeared) first[,:]? (.+?)\s*\?", _listed("order", 1)),
    (rf"which of (?:these|the) (?:objects|things) \(([^)]+)\) is (?:the )?(?:closest|nearest) to {_NOUN}{_END}",
     _listed("nearest", 1, 2)),
    (rf"(?:what|which)(?: \w+)? is (?:the )?(?:closest|nearest|next) to {_NOUN}{_END}", _nouns("nearest", 1)),
    (r"size of the (?:table|surface)|how (?:big|large) is the (?:table|surface)", lambda _, o: Asked("table", (), o)),
    (rf"distance (?:between|from) {_NOUN} (?:and|to) {_NOUN}{_END}", _nouns("distance", 1, 2)),
    (rf"how (?:far|close|near)(?: away| apart)? (?:is|are) {_NOUN} (?:away )?(?:from|to|and) {_NOUN}(?: apart)?{_END}",
     _nouns("distance", 1, 2)),
    (rf"longest (dimension|side)[^?]*? of {_NOUN}(?:, measured|{_END})", _size),
    (rf"how (big|large|long|wide|tall|high) is {_NOUN}{_END}", _size),
    (rf"how many {_NOUN}(?: (?:are|do|can|stand|lie)\b[^?]*)?{_END}", _nouns("count", 1)),
    (rf"(?:what|which)(?: \w+)?(?: things| objects)? (?:is|are|stands|lies) {_SIDE} {_NOUN}{_END}", _beside),
    (rf"is {_NOUN} {_SIDE} {_NOUN}{_END}", _is_beside),
)  # fmt: skip
