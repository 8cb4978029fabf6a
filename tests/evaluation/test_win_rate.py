import numpy as np
import pytest
from scipy.optimize import minimize

from rlhf_core.errors import DataError
from rlhf_core.evaluation.win_rate import length_controlled_win_rate, outcomes, win_rate
from rlhf_core.statistics.intervals import Resampling

PLAN = Resampling(num_resamples=400)
DIFFERENT = {"policy_texts": list("abcd"), "sft_texts": list("wxyz")}


def test_a_tie_is_half_a_win():
    won = outcomes([2.0, 1.0, 5.0, 0.0], [1.0, 1.0, 0.0, 3.0], **DIFFERENT)
    assert won.tolist() == [1.0, 0.5, 1.0, 0.0]
    assert win_rate(won, PLAN).value == 0.625


def test_the_same_words_are_a_tie_whatever_rounding_says():
    won = outcomes([1.0000001, 2.0], [1.0, 1.0], policy_texts=["hi", "a"], sft_texts=["hi", "b"])
    assert won.tolist() == [0.5, 1.0]


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(DataError):
        outcomes([np.nan], [0.0], policy_texts=["a"], sft_texts=["b"])


def by_definition(won, longer):
    """The same penalised likelihood, maximised by a general optimiser."""

    def loss(parameters):
        odds = parameters[0] + parameters[1] * longer
        likelihood = won * -np.logaddexp(0, -odds) + (1 - won) * -np.logaddexp(0, odds)
        return -likelihood.sum() + 0.5 * 1e-2 * parameters[1] ** 2

    theta = minimize(loss, [0.0, 0.0], tol=1e-12).x[0]
    return 1.0 / (1.0 + np.exp(-theta))


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_maximum_of_its_likelihood(seed):
    rng = np.random.default_rng(seed)
    gap = rng.normal(5.0, 20.0, size=120)
    longer = np.tanh(gap / gap.std())
    won = rng.choice([0.0, 0.5, 1.0], size=120)
    estimate = length_controlled_win_rate(won, 50.0 + gap, np.full(120, 50.0), PLAN)
    assert estimate.value == pytest.approx(by_definition(won, longer), abs=1e-5)


def test_a_judge_that_only_counts_tokens_gives_no_length_controlled_win():
    rng = np.random.default_rng(0)
    gap = rng.normal(10.0, 10.0, size=600)  # the policy writes more
    chance = 1.0 / (1.0 + np.exp(-3.0 * np.tanh(gap / gap.std())))  # and length is all that counts
    won = (rng.random(600) < chance).astype(float)
    plain = win_rate(won, PLAN)
    controlled = length_controlled_win_rate(won, 50.0 + gap, np.full(600, 50.0), PLAN)
    assert plain.low > 0.65
    assert controlled.low < 0.5 < controlled.high


def test_a_better_policy_keeps_its_win_rate_when_length_is_controlled():
    rng = np.random.default_rng(0)
    gap = rng.normal(10.0, 10.0, size=600)
    truth = 1.0 / (1.0 + np.exp(-0.8))
    chance = 1.0 / (1.0 + np.exp(-(0.8 + 1.5 * np.tanh(gap / gap.std()))))
    won = (rng.random(600) < chance).astype(float)
    controlled = length_controlled_win_rate(won, 50.0 + gap, np.full(600, 50.0), PLAN)
    assert controlled.low < truth < controlled.high
    assert controlled.low > 0.55


def test_equal_lengths_leave_the_plain_win_rate():
    won = np.array([1.0, 1.0, 0.0, 0.5, 1.0, 0.0])
    same = np.full(6, 12.0)
    controlled = length_controlled_win_rate(won, same, same, PLAN)
    assert controlled.value == pytest.approx(won.mean(), abs=1e-6)


def test_winning_always_is_not_certain_and_stays_finite():
    gap = np.random.default_rng(0).normal(size=50)
    controlled = length_controlled_win_rate(np.ones(50), 20 + gap, np.full(50, 20.0), PLAN)
    assert controlled.value == 1.0
    assert 0.9 < controlled.low < 0.95


def test_a_win_exactly_when_longer_stays_finite():
    gap = np.concatenate([np.linspace(-10, -1, 30), np.linspace(1, 10, 30)])
    controlled = length_controlled_win_rate(
        (gap > 0).astype(float), 20 + gap, np.full(60, 20.0), PLAN
    )
    assert 0.0 <= controlled.low < 0.5 < controlled.high <= 1.0


@pytest.mark.parametrize("won", [np.ones(500), np.tile([1.0, 1.0, 0.5, 0.0], 125)])
@pytest.mark.parametrize("spread", [0.0, 10.0])
def test_answers_that_are_always_longer_say_nothing_of_equal_length(won, spread):
    gap = np.random.default_rng(0).normal(100.0, spread, 500)
    controlled = length_controlled_win_rate(won, 50.0 + gap, np.full(500, 50.0), PLAN)
    assert (controlled.low, controlled.high) == (0.0, 1.0)
    gap[:20] = 0.0
    controlled = length_controlled_win_rate(won, 50.0 + gap, np.full(500, 50.0), PLAN)
    assert controlled.high - controlled.low < 1.0
