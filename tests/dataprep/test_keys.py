"""Texts that read the same have one key, and those that do not have two."""

import pytest

from rlhf_core.dataprep.keys import (
    conversation_key,
    dialogue_key,
    normalise,
    prompt_keys,
    response_key,
    response_keys,
)
from rlhf_core.schema import Message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café", "Cafe\u0301"),
        ("\uff12\uff0b\uff12\u3000\uff21", "2+2 a"),
        ("\uff76\uff9e\uff72\uff84\uff9e", "\u30ac\u30a4\u30c9"),
        ("a\u00a0 b\n", "A b"),
    ],
)
def test_form_width_case_and_white_space_are_folded(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize("space", [*" \t\n\r\v\f\x1c\x1d\x1e\x1f\u00a0\u2003", "  ", " \n"])
@pytest.mark.parametrize("around", ["{0}a b", "a{0}b", "a b{0}", "{0}", "é {0}b", ""])
def test_white_space_is_that_of_words(space, around):
    text = around.format(space)
    assert normalise(text) == " ".join(text.split())


@pytest.mark.parametrize(("one", "other"), [("2²?", "22?"), ("1½", "11\u20442"), ("①", "1")])
def test_what_a_reader_sees_is_not_folded(one, other):
    assert response_key(one) != response_key(other)


def test_two_responses_are_told_apart_by_what_differs():
    assert response_keys("Yes", "no") == (response_key("yes "), response_key("No"))
    first, second = response_keys("Paris", "paris")
    assert first != second
    assert response_keys("paris\n", " Paris") == (second, first)


ASKED = (("user", "When does it open?"),)
ANSWERED = (*ASKED, ("assistant", "At nine."), ("user", "And on Sunday?"))


def chat(*turns):
    return tuple(Message(role=role, content=content) for role, content in turns)


@pytest.mark.parametrize(
    "other",
    [
        ANSWERED,
        (*ASKED, ("assistant", "At ten."), ("user", "Why?")),
        (*ASKED, ("system", "Be brief."), ("user", "Please.")),
        (("assistant", "Good morning!"), *ASKED),
        (("system", "Be brief."), *ASKED),
        (("developer", "Today is the 3rd of May."), *ANSWERED),
        (("user", " when DOES it\nopen? "), *ANSWERED[1:]),
    ],
)
def test_a_dialogue_is_known_by_how_it_opens(other):
    assert dialogue_key(chat(*other)) == dialogue_key(chat(*ASKED))


def test_another_first_turn_is_another_dialogue():
    other = (("user", "When does it close?"), *ANSWERED[1:])
    assert dialogue_key(chat(*other)) != dialogue_key(chat(*ASKED))


def test_where_nobody_asks_the_system_message_is_the_dialogue():
    keys = {dialogue_key(chat(("system", text))) for text in ("Be brief.", "Be kind.")}
    assert len(keys) == 2


@pytest.mark.parametrize("turns", [ASKED, ANSWERED, (("system", "Be brief."), *ANSWERED), ()])
def test_both_keys_of_a_prompt_are_those_it_has_one_by_one(turns):
    prompt = chat(*turns)
    assert prompt_keys(prompt) == (conversation_key(prompt), dialogue_key(prompt))


def test_a_prompt_of_one_turn_is_its_own_dialogue():
    prompt, dialogue = prompt_keys(chat(*ASKED))
    assert prompt == dialogue
