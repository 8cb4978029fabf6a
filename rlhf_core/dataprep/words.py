"""Texts taken apart at spaces, many at once: what is asked of words is asked of each one once.

A thousand texts of some length have a few thousand different words. Arrow finds and numbers them;
what a check wants to know of a word is then looked up by its number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Words:
    """What ``text.split(" ")`` gives for each of many texts: at least one word, maybe empty."""

    distinct: list[str]
    """Each different word."""
    codes: NDArray[np.int32]
    """[W] place of each word in ``distinct``, text after text."""
    edges: Ints
    """[T + 1] place in ``codes`` where each text begins, and where the last one ends."""

    def first(self) -> list[str]:
        """[T] first word of each text."""
        return [self.distinct[code] for code in self.codes[self.edges[:-1]].tolist()]

    def last(self) -> list[str]:
        """[T] last word of each text, which may be its first."""
        return [self.distinct[code] for code in self.codes[self.edges[1:] - 1].tolist()]

    def sums_between(self, look: Callable[[str], int]) -> list[int]:
        """[T] sum of what ``look`` says of the words between the first and the last of each text.

        It is asked about each different word once, and about none that stands nowhere between.
        """
        if len(self.edges) == 1:
            return []
        is_between = np.ones(len(self.codes), dtype=np.bool_)
        is_between[self.edges[:-1]] = is_between[self.edges[1:] - 1] = False
        met = np.bincount(self.codes[is_between], minlength=len(self.distinct))
        amounts = np.zeros(len(self.distinct), dtype=np.int64)
        for code in np.flatnonzero(met).tolist():
            amounts[code] = look(self.distinct[code])
        of_word = amounts[self.codes] * is_between
        sums: list[int] = np.add.reduceat(of_word, self.edges[:-1]).tolist()
        return sums

    def parts(self, of_distinct: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
        """Return the numbers that stand for each text: those of its words, one after the other.

        Args:
            of_distinct: numbers of each different word, none or several.

        Returns:
            [N] the numbers of all texts, and [T + 1] where each text begins and the last one ends.
        """
        sizes = np.fromiter(map(len, of_distinct), dtype=np.int64, count=len(of_distinct))
        flat = np.fromiter(chain.from_iterable(of_distinct), dtype=np.int64, count=int(sizes.sum()))
        if (sizes == 1).all():
            return flat[self.codes], self.edges
        of_word = sizes[self.codes]
        behind = np.cumsum(of_word)
        first = (np.cumsum(sizes) - sizes)[self.codes] - (behind - of_word)
        places = np.repeat(first, of_word) + np.arange(behind[-1])
        return flat[places], np.append(0, behind)[self.edges]


def words_of(texts: Sequence[str]) -> Words:
    """Return the words of texts."""
    try:
        column: Any = pa.array(texts, pa.large_string())
    except UnicodeEncodeError:  # Arrow holds no half of a surrogate pair.
        return _one_by_one(texts)
    parts = pc.split_pattern(column, " ")
    found = parts.flatten().dictionary_encode()
    return Words(
        distinct=found.dictionary.to_pylist(),
        codes=found.indices.to_numpy(),
        edges=parts.offsets.to_numpy(),
    )


def _one_by_one(texts: Sequence[str]) -> Words:
    numbers: dict[str, int] = {}
    parts = [text.split(" ") for text in texts]
    codes = [numbers.setdefault(word, len(numbers)) for words in parts for word in words]
    edges = np.cumsum([0, *map(len, parts)])
    return Words(list(numbers), np.array(codes, dtype=np.int32), edges)
