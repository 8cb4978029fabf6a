"""MinHash signatures (Broder 1997): of the word triples of texts, by the hashes of ``datasketch``.

In scripts that put no spaces between words each character counts as a word.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
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
_PRIME_BITS = np.uint64(61)
_PRIME = np.uint64((1 << 61) - 1)
_SHINGLES_AT_ONCE = 512
"""Whose permuted values, 128 kB, stay in the processor's cache."""
_CARRIED = 7
"""Most that the upper three bits of a number add to its lower ones."""

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
    parts: list[Shingles] = []
    starts = []
    for shingles in _shingles(groups):
        starts.append(len(parts))
        # The least value of all is the least of the least ones of parts.
        parts += [
            shingles[start : start + _SHINGLES_AT_ONCE]
            for start in range(0, len(shingles), _SHINGLES_AT_ONCE)
        ]
    least = least_values(parts)
    return least if len(parts) == len(groups) else np.minimum.reduceat(least, starts, axis=0)


@dataclass(frozen=True, slots=True)
class _Halves:
    """Lower halves of the permutations h -> a h + b, [NUM_PERMUTATIONS] each."""

    a: Signature
    lifted: Signature
    """b, raised so that no edge of the prime is passed unseen."""
    inverse: Signature
    """a times it is 1: every a is odd."""


@cache
def _halves() -> _Halves:
    a, b = (part.astype(np.uint32) for part in empty_sketch().permutations)
    inverse = np.array([pow(factor, -1, 1 << 32) for factor in a.tolist()], dtype=np.uint32)
    return _Halves(a, b + np.uint32(_CARRIED + 1), inverse)


def least_values(parts: Sequence[Shingles]) -> Signature:
    """[N, NUM_PERMUTATIONS] least value that each permutation of ``datasketch`` gives a shingle.

        (a h + b mod 2**64) mod (2**61 - 1), its lower 32 bits

    They are the lower 32 bits of a h + b and its upper three as a number, but at the edge of the
    prime. So where the least lower bits stand more than seven apart from the next, the least value
    is that of their shingle, which the lower bits tell; and all others take half the bits of a
    number.

    Args:
        parts: [n] shingles each, n from 1 to ``_SHINGLES_AT_ONCE``.
    """
    halves = _halves()
    low = np.empty((len(parts), NUM_PERMUTATIONS), dtype=np.uint32)
    is_told = np.array([_lowest(part, halves, low[row]) for row, part in enumerate(parts)])
    is_told &= ((low > _CARRIED) & (low + np.uint32(_CARRIED) > low)).all(axis=1)
    whole = _permuted((low - halves.lifted) * halves.inverse)
    values: Signature = whole.astype(np.uint32) + (whole >> _PRIME_BITS).astype(np.uint32)
    for row in np.flatnonzero(~is_told).tolist():
        values[row] = _least_whole(parts[row])
    return values


def _lowest(shingles: Shingles, halves: _Halves, least: Signature) -> bool:
    """Write the least lower bits into ``least``; tell whether the next stand far enough apart."""
    low = halves.a[:, None] * shingles
    low += halves.lifted[:, None]
    np.minimum.reduce(low, axis=1, out=least)
    num_near = np.count_nonzero(low <= (least + np.uint32(_CARRIED))[:, None])
    # A triple may stand there twice: as every a is odd, equal bits are of equal shingles.
    return bool(num_near == NUM_PERMUTATIONS or num_near == np.count_nonzero(low == least[:, None]))


def _permuted(shingles: Shingles) -> NDArray[np.uint64]:
    a, b = empty_sketch().permutations
    permuted: NDArray[np.uint64] = shingles.astype(np.uint64) * a
    permuted += b
    return permuted


def _least_whole(shingles: Shingles) -> Signature:
    """What ``least_values`` gives one part, whatever the shingles.

    As 2**61 is 1 modulo the prime, x mod p is x // 2**61 + x mod 2**61, less p where that is p or
    more; where it is less, taking p away goes round to a larger number.
    """
    permuted = _permuted(shingles[:, None])
    carried = permuted >> _PRIME_BITS
    permuted &= _PRIME
    permuted += carried
    np.minimum(permuted, np.subtract(permuted, _PRIME, out=carried), out=permuted)
    values: Signature = permuted.astype(np.uint32).min(axis=0)
    return values


def similarity(first: Signature, second: Signature) -> float:
    """Return the estimated Jaccard similarity."""
    return float(np.mean(first == second))


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
