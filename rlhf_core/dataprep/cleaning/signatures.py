"""MinHash signatures (Broder 1997): of the word triples of texts, by numbers of ``datasketch``.

In scripts that put no spaces between words each character counts as a word.
"""

import zlib
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.cleaning.word_hashes import Hashes, text_hashes, word_hashes
from rlhf_core.dataprep.keys import UNSPACED, bare, normalise

if TYPE_CHECKING:
    from datasketch import MinHash

# datasketch and SciPy are imported where they are used: they take a second, and every stage of a
# run, which splits nothing, passes here.

NUM_PERMUTATIONS = 64
"""Standard error of a similarity of 0.8: 0.05."""
_SHINGLE_WORDS = 3
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
"""Odd numbers that mix the hashes of three words, modulo 2**64."""
_TEXTS_AT_ONCE = 128
"""Whose permuted shingles, of some hundred words each, stay in the processor's cache."""

Signature = NDArray[np.uint32]
"""[NUM_PERMUTATIONS]: the share of equal places estimates the Jaccard similarity."""
Shingles = NDArray[np.uint32]


@lru_cache(maxsize=16)
def signature(*texts: str) -> Signature:
    """Return the MinHash signature of the word triples of texts, one after the other.

    Nobody may write into it: a prompt is asked for it several times in a row, for all of it and for
    how it opens.
    """
    found: Signature = signatures([texts])[0]
    found.flags.writeable = False
    return found


def signatures(groups: Sequence[Sequence[str]]) -> Signature:
    """[N, NUM_PERMUTATIONS] signature of each group of texts that are one after the other."""
    shingles = _shingles(groups)
    found = [
        least_values(shingles[start : start + _TEXTS_AT_ONCE])
        for start in range(0, len(shingles), _TEXTS_AT_ONCE)
    ]
    return np.concatenate(found)


@cache
def _lower_halves() -> list[tuple[np.uint32, np.uint32]]:
    """[NUM_PERMUTATIONS] lower halves of a and b of the permutations h -> a h + b."""
    a, b = (part.astype(np.uint32) for part in empty_sketch().permutations)
    return list(zip(a, b, strict=True))


def least_values(shingles: Sequence[Shingles]) -> Signature:
    """[N, NUM_PERMUTATIONS] least value that each permutation gives a shingle.

        a h + b mod 2**32

    with the numbers of ``datasketch``, which takes 64 bits of it modulo 2**61 - 1 and of that the
    lower 32: at most seven more. Two texts have equal values in the same places, but where two
    shingles of one lie so close; and this takes half the bits of a number.

    Args:
        shingles: [n] of each text, n from 1 on.
    """
    joined = np.concatenate(shingles)
    starts = np.cumsum([0, *map(len, shingles[:-1])])
    least = np.empty((NUM_PERMUTATIONS, len(shingles)), dtype=np.uint32)
    permuted = np.empty_like(joined)
    for (a, b), row in zip(_lower_halves(), least, strict=True):
        np.multiply(joined, a, out=permuted)
        permuted += b
        np.minimum.reduceat(permuted, starts, out=row)
    return np.ascontiguousarray(least.T)


def similarity(first: NDArray[np.uint32], second: Signature) -> NDArray[np.float64]:
    """Return the estimated Jaccard similarity of one signature, or of [N] of them, to another."""
    found: NDArray[np.float64] = np.mean(first == second, axis=-1)
    return found


class SignatureTable:
    """Signatures of many texts in one compact array."""

    def __init__(self) -> None:
        """Start empty."""
        # Grows in place: the pages of a large one are moved and not copied.
        self._bytes = bytearray()

    def add(self, *texts: str) -> None:
        """Append the signature of texts that are one after the other.

        Raises:
            BufferError: somebody still holds what ``array`` returned.
        """
        self._bytes += signature(*texts).data

    def append(self, signature: Signature) -> None:
        """Append a signature that is known; raises as ``add``."""
        self._bytes += signature.tobytes()

    def extend(self, groups: Sequence[Sequence[str]]) -> None:
        """Append the signature of each group of texts; raises as ``add``."""
        if groups:
            self._bytes += signatures(groups).data

    def __len__(self) -> int:
        return len(self._bytes) // (NUM_PERMUTATIONS * np.dtype(np.uint32).itemsize)

    def array(self) -> NDArray[np.uint32]:
        """Return [N, NUM_PERMUTATIONS], the table itself."""
        found = np.frombuffer(self._bytes, dtype=np.uint32).reshape(-1, NUM_PERMUTATIONS)
        found.flags.writeable = False
        return found


@cache
def empty_sketch() -> "MinHash":
    """A sketch of nothing, to copy: drawing the permutations costs more than a text."""
    from datasketch import MinHash

    return MinHash(NUM_PERMUTATIONS)


def _shingles(groups: Sequence[Sequence[str]]) -> list[Shingles]:
    """[N] 32-bit hashes of each group's word triples, or of all its words where they are fewer."""
    hashes = iter(_spaced_hashes([text for texts in groups for text in texts]))
    of_group = [[next(hashes) for _ in texts] for texts in groups]
    sizes = [sum(map(len, parts)) for parts in of_group]
    joined = np.concatenate([part for parts in of_group for part in parts])
    triples = joined[:-2] * _ODD[0] + joined[1:-1] * _ODD[1] + joined[2:] * _ODD[2]
    hashed = (triples >> np.uint64(32)).astype(np.uint32)
    edges = pairwise(np.cumsum([0, *sizes]).tolist())
    return [
        _of_all_words(texts)
        if end - start < _SHINGLE_WORDS
        else hashed[start : end - _SHINGLE_WORDS + 1]
        for texts, (start, end) in zip(groups, edges, strict=True)
    ]


def _of_all_words(texts: Sequence[str]) -> Shingles:
    words = [bare(word) for text in texts for word in _words(normalise(text))]
    return np.array([zlib.crc32(" ".join(words).encode())], dtype=np.uint32)


def _spaced_hashes(texts: Sequence[str]) -> list[Hashes]:
    """Hashes of the words of each text, or of its characters where they are words."""
    unspaced = {text for text in texts if not text.isascii() and UNSPACED.search(normalise(text))}
    spaced = iter(text_hashes([text for text in texts if text not in unspaced]))
    return [
        word_hashes(_words(normalise(text))) if text in unspaced else next(spaced) for text in texts
    ]


def _words(text: str) -> list[str]:
    """Words, or characters where a script puts no spaces between words."""
    if not text.isascii() and UNSPACED.search(text):
        text = UNSPACED.sub(r" \g<0> ", text)
    return text.split()
