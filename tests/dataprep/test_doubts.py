"""What speaks against part of a guess is left out; no vote is lost by what it may lack."""

import logging

import pytest

from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.cleaning.quarantine import Quarantine
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.dataprep.sources.rows import FileRows
from rlhf_core.stages.preparation.checks import warn_of_unread_cells
from tests.dataprep.shape_helpers import NUM, plain, read_as_found, side, winners, write_table


@pytest.mark.parametrize("name", ["question_id", "item_id", "id", "pair_id"])
@pytest.mark.parametrize("in_order", [True, False])
def test_an_id_of_several_comparisons_is_none_of_comparisons(write_jsonl, name, in_order):
    number_of = {True: lambda i: i // 3, False: lambda i: i % 4}[in_order]
    rows = [plain(i, choice=side(i)) | {name: number_of(i)} for i in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    assert found.settings["format"] == "flat"
    assert "columns" not in found.settings
    assert (found.usable, found.filtered, found.reused_ids) == (NUM, {}, {})
    [note] = found.notes
    assert note.startswith(f"{name} is no id of comparisons: 4 of 4 stand for several, the first")
    assert winners(read_as_found(found)) == {"good"}


def test_an_id_of_one_comparison_is_kept_whichever_side_stands_first(write_jsonl):
    row = plain(1)
    turned = row | {"response_a": row["response_b"], "response_b": row["response_a"]}
    rows = [row | {"question_id": 1, "choice": "a"}, turned | {"question_id": 1, "choice": "b"}]
    found = look_at(write_jsonl("rows.jsonl", [*rows, plain(2, question_id=2, choice="a")]))
    assert found.settings["columns"] == {"comparison_id": "question_id"}
    assert found.notes == []


def test_an_id_called_so_stays_what_it_is_called(write_jsonl):
    rows = [plain(i, choice=side(i), comparison_id=i % 4) for i in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    assert len(found.reused_ids) == 4


def test_columns_made_of_votes_are_nobody_s_votes(write_jsonl):
    def row(number: int) -> dict:
        votes = {"ann": side(number), "bob": side(number), "cyd": side(number, "b", "a")}
        return plain(number, **votes, gold=side(number), label_final=side(number))

    found = look_at(write_jsonl("rows.jsonl", [row(i) for i in range(NUM)]))
    assert found.settings["annotators"] == ["ann", "bob", "cyd"]
    assert found.notes == ["made of votes, and no person's: gold, label_final"]
    assert found.unused_columns == {"gold": NUM, "label_final": NUM}
    assert winners(read_as_found(found)) == {"good"}


def test_what_is_made_of_votes_says_who_won_where_nobody_else_does(write_jsonl):
    rows = [plain(i, gold=side(i), majority=side(i), turn=1) for i in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    assert found.settings["columns"] == {"choice": "gold"}
    assert (found.wins.total(), winners(read_as_found(found))) == (NUM, {"good"})


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("00:01:05", 65.0), ("1:05", 65.0), ("1:00:00.5", 3600.5), ("7", 7.0), (" ", None)],
)
def test_a_time_may_be_written_as_a_clock_does(write_jsonl, written, seconds):
    path = write_jsonl("rows.jsonl", [plain(1, choice="a", duration=written)])
    [item] = read_as_found(look_at(path))
    assert item.votes[0].seconds == seconds


@pytest.mark.parametrize("written", ["a while", "1:75", -1])
def test_a_vote_does_without_a_time_that_cannot_be_read(write_jsonl, written):
    rows = [plain(i, choice=side(i), lead_time=written if i % 2 else 4) for i in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    assert (found.usable, found.settings["columns"]) == (NUM, {"seconds": "lead_time"})
    count, first = found.unread_cells["lead_time"]
    assert (count, first.partition(": ")[0]) == (NUM // 2, "line 2")
    times = [item.votes[0].seconds for item in read_as_found(found)]
    assert times == [4, None] * (NUM // 2)


def test_a_vote_does_without_a_strength_in_words_that_nobody_mapped(write_jsonl):
    rows = [plain(i, choice=side(i), strength="a lot" if i % 2 else "much") for i in range(NUM)]
    path = write_jsonl("rows.jsonl", rows)
    found = look_at(path)
    assert (found.usable, found.unread_cells["strength"][0]) == (NUM, NUM // 2)
    assert {item.votes[0].strength for item in read_as_found(found)} == {None, 3.0}
    mapped = SourceConfig(path=path, format="flat", strengths={"much": 2})
    items = list(read_comparisons(mapped))
    assert [getattr(item, "reason", "") for item in items] == ["", "unusable_value"] * (NUM // 2)


def test_a_column_in_other_words_is_not_taken_for_strength(tmp_path, write_jsonl):
    rows = [plain(i, choice=side(i), margin="high" if i else 1) for i in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    assert (found.usable, found.settings.get("columns")) == (NUM, None)
    assert found.notes[0].startswith("margin is not read as strength, for 'high' is no number")
    commas = [plain(i, choice=side(i), margin="1,5") for i in range(NUM)]
    write_table(tmp_path / "rows.csv", commas, delimiter=";")
    found = look_at(tmp_path / "rows.csv")
    assert {item.votes[0].strength for item in read_as_found(found)} == {1.5}


def test_confidence_as_strength_is_told(write_jsonl):
    rows = [plain(i, choice=side(i), confidence=0.5) for i in range(NUM)]
    found = look_at(write_jsonl("rows.jsonl", rows))
    assert found.settings["columns"] == {"strength": "confidence"}
    assert found.notes == ["confidence is taken for how much better a response is (our strength)"]


def test_a_third_answer_is_named(write_jsonl):
    def row(number: int) -> dict:
        two = plain(number, "response_1", "response_2", score_1=4, score_2=2)
        return two | {"response_3": f"third {number}", "score_3": 3}

    found = look_at(write_jsonl("rows.jsonl", [row(i) for i in range(NUM)]))
    assert found.notes[0].startswith("response_3 is not compared with the two answers")
    found = look_at(write_jsonl("two.jsonl", [plain(i, choice=side(i)) for i in range(NUM)]))
    assert found.notes == []


def test_numbers_that_say_how_good_an_answer_is_are_named_where_all_are_demonstrations(write_jsonl):
    def row(number: int) -> dict:
        scores = {"helpfulness": number % 5, "verbosity": number % 3, "coherence": 4}
        return {"prompt": f"Question {number // 2}?", "response": f"Answer {number}.", **scores}

    found = look_at(write_jsonl("rows.jsonl", [row(i) for i in range(NUM)]))
    assert (found.section, found.usable) == ("demonstrations", NUM)
    [note] = found.notes
    assert note.startswith("every answer is to be imitated, whatever helpfulness says of it")
    plain_ones = [{"prompt": "Question?", "response": "x", "id": i} for i in range(NUM)]
    assert look_at(write_jsonl("plain.jsonl", plain_ones)).notes == []


def test_answers_of_a_server_that_nobody_rated_are_named(write_jsonl):
    def row(number: int) -> dict:
        known = {"id": f"chatcmpl-{number}", "index": 0, "rated": None, "label": None}
        return {"prompt": "Question?", "completion": f"Answer {number}.", **known}

    found = look_at(write_jsonl("rows.jsonl", [row(i) for i in range(NUM)]))
    assert found.notes[0].startswith("these are a model's own answers that nobody has rated")


@pytest.mark.parametrize("broken", ["long", -1, 1e999, [3]])
@pytest.mark.parametrize("name", ["seconds", "strength"])
def test_votes_of_records_do_without_what_cannot_be_read_too(write_jsonl, name, broken):
    """With one such time the whole row was left out, its other votes as well."""
    votes = [{"annotator": "ann", "choice": "a"}, {"annotator": "bob", "choice": "b", name: broken}]
    clock = [{"annotator": "cyd", "choice": "b", "seconds": "1:05", "strength": "2"}]
    path = write_jsonl("rows.jsonl", [plain(0, votes=votes), plain(1, votes=clock)])
    files: dict[str, FileRows] = {}
    first, second = read_comparisons(SourceConfig(path=path), files=files)
    assert [(vote.choice, getattr(vote, name)) for vote in first.votes] == [
        ("a", None),
        ("b", None),
    ]
    assert (second.votes[0].seconds, second.votes[0].strength) == (65.0, 2.0)
    assert files[str(path)].as_json()["unread_cells"] == {f"votes.*.{name}": 1}


def test_preparation_warns_of_cells_that_votes_do_without(tmp_path, write_jsonl, caplog):
    rows = [plain(i, choice=side(i), seconds="long" if i == 3 else 1) for i in range(NUM)]
    path = write_jsonl("rows.jsonl", rows)
    files: dict[str, FileRows] = {}
    items = list(read_comparisons(SourceConfig(path=path, format="flat"), files=files))
    assert len(items) == NUM
    assert files[str(path)].as_json()["unread_cells"] == {"seconds": 1}
    with (
        Quarantine(tmp_path / "quarantine.parquet") as quarantine,
        caplog.at_level(logging.WARNING),
    ):
        quarantine.files["preferences"] = files
        warn_of_unread_cells(quarantine)
    assert "column 'seconds' could not be read in 1 of 12 rows" in caplog.text
    assert "line 4: seconds: expected a number >= 0, found 'long'" in caplog.text
