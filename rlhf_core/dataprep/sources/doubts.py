"""What speaks against part of a guess: that part is left out or named, and the guess says so."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_core.dataprep.sources import column_names
from rlhf_core.dataprep.sources.choices import finite_number, is_blank, knows_strength
from rlhf_core.dataprep.sources.columns import find, is_there
from rlhf_core.dataprep.sources.observed import Guess, Table
from rlhf_core.dataprep.sources.ratings import KNOWN_BY
from rlhf_core.dataprep.sources.rows import RawRow, as_json
from rlhf_core.storage.records import listed, shorten

_CONTENT = ("prompt", "response_a", "response_b")
_FURTHER = re.compile(r"[a-z]|\d{1,2}|third|fourth|fifth", re.IGNORECASE)
"""How a column of one more answer is told from those of the first two."""


def doubt(guess: Guess, rows: Sequence[RawRow], table: Table) -> None:
    """Leave out of a guess what rows speak against, and note that and what is not told by names.

    Args:
        guess: changed where there is something.
        rows: some of the file, under its own names.
        table: their columns.
    """
    columns: dict[str, str] = guess.settings.get("columns", {})
    for ours, why in (
        ("comparison_id", _repeats(columns, rows)),
        ("strength", _unreadable(columns, table, rows)),
    ):
        if why:
            guess.settings["columns"] = columns = {
                name: theirs for name, theirs in columns.items() if name != ours
            }
            guess.notes.append(why)
    if not columns:
        guess.settings.pop("columns", None)
    strength = columns.get("strength", "")
    if "confidence" in strength.lower():
        guess.notes.append(f"{strength} is taken for how much better a response is (our strength)")
    if further := _further_answers(guess, table):
        guess.notes.append(
            f"{listed(further)} {'are' if len(further) > 1 else 'is'} not compared with the two"
            " answers; to compare all, write them as one list (format ranked), with ranks or scores"
        )


def _repeats(columns: dict[str, str], rows: Sequence[RawRow]) -> str:
    """Return why a column is no id of comparisons: one of its ids stands for several."""
    theirs = columns.get("comparison_id")
    if theirs is None:
        return ""
    content: dict[str, set[int]] = {}
    paths = [columns.get(name, name) for name in _CONTENT]
    for row in rows:
        own = find(dict(row.value), theirs)
        if is_there(own) and own is not None and own != "":
            found = [find(dict(row.value), path) for path in paths]
            parts = [as_json(part) if is_there(part) else "" for part in found]
            content.setdefault(str(own), set()).add(hash((parts[0], *sorted(parts[1:]))))
    several = [own for own, found in content.items() if len(found) > 1]
    if not several:
        return ""
    return (
        f"{theirs} is no id of comparisons: {len(several):,} of {len(content):,} stand for several,"
        f" the first {shorten(several[0])}; rows are told apart by their texts"
    )


def _unreadable(columns: dict[str, str], table: Table, rows: Sequence[RawRow]) -> str:
    """Return why a column is not how much better a response is: it holds words or signs."""
    theirs = columns.get("strength")
    if theirs is None or theirs == columns.get("choice"):
        return ""
    values: Sequence[Any] = table.values.get(theirs, ())
    if any(row.decimal_comma for row in rows[:1]):
        values = [value.replace(",", ".") if isinstance(value, str) else value for value in values]
    unknown = [value for value in values if not knows_strength(value, {})]
    if not unknown:
        return ""
    return (
        f"{theirs} is not read as strength, for {shorten(unknown[0])} is no number from 0; name its"
        f" words in strengths, with columns: {{strength: {theirs}}}, to have it"
    )


def _further_answers(guess: Guess, table: Table) -> list[str]:
    """Return columns that are called like the two responses and hold another answer."""
    columns = guess.settings.get("columns", {})
    if guess.settings.get("format") not in ("flat", "canonical"):
        return []
    sides = [columns.get(name, name) for name in _CONTENT[1:]]
    begin = _shared_begin(*sides)
    end = _shared_begin(*(side[len(begin) :][::-1] for side in sides))[::-1]
    if not begin + end:
        return []
    return [
        name
        for name, values in table.values.items()
        if name not in sides
        and name.startswith(begin)
        and name.endswith(end)
        and _FURTHER.fullmatch(name[len(begin) : len(name) - len(end)])
        and any(isinstance(value, str | list | dict) for value in values)
    ]


def doubts_of_demonstrations(rows: Sequence[RawRow], unused: Iterable[str]) -> list[str]:
    """Return what speaks against learning from every answer of a file.

    Args:
        rows: some of the file.
        unused: its columns that nothing reads.
    """
    if rows and all(set(KNOWN_BY) <= row.value.keys() for row in rows):
        return [
            "these are a model's own answers that nobody has rated, as `rlhf serve --feedback`"
            " keeps them; once people have, the file belongs under data.unpaired"
        ]
    qualities = [name for name in unused if _is_quality(name, rows)]
    if not qualities:
        return []
    return [
        f"every answer is to be imitated, whatever {listed(qualities)} says of it; to learn which"
        " are better, write the answers to a prompt as one row with responses and scores (format"
        f" ranked), or give the file under data.unpaired, with columns: {{label: {qualities[0]}}}"
        " and its numbers in labels"
    ]


def _is_quality(name: str, rows: Sequence[RawRow]) -> bool:
    """Tell whether a column says by different numbers how good an answer is."""
    if not set(re.split(r"[^a-z]+", name.lower())) & column_names.QUALITIES:
        return False
    values = [dict.get(row.value, name) for row in rows]
    numbers = {finite_number(value) for value in values if not is_blank(value)}
    return None not in numbers and len(numbers) > 1


def _shared_begin(one: str, two: str) -> str:
    size = next((n for n, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), len(one))
    return one[:size]
