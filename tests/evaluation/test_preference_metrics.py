import math

import numpy as np
import pytest
from scipy import stats

from rlhf_core.evaluation.noise_ceiling import noise_ceiling
from rlhf_core.evaluation.preference_metrics import (
    LengthRival,
    ScoredPairs,
    accuracy_slices,
    calibration_error,
    correctness,
    correlation_by_noise,
    error_correlation,
    fit_length_rival,
    preference_metrics,
)
from rlhf_core.schema import Message, PreferencePair
from rlhf_core.statistics import intervals
from rlhf_core.statistics.intervals import Plans, Resampling

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
    roots, rejected = [], 0
    for trial in range(100):
        strength = rng.normal(scale=1.5, size=300)
        wins = rng.random(300) < 1.0 / (1.0 + np.exp(-strength))
        margins = np.where(wins, strength, -strength)
        estimate = calibration_error(
            margins, np.arange(300), Resampling(num_resamples=80, seed=trial), bins=10
        )
        roots.append(estimate.value)
        rejected += estimate.low > 0.05
    assert np.mean(roots) == pytest.approx(0.020, abs=0.004)  # not 0: as the docs say
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


def pair(index, agreement=1.0, num_votes=3, ties=0.0, **more):
    return PreferencePair(
        comparison_id=f"c{index}",
        prompt=(Message(role="user", content=f"question {index}"),),
        chosen="yes",
        rejected="no",
        agreement=agreement,
        num_votes=num_votes,
        tie_fraction=ties,
        **more,
    )


def test_accuracy_by_length_agreement_source_and_tag():
    data = pairs([1.0, 1.0, -1.0, 1.0], [9, 9, 2, 5], [4, 4, 8, 5])
    records = [
        pair(0, 1.0, source="forum", tags={"style": "terse"}),
        pair(1, 2 / 3, source="forum", tags={"style": "polite"}),
        pair(2, 5 / 6, ties=1 / 3, tags={"style": "terse"}),
        pair(3, 1.0, num_votes=1),
    ]
    slices = accuracy_slices(data, records, PLAN)
    assert {name: (one.value, one.num_samples) for name, one in slices.items()} == {
        "chosen=longer": (1.0, 2),
        "chosen=shorter": (0.0, 1),
        "chosen=equal": (1.0, 1),
        "length_difference=small": (1.0, 3),
        "length_difference=large": (0.0, 1),
        "agreement=one vote": (1.0, 1),
        "agreement=1": (1.0, 1),
        "agreement=0.75 to 1": (0.0, 1),
        "agreement=0.5 to 0.75": (1.0, 1),
        "source=forum": (1.0, 2),
        "style=polite": (1.0, 1),
        "style=terse": (0.5, 2),
    }


def test_what_labels_single_pairs_is_no_slice():
    records = [pair(i, source=f"row {i}") for i in range(40)]
    slices = accuracy_slices(pairs(np.ones(40), np.ones(40), np.ones(40)), records, PLAN)
    assert not any(name.startswith("source=") for name in slices)


def voted(strength, count, rng, num_votes=3):
    """Pairs of annotators of known disagreement, and how often their label is the population's."""
    share = rng.beta(strength, strength, size=count)
    votes = rng.binomial(num_votes, share)
    kept = 2 * votes != num_votes
    won = np.maximum(votes, num_votes - votes)[kept]
    right = ((votes > num_votes / 2) == (share > 0.5))[kept]
    return [pair(i, w / num_votes, num_votes) for i, w in enumerate(won)], right.mean()


@pytest.mark.parametrize(
    ("strength", "num_votes"),
    [
        (1.0, 4),  # some are tied
        (2.0, 5),
        pytest.param(0.3, 3, marks=pytest.mark.nightly),
        pytest.param(1.0, 3, marks=pytest.mark.nightly),
    ],
)
def test_the_noise_ceiling_is_what_a_judge_that_knows_the_many_reaches(strength, num_votes):
    rng = np.random.default_rng(1)
    truth = voted(strength, 100_000, rng, num_votes)[1]
    found = [voted(strength, 400, rng, num_votes)[0] for _ in range(25)]
    ceilings = [noise_ceiling(some, np.arange(len(some)), PLAN) for some in found]
    assert np.mean([one.value for one in ceilings]) == pytest.approx(truth, abs=0.015)
    assert sum(one.low <= truth <= one.high for one in ceilings) >= 20


def test_the_noise_ceiling_is_too_high_where_preferences_are_not_beta_as_the_docs_say():
    rng = np.random.default_rng(1)
    obvious = rng.random(20_000) < 0.5
    share = np.where(obvious, 0.98, rng.uniform(0.5, 0.55, 20_000))
    won = rng.binomial(3, share)
    pairs = [pair(i, max(w, 3 - w) / 3) for i, w in enumerate(won.tolist())]
    ceiling = noise_ceiling(pairs, np.arange(len(pairs)), PLAN)
    assert (won > 1.5).mean() == pytest.approx(0.77, abs=0.01)
    assert ceiling.value == pytest.approx(0.86, abs=0.01)


def test_unanimous_annotators_leave_nothing_to_noise():
    ceiling = noise_ceiling([pair(i) for i in range(200)], np.arange(200), PLAN)
    assert ceiling.value > 0.99


@pytest.mark.parametrize("num_votes", [1, 2])
def test_one_or_two_votes_do_not_tell_a_ceiling(num_votes):
    assert noise_ceiling([pair(i, 1.0, num_votes) for i in range(9)], np.arange(9), PLAN) is None


def test_tied_votes_that_a_vote_model_decided_tell_nothing_and_break_nothing():
    some = voted(1.0, 300, np.random.default_rng(0))[0]
    odd = [pair(1000, 0.5, 2), pair(1001, 0.5, 3, ties=1.0), pair(1002, 1 / 3)]
    with_odd = noise_ceiling(some + odd, np.arange(len(some) + 3), PLAN)
    without = noise_ceiling(some, np.arange(len(some)), PLAN)
    assert with_odd.value == pytest.approx(without.value, abs=0.02)


def test_pairs_of_one_dialogue_widen_the_ceilings_interval():
    some = voted(1.0, 200, np.random.default_rng(0))[0]
    alone = noise_ceiling(some, np.arange(200), PLAN)
    copies = noise_ceiling(some * 4, np.tile(np.arange(200), 4), PLAN)
    assert copies.num_samples == 200
    assert copies.value == pytest.approx(alone.value)
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.1)


UNEVEN = np.repeat(np.arange(25), [12] * 5 + [1] * 20)


def accuracy_of(rng):
    data = pairs(rng.normal(0.5, 1.0, UNEVEN.size), *np.ones((2, UNEVEN.size)), UNEVEN)
    return measured(data, LengthRival(0.0))["reward/heldout_accuracy"]


def calibration_of(rng):
    squared = calibration_error(rng.normal(0.0, 3.0, UNEVEN.size), UNEVEN, PLAN, bins=10)
    ends = {name: getattr(squared, name) ** 2 for name in ("value", "low", "high")}
    return squared.model_copy(update=ends)


def correlation_of(rng):
    return error_correlation(*rng.binomial(1, 0.6, (2, UNEVEN.size)).astype(float), UNEVEN, PLAN)


def ceiling_of(rng):
    return noise_ceiling(voted(1.0, UNEVEN.size + 60, rng)[0][: UNEVEN.size], UNEVEN, PLAN)


@pytest.mark.parametrize("of", [accuracy_of, calibration_of, correlation_of, ceiling_of])
def test_few_dialogues_with_most_of_the_pairs_widen_every_interval(of, monkeypatch):
    """25 dialogues of which 5 hold 60 of 80 pairs count for 80^2 / (5 * 12^2 + 20) = 8.65."""
    wide = of(np.random.default_rng(2))
    monkeypatch.setattr(intervals, "_as_wide_as_of_few", lambda estimate, *_: estimate)
    plain = of(np.random.default_rng(2))
    student = stats.t.isf(0.025, 7.65) / stats.norm.isf(0.025) * math.sqrt(8.65 / 7.65)
    assert wide.high - wide.value == pytest.approx(student * (plain.high - plain.value), rel=1e-3)


def test_the_correlation_of_errors_is_phi_by_hand():
    first = np.array([1, 1, 0, 0, 1, 1, 0, 1], dtype=float)
    second = np.array([1, 0, 0, 0, 1, 1, 1, 1], dtype=float)
    estimate = error_correlation(first, second, np.arange(8), PLAN)
    n11, n00, n10, n01 = 4, 2, 1, 1
    phi = (n11 * n00 - n10 * n01) / math.sqrt(5 * 3 * 5 * 3)
    assert estimate.value == pytest.approx(phi)
    assert estimate.value == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert estimate.low < phi < estimate.high


def test_the_same_errors_correlate_fully_and_none_tell_nothing():
    rng = np.random.default_rng(0)
    right = (rng.random(200) < 0.7).astype(float)
    assert error_correlation(right, right, np.arange(200), PLAN).value == pytest.approx(1.0)
    perfect = error_correlation(np.ones(200), right, np.arange(200), PLAN)
    assert (perfect.value, perfect.low, perfect.high) == (0.0, -1.0, 1.0)


def test_independent_judges_correlate_by_the_wrong_labels_alone():
    rng = np.random.default_rng(0)
    wrong_label = rng.random(200_000) < 0.1
    knows = [rng.random(200_000) < accuracy for accuracy in (0.8, 0.7)]
    right = [np.where(wrong_label, ~own, own).astype(float) for own in knows]
    expected = correlation_by_noise(right[0].mean(), right[1].mean(), 0.9)
    assert np.corrcoef(*right)[0, 1] == pytest.approx(expected, abs=0.01)
    assert expected > 0.05
    assert correlation_by_noise(1.0, 0.7, 0.9) == 0.0
