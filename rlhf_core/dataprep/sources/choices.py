"""Words and numbers of a spreadsheet: which side won, how much better, how long it took."""

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Literal

from rlhf_core.config.data import WORDS_OF_TRUTH, word_of
from rlhf_core.dataprep.sources.rows import RawRow, UnusableRow
from rlhf_core.schema import Choice
from rlhf_core.storage.records import listed, shorten

Meaning = Choice | Literal["none"]
"""What ``choices`` says of a word."""
CHOICES: Mapping[str, Choice] = {
    "a": "a",
    "left": "a",
    "first": "a",
    "model_a": "a",
    "response_a": "a",
    "assistant_a": "a",
    "b": "b",
    "right": "b",
    "second": "b",
    "model_b": "b",
    "response_b": "b",
    "assistant_b": "b",
    "tie": "tie",
    "equal": "tie",
    "draw": "tie",
    "tie (bothbad)": "tie",
    "bothbad": "tie",
    "both_bad": "tie",
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


_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):([0-5]\d(?:\.\d{1,9})?)")
"""Hours, minutes and seconds."""
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


def parse_choice(row: RawRow, column: str, choices: Mapping[str, Meaning]) -> Choice | None:
    """Return the winning side a cell names, the source's own words first; None for no vote.

    That is a blank cell, or a word that ``choices`` calls so.
    """
    row.require(column)
    value = row.value[column]
    if is_blank(value) and _known(value, choices) is None:
        return None
    return choice_of(value, choices)


def choice_of(value: object, choices: Mapping[str, Meaning]) -> Choice | None:
    """Return the winning side that a word, a number or a truth value names; None for no vote.

    A number is the same however it is written (0, 0.0, "0"), and a truth value also stands for 1
    or 0. What numbers mean is for ``choices`` to say: publishers count from 0 and from 1, and 1 may
    mean "the first is better" or "the second".
    """
    if all(meaning == "none" for meaning in choices.values()):
        is_number = isinstance(value, bool) or finite_number(value) is not None
        choices = {**CHOICES, **choices}
    else:
        is_number = False
    known = _known(value, choices)
    if known is not None:
        return None if known == "none" else known
    named = ", ".join(choices)
    advice = f"a number may mean either side: say which in choices, as in {{{word_of(value)}: a}}"
    raise UnusableRow(
        "unusable_value",
        f"unknown choice {shorten(value)}; "
        + (
            advice
            if is_number
            else f"expected one of {named}, or name it in choices (none: no vote)"
        ),
    )


def _known(value: object, choices: Mapping[str, Meaning]) -> Meaning | None:
    if isinstance(value, str) and value in choices:
        return choices[value]
    word = word_of(value)
    folded = {word_of(key).casefold(): side for key, side in choices.items()}
    # Written as truth values in one place and as numbers in another, they are the same.
    same = (word.casefold(), *WORDS_OF_TRUTH.get(word.casefold(), ()))
    return next((folded[name] for name in same if name in folded), None)


def parse_strength(row: RawRow, column: str, strengths: Mapping[str, float]) -> float | None:
    """Return how much better, from a number or a word; None where the cell is empty."""
    value = row.value.get(column)
    if (known := _strength_of(value, strengths)) is not None:
        return known
    return parse_number(row, column)


def parse_signed(row: RawRow, column: str) -> float | None:
    """Return how much better either side is, a number of either sign without it."""
    number = parse_score(row, column)
    return None if number is None else abs(number)


def knows_strength(value: object, strengths: Mapping[str, float]) -> bool:
    """Tell whether ``parse_strength`` makes something of a value."""
    number = finite_number(value)
    return _strength_of(value, strengths) is not None or (number is not None and number >= 0)


def _strength_of(value: object, strengths: Mapping[str, float]) -> float | None:
    table, word = strengths or STRENGTHS, word_of(value)
    return table.get(word, table.get(word.lower()))


def parse_number(row: RawRow, column: str) -> float | None:
    """Return a number that is not negative; None where the cell is empty or missing."""
    return _number(row, column, 0.0)


def parse_seconds(row: RawRow, column: str) -> float | None:
    """Return how long somebody took: a number of seconds, or ``00:01:05`` and ``1:05``.

    A vote does without a time that cannot be read.
    """
    value = row.value.get(column)
    if isinstance(value, str) and (parts := _CLOCK.fullmatch(value.strip())):
        hours, minutes, seconds = parts.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)
    return or_without(row, column, partial(parse_number, row, column))


def or_without(row: RawRow, column: str, read: Callable[[], float | None]) -> float | None:
    """Return what ``read`` makes of a cell that a row can do without; None where it cannot."""
    try:
        return read()
    except UnusableRow as error:
        row.value.unread[column] = error.detail
        return None


def parse_score(row: RawRow, column: str) -> float | None:
    """Return a number of either sign; None where the cell is empty or missing."""
    return _number(row, column, -math.inf)


def _number(row: RawRow, column: str, least: float) -> float | None:
    """Return a number or the number a text writes, as all cells of a spreadsheet are text."""
    value = row.value.get(column)
    if is_blank(value):
        return None
    if row.decimal_comma and isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()):
        value = value.replace(",", ".")
    number = finite_number(value)
    if number is None or number < least:
        bound = "" if least < 0 else f" >= {least:g}"
        raise UnusableRow(
            "unusable_value", f"{column}: expected a number{bound}, found {shorten(value)}"
        )
    return number


def is_blank(value: object) -> bool:
    """Tell an empty cell: a null, NaN as data frames write it, or nothing but white space."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def truth_of(value: object) -> bool | None:
    """Return the truth value that a cell says, by word or number; None where it says none."""
    word = word_of(value).casefold()
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(word)


_GOOD_AND_BAD = {
    "true": "false",
    "1": "0",
    "yes": "no",
    "good": "bad",
    "up": "down",
    "thumbs_up": "thumbs_down",
    "like": "dislike",
    "positive": "negative",
    "desirable": "undesirable",
}
_LABELS = dict.fromkeys(_GOOD_AND_BAD, True) | dict.fromkeys(_GOOD_AND_BAD.values(), False)


def label_of(value: object, labels: Mapping[str, bool]) -> bool:
    """Return whether a cell calls a response good, the source's own words first.

    Raises:
        UnusableRow: it says neither; ``no_votes`` where it says nothing.
    """
    word = word_of(value).casefold()
    folded = {word_of(key).casefold(): label for key, label in labels.items()}
    same = (word, *WORDS_OF_TRUTH.get(word, ()))
    known = next((folded[name] for name in same if name in folded), None)
    known = (_LABELS if not labels else {}).get(word) if known is None else known
    if known is not None:
        return known
    if is_blank(value):
        raise UnusableRow("no_votes", "label: nobody gave one")
    expected = listed(labels) if labels else "true or false"
    raise UnusableRow(
        "unusable_value",
        f"label: expected {expected}, found {shorten(value)}; name the words in labels, as in"
        " {happy: true, sad: false}",
    )


def finite_number(value: object) -> float | None:
    """Return a number or its text as a float; None for all else, infinity and NaN included."""
    if not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
