"""Words and numbers of a spreadsheet: which side won, how much better, how long it took."""

import math
from collections.abc import Mapping

from rlhf_core.dataprep.files import shorten
from rlhf_core.dataprep.rows import RawRow
from rlhf_core.errors import DataError
from rlhf_core.schema import Choice

CHOICES: Mapping[str, Choice] = {
    "a": "a",
    "left": "a",
    "b": "b",
    "right": "b",
    "tie": "tie",
    "equal": "tie",
}
STRENGTHS: Mapping[str, float] = {
    "equal": 0.0,
    "negligibly better": 0.5,
    "slightly": 1.0,
    "slightly better": 1.0,
    "better": 2.0,
    "much": 3.0,
    "much better": 3.0,
    "significantly better": 3.0,
}


def parse_choice(row: RawRow, column: str, choices: Mapping[str, Choice]) -> Choice | None:
    """Return the winning side a word names, the source's own words first; None for a blank cell."""
    row.require(column)
    value = row.value[column]
    if is_blank(value) and value not in choices:
        return None
    return choice_of(row, row.text(column), choices)


def choice_of(row: RawRow, word: str, choices: Mapping[str, Choice]) -> Choice:
    """Return the winning side ``word`` names."""
    if word in choices:
        return choices[word]
    choice = None if choices else CHOICES.get(word.strip().lower())
    if choice is None:
        known = ", ".join(choices or CHOICES)
        raise DataError(
            f"{row.where}: unknown choice {shorten(word)}; expected one of {known},"
            " or name it in choices"
        )
    return choice


def parse_strength(row: RawRow, column: str, strengths: Mapping[str, float]) -> float | None:
    """Return how much better, from a number or a word; None where the cell is empty."""
    value = row.value.get(column)
    if (known := _strength_of(value, strengths)) is not None:
        return known
    return parse_number(row, column)


def knows_strength(value: object, strengths: Mapping[str, float]) -> bool:
    """Tell whether ``parse_strength`` makes something of a value."""
    number = finite_number(value)
    return _strength_of(value, strengths) is not None or (number is not None and number >= 0)


def _strength_of(value: object, strengths: Mapping[str, float]) -> float | None:
    if not isinstance(value, str):
        return None
    table, word = strengths or STRENGTHS, value.strip()
    return table.get(word, table.get(word.lower()))


def parse_number(row: RawRow, column: str) -> float | None:
    """Return a number that is not negative; None where the cell is empty or missing."""
    return _number(row, column, 0.0)


def parse_score(row: RawRow, column: str) -> float | None:
    """Return a number of either sign; None where the cell is empty or missing."""
    return _number(row, column, -math.inf)


def _number(row: RawRow, column: str, least: float) -> float | None:
    """Return a number or the number a text writes, as all cells of a spreadsheet are text."""
    value = row.value.get(column)
    if is_blank(value):
        return None
    number = finite_number(value)
    if number is None or number < least:
        bound = "" if least < 0 else f" >= {least:g}"
        raise DataError(f"{row.where}: {column}: expected a number{bound}, found {shorten(value)}")
    return number


def is_blank(value: object) -> bool:
    """Tell an empty cell: a null, NaN as data frames write it, or nothing but white space."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def finite_number(value: object) -> float | None:
    """Return a number or its text as a float; None for all else, infinity and NaN included."""
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
