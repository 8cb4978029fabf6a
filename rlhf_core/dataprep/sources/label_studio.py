"""Label Studio's JSON export of a pairwise project: one task a comparison, annotations are votes.

    {"id": 7, "data": {"prompt": ..., "response_a": ..., "response_b": ...},
     "annotations": [{"id": 51, "completed_by": 3, "lead_time": 12.5, "was_cancelled": false,
                      "result": [{"type": "pairwise", "value": {"selected": "left"}}]}]}

A storage of the server has one annotation a row instead, with its task inside (``{"id": 51,
"result": [...], "task": {...}}``). A person is known by the id, whichever way ``completed_by``
gives it. An annotation that is exported again, with the same id, is no second vote.

``columns`` maps prompt and responses to the names ``data`` has, and ``choice`` and ``strength`` to
the controls (``from_name``) that ask for them. Without a name the choice is the one pairwise
control, or else the one of choices; the strength the one of rating or number, or beside a pairwise
control the one whose choice is a word of strength. Both may be one control: "A is much better" is a
side under ``choices`` and a number under ``strengths``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf_core.dataprep.sources.choices import (
    Meaning,
    choice_of,
    knows_strength,
    parse_number,
    parse_strength,
)
from rlhf_core.dataprep.sources.messages import parse_prompt
from rlhf_core.dataprep.sources.rows import Columns, RawRow, UnusableRow, annotator_name, as_json
from rlhf_core.schema import Comparison, Vote
from rlhf_core.storage.records import listed, shorten

_COLUMNS = ("prompt", "response_a", "response_b")
_CONTROLS = {"choice": ("selected", "choices"), "strength": ("rating", "number")}
"""What a control of ours may hold, the surer sign first."""
_KINDS = ("selected", "choices", "rating", "number")


@dataclass(frozen=True, slots=True)
class Wording:
    """The source's names and words."""

    columns: Mapping[str, str]
    choices: Mapping[str, Meaning]
    strengths: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one control of one annotation holds."""

    control: str
    kind: str
    value: Any


def comparison_of(row: RawRow, wording: Wording, known: set[tuple[str, str]]) -> Comparison:
    """Return the comparison of a task; cancelled and unanswered annotations are no votes.

    Args:
        row: a task, or an annotation with its task inside.
        wording: the source's names and words.
        known: annotations of earlier rows, with what they are about; receives those of this one.
    """
    row = _with_task_outside(row)
    row.require("data", "annotations")
    task = _data(row, wording.columns)
    annotations = row.value["annotations"]
    if not isinstance(annotations, list):
        found = shorten(annotations)
        raise UnusableRow("unusable_value", f"annotations: expected a list, found {found}")
    fresh = _told_first(row, annotations, known)
    if annotations and not fresh:
        raise UnusableRow("exact_duplicate", "annotations that an earlier row has")
    votes = (_vote(row, annotation, wording) for annotation in fresh)
    number = row.value.get("id")
    return Comparison(
        comparison_id=f"{row.source}-{row.line if number is None else number}",
        prompt=parse_prompt(task),
        response_a=task.text("response_a"),
        response_b=task.text("response_b"),
        votes=tuple(vote for vote in votes if vote is not None),
        source=row.source,
        line=row.line,
    )


def _with_task_outside(row: RawRow) -> RawRow:
    """Turn an annotation with its task inside, as storages have it, into a task."""
    task = row.value.get("task")
    if not isinstance(task, dict) or "annotations" in row.value:
        return row
    annotation = {name: row.value[name] for name in row.value if name != "task"}
    row.value["task"]
    return replace(row, value=Columns({**task, "annotations": [annotation]}))


def _told_first(row: RawRow, annotations: list[Any], known: set[tuple[str, str]]) -> list[Any]:
    """Return the annotations that no earlier row has, of one that is here twice its last edit."""
    latest: dict[object, Any] = {}
    for place, annotation in enumerate(annotations):
        number = annotation.get("id") if isinstance(annotation, dict) else None
        key: object = ("nameless", place) if number is None else str(number)
        before = latest.get(key)
        if before is None or _edited(annotation) >= _edited(before):
            latest[key] = annotation
    texts = as_json(row.value["data"])
    fresh = []
    for key, annotation in latest.items():
        if isinstance(key, str):
            if (key, texts) in known:
                continue
            known.add((key, texts))
        fresh.append(annotation)
    return fresh


def _edited(annotation: dict[str, Any]) -> str:
    """When an annotation was last changed, as ISO 8601 text, whose order is that of time."""
    return str(annotation.get("updated_at") or "")


def _data(row: RawRow, columns: Mapping[str, str]) -> RawRow:
    data = row.value["data"]
    if not isinstance(data, dict):
        raise UnusableRow("unusable_value", f"data: expected an object, found {shorten(data)}")
    task = replace(row, value=Columns(data))
    names = {column: columns.get(column, column) for column in _COLUMNS}
    task.require(*names.values())
    renamed = {ours: data[theirs] for ours, theirs in names.items()}
    return replace(row, value=Columns(renamed))


def _vote(row: RawRow, annotation: Any, wording: Wording) -> Vote | None:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise UnusableRow(
            "unusable_value", f"annotation without a result list: {shorten(annotation)}"
        )
    if annotation.get("was_cancelled"):
        return None
    answers = [_answer(row, result) for result in annotation["result"] if not _is_link(result)]
    choice = _find(row, answers, "choice", wording.columns)
    if choice is None or (word := _word(row, choice)) is None:
        return None
    side = choice_of(word, wording.choices)
    if side is None:
        return None
    strength = _find(row, answers, "strength", wording.columns)
    if strength is None and choice.kind == "selected" and "strength" not in wording.columns:
        strength = _only(row, [a for a in answers if _is_strength(a, wording)], "strength")
    how_much = None if strength is None else _content(row, strength)
    return Vote(
        annotator=_annotator(annotation.get("completed_by")),
        choice=side,
        strength=parse_strength(
            replace(row, value=Columns({"strength": how_much})), "strength", wording.strengths
        ),
        seconds=parse_number(replace(row, value=Columns(annotation)), "lead_time"),
    )


def _is_link(result: Any) -> bool:
    """Tell whether a result only ties two others together."""
    return isinstance(result, dict) and result.get("type") == "relation"


def _answer(row: RawRow, result: Any) -> _Answer:
    value = result.get("value") if isinstance(result, dict) else None
    if not isinstance(value, dict):
        raise UnusableRow("unusable_value", f"result without a value: {shorten(result)}")
    kind = next((kind for kind in _KINDS if kind in value), "")
    return _Answer(str(result.get("from_name", "")), kind, value.get(kind))


def _find(
    row: RawRow, answers: list[_Answer], column: str, columns: Mapping[str, str]
) -> _Answer | None:
    """Return the answer of the control that ``columns`` names, or of the only one that fits."""
    if column in columns:
        found = [answer for answer in answers if answer.control == columns[column]]
    else:
        fitting = ([a for a in answers if a.kind == kind] for kind in _CONTROLS[column])
        found = next((some for some in fitting if some), [])
    return _only(row, found, column)


def _is_strength(answer: _Answer, wording: Wording) -> bool:
    """Tell whether an answer is the choice of one word that says how much better."""
    words = answer.value if isinstance(answer.value, list) else [answer.value]
    if answer.kind != "choices" or len(words) != 1:
        return False
    return knows_strength(words[0], wording.strengths)


def _only(row: RawRow, found: list[_Answer], column: str) -> _Answer | None:
    if len(found) > 1:
        controls = listed(answer.control or "without a name" for answer in found)
        raise UnusableRow(
            "unusable_value",
            f"several answers could be the {column} (controls {controls});"
            f" name one control in columns: {{{column}: ...}}",
        )
    return found[0] if found else None


def _word(row: RawRow, answer: _Answer) -> str | None:
    """Return the one word an answer chose; None where it chose nothing."""
    content = _content(row, answer)
    return None if content is None else str(content)


def _content(row: RawRow, answer: _Answer) -> Any:
    if answer.kind != "choices":
        return answer.value
    words = answer.value if isinstance(answer.value, list) else [answer.value]
    if len(words) > 1:
        raise UnusableRow(
            "unusable_value",
            f"control {answer.control!r}: expected one choice, found"
            f" {len(words)}: {shorten(words)}",
        )
    return words[0] if words else None


def _annotator(completed_by: Any) -> str:
    """A person is the id; exports give it alone or in an object, beside an e-mail address."""
    if isinstance(completed_by, dict):
        number = completed_by.get("id")
        return annotator_name(completed_by.get("email") if number is None else number)
    return annotator_name(completed_by)
