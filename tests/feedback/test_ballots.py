"""Votes are on the disk one by one, and only whole ones count."""

import errno
import os

import pytest

from rlhf_core.errors import ConfigError, DataError, StorageError
from rlhf_core.feedback.ballots import Ballot, BallotBox, all_votes
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
