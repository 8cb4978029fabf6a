"""Whose votes count on the answers that the judge compared."""

import numpy as np
import pytest

from rlhf_core.evaluation.people import OutcomeVote, VotedPair, describe_votes, people_outcomes
from rlhf_core.evaluation.samples import ComparedAnswer
from rlhf_core.schema import Message


def sample(number, policy="yes", sft="no"):
    return ComparedAnswer(
        prompt_id=f"p{number}", prompt=(Message(role="user", content="?"),), tags={},
        policy=policy, sft=sft, policy_length=1, sft_length=1, policy_finished=True,
        sft_finished=True, won=1.0, scores={},
    )  # fmt: skip


def voted(number, policy="yes", sft="no", **votes):
    given = tuple(OutcomeVote(annotator=name, won=won) for name, won in votes.items())
    return VotedPair(prompt_id=f"p{number}", policy=policy, sft=sft, votes=given)


SAMPLES = [sample(0), sample(1), sample(2, sft="yes"), sample(3)]


def test_several_votes_are_their_mean_and_equal_answers_a_tie():
    pairs = [voted(0, ann=1.0, bob=0.0, cyn=1.0), voted(1, ann=0.5), voted(2, sft="yes")]
    outcome, people = people_outcomes(SAMPLES, pairs)
    np.testing.assert_allclose(outcome, [2 / 3, 0.5, 0.5, np.nan])
    assert (people.pairs, people.votes, people.by) == (3, 4, ("ann", "bob", "cyn"))


def test_votes_of_two_collections_are_joined_by_annotator():
    outcome, people = people_outcomes(SAMPLES, [voted(0, ann=1.0), voted(0, ann=0.0, bob=0.0)])
    assert outcome[0] == 0.0
    assert people.votes == 2


def test_votes_on_other_answers_count_for_nothing_and_are_told():
    outcome, people = people_outcomes(SAMPLES, [voted(0, policy="maybe", ann=1.0), voted(9, a=1.0)])
    assert np.isnan(outcome).all()
    assert (people.pairs, people.unmatched) == (0, 2)
    assert "2 pairs are of other answers" in describe_votes(people)


@pytest.mark.parametrize(
    ("others", "outcome", "said"),
    [({"ann": 0.0}, [0.0, np.nan], "by 1 annotators"), ({}, [1.0, 1.0], "ai:big and no person")],
)
def test_an_ai_judge_counts_only_where_no_person_voted(others, outcome, said):
    pairs = [voted(0, **{"ai:big": 1.0}, **others), voted(1, **{"ai:big": 1.0})]
    found, people = people_outcomes(SAMPLES, pairs)
    np.testing.assert_allclose(found[:2], outcome)
    assert said in describe_votes(people)
