"""The columns of some rows, what they hold, and what they may be."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.config.data import word_of
from rlhf_core.dataprep.sources import column_names
from rlhf_core.dataprep.sources.choices import CHOICES
from rlhf_core.dataprep.sources.columns import structured
from rlhf_core.schema import Choice

SUFFIXES = (("a", "b"), ("1", "2"), ("0", "1"), ("first", "second"), ("left", "right"))
"""Ends by which the columns of the two responses are distinguished."""


@dataclass(slots=True)
class Guess:
    """Settings that may fit, and what has to be said of them."""

    shape: str
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    question: str = ""
    """What only people can answer before the file can be read."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of some rows and what they hold."""

    values: Mapping[str, Sequence[Any]]
    """Column, or path of a field one level down, to its values that are not blank."""

    def find(self, names: Sequence[str]) -> str | None:
        """Return the first column of one of these names, letter case aside, fields last."""
        by_name: dict[str, str] = {}
        for path in sorted(self.values, key=lambda path: path.count(".")):
            by_name.setdefault(path.rpartition(".")[2].lower(), path)
        return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)

    def both(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """Return the first two columns that are called like a pair."""
        for one, two in pairs:
            found = self.find([one]), self.find([two])
            if found[0] is not None and found[1] is not None and found[0] != found[1]:
                return found[0], found[1]
        return None

    def sided(self, words: Sequence[str], *, tie: bool = True) -> dict[str, str]:
        """Return the columns of a quantity of each side: ``votes_a``, ``a_wins``, ``score1``."""
        for word in words:
            for sides in (*SUFFIXES, ("model_a", "model_b"), ("response_a", "response_b")):
                names = [_spellings(word, side) for side in sides]
                one, two = self.find(names[0]), self.find(names[1])
                parent = self.find([word])
                if one is None and parent is not None:
                    one, two = (self._field(parent, side) for side in sides)
                if one is not None and two is not None:
                    third = (
                        self.find([f"{word}_tie", f"tie_{word}", "tie", "ties"]) if tie else None
                    )
                    return {"a": one, "b": two} | ({"tie": third} if third else {})
        return {}

    def _field(self, parent: str, name: str) -> str | None:
        """Return the path of an object's field, letter case aside."""
        wanted = f"{parent}.{name}".lower()
        return next((path for path in self.values if path.lower() == wanted), None)

    def is_exported(self, name: str) -> bool:
        """Tell whether a column has the answers to a question, as Argilla exports them."""
        return f"{name}.users" in self.values or f"{name}.status" in self.values

    def are_answers(self, name: str) -> bool:
        """Tell whether a column lists who answered a question what, as Argilla 1 exports it."""
        lists = [as_list(value) for value in self.values[name]]
        answers = [answer for entries in lists for answer in entries or ()]
        return len(answers) > 0 and all(
            isinstance(answer, dict) and {"value", "status"} <= answer.keys() for answer in answers
        )

    def other_side(self, name: str) -> str | None:
        """Return the column of the second response, of one that ends as the first one's does."""
        for one, two in SUFFIXES:
            stem = re.fullmatch(rf"(.*?)([_ -]?){one}", name, re.IGNORECASE)
            if stem is None or not stem[1]:
                continue
            if (other := self.find([f"{stem[1]}{stem[2]}{two}"])) is not None:
                return other
        return None

    def is_quantity(self, name: str) -> bool:
        """Tell whether numbers of a column are no choices: ``turn``, ``length_a``, ``score 1``."""
        if set(re.split(r"[^a-z]+", name.lower())) & set(column_names.QUANTITIES):
            return True
        parts = re.fullmatch(r"(.*?)([_ ]?)(a|b|0|1|2)", name, re.IGNORECASE)
        if parts is None or not parts[1]:
            return bool(re.match(r"[ab][_ ]", name, re.IGNORECASE))
        stem = parts[1] + parts[2]
        several = [self.find([f"{stem}{end}"]) is not None for end in "ab0123"]
        return sum(several) == 2 and parts[1].lower() not in column_names.PEOPLE


def _spellings(word: str, side: str) -> list[str]:
    return [f"{word}_{side}", f"{side}_{word}", f"{word}{side}", f"{word} {side}", f"{side} {word}"]


def renames(columns: Mapping[str, str | None]) -> dict[str, str]:
    """Return what has to be renamed."""
    return {ours: theirs for ours, theirs in columns.items() if theirs and ours != theirs}


def built_in(values: Iterable[Any]) -> dict[str, Choice]:
    """Return what words mean by themselves that need no ``choices``, for where others do."""
    words = {word_of(value).lower() for value in values}
    return {word: CHOICES[word] for word in sorted(words) if word in CHOICES}


def as_list(value: Any) -> list[Any] | None:
    """Return a list, or the list that a cell writes as text; None for all else."""
    value = structured(value)
    return value if isinstance(value, list) else None
