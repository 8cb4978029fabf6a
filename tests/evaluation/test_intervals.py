import math

import numpy as np
import pytest
from scipy import stats

from rlhf_core.errors import DataError
from rlhf_core.evaluation.intervals import (
    SHARE,
    Plans,
    Resampling,
    estimate_clustered,
    estimate_mean,
    estimate_ratio,
    estimate_statistic,
)

PLAN = Resampling(num_resamples=999, seed=3)


def test_the_value_is_the_mean_and_the_interval_holds_it():
    estimate = estimate_mean([1.0, 2.0, 3.0, 10.0], PLAN)
    assert estimate.value == 4.0
    assert estimate.low < 4.0 < estimate.high
    assert (estimate.num_samples, estimate.confidence) == (4, 0.95)


def test_the_same_seed_gives_the_same_interval_and_another_one_does_not():
    values = np.random.default_rng(0).normal(size=50)
    assert estimate_mean(values, PLAN) == estimate_mean(values, PLAN)
    assert estimate_mean(values, PLAN) != estimate_mean(values, Resampling(seed=4))


def test_the_bootstrap_agrees_with_student_on_normal_data():
    values = np.random.default_rng(0).normal(loc=5.0, size=400)
    estimate = estimate_mean(values, Resampling(num_resamples=9_999))
    error = values.std(ddof=1) / 20.0
    low, high = stats.t.interval(0.95, df=399, loc=values.mean(), scale=error)
    assert estimate.low == pytest.approx(low, abs=0.1 * error)
    assert estimate.high == pytest.approx(high, abs=0.1 * error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.binomial(1, 0.6, size=150).astype(float), 0.6),
        (lambda rng: rng.exponential(size=150), 1.0),
        (lambda rng: rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.2, 0.5], size=150), 0.6),
    ],
    ids=["win or loss", "skewed", "with ties"],
)
def test_95_percent_intervals_cover_the_truth_95_percent_of_the_time(draw, truth):
    rng = np.random.default_rng(1)
    trials = 400
    hits = 0
    for trial in range(trials):
        estimate = estimate_mean(draw(rng), Resampling(num_resamples=500, seed=trial))
        hits += estimate.low <= truth <= estimate.high
    # 95% plus or minus what 400 trials can tell, and the bootstrap's known shortfall at n = 150.
    assert 0.915 <= hits / trials <= 0.98


def test_a_higher_confidence_gives_a_wider_interval():
    values = np.random.default_rng(0).normal(size=80)
    narrow = estimate_mean(values, Resampling(confidence=0.8))
    wide = estimate_mean(values, Resampling(confidence=0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_all_wins_do_not_make_certainty():
    estimate = estimate_mean(np.ones(100), PLAN, bounds=SHARE)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(stats.beta.ppf(0.025, 100, 1))  # Clopper-Pearson


def test_equal_values_without_bounds_limit_nothing():
    estimate = estimate_mean([2.0] * 50, PLAN)
    assert (estimate.value, estimate.low, estimate.high) == (2.0, -math.inf, math.inf)


def test_one_sample_limits_nothing():
    assert estimate_mean([2.0], PLAN).high == math.inf


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_nothing_and_not_a_number_are_refused(values):
    with pytest.raises(DataError):
        estimate_mean(values, PLAN)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="one length"):
        estimate_ratio([1.0, 2.0], [1.0], PLAN)


def test_nll_per_token_weighs_texts_by_their_tokens():
    estimate = estimate_ratio([10.0, 1.0, 4.0], [10.0, 2.0, 3.0], PLAN)
    assert estimate.value == pytest.approx(1.0)


def test_rows_stay_together_when_columns_are_resampled():
    policy = np.random.default_rng(0).normal(scale=100.0, size=60)
    sft = policy - 1.0

    def difference(a, b, axis=-1):
        return (a - b).mean(axis=axis)

    estimate = estimate_statistic(difference, [policy, sft], PLAN, bounds=(0.0, 2.0))
    assert estimate.value == pytest.approx(1.0)
    assert 0.8 < estimate.low <= estimate.high < 1.2  # unpaired it would be +-25


def test_copies_of_one_prompt_add_no_evidence():
    values = np.random.default_rng(0).normal(size=40)
    once = estimate_mean(values, PLAN)
    copied = estimate_clustered(np.repeat(values, 5), np.repeat(np.arange(40), 5), PLAN)
    assert copied.num_samples == 40
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.1)


def test_a_gated_metric_is_measured_at_the_confidence_of_its_gate():
    plans = Plans(default=PLAN, confidences={"policy/win_rate": 0.99})
    assert plans("policy/win_rate").confidence == 0.99
    assert plans("policy/kl").confidence == 0.95
