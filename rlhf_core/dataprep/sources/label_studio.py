"""Label Studio's JSON export of a pairwise project: one task a comparison, annotations are votes.

    {"id": 7, "data": {"prompt": ..., "response_a": ..., "response_b": ...},
     "annotations": [{"completed_by": 3, "lead_time": 12.5, "was_cancelled": false,
                      "result": [{"type": "pairwise", "value": {"selected": "left"}}]}]}

``columns`` maps prompt and responses to the names ``data`` has, and ``choice`` and ``strength`` to
the controls (``from_name``) that ask for them. Without a name the choice is the one pairwise
control, or else the one of choices; the strength the one of rating or number, or beside a pairwise
control the one whose choice is a word of strength. Both may be one control: "A is much better" is a
side under ``choices`` and a number under ``strengths``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf_core.dataprep.files import shorten
from rlhf_core.dataprep.rows import RawRow, annotator_name
from rlhf_core.dataprep.sources.messages import parse_conversation
from rlhf_core.dataprep.sources.words import choice_of, knows_strength, parse_number, parse_strength
from rlhf_core.errors import DataError
from rlhf_core.schema import Choice, Comparison, Vote

_COLUMNS = ("prompt", "response_a", "response_b")
_CONTROLS = {"choice": ("selected", "choices"), "strength": ("rating", "number")}
"""What a control of ours may hold, the surer sign first."""
_KINDS = ("selected", "choices", "rating", "number")


@dataclass(frozen=True, slots=True)
class Wording:
    """The source's names and words."""

    columns: Mapping[str, str]
    choices: Mapping[str, Choice]
    strengths: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one control of one annotation holds."""

    control: str
    kind: str
    value: Any


def parse_comparisons(rows: Iterable[RawRow], wording: Wording) -> Iterator[Comparison]:
    """Yield one comparison a task; cancelled and unanswered annotations are no votes."""
    for row in rows:
        row.require("data", "annotations")
        task = _data(row, wording.columns)
        annotations = row.value["annotations"]
        if not isinstance(annotations, list):
            found = shorten(annotations)
            raise DataError(f"{row.where}: annotations: expected a list, found {found}")
        votes = (_vote(row, annotation, wording) for annotation in annotations)
        number = row.value.get("id")
        yield Comparison(
            comparison_id=f"{row.source}-{row.line if number is None else number}",
            prompt=parse_conversation(task, "prompt"),
            response_a=task.text("response_a"),
            response_b=task.text("response_b"),
            votes=tuple(vote for vote in votes if vote is not None),
            source=row.source,
            line=row.line,
        )


def _data(row: RawRow, columns: Mapping[str, str]) -> RawRow:
    data = row.value["data"]
    if not isinstance(data, dict):
        raise DataError(f"{row.where}: data: expected an object, found {shorten(data)}")
    task = replace(row, value=data)
    names = {column: columns.get(column, column) for column in _COLUMNS}
    task.require(*names.values())
    renamed = {ours: data[theirs] for ours, theirs in names.items()}
    return replace(row, value=renamed)


def _vote(row: RawRow, annotation: Any, wording: Wording) -> Vote | None:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise DataError(f"{row.where}: annotation without a result list: {shorten(annotation)}")
    if annotation.get("was_cancelled"):
        return None
    answers = [_answer(row, result) for result in annotation["result"]]
    choice = _find(row, answers, "choice", wording.columns)
    if choice is None or (word := _word(row, choice)) is None:
        return None
    strength = _find(row, answers, "strength", wording.columns)
    if strength is None and choice.kind == "selected" and "strength" not in wording.columns:
        strength = _only(row, [a for a in answers if _is_strength(a, wording)], "strength")
    how_much = None if strength is None else _content(row, strength)
    return Vote(
        annotator=_annotator(annotation.get("completed_by")),
        choice=choice_of(row, word, wording.choices),
        strength=parse_strength(
            replace(row, value={"strength": how_much}), "strength", wording.strengths
        ),
        seconds=parse_number(replace(row, value=annotation), "lead_time"),
    )


def _answer(row: RawRow, result: Any) -> _Answer:
    value = result.get("value") if isinstance(result, dict) else None
    if not isinstance(value, dict):
        raise DataError(f"{row.where}: result without a value: {shorten(result)}")
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
        controls = ", ".join(answer.control or "without a name" for answer in found)
        raise DataError(
            f"{row.where}: several answers could be the {column} (controls {controls});"
            f" name one control in columns: {{{column}: ...}}"
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
        raise DataError(
            f"{row.where}: control {answer.control!r}: expected one choice, found"
            f" {len(words)}: {shorten(words)}"
        )
    return words[0] if words else None


def _annotator(completed_by: Any) -> str:
    """Exports name a person by id, or by an object with e-mail and id."""
    if isinstance(completed_by, dict):
        return annotator_name(completed_by.get("email") or completed_by.get("id"))
    return annotator_name(completed_by)
