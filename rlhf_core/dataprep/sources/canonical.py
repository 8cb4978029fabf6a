"""The project's own format: the fields of the records themselves.

Liberties: ``prompt`` may be plain text (one user turn), ids may be left out, and a vote of nobody
in particular may be its choice alone; who gave it, and whether it was submitted, may stand in lists
of their own, ``vote_annotators`` and ``vote_statuses``. A null where a column may be left out is
the same as none. Columns that no record has are ignored.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar

from pydantic import ValidationError

from rlhf_core.dataprep.keys import content_id
from rlhf_core.dataprep.sources.choices import (
    Meaning,
    choice_of,
    or_without,
    parse_seconds,
    parse_strength,
)
from rlhf_core.dataprep.sources.column_names import PROMPTS
from rlhf_core.dataprep.sources.columns import renamed, structured, tags_of
from rlhf_core.dataprep.sources.messages import answer_of, parse_prompt, writes_lists
from rlhf_core.dataprep.sources.responses import parse_responses
from rlhf_core.dataprep.sources.rows import UNNAMED, Columns, RawRow, UnusableRow, as_json
from rlhf_core.dataprep.sources.vote_lists import has_lists_beside, submitted
from rlhf_core.schema import Comparison, Demonstration, Prompt, Record, Vote
from rlhf_core.storage.records import describe

_NO_VOTE = object()
_WITHOUT = ("strength", "seconds")
"""What of a vote is optional: one that cannot be read takes nothing from who won."""
AnyRecord = TypeVar("AnyRecord", bound=Record)


def comparisons_of(
    row: RawRow, choices: Mapping[str, Meaning], strengths: Mapping[str, float]
) -> Iterator[Comparison]:
    """Yield the comparison; it remembers its source and line, or those it came with."""
    value = _columns(Comparison, row, "response_a", "response_b")
    if writes_lists(row):
        texts = parse_responses(row, "response_a", "response_b")
        value |= dict(zip(("prompt", "response_a", "response_b"), texts, strict=True))
    _give_id(value, "comparison_id", "prompt", "response_a", "response_b")
    if not (value.get("source") and value.get("line")):
        value["line"] = row.line
    value["source"] = value.get("source") or row.source
    value["tags"] = tags_of(row)
    votes = structured(value.get("votes"))
    if isinstance(votes, list):
        value["votes"] = [_vote(row, vote, choices, strengths) for vote in votes]
    if has_lists_beside(row):
        value["votes"] = submitted(row, value.get("votes"))
    if isinstance(value.get("votes"), list):
        # Only now, for the lists beside have an entry for each of what is no vote, too.
        value["votes"] = [vote for vote in value["votes"] if vote is not _NO_VOTE]
    yield _validated(Comparison, value, row)


def demonstration_of(row: RawRow) -> Demonstration:
    """Return a demonstration."""
    value = _columns(Demonstration, row, "response")
    _give_id(value, "demonstration_id", "prompt", "response")
    value["source"] = value.get("source") or row.source
    return _validated(Demonstration, value, row)


def prompt_of(row: RawRow) -> Prompt:
    """Return a prompt; its column may be called as people call it (``PROMPTS``)."""
    other = next((name for name in PROMPTS if name in row.value), "prompt")
    named = row if "prompt" in row.value else renamed(row, {"prompt": other})
    value = _columns(Prompt, named)
    row.value.read |= {other, *named.value.read}
    _give_id(value, "prompt_id", "prompt")
    return _validated(Prompt, value, named)


def _columns(kind: type[Record], row: RawRow, *answers: str) -> dict[str, Any]:
    """Return the columns that the record has, its prompt as turns and its answers as text."""
    value = {name: row.value[name] for name in _fields_of(kind) if name in row.value}
    if value.get("prompt") is not None:
        value["prompt"] = parse_prompt(row)
    for name in answers:
        if isinstance(value.get(name), list | dict):
            value[name] = answer_of(value[name], name)[1]
    return value


@cache
def _fields_of(kind: type[Record]) -> dict[str, bool]:
    """Fields of a record, and whether each has to be there."""
    return {name: field.is_required() for name, field in kind.model_fields.items()}


def _vote(
    row: RawRow, vote: Any, choices: Mapping[str, Meaning], strengths: Mapping[str, float]
) -> Any:
    """Return the fields that a vote has, in our words; what a source adds to them is its own.

    ``_NO_VOTE`` where the source's word is none.
    """
    if isinstance(vote, str | int) and not isinstance(vote, bool):
        choice = choice_of(vote, choices)
        return _NO_VOTE if choice is None else {"annotator": UNNAMED, "choice": choice}
    if not isinstance(vote, dict):
        return vote
    known = _fields_of(Vote)
    fields = vote
    if not vote.keys() <= known.keys():
        fields = {name: part for name, part in vote.items() if name in known}
    if choices and "choice" in fields:
        choice = choice_of(fields["choice"], choices)
        if choice is None:
            return _NO_VOTE
        fields = fields | {"choice": choice}
    if strengths or not all(_is_measure(fields.get(name)) for name in _WITHOUT):
        cells = replace(row, value=Columns(fields))
        fields = fields | {
            "strength": _strength(cells, strengths),
            "seconds": parse_seconds(cells, "seconds"),
        }
        row.value.unread |= {f"votes.*.{name}": why for name, why in cells.value.unread.items()}
    return fields


def _is_measure(value: Any) -> bool:
    """Tell whether a record may hold a value as it is; else it is read as a cell."""
    return value is None or (isinstance(value, int | float) and 0 <= value < math.inf)


def _strength(cells: RawRow, strengths: Mapping[str, float]) -> float | None:
    """Return how much better; a vote does without, unless the settings say how it is written."""
    read = partial(parse_strength, cells, "strength", strengths)
    return read() if strengths else or_without(cells, "strength", read)


def _give_id(value: dict[str, Any], column: str, *content: str) -> None:
    """Fill in an id that depends on the row's content, where the row brings none."""
    if value.get(column) is None:
        value[column] = content_id("row", *(as_json(value.get(name)) for name in content))


def _validated(kind: type[AnyRecord], value: dict[str, Any], row: RawRow) -> AnyRecord:
    fields = _fields_of(kind)
    given = {name: part for name, part in value.items() if part is not None or fields[name]}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        columns = ", ".join(fields)
        for problem in error.errors(include_url=False):
            if problem["type"] == "missing" and len(problem["loc"]) == 1:
                row.require(str(problem["loc"][0]))
        raise UnusableRow(
            "unusable_value", f"{describe(error)}; expected the columns {columns}"
        ) from error
