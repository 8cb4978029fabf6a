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
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_SPACE = ord(" ")
_MOST_KNOWN = 2
"""Lists of texts whose words are kept: between two checks of responses one looks at prompts."""


@dataclass(frozen=True, slots=True)
class Words:
    """What ``text.split(" ")`` gives for each of many texts: at least one word, maybe empty."""

    distinct: list[str]
    """Each different word; some may be in none of the texts, or twice in the list."""
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

    def and_those_of(self, others: "Words") -> "Words":
        """Return the words of these texts, and then of others."""
        return Words(
            self.distinct + others.distinct,
            np.concatenate([self.codes, others.codes + np.int32(len(self.distinct))]),
            np.append(self.edges, self.edges[-1] + others.edges[1:]),
        )

    def only(self, texts: Sequence[int]) -> "Words":
        """Return the words of some of the texts."""
        first, behind = self.edges[:-1][texts], self.edges[1:][texts]
        edges = np.append(0, np.cumsum(behind - first))
        # A place in the result, moved by how far its text has moved.
        places = np.repeat(first - edges[:-1], behind - first) + np.arange(edges[-1])
        return Words(self.distinct, self.codes[places], edges)

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
        # Word w of the texts takes of_word[w] places of the result, the last before behind[w]; what
        # has to be added to a place to find its number in ``flat`` is the same for a whole word.
        of_word = sizes[self.codes]
        behind = np.cumsum(of_word)
        first = (np.cumsum(sizes) - sizes)[self.codes] - (behind - of_word)
        places = np.repeat(first, of_word) + np.arange(of_word.sum())
        return flat[places], np.append(0, behind)[self.edges]


class _Lately:
    """Words of the texts that were last asked for: the checks of a batch ask one after another."""

    def __init__(self) -> None:
        self._known: list[tuple[dict[str, int], Words]] = []

    def words_of(self, texts: Sequence[str]) -> Words:
        for places, words in self._known:
            missing = [text for text in texts if text not in places]
            if 2 * len(missing) < len(texts):
                return _with_more(places, words, missing, texts)
        words = _taken_apart(texts)
        places = {text: place for place, text in enumerate(texts)}
        self._known = [(places, words), *self._known[: _MOST_KNOWN - 1]]
        return words


def _with_more(
    places: dict[str, int], words: Words, missing: Sequence[str], texts: Sequence[str]
) -> Words:
    """Words of texts that are known but for those ``missing``."""
    num_known = len(words.edges) - 1
    places_of_more = {text: num_known + place for place, text in enumerate(missing)}
    found = words.and_those_of(_taken_apart(missing)) if missing else words
    return found.only([places.get(text, places_of_more.get(text, 0)) for text in texts])


def words_of(texts: Sequence[str]) -> Words:
    """Return the words of texts; it costs little to ask for the same ones again at once."""
    return _LATELY.words_of(texts)


def _taken_apart(texts: Sequence[str]) -> Words:
    try:
        joined = " ".join([*texts, ""]).encode()
    except UnicodeEncodeError:  # Arrow holds no half of a surrogate pair.
        return _one_by_one(texts)
    # Each word with the space behind it: they lie end to end as they are, and none is copied.
    ends = np.flatnonzero(np.frombuffer(joined, dtype=np.uint8) == _SPACE) + 1
    buffers = pa.py_buffer(np.append(0, ends)), pa.py_buffer(joined)
    words: Any = pa.LargeStringArray.from_buffers(len(ends), *buffers)
    found = words.dictionary_encode()
    sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
    stops = np.cumsum([size + 1 for size in sizes], dtype=np.int64)
    return Words(
        distinct=[word[:-1] for word in found.dictionary.to_pylist()],
        codes=found.indices.to_numpy(),
        edges=np.append(0, np.searchsorted(ends, stops, side="right")),
    )


def _one_by_one(texts: Sequence[str]) -> Words:
    numbers: dict[str, int] = {}
    parts = [text.split(" ") for text in texts]
    codes = [numbers.setdefault(word, len(numbers)) for words in parts for word in words]
    edges = np.cumsum([0, *map(len, parts)])
    return Words(list(numbers), np.array(codes, dtype=np.int32), edges)


_LATELY = _Lately()
