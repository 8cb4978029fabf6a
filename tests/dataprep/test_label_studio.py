"""Label Studio's export: which control holds the choice, how much better, and who said it."""

import gzip
import json
from itertools import islice

import pytest

from rlhf_core.config import SourceConfig
from rlhf_core.dataprep.sources import read_comparisons
from rlhf_core.dataprep.sources.containers import read_rows
from rlhf_core.dataprep.sources.look import look_at
from rlhf_core.errors import DataError


def read(path, **settings) -> list:
    return list(read_comparisons(SourceConfig(path=path, **settings)))


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def task(**changes) -> dict:
    return {
        "id": 7,
        "data": {"prompt": "Q?", "answer1": "yes", "answer2": "no", "meta": 1},
        "annotations": [
            {
                "completed_by": {"id": 3, "email": "ann@example.org"},
                "lead_time": 12.5,
                "was_cancelled": False,
                "result": [
                    {"type": "pairwise", "from_name": "c", "value": {"selected": "left"}},
                    {"type": "rating", "from_name": "s", "value": {"rating": 2}},
                ],
            },
            {"completed_by": 4, "result": [{"type": "choices", "value": {"choices": ["tie"]}}]},
            {"completed_by": 5, "was_cancelled": True, "result": []},
            {"completed_by": 6, "result": []},
        ],
        **changes,
    }


def test_a_label_studio_export_is_read(tmp_path):
    columns = {"response_a": "answer1", "response_b": "answer2"}
    path = write_json(tmp_path / "export.json", [task()])
    [item] = read(path, format="label_studio", columns=columns)
    assert [(v.annotator, v.choice, v.strength, v.seconds) for v in item.votes] == [
        ("3", "a", 2.0, 12.5),
        ("4", "tie", None, None),
    ]
    assert (item.comparison_id, item.line) == ("export-7", 1)
    with pytest.raises(DataError, match="item 1: missing column 'response_a'"):
        read(path, format="label_studio")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"annotations": None}, "annotations: expected a list"),
        ({"annotations": [{"completed_by": 1}]}, "annotation without a result list"),
        ({"annotations": [{"result": [{"type": "pairwise"}]}]}, "result without a value"),
        ({"data": 3}, "data: expected an object"),
        ({"annotations": [{"result": [{"value": {"selected": "up"}}]}]}, "unknown choice 'up'"),
    ],
)
def test_a_strange_export_is_one_clear_error(tmp_path, change, says):
    path = write_json(tmp_path / "export.json", [task(**change)])
    columns = {"response_a": "answer1", "response_b": "answer2"}
    with pytest.raises(DataError) as raised:
        read(path, format="label_studio", columns=columns)
    assert says in str(raised.value)
    assert "item 1" in str(raised.value)


def annotated(*results: dict) -> list[dict]:
    return [task(annotations=[{"completed_by": 0, "result": list(results)}])]


BETTER = {"from_name": "better", "value": {"choices": ["A is much better"]}}
WHY = {"from_name": "why", "value": {"choices": ["facts", "tone"]}}
SIDES = {"response_a": "answer1", "response_b": "answer2"}


def test_one_control_may_say_side_and_strength_beside_others(tmp_path):
    path = write_json(tmp_path / "export.json", annotated(WHY, BETTER))
    settings = {
        "format": "label_studio",
        "choices": {"A is much better": "a"},
        "strengths": {"A is much better": 3},
    }
    named = {**SIDES, "choice": "better", "strength": "better"}
    [item] = read(path, columns=named, **settings)
    [vote] = item.votes
    assert (vote.annotator, vote.choice, vote.strength) == ("0", "a", 3.0)
    with pytest.raises(
        DataError, match=r"item 1: several answers could be the choice \(controls wh"
    ):
        read(path, columns=SIDES, **settings)
    with pytest.raises(DataError, match="item 1: control 'why': expected one choice, found 2"):
        read(path, columns={**SIDES, "choice": "why"}, **settings)


def test_a_pairwise_answer_needs_no_name_beside_other_controls(tmp_path):
    side = {"from_name": "c", "value": {"selected": "right"}}
    how = {"from_name": "how", "value": {"choices": ["slightly better"]}}
    path = write_json(tmp_path / "export.json", annotated(WHY, side, how))
    [item] = read(path, format="label_studio", columns={**SIDES, "strength": "how"})
    assert (item.votes[0].choice, item.votes[0].strength) == ("b", 1.0)
    [item] = read(path, format="label_studio", columns=SIDES)
    assert item.votes[0].strength == 1.0
    clear = {"from_name": "clear", "value": {"choices": ["yes"]}}
    path = write_json(tmp_path / "export.json", annotated(side, clear))
    assert read(path, format="label_studio", columns=SIDES)[0].votes[0].strength is None
    path = write_json(tmp_path / "export.json", annotated(side, how, {**how, "from_name": "or"}))
    with pytest.raises(DataError, match=r"could be the strength \(controls how, or\)"):
        read(path, format="label_studio", columns=SIDES)


def test_tasks_without_an_id_have_their_place_for_one(tmp_path):
    path = write_json(tmp_path / "export.json", [task(id=None), task(id=None), task(id=0)])
    items = read(path, format="label_studio", columns=SIDES)
    assert [item.comparison_id for item in items] == ["export-1", "export-2", "export-0"]


@pytest.mark.parametrize("value", [{"id": 1}, "text", [1]])
def test_an_export_that_is_no_list_of_tasks_is_refused(tmp_path, value):
    path = write_json(tmp_path / "export.json", value)
    with pytest.raises(DataError, match=r"expected a|missing column 'data'"):
        read(path, format="label_studio")


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_large_export_is_read_piece_by_piece(tmp_path, ending):
    text = json.dumps([task(id=number, note="x" * 1_000) for number in range(4_000)]).encode()
    path = tmp_path / f"export.json{ending}"
    path.write_bytes(gzip.compress(text[:-9]) if ending else text[:-9])
    rows = read_rows(path)
    assert [row.line for row in islice(rows, 3)] == [1, 2, 3]
    with pytest.raises(DataError, match="after item 3999: broken JSON"):
        list(rows)


def test_an_export_with_bytes_that_are_no_text_is_refused(tmp_path):
    path = tmp_path / "export.json"
    path.write_bytes(b'[{"id": 1}, {"id": "\xff"}]')
    with pytest.raises(DataError, match="after item 0: not UTF-8"):
        list(read_rows(path))


def voted(number, annotation: int, side: str, **more) -> dict:
    result = [{"type": "pairwise", "value": {"selected": side}}]
    return {"id": annotation, "completed_by": number, "result": result, **more}


def plain(annotations: list, number=7) -> dict:
    data = {"prompt": f"Q{number}?", "response_a": "yes", "response_b": "no"}
    return {"id": number, "data": data, "annotations": annotations}


@pytest.mark.parametrize(
    ("who", "name"),
    [
        (3, "3"),
        ({"id": 3, "email": "ann@example.org"}, "3"),
        ({"id": 3.0}, "3"),
        ({"id": 0, "email": "ann@example.org"}, "0"),
        ({"email": "ann@example.org"}, "ann@example.org"),
        ({"id": None, "email": " "}, "unnamed"),
        (None, "unnamed"),
    ],
)
def test_a_person_is_known_by_the_id(tmp_path, who, name):
    path = write_json(tmp_path / "export.json", [plain([voted(who, 1, "left")])])
    [item] = read(path, format="label_studio")
    assert [vote.annotator for vote in item.votes] == [name]


def test_an_annotation_told_twice_is_one_vote_and_the_last_edit_counts(tmp_path):
    first = voted(None, 1, "left", updated_at="2026-01-01T00:00:00Z")
    edited = voted(None, 1, "right", updated_at="2026-01-02T00:00:00Z")
    path = write_json(tmp_path / "export.json", [plain([edited, first, voted(None, 2, "left")])])
    [item] = read(path, format="label_studio")
    assert [vote.choice for vote in item.votes] == ["b", "a"]


def test_annotations_of_a_storage_are_read_and_a_repeat_of_one_is_filtered_out(tmp_path):
    def stored(annotation: dict, number=7) -> dict:
        task = plain([], number)
        del task["annotations"]
        return {**annotation, "task": task}

    rows = [
        stored(voted(None, 1, "left")),
        stored(voted({"id": 4}, 2, "right")),
        stored(voted(None, 1, "left")),
        stored(voted(None, 1, "left"), number=8),
    ]
    path = tmp_path / "storage.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, repeat, other_task = read(path, format="label_studio")
    assert [vote.annotator for item in (first, second) for vote in item.votes] == ["unnamed", "4"]
    assert (first.comparison_id, other_task.comparison_id) == ("storage-7", "storage-8")
    assert (repeat.reason, repeat.line) == ("exact_duplicate", 3)


def test_what_the_template_of_label_studio_calls_the_answers_is_found(tmp_path):
    found = look_at(write_json(tmp_path / "export.json", [task()]))
    assert found.settings["columns"] == SIDES
    assert (found.usable, found.wins) == (1, {"a": 1, "tie": 1})
