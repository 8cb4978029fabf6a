"""Biases: found where they are planted, absent where they are not."""

import itertools
import time

import numpy as np
import pytest

from rlhf_core.dataprep.keys import DialogueKey, text_key
from rlhf_core.dataprep.ledger import Entry, Labelled, Ledger
from rlhf_core.dataprep.measures import bias
from rlhf_core.schema import Message, PreferencePair

NUMBERS = itertools.count()


def entry(num_chars: tuple[int, int], a_wins: bool, prompt: str | None = None) -> Entry:
    """By default each on a prompt of its own."""
    key = text_key(prompt or str(next(NUMBERS)))
    return Entry(
        prompt=key,
        dialogue=DialogueKey(key),
        pair=text_key("pair"),
        a_first=True,
        source="s",
        line=1,
        num_chars=num_chars,
        reason=None,
        a_beats_b=1.0 if a_wins else 0.0,
    )


def pair(chosen: str, rejected: str, prompt: str | None = None) -> PreferencePair:
    return PreferencePair(
        comparison_id="1",
        prompt=(Message(role="user", content=prompt or str(next(NUMBERS))),),
        chosen=chosen,
        rejected=rejected,
        agreement=1.0,
    )


def entries(length_wins: float, num_rows: int = 800, seed: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        lengths = tuple(rng.integers(10, 200, size=2).tolist())
        longer_a = lengths[0] > lengths[1]
        rows.append(entry(lengths, bool(longer_a == (rng.random() < length_wins))))
    return Ledger(rows).labelled()


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ("- one", True),
        ("so:\n\n \t* one\n* two", True),
        ("\n\n 12) one", True),
        ("1. \n", True),
        ("a - b", False),
        ("-one\n1.5 of 2.", False),
        ("\n\n", False),
        ("." + "\n" * 200_000, False),
    ],
)
def test_a_list_is_told_by_how_its_lines_begin(text, is_list):
    started = time.process_time()
    assert bias._has_style("list", text) == is_list
    assert time.process_time() - started < 1


def test_a_planted_length_bias_is_measured_with_its_interval():
    biased, fair = entries(0.8), entries(0.5)
    win = bias.length_win_estimate(biased)
    assert win.low < 0.8 < win.high
    assert bias.length_auc_estimate(biased, 0).low > 0.75
    assert bias.length_win_estimate(fair).low < 0.5 < bias.length_win_estimate(fair).high
    area = bias.length_auc_estimate(fair, 0)
    assert area.low < 0.5 < area.high
    assert bias.length_auc_estimate(fair, 0) == area


def ranked_lists(num_lists: int, size: int, seed: int) -> Labelled:
    """Lists in an order that length has no part in, all their pairs with sides by chance."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_lists):
        lengths = rng.integers(10, 200, size).tolist()
        for best, second in itertools.combinations(lengths, 2):
            a_wins = bool(rng.random() < 0.5)
            sides = (best, second) if a_wins else (second, best)
            rows.append(entry(sides, a_wins, prompt=f"list {number}"))
    return Ledger(rows).labelled()


def test_the_intervals_cover_on_ranked_lists_as_often_as_they_say():
    """36 pairs of nine responses are no 36 observations: taken so, 30 in 40 intervals missed."""
    datasets = [ranked_lists(40, 9, seed) for seed in range(40)]
    wins = [bias.length_win_estimate(rows) for rows in datasets]
    areas = [bias.length_auc_estimate(rows, 0) for rows in datasets]
    for found in (wins, areas):
        assert sum(not one.low <= 0.5 <= one.high for one in found) <= 6
    assert np.mean([one.high - one.low for one in wins]) < 0.1


def test_a_habit_on_one_prompt_is_no_habit_of_the_dataset():
    alone, together = bias.StyleCounter(), bias.StyleCounter()
    for number in range(60):
        alone.add(pair("Sorry, no.", "No."))
        together.add(pair("Sorry, no.", "No.", prompt=f"{number % 3}?"))
    assert alone.estimates()["apology"].low > 0.9
    assert together.estimates()["apology"].low < 0.5


def test_equal_lengths_count_one_half():
    rows = Ledger([entry((5, 5), a_wins=True)] * 4)
    assert bias.length_win_estimate(rows.labelled()).value == 0.5


def test_a_planted_position_bias_is_measured():
    rng = np.random.default_rng(0)
    rows = [entry((10, 10), bool(rng.random() < 0.7)) for _ in range(600)]
    found = bias.first_win_estimate(Ledger(rows).labelled())
    assert found.low > 0.6
    assert found.low < 0.7 < found.high


def test_the_label_by_length_curve_rises_where_length_wins():
    curve = bias.label_by_length(entries(0.9))
    assert [size for _, _, size in curve] == [80] * 10
    assert curve[0][1] < 0.2
    assert curve[-1][1] > 0.8
    differences = [difference for difference, _, _ in curve]
    assert differences == sorted(differences)


def test_a_planted_style_habit_is_measured_and_its_words_are_named():
    counter = bias.StyleCounter()
    for number in range(60):
        counter.add(pair(f"Great question! It is {number}.", f"Perhaps {number}, alas."))
    for _ in range(20):
        counter.add(pair("Plain.", "Great question! Plain."))
    styles = counter.estimates()
    assert styles["flattery"].value == 0.75
    assert styles["flattery"].num_samples == 80
    assert styles["hedge"].value == 0.0
    assert "refusal" not in styles
    words = counter.telling_words()
    assert "alas" in [word for word, _ in words["rejected"]]
    assert all(score > 0 for _, score in words["chosen"])
    assert all(score < 0 for _, score in words["rejected"])


def test_words_that_tell_nothing_score_near_zero():
    counter = bias.StyleCounter()
    for number in range(200):
        counter.add(pair("the same words here", "the same words here"))
        counter.add(pair("only", "other") if number % 2 else pair("other", "only"))
    found = counter.telling_words()
    assert all(abs(score) < 0.1 for side in found.values() for _, score in side)


def test_a_vocabulary_of_one_word_tells_nothing():
    counter = bias.StyleCounter()
    for _ in range(20):
        counter.add(pair("yes", "yes yes"))
    assert counter.telling_words() == {"chosen": [], "rejected": []}
    assert bias.StyleCounter().telling_words() == {"chosen": [], "rejected": []}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the cat's 2nd hat, a b_c", {"the", "cat", "nd", "hat"}),
        ("über ça va x", {"über", "ça", "va"}),
        ("", set()),
    ],
)
def test_words_are_runs_of_two_letters_or_more(text, words):
    assert bias._words(text) == words
    assert bias._words(f"{text} \u2014") == words


@pytest.mark.parametrize(
    "text",
    ["- a", "so:\n  2. b", "a - b", "1.5 is", "no\n\n", "\n\n* c", "x. y\n-", "\r- a\n1)\tb"],
)
def test_a_list_is_found_where_its_pattern_is(text):
    pattern, _ = bias.STYLES["list"]
    assert bias._has_style("list", text) == (pattern.search(text) is not None)
