"""Many wordings for "put that thing into the basket", for training."""

from __future__ import annotations

import numpy as np

NAMES = {
    "alphabet_soup": ("alphabet soup", "can of alphabet soup", "alphabet soup can"),
    "cream_cheese": ("cream cheese", "box of cream cheese", "cream cheese box"),
    "salad_dressing": ("salad dressing", "bottle of salad dressing", "salad dressing bottle"),
    "bbq_sauce": ("bbq sauce", "barbecue sauce", "bottle of bbq sauce", "bbq sauce bottle"),
    "ketchup": ("ketchup", "bottle of ketchup", "ketchup bottle"),
    "tomato_sauce": ("tomato sauce", "can of tomato sauce", "tomato sauce can"),
    "butter": ("butter", "box of butter", "butter box"),
    "milk": ("milk", "carton of milk", "milk carton"),
    "chocolate_pudding": ("chocolate pudding", "box of chocolate pudding", "chocolate pudding box"),
    "orange_juice": ("orange juice", "carton of orange juice", "orange juice carton"),
}
TAKE = ("pick up", "take", "lift", "get", "fetch", "choose", "find")
PUT = ("place it", "put it", "drop it", "set it down", "leave it", "deposit it")
INTO = ("in", "into", "inside")
TEMPLATES = (
    "{take} {the} {thing} and {put} {into} {the} basket",
    "{put1} {the} {thing} {into} {the} basket",
    "{the} {thing} goes {into} {the} basket",
    "please {put1} {the} {thing} {into} {the} basket",
    "{take} {the} {thing} for {the} basket",
    "i want {the} {thing} {into} {the} basket",
    "basket : {thing}",
)


def libero_sentence(target: str) -> str:
    """LIBERO's own wording for a thing such as `bbq_sauce`."""
    return f"pick up the {target.replace('_', ' ')} and place it in the basket"


def instruction(target: str, rng: np.random.Generator) -> str:
    """A random wording; in half of the cases LIBERO's own."""
    if rng.random() < 0.5:
        return libero_sentence(target)

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    the = pick(("the", "the", "that", ""))
    put = pick(PUT)
    text = pick(TEMPLATES).format(
        take=pick(TAKE), put=put, put1=put.split()[0], into=pick(INTO), the=the, thing=pick(NAMES[target])
    )
    return " ".join(text.split())


def vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(words, things): every word a wording can contain, and the ten things."""
    from policies.nano.vocabulary import words

    sources = [*TEMPLATES, *TAKE, *PUT, *INTO, *(n for names in NAMES.values() for n in names), "the that it"]
    known = sorted(
        {w for s in sources for w in words(s)} - {"take", "put", "put1", "into", "the", "thing"}
        | {"take", "put", "into", "the"}
    )
    return tuple(known), tuple(target.replace("_", " ") for target in NAMES)
