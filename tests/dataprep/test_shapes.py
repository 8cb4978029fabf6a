"""Files as people have them: each shape is recognised, and the right side wins in every row."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rlhf_core.config import SourceConfig
from rlhf_core.config.data import JoinConfig
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.dataprep.sources.rows import FileRows, FilteredRow
from rlhf_core.errors import DataError
from rlhf_core.schema import Comparison
from tests.dataprep.shape_helpers import (
    NUM,
    plain,
    read_as_found,
    said,
    side,
    sides,
    user,
    winners,
    write_table,
    write_workbook,
)


def chats(number: int) -> dict:
    one, two = sides(number)
    question = [user(number)]
    return {
        "conversation_a": [*question, said(one)],
        "conversation_b": [*question, said(two)],
        "winner": side(number, "model_a", "model_b"),
    }


def tree(number: int) -> dict:
    answers = [
        {"text": f"bad {number}", "role": "assistant", "rank": 1, "replies": []},
        {"text": f"good {number}", "role": "assistant", "rank": 0, "replies": []},
        {"text": f"unranked {number}", "role": "assistant", "rank": None, "replies": []},
    ]
    root = {"text": f"Question {number}?", "role": "prompter", "replies": answers}
    return {"message_tree_id": str(number), "prompt": root}


SHAPES = {
    "transcript as prompt": lambda i: {
        "prompt": f"\n\nHuman: Hello.\n\nAssistant: Yes?\n\nHuman: Question {i}?\n\nAssistant:",
        "chosen": f" good {i}",
        "rejected": f" bad {i}",
    },
    "input.messages": lambda i: {
        "input": {"messages": [user(i)], "tools": []},
        "preferred_output": [said(f"good {i}")],
        "non_preferred_output": [said(f"bad {i}")],
    },
    "rejected_response": lambda i: {
        "messages": [user(i), said(f"good {i}")],
        "rejected_response": f"bad {i}",
    },
    "from and value": lambda i: {
        "conversations": [{"from": "human", "value": f"Question {i}?"}],
        "chosen": {"from": "gpt", "value": f"good {i}"},
        "rejected": {"from": "gpt", "value": f"bad {i}"},
    },
    "single messages": lambda i: {
        "prompt": [user(i)],
        "chosen": said(f"good {i}"),
        "rejected": said(f"bad {i}"),
    },
    "instruction": lambda i: {
        "instruction": "Answer.",
        "input": f"Question {i}?",
        "chosen": f"good {i}",
        "rejected": f"bad {i}",
    },
    "arena": chats,
    "one-hot, logical": lambda i: plain(
        i, winner_a=i % 3 != 0, winner_b=i % 3 == 0, winner_tie=False
    ),
    "one-hot, numbers": lambda i: plain(
        i, winner_model_a=int(i % 3 != 0), winner_model_b=int(i % 3 == 0), winner_tie=0
    ),
    "scores": lambda i: plain(i, score_A=1 + 4 * (i % 3 != 0), score_B=2.5),
    "scores that could be choices": lambda i: plain(i, score_a=side(i, 2, 0), score_b=1),
    "winner by name": lambda i: plain(
        i, model_a=f"m{i % 4}", model_b=f"M {i % 5}", winner=side(i, f"m{i % 4}", f"M {i % 5}")
    ),
    "winner by name, names of our own": lambda i: plain(
        i, "answer_1", "answer_2", model_1="x", model_2=f"y-{i}", winner=side(i, "X", f"y-{i}")
    ),
    "winning response itself": lambda i: plain(i, preferred=f"good {i}"),
    "choice in a column of any name": lambda i: plain(
        i, "Response A", "Response B", Which=side(i, "Response A is better", "Response B is better")
    ),
    "numbers in a column of any name": lambda i: {
        "Question": f"Question {i}?",
        "Answer 1": sides(i)[0],
        "Answer 2": sides(i)[1],
        "Better answer": side(i, 1, 2),
    },
    "ranks of sides": lambda i: plain(i, rank_a=side(i, 1, 2), rank_b=side(i, 2, 1)),
    "objects with scores": lambda i: {
        "prompt": f"Question {i}?",
        "response_a": {"text": sides(i)[0], "score": side(i, 4, 1)},
        "response_b": {"text": sides(i)[1], "score": 2},
    },
    "labels as words": lambda i: plain(
        i, labels=[side(i, "A", "B"), side(i, "B", "A"), side(i, "A", "B")]
    ),
    "counts in an object": lambda i: plain(i, votes={"a": side(i, 3, 1), "b": 2, "tie": 0}),
    "votes as words": lambda i: plain(i, votes=[side(i), side(i, "b", "a"), side(i)]),
    "winner and loser by other names": lambda i: {
        "x": f"Question {i}?",
        "y_w": f"good {i}",
        "y_l": f"bad {i}",
    },
    "winner and loser, the word behind": lambda i: {
        "query": f"Question {i}?",
        "response_chosen": f"good {i}",
        "response_rejected": f"bad {i}",
    },
    "best first in output": lambda i: {
        "instruction": f"Question {i}?",
        "output": [f"good {i}", f"bad {i}"],
    },
    "answers with votes of readers": lambda i: {
        "question": f"Question {i}?",
        "answers": [
            {"answer_id": 1, "text": f"bad {i}", "pm_score": 0},
            {"answer_id": 2, "text": f"good {i}", "pm_score": 4},
        ],
    },
    "verdicts": lambda i: plain(i, verdict=side(i, "[[A>>B]]", "[[B>A]]")),
    "numbered people": lambda i: plain(
        i, annotator_1=side(i, 1, 2), annotator_2=side(i, 1, 2), length_a=2, length_b=1, turn=2
    ),
    "best of a list, from 0": lambda i: {
        "prompt": f"Question {i}?",
        "responses": [f"good {i}" if k == i % 3 else f"bad {k} {i}" for k in range(3)],
        "chosen": i % 3,
    },
    "best of a list, from 1": lambda i: {
        "prompt": f"Question {i}?",
        "answers": [f"good {i}" if k == i % 3 else f"bad {k} {i}" for k in range(3)],
        "best": 1 + i % 3,
    },
    "best of a list, labels": lambda i: {
        "prompt": f"Question {i}?",
        "responses": [f"bad {i}", f"good {i}"],
        "labels": [0, 1],
    },
    "SHP": lambda i: {
        "history": f"Question {i}?",
        "human_ref_A": sides(i)[0],
        "human_ref_B": sides(i)[1],
        "labels": side(i, 1, 0),
    },
    "signed": lambda i: plain(i, "response_1", "response_2", preference_strength=side(i, -2, 3)),
    "numbers from 0": lambda i: plain(i, "response_0", "response_1", choice=side(i, 0, 1)),
    "numbers from 1": lambda i: plain(i, "answer_1", "answer_2", winner=side(i, 1, 2)),
    "truth values": lambda i: plain(i, a_is_better=i % 3 != 0),
    "column names": lambda i: plain(
        i, "Response 1", "Response 2", Preferred=side(i, "Response 1", "Response 2")
    ),
    "people": lambda i: plain(i, ann=side(i), bob=side(i), eve="tie" if i % 2 else ""),
    "counts": lambda i: plain(i, votes_a=side(i, 3, 0), votes_b=2, votes_tie=1),
    "lists of votes": lambda i: plain(
        i, topic="x", labels=[{"annotator": who, "choice": side(i)} for who in ("ann", "bob")]
    ),
    "whole transcripts beside the prompt": lambda i: {
        "prompt": f"\n\nHuman: Question {i}?\n\nAssistant:",
        "chosen": f"\n\nHuman: Question {i}?\n\nAssistant: good {i}",
        "rejected": f"\n\nHuman: Question {i}?\n\nAssistant: bad {i}",
    },
    "ranked list": lambda i: {
        "prompt": f"Question {i}?",
        "completions": [f"bad {i}", f"good {i}"],
        "ranks": [2, 1],
    },
    "scored list": lambda i: {
        "instruction": f"Question {i}?",
        "completions": [
            {"response": f"bad {i}", "overall_score": 3.5},
            {"response": f"good {i}", "overall_score": 8},
        ],
    },
    "lists of answers": lambda i: {
        "prompt": f"Question {i}?",
        "chosen": [f"good {i}", f"good too {i}"],
        "rejected": [f"bad {i}"],
    },
    "tree": tree,
}
FLAT = (
    "one-hot, numbers",
    "scores",
    "scores that could be choices",
    "winner by name",
    "SHP",
    "signed",
    "numbers from 1",
    "people",
    "counts",
)
"""Shapes that a spreadsheet may have."""


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_a_shape_is_found_and_the_right_side_wins(tmp_path, name, ending):
    rows = [SHAPES[name](i) for i in range(NUM)]
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = look_at(path)
    assert (found.rows, found.usable) == (NUM, NUM)
    items = read_as_found(found)
    assert winners(items) == {"good"}
    assert all("Question" in item.prompt[-1].content for item in items)


def test_columns_of_bytes_and_of_decimals_are_texts_and_numbers(tmp_path):
    rows = [plain(i, score_a=Decimal(side(i, 4, 1)), score_b=Decimal("2.5")) for i in range(NUM)]
    texts = [name for name in rows[0] if not name.startswith("score")]
    rows = [row | {name: row[name].encode() for name in texts} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = look_at(tmp_path / "rows.parquet")
    assert (found.rows, found.usable) == (NUM, NUM)
    assert winners(read_as_found(found)) == {"good"}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("ending", ["csv", "semicolon.csv", "tsv", "xlsx"])
def test_a_shape_is_the_same_in_a_spreadsheet(tmp_path, name, ending):
    rows = [SHAPES[name](i) for i in range(NUM)]
    path = tmp_path / f"rows.{ending}"
    if ending == "xlsx":
        write_workbook(path, rows)
    else:
        write_table(path, rows, {"csv": ",", "tsv": "\t"}.get(ending, ";"))
    found = look_at(path)
    assert (found.rows, found.usable) == (NUM, NUM)
    assert winners(read_as_found(found)) == {"good"}


@pytest.mark.parametrize(
    "write", [repr, json.dumps, lambda turns: repr(turns).replace("}, {", "}\n {")]
)
def test_conversations_written_as_text_are_conversations(tmp_path, write):
    rows = [chats(i) for i in range(NUM)]
    for row in rows:
        for name in ("conversation_a", "conversation_b"):
            row[name] = write(row[name])
    write_table(tmp_path / "arena.csv", rows)
    found = look_at(tmp_path / "arena.csv")
    assert winners(read_as_found(found)) == {"good"}


def test_turns_written_as_two_lists_are_one_conversation(tmp_path):
    row = {
        "prompt": json.dumps(["Hello.", "Question?"]),
        "response_a": json.dumps(["Yes?", "good"]),
        "response_b": json.dumps(["Yes?", "bad"]),
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    }
    write_table(tmp_path / "rows.csv", [row])
    [item] = read_as_found(look_at(tmp_path / "rows.csv"))
    assert [turn.content for turn in item.prompt] == ["Hello.", "Yes?", "Question?"]
    assert (item.response_a, item.votes_a) == ("good", 1)


def test_a_published_file_is_found(shared_data):
    found = look_at(shared_data / "hh" / "helpful-base.test.jsonl.gz")
    assert (found.settings["format"], found.rows, found.usable) == ("hh", 2354, 2339)


@pytest.mark.nightly
def test_published_votes_are_found(shared_data):
    found = look_at(shared_data / "ukp_convarg1" / "pairs.jsonl.gz")
    assert (found.rows, found.usable, found.wins.total()) == (16_927, 16_912, 84_370)
    assert found.filtered == {"identical_responses": 15}
    assert found.unused_columns == {"gold": 16_081, "topic": 16_927}


def test_a_workbook_may_hold_an_answer_as_a_number(tmp_path):
    row = {"prompt": "Six by seven?", "response_a": 42, "response_b": 41.5, "choice": "a"}
    write_workbook(tmp_path / "rows.xlsx", [row])
    [item] = read_as_found(look_at(tmp_path / "rows.xlsx"))
    assert (item.response_a, item.response_b) == ("42", "41.5")


def test_what_may_mean_either_side_is_asked_and_not_guessed(write_jsonl):
    rows = [plain(i, label=i % 2) for i in range(NUM)]
    path = write_jsonl("rows.jsonl", rows)
    with pytest.raises(DataError, match=r"column 'label' holds '0', '1'.* say it in choices"):
        look_at(path)
    with pytest.raises(DataError, match="a number may mean either side"):
        list(read_comparisons(SourceConfig(path=path, format="flat", columns={"choice": "label"})))
    logical = write_jsonl("logical.jsonl", [plain(i, winner=i % 2 == 0) for i in range(NUM)])
    with pytest.raises(DataError, match="column 'winner' holds 'true', 'false'"):
        look_at(logical)
    signs = write_jsonl("signs.jsonl", [plain(i, label=side(i, -1, 1)) for i in range(NUM)])
    with pytest.raises(DataError, match="column 'label' holds '-1', '1'"):
        look_at(signs)


def test_an_unknown_shape_names_the_columns(write_jsonl):
    path = write_jsonl("rows.jsonl", [{"x": "1", "y": "2"}])
    with pytest.raises(DataError, match=r"no shape that is known; found the columns x, y;"):
        look_at(path)


LABELS = {
    "numbers": (0, 1),
    "text": ("0", "1"),
    "with a point": (0.0, 1.0),
    "truth": (False, True),
    "truth as text": ("False", "True"),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("written", ["{0: a, 1: b}", "{'0': a, '1': b}", "{false: a, true: b}"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_a_number_names_a_side_however_it_is_written(tmp_path, labels, written, ending):
    rows = [plain(i, label=side(i, *labels)) for i in range(NUM)]
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":
        write_table(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    choices = yaml.safe_load(written)
    source = SourceConfig(path=path, format="flat", columns={"choice": "label"}, choices=choices)
    assert winners(read_comparisons(source)) == {"good"}


def test_every_number_of_a_scale_may_be_mapped(write_jsonl):
    path = write_jsonl("rows.jsonl", [plain(i, label=side(i, -3, 2)) for i in range(NUM)])
    settings = """
      format: flat
      columns: {choice: label, strength: label}
      choices: {-3: a, -2: a, -1: a, 0: tie, 1: b, 2: b, 3: b}
    """
    items = list(read_comparisons(SourceConfig(path=path, **yaml.safe_load(settings))))
    assert winners(items) == {"good"}
    assert {item.votes[0].strength for item in items} == {2, 3}


def test_one_label_cannot_stand_for_two_sides():
    with pytest.raises(ValueError, match="'0' is duplicated, as 'a' and as 'b'"):
        SourceConfig(path="x.csv", choices={0: "a", "0": "b"})


@pytest.mark.parametrize("swapped", [False, True])
def test_votes_and_texts_in_two_files_are_joined(tmp_path, write_jsonl, swapped):
    texts = [{"item": i, **plain(i)} for i in range(NUM + 1)]
    write_table(tmp_path / "texts.csv", texts)
    votes = [{"id": i, "choice": side(i), "annotator": who} for i in range(NUM) for who in "xy"]
    votes.append({"id": 99, "choice": "a", "annotator": "x"})
    files = [write_jsonl("votes.jsonl", votes), tmp_path / "texts.csv"]
    on = ["id", "item"]
    if swapped:
        files.reverse()
        on.reverse()
    join = JoinConfig(path=files[1], on=tuple(on))
    found = look_at(files[0], join)
    assert (found.usable, found.filtered) == (2 * NUM, {"unmatched": 2})
    counts: dict[str, FileRows] = {}
    items = list(read_comparisons(SourceConfig(**found.settings), files=counts))
    assert winners(item for item in items if isinstance(item, Comparison)) == {"good"}
    assert [item.reason for item in items if isinstance(item, FilteredRow)] == ["unmatched"] * 2
    by_name = {path.rpartition("/")[2]: (c.rows, c.used) for path, c in counts.items()}
    assert by_name == {"votes.jsonl": (2 * NUM + 1, 2 * NUM), "texts.csv": (NUM + 1, NUM)}


def test_a_join_that_joins_nothing_names_the_columns(tmp_path, write_jsonl):
    one, two = (write_jsonl(f"{n}.jsonl", [{"id": n, "prompt": "Q?"}]) for n in ("one", "two"))
    with pytest.raises(DataError, match="no id is in both files"):
        look_at(one, JoinConfig(path=two, on="id"))
