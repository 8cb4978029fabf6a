"""What the labels of a column of winners mean, and what has to be asked."""

import re
from collections.abc import Sequence
from typing import Any

from rlhf_core.config.data import word_of
from rlhf_core.dataprep.sources.choices import CHOICES, finite_number, is_blank
from rlhf_core.schema import Choice
from rlhf_core.storage.records import listed, shorten

MAX_WORDS = 20
"""Different values of a column of choices; more are no choices."""
_TIE = re.compile(r"tie|tied|equal|same|both|neither|draw|no preference", re.IGNORECASE)
_ORDER = re.compile(r"\[*\s*(?:model|response|answer)?\s*([ab12])\s*([<>=~]+)\s*.*?([ab12])\s*\]*")
"""A verdict such as ``A>>B`` or ``[[B>A]]``."""


def label_choices(
    values: Sequence[Any], column: str, sides: tuple[str, str]
) -> tuple[dict[str, Choice], str, str]:
    """Return what the labels of a column mean, what that takes for granted, and what is unclear."""
    words = sorted({word_of(value) for value in values if not is_blank(value)})
    if len(words) > MAX_WORDS:
        return {}, "", f"{column} holds {len(words)} different values; expected a few choices"
    if all(word.lower() in CHOICES for word in words):
        return {}, "", ""
    if all(word.lower() in ("true", "false") for word in words):
        return truth_choices(column, sides)
    if all(finite_number(word) is not None for word in words):
        return _number_choices(words, column, sides)
    choices = {word: _side_of(word, sides) for word in words}
    unknown = [word for word, side in choices.items() if side is None]
    if unknown:
        return {}, "", ask(column, unknown)
    return {word: side for word, side in choices.items() if side is not None}, "", ""


def ask(column: str, words: Sequence[str]) -> str:
    """Return the question what the words of a column mean."""
    shown = listed(map(shorten, words[:5]))
    return (
        f"column {shorten(column)} holds {shown}: which of them mean a, b and tie cannot be"
        f" determined; say it in choices, as in choices: {{{words[0][:60]}: a}}"
    )


def truth_choices(column: str, sides: tuple[str, str]) -> tuple[dict[str, Choice], str, str]:
    """Return what true and false mean in a column that is named after one side."""
    name = re.split(r"[^a-z0-9]+", column.lower())
    for side, words in (("a", ("a", "1", "first", "left")), ("b", ("b", "2", "second", "right"))):
        if any(word in name for word in words):
            other: Choice = "b" if side == "a" else "a"
            return {"true": side, "false": other}, "", ""  # type: ignore[dict-item]
    return {}, "", ask(column, ["true", "false"])


def _number_choices(
    words: Sequence[str], column: str, sides: tuple[str, str]
) -> tuple[dict[str, Choice], str, str]:
    """Return what numbers mean: the place of a response, from 0 or 1, the third a tie."""
    found = set(words)
    from_one = sides[0].lower().rstrip(")").endswith("1")
    from_zero = sides[0].lower().endswith("0")
    is_truth = column.lower() in ("label", "labels") and not (from_one or from_zero)
    if found <= {"0", "1"} and (from_zero or not (is_truth or from_one)):
        choices: dict[str, Choice] = {"0": "a", "1": "b"}
        note = "" if from_zero else f"{column} 0 is taken to mean {sides[0]}, 1 {sides[1]}"
        return choices, note, ""
    if found <= {"1", "2"}:
        return {"1": "a", "2": "b"}, f"{column} 1 is taken to mean {sides[0]}, 2 {sides[1]}", ""
    if found <= {"0", "1", "2"} and not is_truth:
        if from_one:
            return {"1": "a", "2": "b", "0": "tie"}, f"{column} 0 is taken to mean a tie", ""
        return {"0": "a", "1": "b", "2": "tie"}, f"{column} 2 is taken to mean a tie", ""
    if found <= {"1", "2", "3"}:
        return {"1": "a", "2": "b", "3": "tie"}, f"{column} 3 is taken to mean a tie", ""
    return {}, "", ask(column, words)


def _side_of(word: str, sides: tuple[str, str]) -> Choice | None:
    """Return the side a word names: the column of a response, or its end (``Answer 1``)."""
    folded = word.lower()
    if folded in CHOICES:
        return CHOICES[folded]
    for side, name in zip(("a", "b"), sides, strict=True):
        if folded == name.lower():
            return side  # type: ignore[return-value]
    if order := _ORDER.fullmatch(folded):
        return _larger(*order.groups())
    if _TIE.search(folded):
        return "tie"
    ends = re.split(r"[^a-z0-9]+", folded)
    for one, two in (
        ("a", "b"),
        ("1", "2"),
        ("first", "second"),
        ("left", "right"),
        ("1st", "2nd"),
    ):
        has = one in ends, two in ends
        if has[0] != has[1]:
            return "a" if has[0] else "b"
    return None


def _larger(one: str, sign: str, two: str) -> Choice | None:
    """Return the side that ``A>>B`` puts first."""
    if one == two:
        return None
    if not set(sign) & {"<", ">"}:
        return "tie"
    return "a" if (one if ">" in sign else two) in ("a", "1") else "b"
