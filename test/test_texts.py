"""What people write: in any script, pasted from anywhere.  It is obeyed as it reads, or refused by name."""

from __future__ import annotations

import pytest

from policies.nano.vocabulary import Vocabulary
from policies.spatial.nano.nouns import Nouns
from policies.types import VegaError, check_instruction, check_question

VOCABULARY = Vocabulary(("cafe", "milk", "the"), ("milk", "cafe"))


@pytest.mark.parametrize(
    ("text", "unknown"),
    [("не бери milk", "не"), ("не milk", "не"), ("把 milk 放下", "把"), ("m\u0456lk the milk", "m\u0456lk")],
)
def test_words_of_another_script_are_read_and_refused_beside_a_known_one(text: str, unknown: str) -> None:
    with pytest.raises(VegaError, match=f"'{unknown}', which this policy does not know"):
        VOCABULARY.encode(text)
    with pytest.raises(VegaError, match="nothing that this model was shown"):
        Nouns(("milk", "cafe")).find(text)


@pytest.mark.parametrize(
    "text",
    ["The MILK", "the mílk", "the \uff4d\uff49\uff4c\uff4b", "the mi\u00adlk\u200b", "the_milk", "\ufeffthe milk"],
)
def test_case_accents_and_what_nobody_sees_change_no_word(text: str) -> None:
    assert VOCABULARY.encode(text) == VOCABULARY.encode("the milk")


def test_a_text_is_one_line_of_what_can_be_read() -> None:
    assert check_instruction(" pick\tup\n the\u00a0milk\u200b\u202e\r\n") == "pick up the milk"
    assert check_question("how far?\nOptions:\nA. 1\u200b") == "how far?\nOptions:\nA. 1", "its lines are kept"
    for check, what in ((check_instruction, "instruction"), (check_question, "question")):
        with pytest.raises(VegaError, match=rf"The {what} has the control character U\+001B in it: .*\.$"):
            check("pick up \x1b[31mthe milk")
        with pytest.raises(VegaError, match="empty"):
            check("\u200b \ufeff")
