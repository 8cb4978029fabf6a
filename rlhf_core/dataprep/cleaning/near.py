"""Near duplicates by MinHash (Broder 1997): texts that share most of their word triples.

In scripts that put no spaces between words each character counts as a word.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.cleaning.signature_rows import SignatureRows
from rlhf_core.dataprep.keys import UNSPACED, bare, normalise

if TYPE_CHECKING:
    from datasketch import MinHash

# datasketch and SciPy are imported where they are used: they take a second, and every stage of a
# run, which splits nothing, passes here.

NUM_PERMUTATIONS = 64
"""Standard error of a similarity of 0.8: 0.05."""
_SHINGLE_WORDS = 3
_MAX_WORDS = 200_000
_MAX_TEXTS = 2_048
_LONGEST_KEPT = 8_192
"""Characters of a text whose words are kept, for as long as its row is looked at."""
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
"""Odd numbers that mix the hashes of three words, modulo 2**64."""
_PRIME_BITS = np.uint64(61)
_PRIME = np.uint64((1 << 61) - 1)
_SHINGLES_AT_ONCE = 512
"""Whose permuted values, 128 kB, stay in the processor's cache."""
_FEWEST_BY_HALVES = 64
"""Of fewer the steps cost more than they save."""
_CARRIED = 7
"""Most that the upper three bits of a number add to its lower ones."""
_EACH = np.arange(NUM_PERMUTATIONS)
WEIGHTS = (0.1, 0.9)
"""Of false candidates and of misses, when bands are chosen."""
_HIGHEST = 0.95
"""Nearer to 1 ``datasketch`` finds no bands; those of 0.95 miss nothing that is more similar."""
_LARGE_BUCKET = 256
"""Candidates that are compared each with each; more of them are split first."""

Signature = NDArray[np.uint32]
"""[NUM_PERMUTATIONS]: the share of equal places estimates the Jaccard similarity."""
Table = NDArray[np.uint32] | SignatureRows
"""[N, NUM_PERMUTATIONS] signatures of rows, one each, or by reference."""


@lru_cache(maxsize=16)
def signature(*texts: str) -> Signature:
    """Return the MinHash signature of the word triples of texts, one after the other.

    Nobody may write into it: a prompt is asked for it several times in a row, for all of it and for
    how it opens.
    """
    found = _signature(_shingles(texts))
    found.flags.writeable = False
    return found


def _signature(shingles: NDArray[np.uint64]) -> Signature:
    least = _least(shingles[:_SHINGLES_AT_ONCE])
    for start in range(_SHINGLES_AT_ONCE, len(shingles), _SHINGLES_AT_ONCE):
        least = np.minimum(least, _least(shingles[start : start + _SHINGLES_AT_ONCE]))
    return least


def _least(shingles: NDArray[np.uint64]) -> Signature:
    """[NUM_PERMUTATIONS] least value that each permutation of ``datasketch`` gives a shingle.

        (a h + b mod 2**64) mod (2**61 - 1), its lower 32 bits

    They are the lower 32 bits of a h + b and its upper three as a number, but at the edge of the
    prime. So where the least lower bits stand more than seven apart from the next, the least value
    is that of their shingle, and the other shingles take half the bits of a number.
    """
    if len(shingles) < _FEWEST_BY_HALVES:
        return _least_whole(shingles)
    a, lifted = _half_permutations()
    low = a * shingles.astype(np.uint32)
    low += lifted
    place = low.argmin(axis=1)
    least = low[_EACH, place]
    near = least + np.uint32(_CARRIED)
    if least.min() <= _CARRIED or (near < least).any():
        return _least_whole(shingles)
    num_near = np.count_nonzero(low <= near[:, None])
    # A triple may stand there twice: as every a is odd, equal bits are of equal shingles.
    if num_near > NUM_PERMUTATIONS and num_near > np.count_nonzero(low == least[:, None]):
        return _least_whole(shingles)
    whole = _permuted(shingles[place])
    values: Signature = whole.astype(np.uint32) + (whole >> _PRIME_BITS).astype(np.uint32)
    return values


@cache
def _half_permutations() -> tuple[Signature, Signature]:
    """[NUM_PERMUTATIONS, 1] lower halves of a, and of b raised so that no edge is passed unseen."""
    a, b = empty_sketch().permutations
    lifted = b.astype(np.uint32) + np.uint32(_CARRIED + 1)
    return a.astype(np.uint32)[:, None], lifted[:, None]


def _permuted(shingles: NDArray[np.uint64]) -> NDArray[np.uint64]:
    a, b = empty_sketch().permutations
    permuted: NDArray[np.uint64] = shingles * a
    permuted += b
    return permuted


def _least_whole(shingles: NDArray[np.uint64]) -> Signature:
    """What ``_least`` gives, whatever the shingles.

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

    def array(self) -> NDArray[np.uint32]:
        """Return [N, NUM_PERMUTATIONS], the table itself."""
        found = np.frombuffer(self._bytes, dtype=np.uint32).reshape(-1, NUM_PERMUTATIONS)
        found.flags.writeable = False
        return found


def near_duplicates(tables: Sequence[Table], threshold: float) -> dict[int, int]:
    """Return rows that nearly repeat an earlier one: row to that earlier row.

    Candidates share a band of the first table's signature (locality-sensitive hashing), and where
    many rows do, as short answers to different prompts do, a band of the next table's as well; a
    pair counts when its estimated similarity reaches ``threshold`` in every table.

    Args:
        tables: [N, NUM_PERMUTATIONS] signatures of each part of a row, first the most telling.
        threshold: Jaccard similarity, in (0, 1].
    """
    bands, rows = bands_of(threshold)
    first = tables[0]
    repeats: dict[int, int] = {}
    for band in range(bands):
        for bucket in _buckets(first[:, band * rows : (band + 1) * rows]):
            left = np.array([row for row in bucket.tolist() if row not in repeats], dtype=np.int64)
            for part in _parts(left, tables[1:], bands, rows):
                _mark(part, tables, threshold, repeats)
    return repeats


def linked(tables: Sequence[Table], threshold: float) -> list[NDArray[np.int64]]:
    """Return groups of two or more rows that pairs of near rows connect, rows in order.

    Candidates and nearness are those of ``near_duplicates``. In a bucket of very many candidates
    rows are compared with those that no earlier row was near to, and not each with each.
    """
    bands, rows = bands_of(threshold)
    num_rows = len(tables[0])
    label = np.arange(num_rows)
    for band in range(bands):
        edges: list[NDArray[np.int64]] = []
        for bucket in _buckets(tables[0][:, band * rows : (band + 1) * rows]):
            for part in _parts(bucket, tables[1:], bands, rows):
                # A part that earlier bands have joined already can connect nothing more.
                if (label[part] != label[part[0]]).any():
                    edges += _near_pairs(part, tables, threshold)
                if edges and len(part) > _LARGE_BUCKET:  # other bands have most of it again
                    label, edges = _connected(np.concatenate(edges), label), []
        if edges:
            label = _connected(np.concatenate(edges), label)
    order = np.argsort(label, kind="stable")
    return list(_runs(order, label[order[1:]] == label[order[:-1]]))


class _WordHashes(dict[str, int]):
    """Hash of a bare word, remembered: most words of a text were met before."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_WORDS:
            self.clear()
        self[word] = found = zlib.crc32(bare(word).encode())
        return found


_HASHES = _WordHashes()


def word_hashes(words: Sequence[str]) -> NDArray[np.uint64]:
    """[N] 32-bit hashes of words as ``normalise`` leaves them, punctuation around each aside."""
    return np.fromiter(map(_HASHES.__getitem__, words), dtype=np.uint64, count=len(words))


class _RecentTexts:
    """Words of the texts that were last asked for: the checks of a row and its batch ask again."""

    def __init__(self) -> None:
        self._young: dict[str, NDArray[np.uint64]] = {}
        self._old: dict[str, NDArray[np.uint64]] = {}

    def hashes(self, text: str) -> NDArray[np.uint64]:
        found = self._young.get(text)
        if found is None:
            found = self._old.get(text)
            if found is None:
                found = word_hashes(_normalised_words(text))
                found.flags.writeable = False
            if len(self._young) >= _MAX_TEXTS:
                self._old, self._young = self._young, {}
            if len(text) <= _LONGEST_KEPT:
                self._young[text] = found
        return found


_TEXTS = _RecentTexts()


def text_hashes(text: str) -> NDArray[np.uint64]:
    """[N] ``word_hashes`` of a text; not to be written into, for several checks ask for them."""
    return _TEXTS.hashes(text)


def _normalised_words(text: str) -> list[str]:
    """Words of ``normalise``."""
    return text.casefold().split() if text.isascii() else normalise(text).split()


@cache
def empty_sketch() -> "MinHash":
    """A sketch of nothing, to copy: drawing the permutations costs more than a text."""
    from datasketch import MinHash

    return MinHash(NUM_PERMUTATIONS)


def _shingles(texts: Sequence[str]) -> NDArray[np.uint64]:
    """[N] 32-bit hashes of the word triples of texts, or of all words where they are fewer."""
    hashes = np.concatenate([_spaced_hashes(text) for text in texts])
    if len(hashes) < _SHINGLE_WORDS:
        words = [bare(word) for text in texts for word in _words(normalise(text))]
        return np.array([zlib.crc32(" ".join(words).encode())], dtype=np.uint64)
    triples = hashes[:-2] * _ODD[0] + hashes[1:-1] * _ODD[1] + hashes[2:] * _ODD[2]
    hashed: NDArray[np.uint64] = triples >> np.uint64(32)
    return hashed


def _spaced_hashes(text: str) -> NDArray[np.uint64]:
    if not text.isascii() and UNSPACED.search(normalised := normalise(text)):
        return word_hashes(_words(normalised))
    return text_hashes(text)


def _words(text: str) -> list[str]:
    """Words, or characters where a script puts no spaces between words."""
    if not text.isascii() and UNSPACED.search(text):
        text = UNSPACED.sub(r" \g<0> ", text)
    return text.split()


def bands_of(threshold: float) -> tuple[int, int]:
    """Return (bands, rows) that miss little; false candidates cost a comparison and no more."""
    from datasketch import MinHashLSH

    lsh = MinHashLSH(threshold=min(threshold, _HIGHEST), num_perm=NUM_PERMUTATIONS, weights=WEIGHTS)
    return lsh.b, lsh.r


def _buckets(band: NDArray[np.uint32]) -> Iterable[NDArray[np.int64]]:
    """Yield groups of two or more rows with equal content, rows in order."""
    band = np.ascontiguousarray(band)
    # A row's band as one opaque value, so that sorting and comparing takes one step a row.
    keys = band.view(np.dtype((np.void, band.dtype.itemsize * band.shape[1]))).ravel()
    order = np.argsort(keys, kind="stable")
    is_same = keys[order[1:]] == keys[order[:-1]]
    return _runs(order, is_same)


def _runs(order: NDArray[np.int64], is_same: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Yield the runs of two or more of ``order`` [N] between whose members ``is_same`` [N - 1]."""
    edges = np.flatnonzero(np.diff(is_same, prepend=False, append=False))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield order[start : stop + 1]


def _parts(
    bucket: NDArray[np.int64], tables: Sequence[Table], bands: int, rows: int
) -> Iterator[NDArray[np.int64]]:
    """Yield a bucket, or where it is large its parts that share a band of the next table too."""
    if len(bucket) <= _LARGE_BUCKET or not tables:
        yield bucket
        return
    for band in range(bands):
        for part in _buckets(tables[0][bucket, band * rows : (band + 1) * rows]):
            yield from _parts(bucket[part], tables[1:], bands, rows)


def _near_pairs(
    part: NDArray[np.int64], tables: Sequence[Table], threshold: float
) -> list[NDArray[np.int64]]:
    """Return [E, 2] pairs of near rows, in a large part each row with the first it is near to."""
    # Quadratic only where it is cheap. A row that is near to an earlier head is reached through it,
    # so in a large part it need not become a head itself.
    each_with_each = len(part) <= _LARGE_BUCKET
    found, rest = [], part
    while len(rest) > 1:
        head, rest = rest[0], rest[1:]
        near = _near_to(head, rest, tables, threshold)
        found.append(np.column_stack((np.full(int(near.sum()), head), rest[near])))
        if not each_with_each:
            rest = rest[~near]
    return found


def _near_to(
    head: int | np.int64,
    rest: NDArray[np.int64],
    tables: Sequence[Table],
    threshold: float,
) -> NDArray[np.bool_]:
    near = np.ones(len(rest), dtype=bool)
    for table in tables:
        near &= (table[rest] == table[head]).mean(axis=1) >= threshold
    return near


def _connected(edges: NDArray[np.int64], label: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] labels of rows once the edges connect what had different ones."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    # A graph over labels and not rows: what earlier bands joined is one node by now.
    ends = label[edges]
    graph = coo_matrix((np.ones(len(ends)), ends.T), shape=(len(label), len(label)))
    merged: NDArray[np.int64] = connected_components(graph, directed=False)[1][label]
    return merged


def _mark(
    bucket: NDArray[np.int64],
    tables: Sequence[Table],
    threshold: float,
    repeats: dict[int, int],
) -> None:
    """Compare a bucket's rows with those that stay; a bucket of one text ends after one round."""
    rest = np.array([row for row in bucket.tolist() if row not in repeats])
    while len(rest) > 1:
        head, rest = int(rest[0]), rest[1:]
        near = _near_to(head, rest, tables, threshold)
        for row in rest[near].tolist():
            repeats[row] = head
        rest = rest[~near]
