"""Intervals over prompts: Wilson's where each pair has its own, and never too narrow elsewhere."""

import numpy as np
import pytest
from scipy import stats

from rlhf_core.statistics.clusters import auc, bootstrap, numbered, proportion, ranked


def share(successes: int, total: int, clusters=None):
    won = np.arange(total) < successes
    return proportion(won.astype(float), np.arange(total) if clusters is None else clusters)


def test_a_share_of_single_pairs_has_the_interval_wilson_gives():
    found = share(37, 50)
    expected = stats.binomtest(37, 50).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (share(0, 9).low, share(9, 9).high) == (0.0, 1.0)


def test_pairs_that_repeat_each_other_count_once():
    won = np.repeat(np.arange(40) < 25, 6).astype(float)
    found = proportion(won, np.repeat(np.arange(40), 6))
    single = share(25, 40)
    assert found.num_samples == 240
    assert found.low == pytest.approx(single.low, abs=0.01)
    assert found.high == pytest.approx(single.high, abs=0.01)


def test_clusters_whose_rows_have_nothing_in_common_change_little():
    rng = np.random.default_rng(0)
    won = (rng.random(4_000) < 0.6).astype(float)
    grouped, single = proportion(won, np.arange(4_000) // 4), proportion(won, np.arange(4_000))
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.1)
    assert grouped.high - grouped.low >= single.high - single.low


def test_one_cluster_shows_no_spread_and_so_says_nothing():
    found = share(30, 30, np.zeros(30, dtype=int))
    assert (found.value, found.low, found.high) == (1.0, 0.0, 1.0)
    found = bootstrap(lambda rows: 0.7, np.zeros(30, dtype=int), seed=0)
    assert (found.value, found.low, found.high) == (0.7, 0.0, 1.0)


def test_the_bootstrap_draws_whole_clusters():
    clusters = np.array([0, 1, 1, 0, 2, 2, 2])
    drawn = []

    def measure(rows):
        counts = np.bincount(rows, minlength=7)
        drawn.append(counts)
        return 0.5

    found = bootstrap(measure, clusters, seed=0)
    assert found.num_samples == 7
    for counts in drawn:
        assert len(set(counts[[0, 3]])) == len(set(counts[[1, 2]])) == len(set(counts[4:])) == 1
        assert counts[0] + counts[1] + counts[4] == 3
    assert len({tuple(counts) for counts in drawn}) > 5


def test_the_area_under_the_curve_counts_pairs_of_scores():
    positives, negatives = [1.0, 2.0, 2.0, 5.0], [0.0, 2.0, 3.0]
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    ranks, positive = ranked(np.array([*positives, *negatives])), np.arange(7) < 4
    assert auc(ranks, positive) == pytest.approx(wins / 12)
    assert auc(ranks, np.ones(7, dtype=bool)) == 0.5
    assert auc(ranks[:0], positive[:0]) == 0.5


def test_equal_keys_have_equal_numbers():
    assert numbered([b"x", b"y", b"x", b"z"]).tolist() == [0, 1, 0, 2]
