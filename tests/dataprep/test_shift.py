"""Prompt shift: equal sets give one half, different ones are told apart by their words."""

import math
import random

import numpy as np
import pytest

from rlhf_core.dataprep.measures.shift import PromptSample, _auc_within, prompt_shift

COMMON = ["where", "when", "how", "is", "the", "can", "you", "tell", "me", "please"]


def prompts(topic: list[str], num_rows: int, seed: int, share: float = 0.4) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(topic if rng.random() < share else COMMON) for _ in range(8))
        for _ in range(num_rows)
    ]


TRAINS, SOUP = ["train", "platform", "ticket"], ["soup", "onion", "recipe"]


def test_the_same_distribution_gives_one_half():
    shift = prompt_shift(prompts(TRAINS, 300, 0), prompts(TRAINS, 300, 1), seed=0)
    assert shift.estimate.low < 0.5 < shift.estimate.high
    assert 0.4 < shift.estimate.value < 0.6


def test_the_interval_is_wider_than_of_independent_scores_since_folds_train_each_other():
    """Its half width beside 1.96 standard deviations of an AUC that means nothing."""
    estimate = prompt_shift(prompts(TRAINS, 150, 0), prompts(TRAINS, 150, 1), seed=0).estimate
    num_one, num_other = 150, estimate.num_samples - 150
    alone = 1.96 * math.sqrt((num_one + num_other + 1) / (12 * num_one * num_other))
    assert 1.25 < (estimate.high - estimate.low) / 2 / alone < 1.6


def test_scores_of_two_folds_are_not_compared():
    fold, labels = np.array([0, 0, 1, 1]), np.array([True, False, True, False])
    ranks = np.array([3, 2, 1, 0])
    assert _auc_within(fold, ranks, labels) == 1.0
    assert _auc_within(np.arange(4), ranks, labels) == 0.5


@pytest.mark.nightly
def test_nineteen_of_twenty_intervals_hold_one_half_where_nothing_shifts():
    rng = random.Random(0)
    words, weights = [f"w{i}" for i in range(200)], [1 / i for i in range(1, 201)]

    def drawn() -> list[str]:
        return [" ".join(rng.choices(words, weights, k=8)) for _ in range(60)]

    found = [prompt_shift(drawn(), drawn(), seed).estimate for seed in range(60)]
    assert sum(not one.low <= 0.5 <= one.high for one in found) <= 3
    assert sum(one.value for one in found) / 60 == pytest.approx(0.5, abs=0.015)


def test_the_same_texts_on_both_sides_give_one_half():
    texts = prompts(TRAINS, 600, 0)
    shift = prompt_shift(texts, texts, seed=0)
    assert 0.4 < shift.estimate.value < 0.6


def test_other_topics_are_told_apart_by_their_words():
    shift = prompt_shift(prompts(TRAINS, 300, 0), prompts(SOUP, 300, 1), seed=0)
    assert shift.estimate.low > 0.95
    assert set(shift.words_first[:3]) == set(TRAINS)
    assert set(shift.words_second[:3]) == set(SOUP)


def test_a_half_shifted_set_lies_between():
    mixed = prompts(TRAINS, 150, 2) + prompts(SOUP, 150, 3)
    value = prompt_shift(prompts(TRAINS, 300, 0), mixed, seed=0).estimate.value
    assert 0.65 < value < 0.9


def test_a_seed_fixes_the_outcome():
    sides = prompts(TRAINS, 100, 0), prompts(SOUP, 100, 1)
    assert prompt_shift(*sides, seed=0) == prompt_shift(*sides, seed=0)


def test_too_few_prompts_give_no_estimate():
    assert prompt_shift(prompts(TRAINS, 9, 0), prompts(SOUP, 300, 1), seed=0) is None


def test_a_sample_does_not_depend_on_order_or_repeats():
    texts = [f"text {i}" for i in range(500)]
    one, other = PromptSample(50), PromptSample(50)
    for text in texts:
        one.add(text)
    for text in [*texts[::-1], *texts]:
        other.add(text)
    assert one.texts() == other.texts()
    assert len(one.texts()) == 50
    everything = PromptSample(1_000)
    for text in texts * 2:
        everything.add(text)
    assert everything.texts() == sorted(texts)


def test_prompts_that_share_no_word_are_measured_all_the_same():
    one = [f"alpha{i} beta{i}" for i in range(60)]
    other = [f"gamma{i} delta{i}" for i in range(60)]
    estimate = prompt_shift(one, other, seed=0).estimate
    assert 0.3 < estimate.value < 0.7


def test_a_script_without_spaces_is_told_apart_by_its_characters():
    rng = random.Random(0)

    def text(characters: str) -> str:
        return "".join(rng.choice(characters) for _ in range(8))

    shift = prompt_shift(
        [text("图书馆在哪里开门") for _ in range(80)],
        [text("汤怎么做洋葱多少") for _ in range(80)],
        seed=0,
    )
    assert shift.estimate.low > 0.95
    assert set("".join(shift.words_first)) <= set("图书馆在哪里开门")


def test_prompts_without_any_word_give_no_estimate():
    assert prompt_shift(["?" * i for i in range(20)], ["!" * i for i in range(20)], 0) is None


def test_one_common_word_in_few_texts_does_not_empty_a_fold():
    texts = ["?" * i for i in range(14)] + [f"w{i}" for i in range(15)] + ["both one"]
    prompt_shift(texts, [f"both {i}" for i in range(30)], seed=0)
