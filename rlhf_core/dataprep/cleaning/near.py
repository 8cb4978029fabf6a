"""Near duplicates by MinHash: rows whose signatures agree in most places.

Candidates are found by locality-sensitive hashing, see ``near_duplicates``.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_core.dataprep.cleaning.signature_rows import SignatureRows
from rlhf_core.dataprep.cleaning.signatures import NUM_PERMUTATIONS

# datasketch and SciPy are imported where they are used: they take a second, and every stage of a
# run, which splits nothing, passes here.

WEIGHTS = (0.1, 0.9)
"""Of false candidates and of misses, when bands are chosen."""
_HIGHEST = 0.95
"""Nearer to 1 ``datasketch`` finds no bands; those of 0.95 miss nothing that is more similar."""
_LARGE_BUCKET = 256
"""Candidates that are compared each with each; more of them are split first."""

Table = NDArray[np.uint32] | SignatureRows
"""[N, NUM_PERMUTATIONS] signatures of rows, one each, or by reference."""


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
