import math

import numpy as np
import pytest
from scipy import stats

from rlhf_core.errors import DataError
from rlhf_core.schema import Estimate
from rlhf_core.statistics.clusters import proportion
from rlhf_core.statistics.intervals import (
    SHARE,
    UNBOUNDED,
    Plans,
    Resampling,
    _as_wide_as_of_few,
    estimate_jackknife,
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


@pytest.mark.parametrize("draw", ["exponential", "normal"])
def test_ends_are_those_of_scipy(draw):
    values = getattr(np.random.default_rng(0), draw)(size=300)
    ends = stats.bootstrap(
        [values], np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    estimate = estimate_mean(values, PLAN)
    assert (estimate.low, estimate.high) == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_few_different_values_are_drawn_by_how_often_each_comes():
    """Wins, losses and ties of many prompts: the same distribution, in no time."""
    won = np.random.default_rng(0).choice([0.0, 0.5, 1.0], p=[0.3, 0.2, 0.5], size=400)
    estimate = estimate_mean(won, Resampling(num_resamples=9_999), bounds=SHARE)
    error = won.std() / 20.0
    assert estimate.low == pytest.approx(won.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(won.mean() + 1.96 * error, abs=0.1 * error)


def test_a_statistic_of_more_rows_than_are_left_out_one_by_one_has_the_same_interval():
    values = np.random.default_rng(0).exponential(size=1_500)

    def mean(column, axis=-1):
        return column.mean(axis=axis)

    by_groups = estimate_statistic(mean, [values], PLAN)
    one_by_one = estimate_mean(values, PLAN)
    width = one_by_one.high - one_by_one.low
    assert by_groups.low == pytest.approx(one_by_one.low, abs=0.02 * width)
    assert by_groups.high == pytest.approx(one_by_one.high, abs=0.02 * width)


def test_whole_topics_are_resampled():
    """Twenty prompts on each of 50 topics are no thousand independent ones."""
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(50), 20)
    plain = by_topic = 0
    for trial in range(150):
        values = 0.3 * rng.normal(size=50)[topics] + rng.normal(size=1_000)
        plan = Resampling(num_resamples=200, seed=trial)
        alone = estimate_mean(values, plan)
        whole = estimate_mean(values, Resampling(num_resamples=200, seed=trial, clusters=topics))
        plain += alone.low <= 0.0 <= alone.high
        by_topic += whole.low <= 0.0 <= whole.high
        assert whole.num_samples == 50
    assert plain / 150 < 0.85
    assert 0.9 <= by_topic / 150 <= 0.99


def test_few_large_topics_among_small_ones_count_as_few():
    """As wide as of (sum of sizes)^2 / sum of squared sizes equal topics; measured by coverage."""
    rng, covered, trials = np.random.default_rng(0), 0, 200
    for trial in range(trials):
        topics = np.repeat(
            np.arange(30), np.minimum((rng.pareto(1.2, 30) * 4).astype(int) + 1, 150)
        )
        won = (rng.random(topics.size) < rng.beta(6.0, 4.0, size=30)[topics]).astype(np.float64)
        plan = Resampling(num_resamples=300, seed=trial, clusters=topics)
        found = estimate_mean(won, plan, bounds=(0.0, 1.0))
        covered += found.low <= 0.6 <= found.high
    assert covered / trials >= 0.93
    # The largest has 121 of 150 rows: as if there were two topics.
    found = Estimate(value=0.5, low=0.4, high=0.6, num_samples=30)
    for sizes, factor in (([5] * 30, 2.0452 * math.sqrt(30 / 29)), ([121, *[1] * 29], 17.9693)):
        clusters = np.repeat(np.arange(30), sizes)
        wide = _as_wide_as_of_few(found, clusters, 0.95, UNBOUNDED)
        assert wide.high - wide.low == pytest.approx(0.2 * factor / 1.95996, rel=1e-4)


def test_few_large_topics_leave_a_jackknife_and_a_share_unsure():
    """Each held the truth 16 times of 20 where all topics counted alike."""
    rng, held = np.random.default_rng(3), np.zeros(2)
    topics = np.repeat(np.arange(63), [100, 60, 40, *[2] * 60])
    for _ in range(200):
        likes = (rng.normal(size=63)[topics] + rng.normal(size=topics.size) > 0).astype(float)
        sums, sizes = np.bincount(topics, weights=likes), np.bincount(topics)
        left = (likes.sum() - sums) / (likes.size - sizes)
        found = (
            estimate_jackknife(likes.mean(), left, Resampling().by(topics), bounds=SHARE),
            proportion(likes, topics),
        )
        held += [one.low <= 0.5 <= one.high for one in found]
    assert (held > 170).all()


def test_any_statistic_can_be_of_topics():
    values = np.random.default_rng(0).normal(size=60)
    topics = np.repeat(np.arange(30), 2)

    def mean(column, axis=-1):
        return column.mean(axis=axis)

    plan = Resampling(num_resamples=400, seed=3, clusters=topics)
    general, sums = estimate_statistic(mean, [values], plan), estimate_mean(values, plan)
    assert general.num_samples == sums.num_samples == 30
    assert general.low == pytest.approx(sums.low, abs=0.03)
    assert general.high == pytest.approx(sums.high, abs=0.03)


def test_plans_of_a_slice_keep_its_topics():
    topics = np.array([5, 5, 7, 8])
    plans = Plans(default=Resampling(clusters=topics), confidences={})
    assert plans.of_rows(np.array([0, 2]))("policy/win_rate").clusters.tolist() == [5, 7]


def test_a_later_look_is_surer():
    values = np.random.default_rng(0).normal(size=200)
    first, tenth = (estimate_mean(values, Resampling(share=share)) for share in (1.0, 1 / 90))
    assert tenth.confidence == pytest.approx(1 - 0.05 / 90)
    wider = stats.norm.isf(0.025 / 90) / stats.norm.isf(0.025)
    assert tenth.value - tenth.low == pytest.approx(wider * (first.value - first.low))
    never = estimate_mean(np.zeros(100), Resampling(share=1 / 90), bounds=SHARE)
    assert never.high == pytest.approx(stats.beta.ppf(1 - 0.025 / 90, 1, 100))  # Clopper-Pearson


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


def test_clusters_of_other_samples_are_refused():
    with pytest.raises(DataError, match="4 clustered samples, but 3 values"):
        estimate_mean([1.0, 0.0, 1.0], Resampling().by([0, 0, 1, 1]))


def test_nll_per_token_weighs_texts_by_their_tokens():
    estimate = estimate_ratio([10.0, 1.0, 4.0], [10.0, 2.0, 3.0], PLAN)
    assert estimate.value == pytest.approx(1.0)


@pytest.mark.parametrize("topics", [5, 12])
def test_intervals_of_few_topics_hold_the_truth_as_often_as_they_say(topics):
    """A ratio as much as a mean: of topics that differ, with twenty texts each."""
    rng, found = np.random.default_rng(1), []
    clusters = np.repeat(np.arange(topics), 20)
    plan = Resampling(num_resamples=400, clusters=clusters)
    for _ in range(200):
        lengths = rng.uniform(50.0, 150.0, clusters.size)
        per_token = 2.0 + rng.normal(scale=0.5, size=topics)[clusters]
        noise = rng.normal(scale=20.0, size=clusters.size)
        estimate = estimate_ratio(per_token * lengths + noise, lengths, plan)
        found.append(estimate.low <= 2.0 <= estimate.high)
    assert np.mean(found) > 0.9


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
    copied = estimate_mean(np.repeat(values, 5), PLAN.by(np.repeat(np.arange(40), 5)))
    assert copied.num_samples == 40
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.1)


def test_a_gated_metric_is_measured_at_the_confidence_of_its_gate():
    plans = Plans(default=PLAN, confidences={"policy/win_rate": 0.99})
    assert plans("policy/win_rate").confidence == 0.99
    assert plans("policy/kl").confidence == 0.95


def test_answers_that_were_all_cut_have_a_length_ratio_with_an_interval():
    lengths = [48.0] * 100
    assert math.isinf(estimate_ratio(lengths, lengths, PLAN).high)
    estimate = estimate_ratio(lengths, lengths, PLAN, bounds=(1.0, 48.0))
    share = 1.0 - 0.025 ** (1 / 100)  # of other answers that 100 may have missed
    assert estimate.value == 1.0
    assert estimate.high == pytest.approx(48.0 / (48.0 - share * 47.0))
    assert estimate.low == pytest.approx((48.0 - share * 47.0) / 48.0)
    few = estimate_ratio(lengths[:2], lengths[:2], PLAN, bounds=(1.0, 48.0))
    assert few.low < 0.2 < 5.0 < few.high


def test_lengths_that_vary_alike_are_bounded_too_and_others_are_as_before():
    varied = [2.0, 10.0, 30.0]
    alike = estimate_ratio(varied, varied, PLAN, bounds=(1.0, 48.0))
    assert 0.0 < alike.low < 1.0 < alike.high < 48.0
    other = [3.0, 9.0, 40.0]
    assert estimate_ratio(other, varied, PLAN, bounds=(1.0, 48.0)) == estimate_ratio(
        other, varied, PLAN
    )
