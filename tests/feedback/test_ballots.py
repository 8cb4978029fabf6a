"""Votes are on the disk one by one, and only whole ones count."""

import errno
import json
import os

import pytest

from rlhf_core.errors import ConfigError, DataError, StorageError
from rlhf_core.feedback.ballots import Ballot, BallotBox, add_file_votes, all_votes
from rlhf_core.feedback.collection import read_collection
from rlhf_core.schema import Vote


def ballot(name, choice="a", annotator="ann"):
    return Ballot(comparison_id=name, votes=(Vote(annotator=annotator, choice=choice),))


def fill(folder, labeler, ballots, asked=None):
    with BallotBox(folder, labeler).opened(asked or {"seed": 0}) as keep:
        for one in ballots:
            keep(one)


def test_a_ballot_that_a_kill_cut_short_is_none_and_gives_way_to_the_next(tmp_path):
    fill(tmp_path, "ann", [ballot("1"), ballot("2")])
    box = BallotBox(tmp_path, "ann")
    whole = box.path.read_bytes()
    box.path.write_bytes(whole[:-7])
    assert box.read() == [ballot("1")]
    fill(tmp_path, "ann", [ballot("2")])
    assert box.path.read_bytes() == whole


def test_ballots_are_there_before_the_box_is_closed(tmp_path):
    with BallotBox(tmp_path, "ann").opened({}) as keep:
        keep(ballot("1"))
        assert BallotBox(tmp_path, "ann").read() == [ballot("1")]


def test_ballots_of_one_box_were_asked_for_alike(tmp_path):
    fill(tmp_path, "ai:m", [ballot("1")], {"model": "m", "principles": ["kind"]})
    with pytest.raises(ConfigError, match=r"other settings \(changed: principles\)"):
        fill(tmp_path, "ai:m", [ballot("2")], {"model": "m", "principles": ["brief"]})
    assert len(BallotBox(tmp_path, "ai:m").read()) == 1


def test_a_broken_line_is_named(tmp_path):
    fill(tmp_path, "ann", [ballot("1")])
    path = BallotBox(tmp_path, "ann").path
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(DataError, match=r"ballots.jsonl, line 1: not a Ballot"):
        BallotBox(tmp_path, "ann").read()


def test_votes_of_all_labelers_come_together_and_nobody_counts_twice(tmp_path):
    fill(tmp_path, "ann", [ballot("1"), ballot("2")])
    fill(tmp_path, "ai:x/y", [ballot("1", "b", "ai:x/y"), Ballot(comparison_id="3", problem="?")])
    fill(tmp_path, "zoe", [ballot("1", "b", "ann")])
    votes = all_votes(tmp_path)
    assert votes["1"] == (ballot("1", "b", "ai:x/y").votes[0], ballot("1").votes[0])
    assert sorted(votes) == ["1", "2"]


def test_labelers_whose_names_look_alike_on_disk_have_a_box_each(tmp_path):
    fill(tmp_path, "ai:x/y", [ballot("1")])
    assert BallotBox(tmp_path, "ai:x:y").read() == []


def test_a_full_disk_is_told_in_one_line_and_what_was_kept_stays(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fill(tmp_path, "ann", [ballot("1")])
    box = BallotBox(tmp_path, "ann")
    with box.opened({"seed": 0}) as keep:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"ballots.jsonl cannot be written: No space left"):
            keep(ballot("2"))
    assert box.read()[0] == ballot("1")


def vote_file(folder, *rows):
    path = folder / "votes.jsonl"
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    return path


def test_a_file_brings_votes_and_a_later_one_changes_them(collection, tmp_path):
    pairs = read_collection(collection)[1]
    first = {"pair": "abc-00001", "annotator": "ann", "winner": "a"}
    other = {"pair": "abc-00002", "annotator": "ann", "winner": "tie"}
    add_file_votes(collection, vote_file(tmp_path, first, other), pairs)
    more = {**first, "annotator": "bob"}
    add_file_votes(collection, vote_file(tmp_path, {**first, "winner": "b"}, more), pairs)
    found = {
        name: {vote.annotator: vote.choice for vote in votes}
        for name, votes in all_votes(collection).items()
    }
    assert found == {"abc-00001": {"ann": "b", "bob": "a"}, "abc-00002": {"ann": "tie"}}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"pair": "abc-00099"}], "row 1: no pair 'abc-00099' in collection abc"),
        ([{"winner": "left"}], "line 1: not a FileVote: winner"),
        ([{}, {"winner": "b"}], "row 2: 'ann' votes on abc-00001 in row 1 already"),
        ([], "no votes in it"),
    ],
)
def test_a_file_of_votes_that_cannot_be_counted_is_refused(collection, tmp_path, rows, said):
    pairs = read_collection(collection)[1]
    vote = {"pair": "abc-00001", "annotator": "ann", "winner": "a"}
    with pytest.raises(DataError, match=said):
        add_file_votes(collection, vote_file(tmp_path, *({**vote, **row} for row in rows)), pairs)
    assert all_votes(collection) == {}
