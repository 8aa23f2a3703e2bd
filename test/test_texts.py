"""What people write: in any script, pasted from anywhere.  It is obeyed as it reads, or refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("text", ["the\nmilk\u202e ladder", "the\ncat\u202e"])
def test_what_is_refused_is_told_in_one_line_of_visible_letters(text: str) -> None:
    with pytest.raises(VegaError, match=r"^The instruction 'the [a-z ]+' names") as caught:
        VOCABULARY.encode(text)
    assert str(caught.value).isprintable()


NOUNS = """
anomaly assembly belly blackfly bully butterfly cicely doily dolly dragonfly family filly firefly fly folly gadfly
grizzly gully holly homily housefly italy jelly july kelly lily lolly mayfly melancholy monopoly panoply polly potbelly
quarterly rally reply sally sawfly sicily supply tally telly trolly underbelly waterlily weekly whitefly
"""
# They change what is asked for.
ADVERBS = "hardly barely nearly partly partially slightly differently oppositely vertically leftwardly never"


@given(st.sampled_from(NOUNS.split()))
def test_a_noun_in_ly_is_refused_by_name_as_any_other(noun: str) -> None:
    for text in (f"pick up the milk {noun}", f"put the {noun} on the milk"):
        with pytest.raises(VegaError, match=f"'{noun}', which this policy does not know"):
            VOCABULARY.encode(text)


def test_how_something_is_done_is_said_freely_as_long_as_it_changes_nothing() -> None:
    said = "please, kindly, slowly and carefully, gently, precisely: finally place the milk directly and softly"
    assert VOCABULARY.encode(said) == VOCABULARY.encode("the milk")
    for word in ADVERBS.split():
        with pytest.raises(VegaError, match=f"'{word}', which this policy does not know"):
            VOCABULARY.encode(f"{word} lift the milk")
    jelly = Vocabulary(("jelly", "the"), ("jelly",))
    assert jelly.encode("gently take the jelly") == [2, 1]


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
