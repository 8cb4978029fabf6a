"""What a file is: comparisons, trees of them, demonstrations or prompts, and what is asked."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_core.config import SourceConfig
from rlhf_core.config.data import DemonstrationsConfig
from rlhf_core.dataprep.sources import read_comparisons, read_demonstrations, read_prompts
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison
from tests.dataprep.shape_helpers import (
    NUM,
    plain,
    read_as_found,
    said,
    user,
    winners,
    write_table,
)


@pytest.mark.parametrize(
    ("row", "section", "more"),
    [
        ({"messages": [user(1), said("good")]}, "demonstrations", {"format": "messages"}),
        ({"instruction": "Question?", "output": "good"}, "demonstrations", {"format": "messages"}),
        ({"question": "Question?", "answer": "good"}, "demonstrations", {"format": "messages"}),
        (
            {"instruction": "Answer.", "context": "Question?", "response": "good", "topic": "x"},
            "demonstrations",
            {"format": "messages", "columns": {"input": "context"}},
        ),
        ({"prompt": "Question?", "response": "good"}, "demonstrations", {"format": "canonical"}),
        ({"prompt": "Question?", "topic": "x"}, "prompts", {}),
        ({"messages": [user(1)]}, "prompts", {}),
        ({"instruction": "Question?"}, "prompts", {}),
    ],
)
def test_demonstrations_and_prompts_are_told_from_comparisons(write_jsonl, row, section, more):
    path = write_jsonl("rows.jsonl", [row, row, {"x": 1}])
    found = look_at(path)
    assert found.record().model_dump() == {
        "settings": {"path": str(path), **more},
        "rows": 3,
        "usable": 2,
        "section": section,
    }
    assert "Question" in found.examples[0].prompt[-1].content
    if section == "prompts":
        items = list(read_prompts(path))
    else:
        items = list(read_demonstrations(DemonstrationsConfig(**found.settings)))
    assert items[0][1].prompt == found.examples[0].prompt
    assert found.unused_columns == ({"topic": 2} if "topic" in row else {})


def test_what_preparation_would_leave_out_or_refuse_is_said_of_the_first_row(write_jsonl):
    def row(id_: str, number: int, choice: str) -> dict:
        votes = [{"annotator": "p", "choice": choice}]
        return plain(number) | {"comparison_id": id_, "votes": votes}

    rows = [row("1", 1, "tie"), row("2", 2, "a"), row("2", 3, "a"), row("3", 4, "c")]
    path = write_jsonl("rows.jsonl", [*rows, row("4", 5, "b") | {"response_b": " "}, rows[1]])
    found = look_at(path)
    assert (found.usable, found.num_undecided) == (4, 1)
    assert found.reused_ids == {"2": (2, 3)}
    assert found.first_filtered["unusable_value"].startswith("line 4: votes.0.choice: ")
    assert found.first_filtered["empty_response"] == "line 5"


def test_answers_without_a_winner_are_no_prompts(write_jsonl):
    row = {"prompt": "Question?", "x": "this may be an answer", "y": "and this another one"}
    with pytest.raises(DataError, match="no shape that is known; found the columns prompt, x, y"):
        look_at(write_jsonl("rows.jsonl", [row]))
    named = {"prompt": "Question?", "response_a": "good", "response_b": "bad"}
    with pytest.raises(DataError, match="no shape that is known"):
        look_at(write_jsonl("named.jsonl", [named]))


def test_rows_in_which_nobody_won_change_no_shape(write_jsonl):
    one_hot = [plain(i, winner_a=i % 4 == 1, winner_b=i % 4 == 3) for i in range(NUM)]
    found = look_at(write_jsonl("one_hot.jsonl", one_hot))
    assert (found.usable, found.filtered) == (NUM // 2, {"no_votes": NUM // 2})
    scores = [plain(i, score_a=None if i % 2 else 2, score_b=1) for i in range(NUM)]
    found = look_at(write_jsonl("scores.jsonl", scores))
    assert (found.usable, found.filtered) == (NUM // 2, {"no_votes": NUM // 2})
    assert found.wins == {"a": NUM // 2}


def test_where_places_of_the_best_begin_is_asked(write_jsonl):
    row = {"prompt": "Question?", "responses": ["one", "two", "three"]}
    path = write_jsonl("rows.jsonl", [row | {"best": 1}, row | {"best": 2}])
    with pytest.raises(DataError, match="whether they count from 0 or from 1 cannot be determined"):
        look_at(path)
    for column, best in (("best_index", "two"), ("best_number", "one")):
        source = SourceConfig(path=path, format="ranked", columns={column: "best"})
        first = [item for item in read_comparisons(source) if item.line == 1]
        wins = {item.response_a if item.votes_a else item.response_b for item in first}
        assert (wins, len(first)) == ({best}, 2)


@pytest.mark.parametrize(("column", "best"), [("ranks", "two"), ("best_first", "three")])
def test_whether_numbers_are_ranks_or_the_order_of_answers_is_asked(write_jsonl, column, best):
    row = {"prompt": "Question?", "responses": ["one", "two", "three"], "ranking": [2, 0, 1]}
    path = write_jsonl("rows.jsonl", [row, row | {"ranking": [1, 2, 0]}])
    with pytest.raises(DataError, match="the rank of the answer at its place or the place of an"):
        look_at(path)
    source = SourceConfig(path=path, format="ranked", columns={column: "ranking"})
    first = [item for item in read_comparisons(source) if item.line == 1]
    wins = [item.response_a if item.votes_a else item.response_b for item in first]
    assert wins.count(best) == 2


def test_what_is_taken_for_ranks_is_told_where_it_might_be_an_order(write_jsonl):
    row = {"prompt": "Question?", "responses": ["one", "two", "three"]}
    found = look_at(write_jsonl("one.jsonl", [row | {"ranking": [2, 3, 1]}]))
    assert found.notes[0].startswith("ranking is taken for the rank of each answer, 1 the best")
    for ranking in ([0, 2, 1], [1, 0, 2], [1, 1, 2]):  # Both readings agree, or there is one.
        found = look_at(write_jsonl("rows.jsonl", [row | {"ranking": ranking}]))
        assert (found.settings["columns"], found.notes) == ({"ranks": "ranking"}, [])


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1], [2, 3, 4], ["x", 1, 2]])
def test_an_order_that_is_none_is_kept_aside(write_jsonl, order):
    row = {"prompt": "Question?", "responses": ["one", "two", "three"], "best_first": order}
    good = row | {"best_first": [3, 1, 2]}
    source = SourceConfig(path=write_jsonl("rows.jsonl", [row, good]), format="ranked")
    aside, *items = read_comparisons(source)
    assert (aside.reason, len(items)) == ("unusable_value", 3)
    assert aside.detail.startswith("best_first: expected the numbers of 3 responses, each once")


def test_a_number_of_each_answer_is_asked_about(write_jsonl):
    answers = [{"text": f"{word} one", "xi": number} for word, number in (("bad", 3), ("good", 7))]
    path = write_jsonl("rows.jsonl", [{"prompt": "Question?", "answers": answers}] * NUM)
    with pytest.raises(DataError, match=r"the answers have answers\.\*\.xi, and whether the best"):
        look_at(path)


def test_a_name_that_both_sides_have_is_no_winner(write_jsonl):
    rows = [plain(i, model_a="x", model_b="x" if i == 0 else "y", winner="x") for i in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    assert (found.usable, found.filtered) == (NUM - 1, {"unusable_value": 1})


def test_a_list_is_one_row_whichever_of_its_pairs_are_equal(write_jsonl):
    rows = [{"prompt": "Question?", "responses": ["good", "good", "bad"]} for _ in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    assert (found.rows, found.usable, found.num_comparisons) == (NUM, NUM, 2 * NUM)


def message(number: str, parent: str | None, text: str, **more) -> dict:
    role = "prompter" if more.get("rank") is None else "assistant"
    more = {"deleted": False, "lang": "en", **more}
    return {"message_id": number, "parent_id": parent, "role": role, "text": text, **more}


MESSAGES = [
    message("2", "1", "bad", rank=1.0),
    message("1", None, "Question one?"),
    message("3", "1", "good", rank=0.0),
    message("4", "1", "worst, deleted", rank=2.0, deleted=True),
    message("5", "3", "Question two?"),
    message("6", "5", "good again", rank=0),
    message("7", "5", "bad again", rank=1),
    message("8", "4", "Question to what is deleted?"),
    message("9", "nowhere", "Question to nobody?"),
    message("7", "5", "told twice", rank=2),
    message("10", None, "Question without answers?"),
    message("11", None, "Spam?", review_result=False),
]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_trees_are_built_of_messages_in_any_order(tmp_path, write_jsonl, ending):
    names = dict.fromkeys(name for row in MESSAGES for name in row)
    rows = [{name: row.get(name) for name in names} for row in MESSAGES]
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        write_jsonl("rows.jsonl", MESSAGES)
    elif ending == "csv":
        write_table(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = look_at(path)
    assert (found.rows, found.usable, found.num_comparisons) == (12, 6, 2)
    assert found.filtered == {
        "deleted_message": 2,
        "unmatched": 2,
        "conflicting_id": 1,
        "too_few_responses": 1,
    }
    items = [item for item in read_as_found(found) if isinstance(item, Comparison)]
    assert winners(items) == {"good"}
    turns = [[turn.content for turn in item.prompt] for item in items]
    assert turns == [["Question one?"], ["Question one?", "good", "Question two?"]]


def test_messages_that_name_no_parent_are_no_trees(write_jsonl):
    rows = [{"message_id": i, "role": "prompter", "text": "Question?"} for i in range(NUM)]
    source = SourceConfig(path=write_jsonl("rows.jsonl", rows), format="tree_messages")
    with pytest.raises(DataError, match="'parent_id': no row names a parent"):
        list(read_comparisons(source))


def test_the_prompt_is_what_was_answered_and_not_what_a_judge_was_asked(write_jsonl):
    row = {
        "instruction": "Which of good and bad is better?",
        "orig_instruction": "Question?",
        "orig_response_A": "good",
        "orig_response_B": "bad",
        "orig_preference": "A",
        "output": "Feedback: the first is good, the second is bad. [RESULT] A",
    }
    [item] = read_as_found(look_at(write_jsonl("rows.jsonl", [row])))
    assert [turn.content for turn in item.prompt] == ["Question?"]
    assert winners([item]) == {"good"}


def test_a_pair_whose_status_is_a_tie_is_one(write_jsonl):
    rows = [
        {
            "system": "Be brief.",
            "input": f"Question {i}?",
            "chosen": f"good {i}",
            "rejected": f"bad {i}",
            "rating": [9.0, 9.0] if i % 3 == 0 else [9.0, 7.0],
            "status": ("tie", "unchanged", "swapped")[i % 3],
            "original_chosen": f"good {i}",
            "chosen_score": 9.0,
        }
        for i in range(NUM)
    ]
    items = read_as_found(look_at(write_jsonl("rows.jsonl", rows)))
    assert [item.votes[0].choice for item in items[:3]] == ["tie", "a", "a"]
    assert [turn.content for turn in items[1].prompt] == ["Be brief.", "Question 1?"]
