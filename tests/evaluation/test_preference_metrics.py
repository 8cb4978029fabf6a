import math

import numpy as np
import pytest

from rlhf_core.evaluation.intervals import Plans, Resampling
from rlhf_core.evaluation.preference_metrics import (
    LengthRival,
    ScoredPairs,
    accuracy_by_length,
    calibration_error,
    correctness,
    fit_length_rival,
    preference_metrics,
)

PLAN = Resampling(num_resamples=400)
PLANS = Plans(default=PLAN, confidences={})


def pairs(margins, chosen_lengths, rejected_lengths, clusters=None):
    margins = np.asarray(margins, dtype=float)
    return ScoredPairs(
        chosen_scores=margins,
        rejected_scores=np.zeros(len(margins)),
        chosen_lengths=np.asarray(chosen_lengths, dtype=float),
        rejected_lengths=np.asarray(rejected_lengths, dtype=float),
        clusters=np.arange(len(margins)) if clusters is None else np.asarray(clusters),
    )


def measured(data, rival):
    return preference_metrics(data, rival, prefix="reward", bins=10, plans=PLANS)


def test_equal_scores_are_half_right():
    assert correctness([2.0, 0.0, -1.0]).tolist() == [1.0, 0.5, 0.0]


def test_metrics_of_four_pairs_by_hand():
    metrics = measured(pairs([2.0, -1.0, 1.0, 0.0], [9, 9, 3, 5], [4, 4, 6, 5]), LengthRival(1.0))
    assert metrics["reward/heldout_accuracy"].value == 0.625  # right, wrong, right, tie
    assert metrics["reward/length_only_accuracy"].value == 0.625  # right, right, wrong, tie
    assert metrics["reward/accuracy_over_length"].value == 0.0
    assert metrics["reward/margin"].value == 0.5
    nll = [math.log1p(math.exp(-m)) for m in (2.0, -1.0, 1.0, 0.0)]
    assert metrics["reward/heldout_nll"].value == pytest.approx(sum(nll) / 4)


def test_the_rival_learns_that_longer_wins_or_that_shorter_does():
    rng = np.random.default_rng(0)
    gap = rng.normal(10.0, 5.0, size=200)
    assert fit_length_rival(50 + gap, np.full(200, 50.0)).weight > 0
    assert fit_length_rival(np.full(200, 50.0), 50 + gap).weight < 0
    assert fit_length_rival([5.0, 5.0], [5.0, 5.0]).weight == 0.0


def test_a_rival_without_opinion_is_half_right():
    assert LengthRival(0.0).correctness([3, 9], [5, 1]).tolist() == [0.5, 0.5]


def test_a_reward_model_that_counts_tokens_has_no_lead_over_its_rival():
    rng = np.random.default_rng(0)
    gap = rng.normal(3.0, 10.0, size=300)
    metrics = measured(pairs(0.1 * gap, 50 + gap, np.full(300, 50.0)), LengthRival(0.2))
    assert metrics["reward/heldout_accuracy"].low > 0.5
    lead = metrics["reward/accuracy_over_length"]
    assert lead.value == 0.0
    assert lead.low < 0.0 < lead.high  # never certain, whatever the bootstrap sees


def test_the_lead_is_compared_pair_by_pair():
    rng = np.random.default_rng(0)
    gap = rng.normal(3.0, 10.0, size=400)
    margins = np.where(
        rng.random(400) < 0.1, np.abs(gap), gap
    )  # right wherever length is, and more
    metrics = measured(pairs(margins, 50 + gap, np.full(400, 50.0)), LengthRival(0.2))
    lead = metrics["reward/accuracy_over_length"]
    unpaired = metrics["reward/heldout_accuracy"].low > metrics["reward/length_only_accuracy"].high
    assert lead.low > 0.0
    assert not unpaired


def test_pairs_of_one_prompt_count_once():
    metrics = measured(
        pairs([1.0, 1.0, -1.0, 1.0], [1, 2, 3, 4], [2, 1, 4, 3], clusters=[0, 0, 1, 2]),
        LengthRival(1.0),
    )
    assert metrics["reward/heldout_accuracy"].num_samples == 3
    assert metrics["reward/heldout_accuracy"].value == 0.75


def test_calibration_error_by_hand():
    # One bin. Residuals of three pairs that are right and one that is wrong: the products of all
    # twelve ordered pairs of different ones, over n squared.
    confidence = 1.0 / (1.0 + math.exp(-2.0))
    right, wrong = 1.0 - confidence, -confidence
    margins = [2.0] * 9 + [-2.0]
    products = 9 * 8 * right * right + 2 * 9 * right * wrong
    estimate = calibration_error(margins, np.arange(10), PLAN, bins=1)
    assert estimate.value == pytest.approx(math.sqrt(max(0.0, products)) / 10)
    margins = [2.0] * 5 + [-2.0] * 5
    products = 5 * 4 * (right**2 + wrong**2) + 2 * 25 * right * wrong
    estimate = calibration_error(margins, np.arange(10), PLAN, bins=1)
    assert estimate.value == pytest.approx(math.sqrt(products) / 10)


def test_a_perfectly_calibrated_model_is_not_rejected():
    """The plain error is 0.06 on average at n = 300, and beyond 0.05 as a whole 9% of the time."""
    rng = np.random.default_rng(0)
    squares, rejected = [], 0
    for trial in range(100):
        strength = rng.normal(scale=1.5, size=300)
        wins = rng.random(300) < 1.0 / (1.0 + np.exp(-strength))
        margins = np.where(wins, strength, -strength)
        estimate = calibration_error(
            margins, np.arange(300), Resampling(num_resamples=80, seed=trial), bins=10
        )
        squares.append(estimate.value)
        rejected += estimate.low > 0.05
    assert np.mean(squares) < 0.03
    assert rejected == 0


def test_a_calibrated_model_has_little_error_and_an_overconfident_one_much():
    rng = np.random.default_rng(0)
    strength = rng.normal(size=4000)
    wins = rng.random(4000) < 1.0 / (1.0 + np.exp(-strength))
    margins = np.where(wins, strength, -strength)
    honest = calibration_error(margins, np.arange(4000), PLAN, bins=10)
    boastful = calibration_error(10 * margins, np.arange(4000), PLAN, bins=10)
    assert honest.value < 0.03
    assert boastful.low > 0.2


def test_accuracy_splits_by_which_side_is_longer():
    data = pairs([1.0, 1.0, -1.0, 1.0], [9, 9, 2, 5], [4, 4, 8, 5])
    groups = accuracy_by_length(data, prefix="reward", plans=PLANS)
    assert {name: estimate.value for name, estimate in groups.items()} == {
        "chosen=longer": 1.0,
        "chosen=shorter": 0.0,
        "chosen=equal": 1.0,
    }
