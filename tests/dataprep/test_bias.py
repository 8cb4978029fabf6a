"""Biases: found where they are planted, absent where they are not."""

import time

import numpy as np
import pytest
from scipy import stats

from rlhf_core.dataprep import bias
from rlhf_core.dataprep.ledger import Entry
from rlhf_core.schema import Message, PreferencePair

PROMPT = (Message(role="user", content="Q?"),)


def entry(num_chars: tuple[int, int], a_wins: bool) -> Entry:
    return Entry(
        prompt=b"",
        pair=b"",
        a_first=True,
        source="s",
        line=1,
        num_chars=num_chars,
        reason=None,
        a_beats_b=1.0 if a_wins else 0.0,
    )


def pair(chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(
        comparison_id="1", prompt=PROMPT, chosen=chosen, rejected=rejected, agreement=1.0
    )


def entries(length_wins: float, num_rows: int = 800, seed: int = 0) -> list[Entry]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        lengths = tuple(rng.integers(10, 200, size=2).tolist())
        longer_a = lengths[0] > lengths[1]
        rows.append(entry(lengths, bool(longer_a == (rng.random() < length_wins))))
    return rows


def test_a_share_has_the_interval_wilson_gives():
    found = bias.proportion(37, 50)
    expected = stats.binomtest(37, 50).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (bias.proportion(0, 9).low, bias.proportion(9, 9).high) == (0.0, 1.0)


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


def test_the_area_under_the_curve_counts_pairs_of_scores():
    positives, negatives = np.array([1.0, 2.0, 2.0, 5.0]), np.array([0.0, 2.0, 3.0])
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    assert bias.auc(positives, negatives) == pytest.approx(wins / 12)


def test_a_planted_length_bias_is_measured_with_its_interval():
    biased, fair = entries(0.8), entries(0.5)
    win = bias.length_win_estimate(biased)
    assert win.low < 0.8 < win.high
    assert bias.length_auc_estimate(biased, 0).low > 0.75
    assert bias.length_win_estimate(fair).low < 0.5 < bias.length_win_estimate(fair).high
    area = bias.length_auc_estimate(fair, 0)
    assert area.low < 0.5 < area.high
    assert bias.length_auc_estimate(fair, 0) == area


def test_equal_lengths_count_one_half():
    assert bias.length_win_estimate([entry((5, 5), a_wins=True)] * 4).value == 0.5


def test_a_planted_position_bias_is_measured():
    rng = np.random.default_rng(0)
    rows = [entry((10, 10), bool(rng.random() < 0.7)) for _ in range(600)]
    found = bias.first_win_estimate(rows)
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
