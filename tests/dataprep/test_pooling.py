"""Several rows on one pair: votes add up, repeats and contradictions are told apart."""

import csv
import itertools

import pytest

from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.intake import apply_votes
from rlhf_core.dataprep.ledger import Ledger, enter
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.votes.pooling import pool_votes, votes_once
from rlhf_core.dataprep.votes.vote_models import majority
from rlhf_core.dataprep.votes.vote_table import VoteTable
from rlhf_core.schema import Comparison, Message, Vote

NAMES = {"a": "a", "b": "b", "t": "tie"}


def row(votes: str, *, swapped: bool = False, line: int = 1) -> Comparison:
    """``"ann:a bob:t"``; a swapped row has its responses the other way round."""
    sides = ("no", "yes") if swapped else ("yes", "no")
    return Comparison(
        comparison_id=str(line),
        prompt=(Message(role="user", content="Q?"),),
        response_a=sides[0],
        response_b=sides[1],
        votes=tuple(
            Vote(annotator=name, choice=NAMES[choice], strength=2.0, seconds=5.0)
            for name, choice in (vote.split(":") for vote in votes.split())
        ),
        source="s",
        line=line,
    )


def pool(*items: Comparison):
    entries, table = Ledger(map(enter, items)), VoteTable()
    for number, item in enumerate(items):
        table.add(number, item.votes)
    pooled = pool_votes(entries, table)
    apply_votes(entries, majority(table, len(entries)))
    return entries, table, pooled


def test_votes_of_other_people_add_up_and_may_change_the_winner():
    entries, table, pooled = pool(row("ann:a"), row("bob:b"), row("cid:a", swapped=True, line=3))
    assert [entry.reason for entry in entries] == [None, "votes_pooled", "votes_pooled"]
    assert entries[1].detail == "into s, line 1"
    assert [(v.annotator, v.choice) for v in pooled[0]] == [
        ("ann", "a"),
        ("bob", "b"),
        ("cid", "b"),
    ]
    assert (pooled[0][2].strength, pooled[0][2].seconds) == (2.0, 5.0)
    assert entries[0].a_beats_b < 0.5
    assert table.counts(3).tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 0]]


def test_two_people_of_other_minds_make_a_tie():
    entries, _, _ = pool(row("ann:a"), row("bob:b"))
    assert [entry.reason for entry in entries] == ["tie", "votes_pooled"]


def test_a_row_said_again_counts_once():
    entries, table, pooled = pool(row("ann:a bob:b bob:a"), row("ann:b", swapped=True))
    assert [entry.reason for entry in entries] == [None, "exact_duplicate"]
    assert not pooled
    assert table.counts(2).sum() == 3


def test_a_person_who_changes_sides_contradicts():
    entries, table, pooled = pool(row("ann:a"), row("ann:b bob:b"), row("cid:a"))
    assert [entry.reason for entry in entries] == ["conflicting_labels"] * 3
    assert not pooled
    assert table.counts(3).sum() == 4


def test_one_who_errs_among_others_does_not_condemn_the_pair():
    entries, _, pooled = pool(row("ann:a bob:b cid:a"), row("bob:a dan:a"))
    assert [entry.reason for entry in entries] == [None, "votes_pooled"]
    assert sorted((v.annotator, v.choice) for v in pooled[0])[1:3] == [("bob", "a"), ("bob", "b")]


def test_people_without_a_name_are_different_people():
    entries, _, pooled = pool(row("unnamed:a"), row("unnamed:a", line=2), row("unnamed:b", line=3))
    assert [entry.reason for entry in entries] == [None, "votes_pooled", "votes_pooled"]
    assert len(pooled[0]) == 3


def reading(source: str, *votes: str) -> list[Comparison]:
    """A file of a vote on each of some questions, all without names."""
    return [
        row(f"unnamed:{vote}", line=line).model_copy(
            update={"source": source, "prompt": (Message(role="user", content=f"Q{line}?"),)}
        )
        for line, vote in enumerate(votes, 1)
    ]


@pytest.mark.parametrize("name", ["monday", "copy"])
@pytest.mark.parametrize("more", [(), ("b", "b")])
def test_a_file_read_twice_counts_once(name, more, caplog):
    votes = "abab" * 5
    entries, table, pooled = pool(*reading("monday", *votes), *reading(name, *votes, *more))
    reasons = [entry.reason for entry in entries]
    assert reasons == [None] * 20 + ["exact_duplicate"] * 20 + [None] * len(more)
    assert not pooled
    assert table.counts(len(entries)).sum() == 20 + len(more)
    assert "read_again rows=20" in caplog.text


def test_a_few_votes_that_agree_are_other_peoples(caplog):
    """Five who rated one pair in a file each: a a a b b came to a tie."""
    entries, _, pooled = pool(*(vote for n, v in enumerate("aaabb") for vote in reading(str(n), v)))
    assert [entry.reason for entry in entries] == [None, *["votes_pooled"] * 4]
    assert "".join(vote.choice for vote in pooled[0]) == "aaabb"
    assert entries[0].a_beats_b > 0.5
    _, table, _ = pool(*reading("monday", *"a" * 19), *reading("tuesday", *"a" * 30))
    assert table.counts(49).sum() == 49
    assert "read_again" not in caplog.text


def test_other_peoples_votes_on_the_same_pairs_add_up_where_they_agree_too(caplog):
    same = "ab" * 10
    entries, _, pooled = pool(*reading("monday", *same, "b"), *reading("tuesday", *same, "a"))
    assert [entry.reason for entry in entries][21:] == ["votes_pooled"] * 21
    assert [len(votes) for votes in pooled.values()] == [2] * 21
    assert "read_again" not in caplog.text


def test_pooled_votes_keep_their_numbers():
    vote = Vote(annotator="bob", choice="a", strength=1e300, seconds=0.1)
    _, _, pooled = pool(row("ann:a"), row("").model_copy(update={"votes": (vote,)}))
    assert pooled[0][1] == vote


def test_the_order_of_rows_changes_no_vote():
    items = [row("ann:a bob:a"), row("bob:b cid:b", swapped=True), row("ann:t dan:b")]
    outcomes = set()
    for order in itertools.permutations(items):
        entries, table, _ = pool(*order)
        stays = [entry for entry in entries if entry.reason is None]
        won = [(entry.a_beats_b > 0.5) == entry.a_first for entry in stays]
        outcomes.add((len(stays), *won, len(table.choice)))
    assert len(outcomes) == 1


def test_an_answer_given_twice_in_one_row_counts_once():
    once = votes_once(row("ann:a ann:a bob:b ann:b unnamed:a unnamed:a").votes)
    assert [f"{vote.annotator}:{vote.choice[0]}" for vote in once] == [
        "ann:a",
        "bob:b",
        "ann:b",
        "unnamed:a",
        "unnamed:a",
    ]
    _, table, pooled = pool(row("ann:a ann:a"), row("bob:b"))
    assert table.counts(2).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert len(pooled[0]) == 2


def test_a_spreadsheet_may_be_sorted_by_annotator(tmp_path):
    path = tmp_path / "votes.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response_a", "response_b", "choice", "annotator"])
        for who, choices in (("ann", "aab"), ("bob", "abb"), ("cid", "aba")):
            for number, choice in enumerate(choices):
                writer.writerow([f"{number}?", "yes", "no", choice, who])
    items = list(read_comparisons(SourceConfig(path=path, format="flat")))
    entries, table, pooled = pool(*items)
    assert [entry.reason for entry in entries] == [None] * 3 + ["votes_pooled"] * 6
    assert table.counts(9)[:3].tolist() == [[3, 0, 0], [1, 2, 0], [1, 2, 0]]
    assert [len(votes) for votes in pooled.values()] == [3, 3, 3]


def test_pairs_that_differ_in_white_space_or_letter_case_are_pooled_side_by_side():
    plain, swapped = row("ann:a bob:a"), row("ann:b cid:b", swapped=True, line=2)
    for yes, no in (("if a:\n    b", "if a:\nb"), ("Paris", "paris")):
        first = plain.model_copy(update={"response_a": yes, "response_b": no})
        second = swapped.model_copy(update={"response_a": no, "response_b": f"{yes}\n"})
        entries, table, pooled = pool(first, second)
        assert [entry.reason for entry in entries] == [None, "votes_pooled"]
        assert table.counts(2).tolist() == [[3, 0, 0], [0, 0, 0]]
        assert [(vote.annotator, vote.choice) for vote in pooled[0]] == [
            ("ann", "a"),
            ("bob", "a"),
            ("cid", "a"),
        ]
        other = first.model_copy(update={"response_b": no.upper()})
        assert enter(other).pair != enter(first).pair
