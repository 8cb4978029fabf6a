"""Records exported from Argilla: answers, who gave them and what became of them.

Argilla 2 writes them in three lists, Argilla 1 in one of objects.
"""

import pytest

from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.errors import DataError
from tests.dataprep.shape_helpers import NUM, read_as_found, write_as


def exported(number: int, words=("response_a", "response_b"), **more) -> dict:
    texts = more or {"response_a": f"A {number}", "response_b": f"B {number}"}
    return {
        "id": str(number),
        "status": "completed",
        "prompt": f"Question {number}?",
        **texts,
        "preference.responses": [words[0], words[1], words[1]],
        "preference.responses.users": ["ann", "bob", "cyd"],
        "preference.responses.status": ["submitted", "submitted", "discarded"],
    }


def votes_of(item) -> list[tuple[str, str]]:
    return [(vote.annotator, vote.choice) for vote in item.votes]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_votes_are_those_that_people_submitted(tmp_path, ending):
    rows = [exported(number) for number in range(NUM)]
    path = write_as(tmp_path, ending, rows)
    found = look_at(path)
    assert (found.shape, found.usable) == ("lists of votes", NUM)
    assert found.notes == ["votes count that preference.responses.status calls submitted"]
    assert not {name for name in found.unused_columns if name.startswith("preference")}
    first = read_as_found(found)[0]
    assert (first.response_a, first.response_b) == ("A 0", "B 0")
    assert votes_of(first) == [("ann", "a"), ("bob", "b")]


def test_answers_are_found_under_the_names_that_votes_give_them(write_jsonl):
    words = ("reply_1", "reply_2")
    rows = [exported(i, words, reply_1=f"One {i}", reply_2=f"Two {i}") for i in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    first = read_as_found(found)[0]
    assert (first.response_a, first.response_b) == ("One 0", "Two 0")
    assert votes_of(first) == [("ann", "a"), ("bob", "b")]


def test_where_the_answers_are_is_asked(write_jsonl):
    rows = [exported(i, texts="Answers in here.") for i in range(NUM)]
    with pytest.raises(DataError, match="which columns hold the two answers cannot be determined"):
        look_at(write_jsonl("rows.jsonl", rows))


def test_lists_that_do_not_fit_each_other_and_rows_without_votes(write_jsonl):
    short = exported(1) | {"preference.responses.users": ["ann"]}
    nobody = exported(2) | {name: None for name in exported(2) if name.startswith("preference")}
    columns = {
        "votes": "preference.responses",
        "vote_annotators": "preference.responses.users",
        "vote_statuses": "preference.responses.status",
    }
    path = write_jsonl("rows.jsonl", [exported(0), short, nobody])
    first, empty, aside = sorted(
        read_comparisons(SourceConfig(path=path, columns=columns)),
        key=lambda item: isinstance(item, FilteredRow),
    )
    assert (len(first.votes), empty.votes) == (2, ())
    assert (aside.line, aside.reason) == (2, "unusable_value")
    assert "expected a list of 3, one a vote, found ['ann']" in aside.detail


def test_a_word_that_is_no_vote_shifts_no_names(write_jsonl):
    columns = {
        "votes": "preference.responses",
        "vote_annotators": "preference.responses.users",
        "vote_statuses": "preference.responses.status",
    }
    skipped = exported(0) | {"preference.responses": ["response_b", "skip", "response_a"]}
    skipped["preference.responses.status"] = ["submitted"] * 3
    nobody = exported(1) | {"preference.responses": ["skip"] * 3}
    path = write_jsonl("rows.jsonl", [skipped, nobody])
    source = SourceConfig(path=path, columns=columns, choices={"skip": "none"})
    first, empty = read_comparisons(source)
    assert votes_of(first) == [("ann", "b"), ("cyd", "a")]
    assert empty.votes == ()


def test_words_that_votes_are_written_in_may_be_mapped(write_jsonl):
    row = {"prompt": "Q?", "response_a": "x", "response_b": "y", "votes": ["one", "two"]}
    choices = {"one": "a", "two": "b"}
    path = write_jsonl("rows.jsonl", [row])
    [item] = read_comparisons(SourceConfig(path=path, choices=choices))
    assert [vote.choice for vote in item.votes] == ["a", "b"]


def answer(value, user="ann", status="submitted") -> dict:
    return {"user_id": user, "value": value, "status": status}


def asked(number: int, **answers) -> dict:
    one, two = f"One {number}", f"Two {number}"
    return {"instruction": f"{number}?", "generation-1": one, "generation-2": two, **answers}


def test_choices_are_read_as_argilla_1_exported_them(write_jsonl):
    given = [
        answer("generation-2"),
        answer("generation-1", "bob"),
        answer(None, "cyd", "discarded"),
    ]
    found = look_at(write_jsonl("rows.jsonl", [asked(i, preference=given) for i in range(NUM)]))
    assert (found.shape, found.usable) == ("lists of votes", NUM)
    first = read_as_found(found)[0]
    assert (first.prompt[0].content, first.response_b) == ("0?", "Two 0")
    assert votes_of(first) == [("ann", "b"), ("bob", "a")]


def test_ratings_of_one_person_are_scores_and_those_of_several_are_asked_about(write_jsonl):
    """1 and 2 are ratings here, and no places of the answers."""
    one = [asked(i, **{"rating-1": [answer(1)], "rating-2": [answer(2)]}) for i in range(NUM)]
    one[0]["rating-2"] = [answer(1)]
    found = look_at(write_jsonl("one.jsonl", one))
    assert found.shape == "scores that decide"
    assert [votes_of(item) for item in read_as_found(found)[:2]] == [
        [("ann", "tie")],
        [("ann", "b")],
    ]
    for other in (answer(3, "bob"), answer(3, "bob", "draft")):
        several = [row | {"rating-1": [answer(1), other]} for row in one]
        said = (
            r"say it in columns, with format flat: \{score_a: rating-1\.0\.value, score_b: rating-2"
        )
        with pytest.raises(DataError, match=said):
            look_at(write_jsonl("several.jsonl", several))
