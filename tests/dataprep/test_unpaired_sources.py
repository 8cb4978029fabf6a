"""Files of responses with good or bad labels: every container, every word, a server's own rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_core.config import UnpairedConfig
from rlhf_core.dataprep.sources import ratings, read_prompts, read_unpaired
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.dataprep.sources.rows import FilteredRow
from rlhf_core.dataprep.unpaired import LabelCounts
from rlhf_core.errors import DataError
from rlhf_core.schema import Message, Prompt, UnpairedExample
from tests.dataprep.shape_helpers import said, user, write_table

NUM = 6
TEXTS = [
    {"prompt": f"Question {i}?", "completion": f"good, {i}", "label": i % 2 == 0}
    for i in range(NUM)
]
CHATS = [
    {"prompt": [user(i)], "completion": [said(f"good, {i}")], "label": i % 2 == 0}
    for i in range(NUM)
]
ANSWER = {
    **{"id": "chatcmpl-1", "index": 0, "created": 1, "model": "models:/m/1"},
    **{"prompt": [user(0)], "completion": "good, 0"},
    **{"label": None, "rating": None, "comment": None, "rated": None},
}


def as_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def as_json_cells(path, rows):
    cells = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in r.items()} for r in rows]
    write_table(path, cells)


def labelled_by(words, rows=TEXTS):
    return [{**row, "label": words[i % len(words)]} for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "write", "rows"),
    [
        ("trl.jsonl", as_lines, TEXTS),
        ("trl-chats.jsonl", as_lines, CHATS),
        ("trl.parquet", as_parquet, TEXTS),
        ("trl-chats.parquet", as_parquet, CHATS),
        ("floats.parquet", as_parquet, labelled_by([1.0, 0.0])),
        ("words.csv", write_table, labelled_by(["true", "false", "1", "0", "TRUE", "False"])),
        ("chats.csv", as_json_cells, labelled_by([1, 0], CHATS)),
        ("thumbs.jsonl", as_lines, labelled_by(["up", "down", "Good", "bad"])),
    ],
)
def test_every_container_gives_the_same_examples(tmp_path, name, write, rows):
    path = tmp_path / name
    write(path, rows)
    items = [item for _, item in read_unpaired([UnpairedConfig(path=path)])]
    assert [(i.prompt[0].role, i.prompt[0].content, i.response, i.label) for i in items] == [
        ("user", f"Question {i}?", f"good, {i}", i % 2 == 0) for i in range(NUM)
    ]
    found = look_at(path)
    assert found.record().model_dump() == {
        "settings": {"path": str(path)},
        "rows": NUM,
        "usable": NUM,
        "section": "unpaired",
    }
    assert found.labels == {True: NUM // 2, False: NUM // 2}


def test_the_source_names_its_own_words_and_columns(write_jsonl):
    rows = [{"question": "Q?", "answer": "A.", "stars": stars} for stars in (5, 4, 1, 3, None, "5")]
    source = UnpairedConfig(
        path=write_jsonl("stars.jsonl", rows),
        columns={"label": "stars"},
        labels={5: True, 4: True, "1": False},
    )
    items = [item for _, item in read_unpaired([source])]
    told = [i.reason if isinstance(i, FilteredRow) else i.label for i in items]
    assert told == [True, True, False, "unusable_value", "no_votes", True]
    assert items[3].detail.startswith("label: expected 5, 4, 1, found 3; name the words in labels")


def test_a_column_of_other_labels_is_none_of_these(write_jsonl):
    rows = [{**row, "label": "math"} for row in TEXTS]
    path = write_jsonl("topics.jsonl", rows)
    found = look_at(path)
    assert (found.section, found.unused_columns) == ("demonstrations", {"label": NUM})
    with pytest.raises(DataError, match=r"none of its 6 rows can be used.*expected true or false"):
        list(read_unpaired([UnpairedConfig(path=path)]))


def rated(up, at, **more):
    return {**ANSWER, "label": up, "rating": "up" if up else "down", "rated": at, **more}


def test_the_last_rating_of_an_answer_counts_wherever_it_stands(tmp_path):
    unrated = {**ANSWER, "id": "chatcmpl-2"}
    second = rated(True, 5, index=1, completion="another one")
    as_lines(tmp_path / "a.jsonl", [ANSWER, rated(True, 3), unrated, second])
    as_lines(tmp_path / "b.jsonl", [rated(False, 4, comment="no")])
    items = [item for _, item in read_unpaired([UnpairedConfig(path=tmp_path)])]
    told = [i.reason if isinstance(i, FilteredRow) else (i.response, i.label) for i in items]
    assert told == [
        "superseded",
        "superseded",
        "no_votes",
        ("another one", True),
        ("good, 0", False),
    ]
    prompts = [item.prompt[-1].content for _, item in read_prompts(tmp_path)]
    assert prompts == ["Question 0?"] * 5
    assert all(isinstance(item, Prompt) for _, item in read_prompts(tmp_path))


@pytest.mark.parametrize("name", ["a.jsonl", "z.jsonl"])
def test_the_last_rating_counts_beside_files_of_people(tmp_path, name):
    as_lines(tmp_path / "kept.jsonl", [ANSWER, rated(True, 3), rated(False, 4)])
    as_lines(tmp_path / name, [{**TEXTS[0], "label": True}])
    items = [item for _, item in read_unpaired([UnpairedConfig(path=tmp_path)])]
    told = [i.reason if isinstance(i, FilteredRow) else i.label for i in items]
    assert sorted(map(str, told)) == ["False", "True", "superseded", "superseded"]


def test_what_a_server_adds_meanwhile_is_left_for_the_next_time(tmp_path, monkeypatch):
    path = tmp_path / "kept.jsonl"
    as_lines(path, [ANSWER, rated(True, 3)])
    look = ratings.last_ratings

    def looking(rows):
        found = look(rows)
        as_lines(path, [ANSWER, rated(True, 3), rated(False, 4), {**ANSWER, "id": "chatcmpl-2"}])
        return found

    monkeypatch.setattr(ratings, "last_ratings", looking)
    items = [item for _, item in read_unpaired([UnpairedConfig(path=path)])]
    told = [i.reason if isinstance(i, FilteredRow) else i.label for i in items]
    assert told == ["superseded", True]


def test_lopsided_labels_are_told_with_the_weights_that_mend_it():
    labels = LabelCounts()
    for number, (source, label) in enumerate([("a", True)] * 3 + [("b", True), ("b", False)]):
        message = Message(role="user", content="Q?")
        labels.add(
            UnpairedExample(
                example_id=str(number), prompt=(message,), response="A.", label=label, source=source
            ),
            "train",
        )
    one_label, uneven = labels.describe()
    assert one_label.startswith("a: all 3 labels are good; KTO learns from both")
    assert "policy.desirable_weight from 0.25 to 0.333" in uneven


def test_rows_of_other_files_with_ids_are_all_kept(write_jsonl):
    rows = [{**row, "id": "same"} for row in TEXTS]
    path = write_jsonl("ids.jsonl", rows)
    assert len([item for _, item in read_unpaired([UnpairedConfig(path=path)])]) == NUM


def test_files_of_one_name_have_ids_of_their_own(write_jsonl):
    paths = [write_jsonl(f"{folder}/train.jsonl", TEXTS[:1]) for folder in "xy"]
    sources = [UnpairedConfig(path=path) for path in paths]
    ids = {item.example_id for _, item in read_unpaired(sources)}
    assert ids == {"x-train:1", "y-train:1"}
