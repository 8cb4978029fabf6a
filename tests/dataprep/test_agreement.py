"""Krippendorff's alpha against its definition and against published data."""

import gzip
import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from rlhf_core.config import VotesConfig
from rlhf_core.dataprep.intake import Intake
from rlhf_core.dataprep.ledger import Ledger, enter, votes_to_train_on
from rlhf_core.dataprep.votes.agreement import (
    _distinct,
    _sums_by_group,
    alpha_estimate,
    alphas,
    krippendorff_alpha,
)
from rlhf_core.schema import Comparison, Message, Vote
from rlhf_core.stages.preparation.report import describe_agreement


def by_definition(units: list[list[str]]) -> float:
    """1 - D_o / D_e over ordered pairs of values (Krippendorff 2011, section C)."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    observed = sum(
        sum(x != y for x, y in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units
    ) / len(values)
    expected = sum(x != y for x, y in itertools.permutations(values, 2))
    return 1 - observed / (expected / (len(values) * (len(values) - 1)))


def table(units: list[list[str]]) -> np.ndarray:
    return np.array([[unit.count(value) for value in ("a", "b", "tie")] for unit in units])


def rows(*counts) -> np.ndarray:
    return np.array(counts, dtype=np.int64).reshape(-1, 3)


def test_matches_the_definition():
    rng = random.Random(0)
    units = [
        [rng.choice(["a", "a", "b", "tie"]) for _ in range(rng.randint(1, 5))] for _ in range(60)
    ]
    assert krippendorff_alpha(table(units)) == pytest.approx(by_definition(units))


def test_perfect_agreement_is_one_and_disagreement_below_zero():
    assert krippendorff_alpha(rows((3, 0, 0), (0, 3, 0))) == pytest.approx(1.0)
    assert krippendorff_alpha(rows(*[(1, 1, 0)] * 10)) < 0


@pytest.mark.parametrize(
    ("num_votes", "tie", "as_documented"),
    [(2, 1 / 3, -0.14), (3, 1 / 3, -0.09), (5, 1 / 3, -0.05), (2, 0.1, -0.02), (2, 0.0, 0.0)],
)
def test_ties_lower_alpha_of_the_votes_trained_on_as_the_docs_say(num_votes, tie, as_documented):
    chances = [(1 - tie) / 2, (1 - tie) / 2, tie]
    counts = np.random.default_rng(0).multinomial(num_votes, chances, size=20_000)
    reasons = ["tie" if a == b or t > max(a, b) else None for a, b, t in counts.tolist()]
    said = Comparison(
        comparison_id="c",
        prompt=(Message(role="user", content="?"),),
        response_a="yes",
        response_b="no",
        votes=(Vote(annotator="ann", choice="a"),),
    )
    entry = enter(said)
    ledger = Ledger(replace(entry, reason=reason) for reason in reasons)
    trained_on = votes_to_train_on(ledger, counts)
    assert krippendorff_alpha(counts) == pytest.approx(0.0, abs=0.015)
    assert krippendorff_alpha(counts[trained_on]) == pytest.approx(as_documented, abs=0.015)


def test_is_not_defined_without_two_votes_or_two_answers():
    assert krippendorff_alpha(rows((1, 0, 0), (0, 1, 0))) is None
    assert krippendorff_alpha(rows((2, 0, 0), (3, 0, 0))) is None
    assert krippendorff_alpha(rows()) is None


def test_the_published_arguments_give_the_published_alpha(shared_data):
    with gzip.open(shared_data / "ukp_convarg1" / "pairs.jsonl.gz", "rt") as lines:
        votes = [[vote["choice"] for vote in json.loads(line)["labels"]] for line in lines]
    estimate = alpha_estimate(table(votes), num_resamples=1_000, seed=0)
    assert estimate.value == pytest.approx(0.267, abs=0.001)
    assert (estimate.low, estimate.high) == pytest.approx((0.261, 0.273), abs=0.0005)


def test_the_resampled_alpha_is_the_same_quantity():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, size=(200, 3))
    names = [f"list {number}" if number < 4 else "" for number in rng.integers(0, 8, size=200)]
    for groups in (None, names):
        sums = _sums_by_group(counts, groups)
        [alpha] = alphas(sums.sum(axis=0, keepdims=True))
        assert alpha == pytest.approx(krippendorff_alpha(counts))


def test_the_interval_holds_the_value_and_shrinks_with_data():
    rng = np.random.default_rng(0)
    counts = np.array(
        [rng.multinomial(3, [0.7, 0.2, 0.1] if i % 2 else [0.2, 0.7, 0.1]) for i in range(400)]
    )
    small, large = (
        alpha_estimate(part, num_resamples=500, seed=0) for part in (counts[:50], counts)
    )
    for estimate in (small, large):
        assert estimate.low < estimate.value < estimate.high
    assert large.high - large.low < small.high - small.low
    assert alpha_estimate(counts, num_resamples=500, seed=0) == large
    assert alpha_estimate(rows((1, 0, 0)), num_resamples=10, seed=0) is None


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)

    def draw(num_rows):
        sides = rng.random(num_rows) < 0.5
        p = np.where(sides[:, None], [[0.75, 0.25, 0.0]], [[0.25, 0.75, 0.0]])
        return np.array([rng.multinomial(3, row) for row in p])

    truth = krippendorff_alpha(draw(60_000))
    inside = 0
    for seed in range(100):
        estimate = alpha_estimate(draw(150), num_resamples=300, seed=seed)
        inside += estimate.low <= truth <= estimate.high
    assert inside >= 88


def test_the_pairs_of_a_ranked_list_are_no_independent_observations():
    """Two people rank seven responses, 21 pairs a list; three lists in five they rank alike."""
    rng = np.random.default_rng(1)
    size = 7
    first, second = np.triu_indices(size, 1)

    def draw(num_lists):
        ranks = rng.permuted(np.tile(np.arange(size), (num_lists, 2, 1)), axis=2)
        alike = rng.random(num_lists) < 0.6
        ranks[alike, 1] = ranks[alike, 0]
        flipped = rng.random((num_lists, 1, len(first))) < 0.5
        votes_a = ((ranks[:, :, first] < ranks[:, :, second]) != flipped).sum(axis=1).ravel()
        return np.stack([votes_a, 2 - votes_a, np.zeros_like(votes_a)], axis=1)

    truth = krippendorff_alpha(draw(20_000))
    groups = [f"list {number}" for number in range(100) for _ in first]
    estimates = [
        alpha_estimate(draw(100), groups, num_resamples=300, seed=seed) for seed in range(100)
    ]
    assert sum(found.low <= truth <= found.high for found in estimates) >= 88


def test_a_group_of_one_stands_alone_and_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 4, size=(300, 3))
    alone = alpha_estimate(counts, num_resamples=200, seed=0)
    names = [str(number) for number in range(300)]
    assert alpha_estimate(counts, names, num_resamples=200, seed=0) == alone
    assert alpha_estimate(counts, [""] * 300, num_resamples=200, seed=0) == alone
    lists = np.array([f"list {number // 6}" for number in range(300)])
    grouped = alpha_estimate(counts, lists.tolist(), num_resamples=200, seed=0)
    order = rng.permutation(300)
    again = alpha_estimate(counts[order], lists[order].tolist(), num_resamples=200, seed=0)
    assert again == grouped != alone


def test_the_report_draws_the_pairs_of_a_list_together(tmp_path):
    def alpha(group_size):
        intake, rng = Intake(tmp_path / "spill.jsonl"), random.Random(0)
        for number in range(300):
            item = Comparison(
                comparison_id=str(number),
                prompt=(Message(role="user", content=f"{number}?"),),
                response_a="yes",
                response_b="no",
                votes=tuple(Vote(annotator=n, choice=rng.choice("aab")) for n in ("ann", "bob")),
                group=f"list {number // group_size}" if group_size else "",
            )
            intake.add(item, enter(item))
        return describe_agreement(intake, VotesConfig(num_resamples=100), 0).alpha

    assert alpha(10) != alpha(0) == alpha(1)


@pytest.mark.parametrize("size", [0, 1, 5, 300])
def test_distinct_rows_are_counted_as_numpy_counts_them(size):
    rows = np.random.default_rng(0).integers(0, 3, (size, 4)) / 3
    values, counts = _distinct(rows)
    if size:
        expected = np.unique(rows, axis=0, return_counts=True)
        np.testing.assert_array_equal(values, expected[0])
        np.testing.assert_array_equal(counts, expected[1])
    assert counts.sum() == size
