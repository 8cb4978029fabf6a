"""Comparisons on which all was answered alike share a ballot, whatever else is the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.dataprep.votes import ballots
from rlhf_core.dataprep.votes.ballots import ballots_of
from rlhf_core.dataprep.votes.vote_models import MODELS
from tests.dataprep.test_vote_models import OTHER, crowd, table_of

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=12)


@given(ROWS)
def test_rows_are_ordered_by_what_stands_in_them(rows):
    codes = np.array([code for row in rows for code in row], dtype=np.int32)
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    places = ballots._places(codes, np.cumsum(sizes) - sizes, sizes).tolist()
    assert places == [sum(other < row for other in rows) for row in rows]


VOTES = st.dictionaries(st.sampled_from("pqr"), st.sampled_from(["a", "b", "tie"]), max_size=3)


@given(st.lists(VOTES, min_size=1, max_size=8))
def test_a_ballot_stands_for_equal_votes_with_either_side_called_a(answers):
    table = table_of([list(votes.items()) for votes in answers])
    found = ballots_of(table, len(answers), min_votes=0)
    said = [frozenset(votes.items()) for votes in answers]
    turned = [frozenset((who, OTHER[choice]) for who, choice in votes) for votes in said]
    for row, votes in enumerate(said):
        alike = [i for i, other in enumerate(said) if votes in (other, turned[i])]
        if not votes:
            assert found.of_comparison[row] == -1
            continue
        number = found.of_comparison[row]
        assert [i for i, ballot in enumerate(found.of_comparison) if ballot == number] == alike
        assert found.weight[number] == len(alike)
        whole = slice(found.edges[number], found.edges[number + 1])
        names = sorted(table.names)
        shown = {
            (names[person - 1], ("a", "b", "tie")[answer])
            for person, answer in zip(found.person[whole], found.answer[whole], strict=True)
        }
        assert shown == (turned[row] if found.is_swapped[row] else votes)


@pytest.mark.parametrize("name", ["dawid_skene", "mace"])
def test_votes_looked_at_part_by_part_give_the_same_bits(name, monkeypatch):
    answers, _ = crowd(300, 30)
    whole = MODELS[name](table_of(answers), len(answers), min_votes=20)
    monkeypatch.setattr(ballots, "_VOTES_AT_ONCE", 7)
    parts = MODELS[name](table_of(answers), len(answers), min_votes=20)
    np.testing.assert_array_equal(parts, whole)
