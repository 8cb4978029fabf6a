"""Biases: found where they are planted, absent where they are not."""

import itertools
import re
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.dataprep.keys import DialogueKey, text_key
from rlhf_core.dataprep.ledger import Entry, Labelled, Ledger
from rlhf_core.dataprep.measures import bias, style
from rlhf_core.dataprep.measures.style import StyleCounter

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


def counted(pairs: list[tuple[str, str]], prompts: list[str] | None = None) -> StyleCounter:
    """Chosen and rejected responses; by default each pair is on a prompt of its own."""
    counter = StyleCounter()
    names = prompts or [str(next(NUMBERS)) for _ in pairs]
    for start in range(0, len(pairs), 50):
        some = pairs[start : start + 50]
        counter.extend(
            [DialogueKey(text_key(name)) for name in names[start : start + 50]],
            [chosen for chosen, _ in some],
            [rejected for _, rejected in some],
        )
    return counter


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
    assert style.has_style("list", text) == is_list
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


@pytest.mark.parametrize(
    ("number", "may_miss"), [(12, 2), pytest.param(40, 6, marks=pytest.mark.nightly)]
)
def test_the_intervals_cover_on_ranked_lists_as_often_as_they_say(number, may_miss):
    """36 pairs of nine responses are no 36 observations: taken so, 30 in 40 intervals missed."""
    datasets = [ranked_lists(40, 9, seed) for seed in range(number)]
    wins = [bias.length_win_estimate(rows) for rows in datasets]
    areas = [bias.length_auc_estimate(rows, 0) for rows in datasets]
    for found in (wins, areas):
        assert sum(not one.low <= 0.5 <= one.high for one in found) <= may_miss
    assert np.mean([one.high - one.low for one in wins]) < 0.1


def test_a_habit_on_one_prompt_is_no_habit_of_the_dataset():
    pairs = [("Sorry, no.", "No.")] * 60
    alone, together = counted(pairs), counted(pairs, [f"{number % 3}?" for number in range(60)])
    assert bias.style_estimates(alone)["apology"].low > 0.9
    assert bias.style_estimates(together)["apology"].low < 0.5


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
    pairs = [(f"Great question! It is {n}.", f"Perhaps {n}, alas.") for n in range(60)]
    counter = counted([*pairs, *[("Plain.", "Great question! Plain.")] * 20])
    styles = bias.style_estimates(counter)
    assert styles["flattery"].value == 0.75
    assert styles["flattery"].num_samples == 80
    assert styles["hedge"].value == 0.0
    assert "refusal" not in styles
    words = bias.telling_words(counter)
    assert "alas" in [word for word, _ in words["rejected"]]
    assert all(score > 0 for _, score in words["chosen"])
    assert all(score < 0 for _, score in words["rejected"])


def test_words_that_tell_nothing_score_near_zero():
    same, sides = ("the same words here", "the same words here"), ("only", "other")
    counter = counted([same, sides, same, sides[::-1]] * 100)
    found = bias.telling_words(counter)
    assert all(abs(score) < 0.1 for side in found.values() for _, score in side)


def test_a_vocabulary_of_one_word_tells_nothing():
    counter = counted([("yes", "yes yes")] * 20)
    assert bias.telling_words(counter) == {"chosen": [], "rejected": []}
    assert bias.telling_words(StyleCounter()) == {"chosen": [], "rejected": []}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the cat's 2nd hat, a b_c", {"the", "cat", "nd", "hat"}),
        ("über ça va x", {"über", "ça", "va"}),
        ("", set()),
    ],
)
def test_words_are_runs_of_two_letters_or_more(text, words):
    assert style.words_in(text) == words
    assert style.words_in(f"{text} \u2014") == words


@pytest.mark.parametrize(
    "text",
    ["- a", "so:\n  2. b", "a - b", "1.5 is", "no\n\n", "\n\n* c", "x. y\n-", "\r- a\n1)\tb"],
)
def test_a_list_is_found_where_its_pattern_is(text):
    pattern, _ = style.STYLES["list"]
    assert style.has_style("list", text) == (pattern.search(text) is not None)
    assert ("list" in counted([(text, "x")]).contrasts) == (pattern.search(text) is not None)


STYLED = st.sampled_from(
    ["Perhaps", "I think", "i  think", "sorry,", "- a", "\n* b", "\n", " ", "!", "what?",
     "as an AI", "I'm an ai", "great question", "question", "i can't", "I cannot", "candle",
     "rethink", "ÜBER",
     "don't", "well-known", "a", "", "2nd", "\u03a3\u03a3"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.lists(STYLED, max_size=5).map(" ".join)] * 2), max_size=8))
def test_pairs_counted_together_are_those_that_each_would_count(pairs):
    found = counted(pairs)
    for name, (pattern, _) in style.STYLES.items():
        wins = [
            won for chosen, rejected in pairs
            if (won := pattern.search(chosen.lower()) is not None)
            != (pattern.search(rejected.lower()) is not None)
        ]  # fmt: skip
        assert list(found.contrasts.get(name, ([], []))[1]) == wins
    for side, counts in enumerate((found.chosen_words, found.rejected_words)):
        expected = Counter(
            word for pair in pairs for word in set(re.findall(r"[^\W\d_]{2,}", pair[side].lower()))
        )
        assert counts == expected


def test_tables_of_words_too_wide_for_all_texts_are_made_part_by_part(monkeypatch):
    pairs = [(f"one {n} word{n} a{chr(97 + n)}", f"two two b{chr(97 + n)}") for n in range(20)]
    whole = counted(pairs)
    monkeypatch.setattr(style, "_CELLS", 1)
    parts = counted(pairs)
    assert (parts.chosen_words, parts.rejected_words) == (whole.chosen_words, whole.rejected_words)
    assert whole.rejected_words["two"] == 20
