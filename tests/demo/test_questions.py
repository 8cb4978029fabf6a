"""The asking half of the grammar, and reading it back."""

import random

import pytest

from rlhf_core.demo.questions import HELDOUT_STYLES, STYLE_WEIGHTS, ask
from rlhf_core.demo.reading import Intent, edit_distance, read_intent
from rlhf_core.schema import Message

STYLES = (*STYLE_WEIGHTS, *HELDOUT_STYLES)


@pytest.mark.parametrize("style", STYLES)
def test_every_question_reads_back_as_it_was_meant(style):
    rng = random.Random(style)
    for _ in range(300):
        question = ask(rng, style)
        assert read_intent(question.prompt) == question.intent, question.prompt


def test_there_are_at_least_eight_training_styles_and_two_held_out():
    assert len(STYLE_WEIGHTS) >= 8
    assert len(HELDOUT_STYLES) == 2
    assert not set(STYLE_WEIGHTS) & set(HELDOUT_STYLES)


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("wen dose the musuem opn", Intent("facts", "museum", ("opens",))),
        ("wat is teh adress of the galery?", Intent("facts", "gallery", ("street",))),
        ("how muhc is a tiket to the stadum", Intent("facts", "stadium", ("price",))),
        ("the moon is made of cheese", Intent("unanswerable", None)),
    ],
)
def test_spelling_the_grammar_never_makes_is_read_too(text, intent):
    assert read_intent((Message(role="user", content=text),)) == intent


def test_a_system_turn_changes_nothing():
    question = ask(random.Random(0), "polite")
    system = Message(role="system", content="Answer questions about the museum price.")
    assert read_intent((system, *question.prompt)) == question.intent


def test_edit_distance_counts_a_swap_of_neighbours_once():
    assert edit_distance("theatre", "thaetre") == 1
    assert edit_distance("open", "opn") == 1
    assert edit_distance("", "bus") == 3
    assert edit_distance("kitten", "sitting") == 3
