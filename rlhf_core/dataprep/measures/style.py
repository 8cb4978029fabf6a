"""Habits of style and words, counted over many responses: which of them win."""

import re
import string
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.keys import DialogueKey
from rlhf_core.dataprep.measures.lexicon import STYLES
from rlhf_core.dataprep.words import Words, words_of
from rlhf_core.statistics.resampling import Ints

_WORD = re.compile(r"[^\W\d_]{2,}")
_LETTERS = frozenset(string.ascii_lowercase)
_APART = {code: " " for code in range(128) if chr(code) not in _LETTERS}
"""Of text in lower case, all that is no letter."""
_CELLS = 1 << 22
"""Of a table of texts and words, at once."""
_MOST_WORDS = 100_000
Flags = NDArray[np.uint16]


@dataclass(slots=True)
class StyleCounter:
    """Counts style habits and words of chosen and rejected responses."""

    dialogues: dict[DialogueKey, int] = field(default_factory=dict)
    """Dialogue to number, of the pairs below."""
    contrasts: dict[str, tuple["array[int]", "array[int]"]] = field(default_factory=dict)
    """Style to the dialogues of the pairs where one response has it alone, and 1 where that one was
    chosen, else 0."""
    chosen_words: Counter[str] = field(default_factory=Counter)
    """Word to chosen responses that hold it."""
    rejected_words: Counter[str] = field(default_factory=Counter)

    def extend(
        self, dialogues: Sequence[DialogueKey], chosen: Sequence[str], rejected: Sequence[str]
    ) -> None:
        """Count pairs: the dialogue of each and its two responses."""
        if not dialogues:
            return
        words = words_of([*chosen, *rejected])
        in_won, in_lost = np.split(_possible_styles(words), 2)
        for row in np.flatnonzero(in_won | in_lost).tolist():
            won, lost = chosen[row].lower(), rejected[row].lower()
            for number, name in enumerate(STYLES):
                in_chosen = bool(in_won[row] >> number & 1) and has_style(name, won)
                in_other = bool(in_lost[row] >> number & 1) and has_style(name, lost)
                if in_chosen != in_other:
                    self._note(name, dialogues[row], in_chosen)
        names, counts = _responses_with(words, len(chosen))
        for counter, of_side in zip((self.chosen_words, self.rejected_words), counts, strict=True):
            for name, count in zip(names, of_side.tolist(), strict=True):
                if count:
                    counter[name] += count

    def _note(self, style: str, dialogue: DialogueKey, in_chosen: bool) -> None:
        dialogues, wins = self.contrasts.setdefault(style, (array("q"), array("b")))
        dialogues.append(self.dialogues.setdefault(dialogue, len(self.dialogues)))
        wins.append(in_chosen)


def has_style(name: str, text: str) -> bool:
    """Tell whether a text in lower case has a habit."""
    pattern, parts = STYLES[name]
    for part in parts:
        if part in text:
            if pattern.pattern.startswith("^"):
                return _begins_a_line(pattern, text)
            return pattern.search(text) is not None
    return False


def _begins_a_line(pattern: re.Pattern[str], text: str) -> bool:
    """Tell whether a pattern of the beginning of lines is found, looking at no other place."""
    start = 0
    while pattern.match(text, start) is None:
        start = text.find("\n", start) + 1
        if not start:
            return False
    return True


def words_in(text: str) -> set[str]:
    """Different words of two letters or more of a text in lower case."""
    if not text.isascii():
        return set(_WORD.findall(text))
    words = set(text.translate(_APART).split())
    words -= _LETTERS
    return words


@lru_cache(maxsize=_MOST_WORDS)
def _words_in_part(part: str) -> tuple[str, ...]:
    return tuple(words_in(part.lower()))


class _Hints(dict[str, int]):
    """Word to the styles, a bit each, of which a text that holds it may be one."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        self[word] = found = sum(
            _hints_at(word.lower(), pattern, parts) << number
            for number, (pattern, parts) in enumerate(STYLES.values())
        )
        return found


_HINTS = _Hints()


def _hints_at(word: str, pattern: re.Pattern[str], parts: Sequence[str]) -> bool:
    """Tell whether a text with this word may hold one of the parts that a style needs.

    Of a part with spaces in it the last piece begins a word, and one without lies within a word.
    What begins a line begins a word or a line within it, and white space may follow the word.
    """
    if pattern.pattern.startswith("^"):
        return pattern.search(f"{word} ") is not None
    return any(
        word.startswith(part.rpartition(" ")[2]) if " " in part else part in word for part in parts
    )


def _possible_styles(words: Words) -> Flags:
    """[T] styles that each text may have, a bit each."""
    hints = np.array([_HINTS[word] for word in words.distinct], dtype=np.uint16)
    return np.bitwise_or.reduceat(hints[words.codes], words.edges[:-1])


def _responses_with(words: Words, num_chosen: int) -> tuple[list[str], tuple[Ints, Ints]]:
    """Return words of responses, and in how many of the chosen and of the others each stands."""
    numbers: dict[str, int] = {}
    of_part = [
        [numbers.setdefault(word, len(numbers)) for word in _words_in_part(part)]
        for part in words.distinct
    ]
    sizes = np.fromiter(map(len, of_part), dtype=np.int64, count=len(of_part))
    first = np.array([found[0] if found else -1 for found in of_part], dtype=np.int64)
    names = list(numbers)
    rows = max(1, _CELLS // (1 + len(names)))
    counts = np.zeros((2, len(names)), dtype=np.int64)
    for side, begin, end in ((0, 0, num_chosen), (1, num_chosen, len(words.edges) - 1)):
        for start in range(begin, end, rows):
            edges = words.edges[start : min(start + rows, end) + 1]
            codes = words.codes[edges[0] : edges[-1]]
            text = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
            # The last column is for parts without a word.
            holds = np.zeros((len(edges) - 1, len(names) + 1), dtype=np.bool_)
            holds[text, first[codes]] = True
            several = np.flatnonzero(sizes[codes] > 1)
            each = Words(words.distinct, codes[several], np.arange(len(several) + 1))
            found, ends = each.parts(of_part)
            holds[np.repeat(text[several], np.diff(ends)), found] = True
            counts[side] += holds[:, :-1].sum(axis=0)
    return names, (counts[0], counts[1])
