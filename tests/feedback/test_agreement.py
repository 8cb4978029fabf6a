import pytest

from rlhf_core.feedback.agreement import judges_against_people, votes_alpha
from rlhf_core.schema import Vote

RESAMPLING = {"num_resamples": 80, "seed": 0}


def ballot(**choices):
    return [Vote(annotator=name.replace("ai_", "ai:"), choice=c) for name, c in choices.items()]


def test_a_judge_is_measured_against_people_where_both_voted():
    votes = [
        *(ballot(ann=c, ai_good=c, ai_bad="a" if c == "b" else "b") for c in "abababab"),
        ballot(ann="a"),
        ballot(ai_good="a"),
    ]
    found = judges_against_people(votes, **RESAMPLING)
    assert found["ai:good"].value == pytest.approx(1.0)
    assert found["ai:bad"].value < -0.5
    assert found["ai:good"].num_samples == 8


def test_without_common_pairs_there_is_no_agreement_to_tell():
    votes = [ballot(ann="a"), ballot(ai_x="a"), ballot(ai_x="b", ai_y="b")]
    assert not judges_against_people(votes, **RESAMPLING)
    assert votes_alpha([ballot(ann="a")], **RESAMPLING) is None
    assert votes_alpha([], **RESAMPLING) is None


def test_alpha_is_over_all_votes():
    votes = [ballot(ann=c, bob=c) for c in "abab"]
    assert votes_alpha(votes, **RESAMPLING).value == pytest.approx(1.0)
