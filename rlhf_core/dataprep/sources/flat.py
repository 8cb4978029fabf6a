"""One vote a row, as spreadsheets have it: CSV, or any container with flat columns.

Columns: prompt, response_a, response_b, choice; optional comparison_id, annotator, strength,
seconds, source. Rows that follow one another with the same comparison_id are votes on one
comparison; where they do not, as in a file sorted by annotator, preparation pools them. Sheets are
numbered from 1 each, so an id is one of its file: the comparison's id begins with the file's name.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from rlhf_core.dataprep.keys import content_id, conversation_key
from rlhf_core.dataprep.rows import RawRow, annotator_name
from rlhf_core.dataprep.sources.messages import parse_conversation
from rlhf_core.dataprep.sources.words import parse_choice, parse_number, parse_strength
from rlhf_core.errors import DataError
from rlhf_core.schema import Choice, Comparison, Vote


def parse_comparisons(
    rows: Iterable[RawRow], choices: Mapping[str, Choice], strengths: Mapping[str, float]
) -> Iterator[tuple[int, Comparison]]:
    """Yield ``(number of rows, comparison)``; the line is the first row's.

    A row whose choice is blank is no vote: somebody has not answered yet.
    """
    for _, group in groupby(rows, key=_identity):
        first, *more = group
        texts = _content(first)
        for row in more:
            if _content(row) != texts:
                raise DataError(
                    f"{row.where}: comparison_id {first.value['comparison_id']!r} stood for other"
                    f" texts on line {first.line}; an id must stand for one comparison"
                )
        prompt = parse_conversation(first, "prompt")
        response_a, response_b = first.text("response_a"), first.text("response_b")
        own_id = _own_id(first)
        content = content_id("row", conversation_key(prompt).hex(), response_a, response_b)
        votes = [_vote(row, choices, strengths) for row in (first, *more)]
        comparison = Comparison(
            comparison_id=f"{first.source}-{own_id}" if own_id else content,
            prompt=prompt,
            response_a=response_a,
            response_b=response_b,
            votes=tuple(vote for vote in votes if vote is not None),
            source=str(first.value.get("source") or first.source),
            line=first.line,
        )
        yield len(votes), comparison


def _identity(row: RawRow) -> tuple[str, str]:
    """Rows without an id are comparisons of their own."""
    return row.source, _own_id(row) or f"\x00{row.line}"


def _own_id(row: RawRow) -> str:
    """The row's id as text, 0 included; empty where it has none."""
    value = row.value.get("comparison_id")
    return "" if value is None else str(value)


def _content(row: RawRow) -> tuple[object, ...]:
    row.require("prompt", "response_a", "response_b")
    return tuple(row.value[column] for column in ("prompt", "response_a", "response_b"))


def _vote(
    row: RawRow, choices: Mapping[str, Choice], strengths: Mapping[str, float]
) -> Vote | None:
    choice = parse_choice(row, "choice", choices)
    if choice is None:
        return None
    return Vote(
        annotator=annotator_name(row.value.get("annotator")),
        choice=choice,
        strength=parse_strength(row, "strength", strengths),
        seconds=parse_number(row, "seconds"),
    )
