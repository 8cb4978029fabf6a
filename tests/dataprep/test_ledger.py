"""Ties, repeats and contradictions are filtered out, whatever the order of rows."""

import random
import tracemalloc
from dataclasses import replace

import pytest

from rlhf_core.dataprep.intake import apply_votes, filter_reserved, resolve
from rlhf_core.dataprep.ledger import Ledger, enter
from rlhf_core.dataprep.votes.pooling import pool_votes
from rlhf_core.dataprep.votes.vote_models import majority
from rlhf_core.dataprep.votes.vote_table import VoteTable
from rlhf_core.schema import Comparison, Message, Vote


def comparison(choices: str, *, prompt="Q?", a="yes", b="no", row_id="1") -> Comparison:
    names = {"a": "a", "b": "b", "t": "tie"}
    return Comparison(
        comparison_id=row_id,
        prompt=(Message(role="user", content=prompt),),
        response_a=a,
        response_b=b,
        votes=tuple(Vote(annotator=f"w{i}", choice=names[c]) for i, c in enumerate(choices)),
    )


def reasons(*items: Comparison) -> list[str | None]:
    entries, table = Ledger(map(enter, items)), VoteTable()
    for number, item in enumerate(items):
        table.add(number, item.votes)
    pool_votes(entries, table)
    apply_votes(entries, majority(table, len(items)))
    return [entry.reason for entry in entries]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (comparison("ab"), "tie"),
        (comparison("t"), "tie"),
        (comparison(""), "no_votes"),
        (comparison("a", a=" "), "empty_response"),
        (comparison("a", prompt="\n"), "empty_prompt"),
        (comparison("a", a="x ", b="x"), "identical_responses"),
        (comparison("aab"), None),
    ],
)
def test_a_single_row_is_screened(item, reason):
    assert reasons(item) == [reason]


def test_a_prompt_that_ends_with_the_assistant_is_refused():
    item = comparison("a").model_copy(update={"prompt": (Message(role="assistant", content="x"),)})
    assert enter(item).reason == "prompt_not_by_user"


def test_the_winner_is_the_more_probable_side():
    item = comparison("abbt")
    pair = resolve(item.model_dump(), 1 / 3)
    assert (pair.chosen, pair.rejected, pair.num_votes) == ("no", "yes", 4)
    assert (pair.agreement, pair.probability) == pytest.approx((0.625, 2 / 3))
    assert pair.tie_fraction == 0.25
    trusted = resolve(item.model_dump(), 0.8)
    assert (trusted.chosen, trusted.probability) == ("yes", 0.8)
    assert trusted.agreement == pytest.approx(0.375)


def test_strength_is_the_mean_of_the_votes_for_the_winner():
    votes = [("a", 3.0), ("a", None), ("b", 9.0), ("a", 1.0)]
    item = comparison("a").model_copy(
        update={
            "votes": tuple(
                Vote(annotator=str(i), choice=choice, strength=strength)
                for i, (choice, strength) in enumerate(votes)
            )
        }
    )
    assert resolve(item.model_dump(), 0.75).strength == 2.0


def test_a_repeat_keeps_the_first_even_when_sides_are_swapped():
    again = comparison("b", a="no", b="yes")
    assert reasons(comparison("a"), again) == [None, "exact_duplicate"]
    assert reasons(comparison("a", prompt=" q? "), comparison("a")) == [None, "exact_duplicate"]


def test_a_contradiction_is_filtered_out_whole():
    assert reasons(comparison("a"), comparison("b"), comparison("a")) == ["conflicting_labels"] * 3


def test_other_prompts_and_responses_are_no_repeats():
    assert (
        reasons(comparison("a"), comparison("a", prompt="R?"), comparison("a", b="maybe"))
        == [None] * 3
    )


def test_the_order_of_rows_changes_no_count():
    items = [comparison("ab"[i % 2], prompt=f"{i % 7}", a=f"{i % 3}", b="x") for i in range(60)]
    expected = sorted(map(str, reasons(*items)))
    random.Random(0).shuffle(items)
    assert sorted(map(str, reasons(*items))) == expected


def test_a_reserved_prompt_is_taken_from_training():
    entries = Ledger([enter(comparison("a")), enter(comparison("a", prompt="R?"))])
    filter_reserved(entries, {enter(comparison("a", prompt="r?")).prompt})
    assert [entry.reason for entry in entries] == [None, "prompt_is_heldout"]


def test_rows_with_the_same_prompt_and_winner_are_told_and_hardly_any_others():
    items = [
        comparison("a", prompt="Q?", a="yes", b="no"),
        comparison("b", prompt=" q? ", a="never", b="Yes"),
        comparison("b", prompt="Q?", a="yes", b="no way"),
        comparison("a", prompt="R?", a="yes", b="no"),
        comparison("a", prompt="Q?", a="yes", b="nope"),
        comparison("a", prompt="Q?", a="Paris", b="paris"),
        comparison("b", prompt="Q?", a="rome", b=" paris\n"),
    ]
    entries, table = Ledger(map(enter, items)), VoteTable()
    for number, item in enumerate(items):
        table.add(number, item.votes)
    entries.filter_out(4, "wrong_language")
    apply_votes(entries, majority(table, len(items)))
    found = entries.sharing_prompt_and_winner().tolist()
    assert found == [True, True, False, False, False, True, True]


def test_a_row_takes_little_memory_and_comes_back_as_it_was():
    items = [comparison("a", prompt=f"{number}?", b="no" * number) for number in range(2_000)]
    entries = [replace(enter(item), source="s", line=7, group="list 3") for item in items]
    entries[5] = replace(entries[5], reason="tie", detail="level")
    ledger = Ledger(entries)
    assert list(ledger) == entries
    tracemalloc.start()
    try:
        ledger = Ledger(entries * 10)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(ledger) == 20_000
    assert held < 150 * len(ledger)  # As objects of their own rows took some 500 bytes.
