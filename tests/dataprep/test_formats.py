"""Every source format and container gives the same kind of record."""

import csv
import json
from collections import Counter

import pytest
import zstandard

from rlhf_core.config import DemonstrationsConfig, SourceConfig
from rlhf_core.dataprep.sources import canonical, read_comparisons, read_demonstrations
from rlhf_core.dataprep.sources import flat as flat_reader
from rlhf_core.dataprep.sources.hub import hub_fingerprint, hub_name
from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.errors import DataError
from rlhf_core.storage.records import write_records

CANONICAL = {
    "prompt": [{"role": "user", "content": "Q?"}],
    "response_a": "yes",
    "response_b": "no",
    "votes": [{"annotator": "x", "choice": "b", "strength": 2.0, "seconds": None}],
}


TURNS = [{"role": "user", "content": "Q?"}]
GOOD = [{"role": "assistant", "content": "good"}]


def read(path, **settings) -> list:
    return list(read_comparisons(SourceConfig(path=path, **settings)))


def winner(item) -> str:
    return item.response_a if item.votes_a > item.votes_b else item.response_b


def test_votes_of_many_annotators_with_renamed_columns(tmp_path, write_jsonl):
    row = {
        "pair_id": "p1",
        "topic": "bottles",
        "prompt": "Q?",
        "response_a": "yes",
        "response_b": "no",
        "gold": "a",
        "labels": [{"annotator": "w1", "choice": "a"}, {"annotator": "w2", "choice": "tie"}],
    }
    columns = {
        "comparison_id": "pair_id",
        "prompt": "prompt",
        "response_a": "response_a",
        "response_b": "response_b",
        "votes": "labels",
        "source": "topic",
    }
    path = write_jsonl("pairs.jsonl", [row])
    [item] = read(path, columns=columns)
    assert (item.comparison_id, item.source, len(item.votes)) == ("p1", "bottles", 2)
    with pytest.raises(DataError, match="missing column 'votes'; found pair_id"):
        read(path)
    with pytest.raises(DataError, match="line 1: missing column 'voters'"):
        read(path, columns={**columns, "votes": "voters"})


def test_a_ranked_list_becomes_all_its_pairs_in_one_group(write_jsonl):
    row = {"prompt": "Q?", "responses": ["one", "two", "three", "four"]}
    items = read(write_jsonl("ranked.jsonl", [row]), format="ranked")
    assert len(items) == 6
    assert len({item.group for item in items}) == 1
    assert len({item.comparison_id for item in items}) == 6
    order = row["responses"]
    assert all(
        order.index(winner(item)) == min(map(order.index, (item.response_a, item.response_b)))
        for item in items
    )
    assert items[2].votes[0].strength == 3.0


def test_several_annotators_may_rank_the_same_list_with_ties(write_jsonl):
    row = {
        "prompt": "Q?",
        "responses": ["one", "two"],
        "rankings": [{"annotator": "x", "ranks": [2, 1]}, {"annotator": "y", "ranks": [1, 1]}],
    }
    [item] = read(write_jsonl("ranked.jsonl", [row]), format="ranked")
    assert [(vote.annotator, vote.choice) for vote in item.votes] == [("x", "b"), ("y", "tie")]


@pytest.mark.parametrize(
    "row",
    [
        {"responses": ["bad", None, "good"], "ranks": [2, 3, 1]},
        {"responses": ["bad", "unjudged", "good"], "scores": [2, None, 5]},
        {"responses": ["bad", "unjudged", "good"], "scores": ["2", " ", "5"]},
    ],
)
def test_an_answer_without_text_or_place_takes_part_in_nothing(write_jsonl, row):
    path = write_jsonl("lists.jsonl", [{"prompt": "Q?", **row}])
    [item] = read_comparisons(SourceConfig(path=path, format="ranked"))
    assert {item.response_a, item.response_b} == {"good", "bad"}
    assert (item.response_a if item.votes_a else item.response_b) == "good"


def test_who_did_not_place_an_answer_did_not_compare_it(write_jsonl):
    rankings = [{"annotator": "x", "ranks": [1, 2, 3]}, {"annotator": "y", "ranks": [1, None, 2]}]
    row = {"prompt": "Q?", "responses": ["1", "2", "3"], "rankings": rankings}
    items = read_comparisons(SourceConfig(path=write_jsonl("lists.jsonl", [row]), format="ranked"))
    votes = {frozenset((item.response_a, item.response_b)): len(item.votes) for item in items}
    assert votes == {frozenset("12"): 1, frozenset("13"): 2, frozenset("23"): 1}


def test_a_ranked_list_with_other_ranks_than_responses_is_refused(write_jsonl):
    path = write_jsonl("r.jsonl", [{"prompt": "Q?", "responses": ["1", "2"], "ranks": [1]}])
    with pytest.raises(DataError, match="line 1: ranks: expected 2 numbers"):
        read(path, format="ranked")
    [row] = read(write_jsonl("s.jsonl", [{"prompt": "Q?", "responses": ["1"]}]), format="ranked")
    assert row.reason == "too_few_responses"


@pytest.fixture
def spreadsheet(tmp_path):
    path = tmp_path / "votes.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "question", "first", "second", "better", "how", "who", "took"])
        writer.writerow(
            ["1", "Q, really?", 'says "yes"', "no\nno", "1st", "much better", "ann", "9.5"]
        )
        writer.writerow(["1", "Q, really?", 'says "yes"', "no\nno", "same", "", "bob", ""])
        writer.writerow(["2", "R?", "yes", "no", "2nd", "1", "ann", "4"])
    return path


COLUMNS = {
    "comparison_id": "item",
    "prompt": "question",
    "response_a": "first",
    "response_b": "second",
    "choice": "better",
    "strength": "how",
    "annotator": "who",
    "seconds": "took",
}
CHOICES = {"1st": "a", "2nd": "b", "same": "tie"}


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_a_spreadsheet_is_read_through_its_column_mapping(spreadsheet, suffix):
    path = spreadsheet.with_name(spreadsheet.name + suffix)
    if suffix:
        path.write_bytes(zstandard.compress(spreadsheet.read_bytes()))
    first, second = read(path, format="flat", columns=COLUMNS, choices=CHOICES)
    assert first.response_b == "no\nno"
    assert [(v.annotator, v.choice, v.strength, v.seconds) for v in first.votes] == [
        ("ann", "a", 3.0, 9.5),
        ("bob", "tie", None, None),
    ]
    assert (second.votes[0].choice, second.votes[0].strength) == ("b", 1.0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("3,Q?,a,b,third,,ann,1", "line 7: unknown choice 'third'; expected one of 1st, 2nd, same"),
        ("3,Q?,a,b,1st,very,ann,1", "line 7: strength: expected a number >= 0, found 'very'"),
        ("3,Q?,a,b,1st", "line 7: expected 8 fields as in the header"),
        ("3,Q?,a,b,1st,,ann,1,extra", "line 7: expected 8 fields as in the header"),
        ("2,Q?,a,b,1st,,ann,1", "line 7: comparison_id '2' stood for other texts on line 6"),
        ('3,"Q?,a,b,1st,,ann,1', "line 7: broken CSV (the quote that opens on line 7 is never"),
        ('3,"Q?" x,a,b,1st,,ann,1', "line 7: broken CSV (',' expected after"),
    ],
)
def test_a_wrong_cell_names_its_line(spreadsheet, line, says):
    with spreadsheet.open("a") as file:
        file.write(line + "\n")
    items = read(spreadsheet, format="flat", columns=COLUMNS, choices=CHOICES)
    [aside] = [item for item in items if isinstance(item, FilteredRow)]
    assert says in f"line {aside.line}: {aside.detail}"
    assert len(items) == 3


def test_a_blank_choice_is_no_vote_and_the_comparison_stays(tmp_path):
    path = tmp_path / "votes.csv"
    head = "comparison_id,prompt,response_a,response_b,choice,annotator"
    path.write_text(f"{head}\n1,Q?,yes,no,,ann\n1,Q?,yes,no,a,bob\n2,R?,yes,no, ,ann\n")
    first, second = read(path, format="flat")
    assert [vote.annotator for vote in first.votes] == ["bob"]
    assert (second.line, second.votes) == (4, ())
    answered, *_ = read(path, format="flat", choices={"": "tie", "a": "a"})
    assert [vote.choice for vote in answered.votes] == ["tie", "a"]


def test_an_id_of_zero_is_an_id(tmp_path):
    path = tmp_path / "votes.jsonl"
    row = {"comparison_id": 0, "prompt": "Q?", "response_a": "yes", "response_b": "no"}
    votes = [{**row, "choice": "a", "annotator": 0}, {**row, "choice": "b", "annotator": 1}]
    path.write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    [item] = read(path, format="flat")
    assert (item.comparison_id, [v.annotator for v in item.votes]) == ("votes-0", ["0", "1"])


def test_two_sheets_numbered_from_one_do_not_share_ids(tmp_path):
    for name, what in (("monday", "tea"), ("tuesday", "milk")):
        lines = [f"{number},{what} {number}?,yes,no,a,ann" for number in (1, 2)]
        head = "comparison_id,prompt,response_a,response_b,choice,annotator"
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")
    items = read(tmp_path, format="flat")
    assert [item.comparison_id for item in items] == [
        "monday-1",
        "monday-2",
        "tuesday-1",
        "tuesday-2",
    ]
    assert read(tmp_path, format="flat") == items
    write_records(tmp_path / "batch-0001.jsonl", items)  # What `rlhf data add` makes of a batch.
    assert read(tmp_path / "batch-0001.jsonl") == items


def test_a_null_is_the_same_as_a_column_that_is_not_there(write_jsonl):
    row = {"prompt": "Q?", "responses": ["good", "bad"]}
    null = {**row, "ranks": None, "annotator": None, "rankings": None}
    path = write_jsonl("lists.jsonl", [row, null, {**row, "ranks": [1, 2], "annotator": None}])
    assert [item.votes[0].annotator for item in read(path, format="ranked")] == ["published"] * 3
    several = [{"ranks": [1, 2]}, {"ranks": [1, 2], "annotator": None}]
    path = write_jsonl("several.jsonl", [{**row, "rankings": several}])
    [item] = read(path, format="ranked")
    assert [vote.annotator for vote in item.votes] == ["unnamed"] * 2
    nulls = dict.fromkeys(["comparison_id", "group", "source", "line"])
    path = write_jsonl("rows.jsonl", [CANONICAL, {**CANONICAL, **nulls}])
    first, second = read(path)
    assert first.model_copy(update={"line": 2}) == second


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"ranks": [10**400, 1]}, "ranks: expected 2 numbers"),
        ({"rankings": [{"ranks": [1, float("inf")]}]}, "ranks: expected 2 numbers"),
    ],
)
def test_a_rank_that_is_no_number_names_its_line(write_jsonl, row, says):
    path = write_jsonl("lists.jsonl", [{"prompt": "Q?", "responses": ["a", "b"], **row}])
    with pytest.raises(DataError, match=f"line 1: {says}"):
        read(path, format="ranked")


def test_ranks_too_far_apart_for_a_number_say_nothing_of_strength(write_jsonl):
    row = {"prompt": "Q?", "responses": ["good", "bad"], "ranks": [-1e308, 1e308]}
    [item] = read(write_jsonl("lists.jsonl", [row]), format="ranked")
    assert (winner(item), item.votes[0].strength) == ("good", None)


def test_the_best_of_a_ranked_list_is_on_either_side(write_jsonl):
    rows = [{"prompt": f"{i}?", "responses": [f"good {i}", f"bad {i}"]} for i in range(400)]
    items = read(write_jsonl("lists.jsonl", rows), format="ranked")
    assert 150 < sum(item.votes_a for item in items) < 250
    assert all(winner(item).startswith("good") for item in items)


@pytest.mark.parametrize("strength", [-1, float("inf")])
def test_a_strength_that_is_none_is_refused_in_the_configuration(strength):
    with pytest.raises(ValueError, match=r"strengths\.worse"):
        SourceConfig(path="x.csv", format="flat", strengths={"worse": strength})


@pytest.mark.parametrize("file_format", ["canonical", "flat"])
def test_a_reader_that_loses_a_row_is_found_out(write_jsonl, monkeypatch, file_format):
    flat = {**{k: CANONICAL[k] for k in ("response_a", "response_b")}, "prompt": "Q?"}
    rows = {
        "canonical": [CANONICAL, {**CANONICAL, "response_a": "lost"}],
        "flat": [{**flat, "choice": "a"}, {**flat, "choice": "b", "response_a": "lost"}],
    }
    path = write_jsonl("rows.jsonl", rows[file_format])
    assert len(read(path, format=file_format)) == 2
    module, name = {
        "canonical": (canonical, "comparisons_of"),
        "flat": (flat_reader, "parse_comparisons"),
    }[file_format]
    whole = getattr(module, name)
    monkeypatch.setattr(
        module,
        name,
        lambda *a: (item for item in whole(*a) if "lost" not in repr(item)),
    )
    with pytest.raises(DataError, match="2 rows read, but 1 came out or were filtered out"):
        read(path, format=file_format)


def test_the_rows_of_every_file_are_counted(tmp_path, write_jsonl):
    write_jsonl("lists/one.jsonl", [{"prompt": "Q?", "responses": ["1", "2", "3"]}] * 2)
    write_jsonl("lists/two.jsonl", [{"prompt": "Q?", "responses": ["1"]}])
    counts = Counter()
    items = list(read_comparisons(SourceConfig(path=tmp_path / "lists", format="ranked"), counts))
    assert (len(items), counts) == (7, {"one": 2, "two": 1})
    flat = {"comparison_id": 1, "prompt": "Q?", "response_a": "yes", "response_b": "no"}
    path = write_jsonl("votes.jsonl", [{**flat, "choice": side} for side in ("a", "b", "")])
    assert len(list(read_comparisons(SourceConfig(path=path, format="flat"), counts))) == 1
    assert counts["votes"] == 3


def test_demonstrations_come_as_messages_or_as_chosen_transcripts(write_jsonl):
    path = write_jsonl("sft.jsonl", [{"messages": TURNS + GOOD}, {"messages": TURNS}])
    items = [
        item for _, item in read_demonstrations(DemonstrationsConfig(path=path, format="messages"))
    ]
    assert [(item.prompt[0].content, item.response) for item in items[:1]] == [("Q?", "good")]
    assert items[1].response == ""
    path = write_jsonl("hh.jsonl", [{"chosen": "\n\nHuman: Q?\n\nAssistant: A.", "rejected": ""}])
    [(line, item)] = read_demonstrations(DemonstrationsConfig(path=path, format="hh"))
    assert (line, item.prompt[0].content, item.response) == (1, "Q?", "A.")


def test_turns_may_come_as_questions_with_their_answers(write_jsonl):
    """As LDJnr/Capybara publishes its demonstrations."""
    exchanges = [{"input": "Two and two?", "output": "4"}, {"input": "And one?", "output": "5"}]
    path = write_jsonl("sft.jsonl", [{"source": "s", "conversation": exchanges}])
    settings = DemonstrationsConfig(path=path, format="messages")
    [(_, item)] = read_demonstrations(settings)
    assert [(turn.role, turn.content) for turn in item.prompt] == [
        ("user", "Two and two?"),
        ("assistant", "4"),
        ("user", "And one?"),
    ]
    assert item.response == "5"


def test_a_dataset_is_loaded_by_name(tmp_path, write_jsonl, monkeypatch):
    """A folder stands in for the hub: ``datasets`` loads both through the same call."""
    write_jsonl("named/train.jsonl", [{"prompt": "Q?", "chosen": "good", "rejected": "bad"}])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    [item] = read("hf://datasets/named", format="pairs")
    assert (item.source, winner(item)) == ("named", "good")
    with pytest.raises(DataError, match="split 'validation' cannot be loaded"):
        read("hf://datasets/named", format="pairs", split="validation")


def test_a_dataset_of_several_configurations_is_read_by_subset(tmp_path, write_jsonl, monkeypatch):
    for subset in ("en", "fr"):
        row = {"prompt": "Q?", "chosen": f"good {subset}", "rejected": "bad"}
        write_jsonl(f"several/{subset}/train.jsonl", [row])
    configs = [f"- config_name: {name}\n  data_files: {name}/*.jsonl" for name in ("en", "fr")]
    card = "\n".join(["---", "configs:", *configs, "---", ""])
    (tmp_path / "several" / "README.md").write_text(card)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    named = {"path": "hf://datasets/several", "format": "pairs"}
    english, french = (SourceConfig(subset=name, **named) for name in ("en", "fr"))
    assert [winner(item) for item in read_comparisons(english)] == ["good en"]
    assert [winner(item) for item in read_comparisons(french)] == ["good fr"]
    assert hub_fingerprint(english) != hub_fingerprint(french)
    with pytest.raises(DataError, match=r"configs: \['en', 'fr'\]; name one as subset$"):
        read(**named)
    with pytest.raises(DataError, match=r"subset 'de', split 'train' .* Available: \['en', 'fr'\]"):
        read(**named, subset="de")


def test_only_a_dataset_address_names_a_dataset(tmp_path):
    assert (
        hub_name(SourceConfig(path="hf://datasets/Anthropic/hh-rlhf").path) == "Anthropic/hh-rlhf"
    )
    with pytest.raises(DataError, match="expected hf://datasets/<name>"):
        read("hf://models/x")


def test_a_word_may_mean_no_vote(tmp_path):
    path = tmp_path / "votes.csv"
    rows = ["1,a,ann", "1,skip,bob", "2,SKIP,ann", "3,unsure,ann", "4,right,ann"]
    cells = "".join(f"{row[0]},Q{row[0]}?,Yes.,No.,{row[2:]}\n" for row in rows)
    path.write_text(f"comparison_id,prompt,response_a,response_b,choice,annotator\n{cells}")
    one, two, unsure, four = read(path, format="flat", choices={"skip": "none"})
    assert [[vote.choice for vote in item.votes] for item in (one, two, four)] == [["a"], [], ["b"]]
    assert unsure.reason == "unusable_value"
    assert "right" in unsure.detail
    assert "skip, or name it in choices (none: no vote)" in unsure.detail
    _, _, named, _ = read(path, format="flat", choices={"skip": "none", "unsure": "b", "a": "a"})
    assert named.votes[0].choice == "b"


def test_a_word_may_mean_no_vote_in_other_formats_too(write_jsonl):
    texts = {"prompt": "Q?", "response_a": "Yes.", "response_b": "No."}
    votes = ["a", "skip", {"annotator": "bob", "choice": "skip"}, {"annotator": "x", "choice": "b"}]
    path = write_jsonl("rows.jsonl", [{**texts, "votes": votes}])
    [item] = read(path, choices={"skip": "none"})
    assert [vote.choice for vote in item.votes] == ["a", "b"]
    path = write_jsonl("signed.jsonl", [{**texts, "preference": n} for n in (-2, 0, 1)])
    items = read(path, format="flat", choices={0: "none"})
    assert [[vote.choice for vote in item.votes] for item in items] == [["a"], [], ["b"]]
    answers = [{"from_name": "side", "value": {"choices": ["skip"]}}]
    task = {"id": 1, "data": texts, "annotations": [{"completed_by": 1, "result": answers}]}
    [item] = read(
        write_jsonl("tasks.jsonl", [task]), format="label_studio", choices={"skip": "none"}
    )
    assert item.votes == ()
