"""Hashes of the words of texts, by which near repeats and quotations are found."""

import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.keys import bare, normalise
from rlhf_core.dataprep.words import words_of

_MAX_WORDS = 200_000
_MAX_TEXTS = 2_048
_LONGEST_KEPT = 8_192
"""Characters of a text whose words are kept, for as long as its row is looked at."""

Hashes = NDArray[np.uint64]


class _BareHashes(dict[str, int]):
    """Hash of a bare word, remembered."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_WORDS:
            self.clear()
        self[word] = found = zlib.crc32(bare(word).encode())
        return found


class _PartHashes(dict[str, tuple[int, ...]]):
    """Hashes of the words that stand between two spaces, remembered: most often of one."""

    def __missing__(self, part: str) -> tuple[int, ...]:
        if len(self) >= _MAX_WORDS:
            self.clear()
        self[part] = found = tuple([_HASHES[word] for word in normalise(part).split()])
        return found


_HASHES = _BareHashes()
_PARTS = _PartHashes()


def word_hashes(words: Sequence[str]) -> Hashes:
    """[N] 32-bit hashes of words as ``normalise`` leaves them, punctuation around each aside."""
    return np.fromiter(map(_HASHES.__getitem__, words), dtype=np.uint64, count=len(words))


class _RecentTexts:
    """Words of the texts that were last asked for: the checks of a row and its batch ask again."""

    def __init__(self) -> None:
        self._young: dict[str, Hashes] = {}
        self._old: dict[str, Hashes] = {}

    def hashes(self, texts: Sequence[str]) -> list[Hashes]:
        found: dict[str, Hashes] = {}
        for text in texts:
            known = self._young.get(text, self._old.get(text))
            if known is not None:
                found[text] = known
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        found.update(zip(missing, _hashes_of(missing), strict=True))
        for text, hashes in found.items():
            if len(text) <= _LONGEST_KEPT:
                if len(self._young) >= _MAX_TEXTS:
                    self._old, self._young = self._young, {}
                self._young[text] = hashes
        return [found[text] for text in texts]


_TEXTS = _RecentTexts()


def text_hashes(texts: Sequence[str]) -> list[Hashes]:
    """Return [N] ``word_hashes`` of each text; many together are cheaper than one by one.

    Nobody may write into them, for several checks ask for them.
    """
    return _TEXTS.hashes(texts)


def _hashes_of(texts: Sequence[str]) -> list[Hashes]:
    # A space parts words whatever stands beside it: normalised part by part, a text is the same.
    if not texts:
        return []
    words = words_of(texts)
    hashes, edges = words.parts([_PARTS[part] for part in words.distinct])
    found = hashes.astype(np.uint64)
    found.flags.writeable = False
    return [found[start:end] for start, end in pairwise(edges.tolist())]
