"""Rows on their way in: whose votes count, and how many do not."""

import pytest

from rlhf_core.config import VotesConfig
from rlhf_core.dataprep.cleaning.quarantine import Quarantine
from rlhf_core.dataprep.cleaning.rules import RowRules
from rlhf_core.dataprep.intake import Intake, ingest
from rlhf_core.errors import ConfigError
from rlhf_core.schema import Comparison, Message, Vote
from rlhf_core.stages.preparation.report import describe_agreement


def taken_in(folder, *ballots: str, excluded: frozenset[str]) -> Intake:
    items = [
        Comparison(
            comparison_id=str(number),
            prompt=(Message(role="user", content=f"{number}?"),),
            response_a="yes",
            response_b="no",
            votes=tuple(Vote(annotator=name, choice="a") for name in ballot.split()),
        )
        for number, ballot in enumerate(ballots)
    ]
    intake = Intake(folder / "spill.jsonl")
    with Quarantine(folder / "quarantine.parquet") as quarantine:
        ingest(items, intake, quarantine, RowRules(), excluded=excluded)
    return intake


def test_excluded_votes_are_counted_by_name(tmp_path):
    excluded = frozenset({"ann", "bob"})
    intake = taken_in(tmp_path, "ann bob cid", "ann cid", "ann", excluded=excluded)
    assert intake.votes.counts(3).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert [entry.reason for entry in intake.entries] == [None, None, "no_votes"]
    report = describe_agreement(intake, VotesConfig(), seed=0).as_json()
    assert (report["num_votes"], report["excluded_votes"]) == (2, {"ann": 3, "bob": 1})


def test_a_mistyped_name_among_the_excluded_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.votes\.exclude: no vote by Ann, dan;"):
        taken_in(tmp_path, "ann bob", excluded=frozenset({"Ann", "bob", "dan"}))
