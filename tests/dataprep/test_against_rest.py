"""One annotator against the others: alpha as published for two, and its interval."""

import krippendorff
import numpy as np
import pytest

from rlhf_core.dataprep.votes.against_rest import against_rest
from rlhf_core.dataprep.votes.vote_table import CHOICES, VoteTable
from rlhf_core.schema import Vote


def table(*rows: str) -> VoteTable:
    """``"ann:a bob:t"`` a comparison."""
    names, found = {"a": "a", "b": "b", "t": "tie"}, VoteTable()
    for number, row in enumerate(rows):
        votes = [vote.split(":") for vote in row.split()]
        found.add(number, [Vote(annotator=who, choice=names[what]) for who, what in votes])
    return found


def measured(votes: VoteTable, num_rows: int, groups=None, num_resamples=200):
    names = groups or [""] * num_rows
    return against_rest(votes, names, num_resamples=num_resamples, seed=0)


def simulated(num_rows: int, accuracy: float, seed: int) -> VoteTable:
    """One annotator of this accuracy among three of 0.8."""
    rng, votes = np.random.default_rng(seed), VoteTable()
    for number, right in enumerate(rng.integers(0, 2, num_rows)):
        levels = {"one": accuracy, "x": 0.8, "y": 0.8, "z": 0.8}
        answers = {n: right if rng.random() < level else 1 - right for n, level in levels.items()}
        votes.add(number, [Vote(annotator=n, choice=CHOICES[c]) for n, c in answers.items()])
    return votes


def test_between_two_people_it_is_their_alpha():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, size=(2, 80))
    codes[1, :50] = codes[0, :50]
    rows = [f"ann:{'abt'[one]} bob:{'abt'[two]}" for one, two in codes.T]
    expected = krippendorff.alpha(codes, level_of_measurement="nominal")
    found = measured(table(*rows, "ann:a"), 81)
    assert found.alpha.tolist() == pytest.approx([expected, expected])
    assert found.num_shared.tolist() == [80, 80]
    assert found.low[0] < expected < found.high[0]


def test_the_others_are_one_observer_of_shares():
    """By hand: answers (1, 1, 0), (1/3, 5/3, 0) and (2, 0, 0); they disagree in 1, 1/3 and 0."""
    found = measured(table("ann:a bob:b", "ann:b x:a y:b z:b", "ann:a bob:a"), 3)
    answers, total = np.array([10 / 3, 8 / 3]), 6
    expected = (answers * (total - answers)).sum() / (total * (total - 1))
    assert found.alpha[0] == pytest.approx(1 - (2 * (1 + 1 / 3) / total) / expected)


def test_nobody_is_compared_with_nobody():
    found = measured(table("ann:a", "bob:b cid:b"), 2)
    assert found.num_shared.tolist() == [0, 1, 1]
    assert np.isnan([*found.alpha, *found.low, *found.high]).all()
    assert not measured(VoteTable(), 0).alpha.size


def test_the_interval_covers_as_often_as_it_says():
    truth = measured(simulated(20_000, 0.6, 1), 20_000, num_resamples=10).alpha[0]
    found = [measured(simulated(60, 0.6, seed), 60) for seed in range(2, 62)]
    assert sum(one.low[0] <= truth <= one.high[0] for one in found) >= 55
    assert max(one.high[0] - one.low[0] for one in found) < 0.8


def test_the_pairs_of_a_list_are_drawn_together_and_the_order_of_rows_does_not_matter():
    votes, names = simulated(300, 0.7, 0), [f"list {number // 20}" for number in range(300)]
    alone, grouped = measured(votes, 300), measured(votes, 300, names)
    assert grouped.alpha == pytest.approx(alone.alpha)
    assert grouped.low[0] != alone.low[0]
    backwards = VoteTable(names=dict(votes.names))
    for number in range(300):
        backwards.add(number, votes.ballots([299 - number])[299 - number][::-1])
    again = measured(backwards, 300, names[::-1])
    assert (again.low.tolist(), again.high.tolist()) == (
        grouped.low.tolist(),
        grouped.high.tolist(),
    )
