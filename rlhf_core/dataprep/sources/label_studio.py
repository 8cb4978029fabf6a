"""Label Studio's JSON export of a pairwise project: one task a comparison, annotations are votes.

    {"id": 7, "data": {"prompt": ..., "response_a": ..., "response_b": ...},
     "annotations": [{"completed_by": 3, "lead_time": 12.5, "was_cancelled": false,
                      "result": [{"type": "pairwise", "value": {"selected": "left"}}]}]}

``columns`` maps our names to those of ``data``. Results of the types pairwise, choices (which side,
or a tie) and rating or number (strength) are understood.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlhf_core.dataprep.rows import RawRow
from rlhf_core.dataprep.sources.messages import parse_conversation
from rlhf_core.dataprep.sources.words import choice_of, parse_number
from rlhf_core.errors import DataError
from rlhf_core.schema import Choice, Comparison, Vote

_COLUMNS = ("prompt", "response_a", "response_b")


def parse_comparisons(
    rows: Iterable[RawRow], columns: Mapping[str, str], choices: Mapping[str, Choice]
) -> Iterator[Comparison]:
    """Yield one comparison a task; cancelled annotations are no votes."""
    for row in rows:
        row.require("data", "annotations")
        task = _data(row, columns)
        annotations = row.value["annotations"]
        if not isinstance(annotations, list):
            raise DataError(f"{row.where}: annotations: expected a list, found {annotations!r:.80}")
        votes = (_vote(row, annotation, choices) for annotation in annotations)
        yield Comparison(
            comparison_id=f"{row.source}-{row.value.get('id', row.line)}",
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
        raise DataError(f"{row.where}: data: expected an object, found {data!r:.80}")
    task = replace(row, value=data)
    names = {column: columns.get(column, column) for column in _COLUMNS}
    task.require(*names.values())
    renamed = {ours: data[theirs] for ours, theirs in names.items()}
    return replace(row, value=renamed)


def _vote(row: RawRow, annotation: Any, choices: Mapping[str, Choice]) -> Vote | None:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise DataError(f"{row.where}: annotation without a result list: {annotation!r:.80}")
    if annotation.get("was_cancelled"):
        return None
    choice: Choice | None = None
    strength: float | None = None
    for result in annotation["result"]:
        answer = _answer(row, result)
        if (word := _word(answer.value)) is not None:
            choice = choice_of(row, word, choices)
        for kind in ("rating", "number"):
            strength = parse_number(answer, kind) if kind in answer.value else strength
    if choice is None:
        return None
    return Vote(
        annotator=_annotator(annotation.get("completed_by")),
        choice=choice,
        strength=strength,
        seconds=parse_number(replace(row, value=annotation), "lead_time"),
    )


def _answer(row: RawRow, result: Any) -> RawRow:
    value = result.get("value") if isinstance(result, dict) else None
    if not isinstance(value, dict):
        raise DataError(f"{row.where}: result without a value: {result!r:.80}")
    return replace(row, value=value)


def _word(value: dict[str, Any]) -> str | None:
    """Return the answer of a pairwise or choices result."""
    if isinstance(value.get("selected"), str):
        return str(value["selected"])
    chosen = value.get("choices")
    if isinstance(chosen, list) and len(chosen) == 1:
        return str(chosen[0])
    return None


def _annotator(completed_by: Any) -> str:
    """Exports name a person by id, or by an object with e-mail and id."""
    if isinstance(completed_by, dict):
        return str(completed_by.get("email") or completed_by.get("id") or "unnamed")
    return "unnamed" if completed_by is None else str(completed_by)
