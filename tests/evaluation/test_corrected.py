import numpy as np
import pytest
from scipy import stats

from rlhf_core.errors import DataError
from rlhf_core.evaluation.corrected import corrected_mean, labels_needed
from rlhf_core.statistics.intervals import Resampling

PLAN = Resampling()


def drawn(seed, num=1_000, labels=200, truth=0.5):
    """A judge that says the policy won in a third of its losses: biased, and not useless."""
    rng = np.random.default_rng(seed)
    preferred = (rng.random(num) < truth).astype(float)
    judged = np.where(rng.random(num) < 0.35, 1.0, preferred)
    people = np.full(num, np.nan)
    voted = rng.choice(num, labels, replace=False)
    people[voted] = preferred[voted]
    return judged, people


def test_the_value_is_the_one_computed_by_hand():
    judged = np.array([1.0, 0.0] * 10 + [1.0] * 20)
    people = np.array([1.0, 0.0] * 9 + [0.0, 0.0] + [np.nan] * 20)
    # cov = 9/20 - 10/20 * 9/20 = 0.225; var of all 40 = 0.75 * 0.25 = 0.1875: cut to 1.
    assert corrected_mean(judged, people, PLAN).value == pytest.approx(0.45 + 1.0 * (0.75 - 0.5))


def test_value_and_error_are_those_of_ppi_with_the_others_as_unlabelled_samples():
    judged, people = drawn(0)
    found = corrected_mean(judged, people, PLAN)
    known = ~np.isnan(people)
    y, f, rest = people[known], judged[known], judged[~known]
    n, others = len(y), len(rest)
    weight = np.cov(y, f, bias=True)[0, 1] / judged.var() / (1 + n / others)
    value = weight * rest.mean() + np.mean(y - weight * f)
    error = np.sqrt(weight**2 * rest.var() / others + np.var(y - weight * f) / n)
    assert found.value == pytest.approx(value)
    half = (found.high - found.low) / 2
    assert half == pytest.approx(stats.norm.isf(0.025) * error, rel=0.06)


@pytest.mark.parametrize("truth", [0.5, 0.65, 0.9])
def test_intervals_cover_peoples_preference_where_the_judges_own_mean_does_not(truth):
    found = [corrected_mean(*drawn(seed, truth=truth), PLAN) for seed in range(400)]
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.975
    assert drawn(0, truth=truth)[0].mean() > truth + 0.02


def test_a_good_judge_makes_the_interval_narrower_than_votes_alone_and_a_useless_one_no_wider():
    judged, people = drawn(3)
    alone = corrected_mean(np.full(1_000, 0.5), people, PLAN)
    good = corrected_mean(judged, people, PLAN)
    noise = np.random.default_rng(1).integers(0, 2, 1_000).astype(float)
    useless = corrected_mean(noise, people, PLAN)
    assert good.high - good.low < 0.85 * (alone.high - alone.low)
    assert useless.high - useless.low < 1.02 * (alone.high - alone.low)


def test_topics_are_the_units_where_the_plan_has_them():
    judged, people = (np.repeat(column, 5) for column in drawn(4, num=200, labels=60))
    single = corrected_mean(judged, people, PLAN)
    topics = corrected_mean(judged, people, Resampling(clusters=np.repeat(np.arange(200), 5)))
    assert (single.num_samples, topics.num_samples) == (300, 60)
    assert topics.high - topics.low > 2.0 * (single.high - single.low)


def test_few_large_topics_among_small_ones_count_as_few():
    """Sixty topics of two have together hardly more say than one of a hundred."""
    rng, held = np.random.default_rng(3), 0
    topics = np.repeat(np.arange(63), [100, 60, 40, *[2] * 60])
    for _ in range(200):
        likes = rng.normal(size=63)[topics] + rng.normal(size=topics.size) > 0
        people = likes.astype(float)
        judged = np.where(rng.random(topics.size) < 0.8, people, 1.0 - people)
        found = corrected_mean(judged, people, Resampling(clusters=topics))
        held += found.low <= 0.5 <= found.high
    assert held > 170


def test_votes_that_all_agree_with_the_judge_do_not_make_it_right_for_certain():
    judged = np.array([1.0] * 60 + [0.0] * 40)
    people = np.where(np.arange(100) % 5 == 0, judged, np.nan)
    found = corrected_mean(judged, people, PLAN)
    assert found.value == pytest.approx(0.6)
    assert found.low < 0.6 - (1 - 0.025 ** (1 / 20))


def test_spent_error_makes_the_interval_wider():
    judged, people = drawn(5)
    first, tenth = (corrected_mean(judged, people, Resampling(share=s)) for s in (1.0, 0.1))
    assert tenth.low < first.low
    assert tenth.confidence == pytest.approx(0.995)


@pytest.mark.parametrize(
    ("judged", "people", "said"),
    [
        ([1.0] * 9, [1.0] * 9, "at least 10"),
        ([1.0] * 20, [1.0] * 19, "one length"),
        ([1.0] * 20, [2.0] * 20, "people: expected outcomes"),
    ],
)
def test_what_cannot_be_corrected_is_refused(judged, people, said):
    with pytest.raises(DataError, match=said):
        corrected_mean(judged, people, PLAN)


def test_labels_needed_are_those_that_make_the_interval_as_narrow():
    # The textbook's 1.96^2 / 4 / 0.05^2 is 385; Student's quantile at 386 is 1.966.
    assert labels_needed(0.05, 10**9, accuracy=0.5) == 387
    assert labels_needed(0.05, 600, accuracy=0.8) < 385
    assert labels_needed(0.01, 600, accuracy=0.8) is None
    needed = labels_needed(0.06, 1_000, accuracy=0.825)
    widths = [corrected_mean(*drawn(seed, labels=needed), PLAN) for seed in range(20)]
    assert np.mean([one.high - one.low for one in widths]) / 2 < 0.061


def test_for_a_good_judge_the_labels_that_are_needed_are_enough_too():
    """By the normal quantile, and without the two added samples, 22 were said: +-0.136."""
    rng, half_widths = np.random.default_rng(0), []
    for _ in range(100):
        liked = (rng.random(500) < 0.5).astype(np.float64)
        judged = np.where(rng.random(500) < 0.95, liked, 1.0 - liked)
        people = np.full(500, np.nan)
        asked = rng.permutation(500)[: labels_needed(0.1, 500, accuracy=0.95)]
        people[asked] = liked[asked]
        found = corrected_mean(judged, people, PLAN)
        half_widths.append((found.high - found.low) / 2)
    assert np.mean(half_widths) == pytest.approx(0.1, abs=0.004)


def means(seed, num=600, labels=150):
    """The mean of three judges that lean to the policy, and of three people, some of whom tie."""
    rng = np.random.default_rng(seed)
    liked = rng.beta(2.0, 1.5, size=num)
    leaning = rng.random((3, num)) < 0.2
    judged = np.where(leaning, 1.0, rng.random((3, num)) < liked).mean(axis=0)
    draw = rng.random((3, num))
    said = np.where(draw < 0.2, 0.5, draw < 0.2 + 0.8 * liked).mean(axis=0)
    people = np.full(num, np.nan)
    voted = rng.choice(num, labels, replace=False)
    people[voted] = said[voted]
    return judged, people


def test_outcomes_between_win_and_loss_are_covered_as_well():
    """Several judges and several votes give thirds and halves, not only 1, 0.5 and 0."""
    truth = 0.2 * 0.5 + 0.8 * 2.0 / 3.5
    found = [corrected_mean(*means(seed), PLAN) for seed in range(400)]
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.975
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.005)
    judged, people = means(0)
    assert len(np.unique(judged)) > 3
    assert len(np.unique(people[~np.isnan(people)])) > 3
    assert judged.mean() > truth + 0.04
