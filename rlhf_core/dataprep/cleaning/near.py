"""Near duplicates by MinHash: rows whose signatures agree in most places.

Candidates are found by locality-sensitive hashing, see ``near_duplicates``. Texts made from one
template are all candidates of one another: of very many, a row is compared with a bounded number,
the first ones that stay and those that stand beside it once all are sorted by their signatures
(Hernandez & Stolfo 1995), so that time grows with the rows and not with their square.
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
_HEADS, _ORDERS, _BESIDE = 64, 4, 8
"""Of more candidates still, a row is compared with so many first ones, and in so many orders with
so many on each side of it."""
_ORDERED_BY = 24
"""Places of a signature that order rows: more than the candidates of a template have in common."""
_PAIRS_AT_ONCE = 16_384

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
                _mark(part, tables, threshold, repeats, band)
    return repeats


def linked(tables: Sequence[Table], threshold: float) -> list[NDArray[np.int64]]:
    """Return groups of two or more rows that pairs of near rows connect, rows in order.

    Candidates and nearness are those of ``near_duplicates``, and so is how many of very many
    candidates a row is compared with.
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
                    edges += _near_pairs(part, tables, threshold, band)
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
    was_whole = False
    for band in range(bands):
        for part in _buckets(tables[0][bucket, band * rows : (band + 1) * rows]):
            # Where all say the same, as one prompt, every band has the whole bucket again.
            is_whole = len(part) == len(bucket)
            if is_whole and was_whole:
                continue
            was_whole |= is_whole
            yield from _parts(bucket[part], tables[1:], bands, rows)


def _near_pairs(
    part: NDArray[np.int64], tables: Sequence[Table], threshold: float, band: int
) -> list[NDArray[np.int64]]:
    """Return [E, 2] pairs of near rows, in a large part those that are found (``_beside``)."""
    # Quadratic only where it is cheap. A row that is near to an earlier head is reached through it,
    # so in a large part it need not become a head itself.
    each_with_each = len(part) <= _LARGE_BUCKET
    found: list[NDArray[np.int64]] = []
    rest = part
    for _ in range(len(part) if each_with_each else _HEADS):
        if len(rest) < 2:
            return found
        head, rest = rest[:1], rest[1:]
        near = _alike(head, rest, tables, threshold)
        found.append(np.column_stack((np.full(int(near.sum()), head[0]), rest[near])))
        if not each_with_each:
            rest = rest[~near]
    return found if each_with_each else [*found, _beside(rest, tables, threshold, band)]


def _beside(
    rows: NDArray[np.int64], tables: Sequence[Table], threshold: float, seed: int
) -> NDArray[np.int64]:
    """Return [E, 2] near pairs, the earlier row first, of rows that stand close in some order.

    Each order sorts by some places of the signatures, other ones each time: the nearer two rows
    are, the more places they have in common, and the more orders have them side by side.
    """
    rng = np.random.default_rng(seed)
    found = [np.empty((0, 2), dtype=np.int64)]
    for number in range(_ORDERS):
        places = rng.permutation(NUM_PERMUTATIONS)[:_ORDERED_BY]
        columns = tables[number % len(tables)][rows][:, places]
        ordered = rows[np.lexsort(columns.T[::-1])]
        for step in range(1, min(_BESIDE + 1, len(rows))):
            for start in range(0, len(rows) - step, _PAIRS_AT_ONCE):
                one = ordered[start : min(start + _PAIRS_AT_ONCE, len(rows) - step)]
                other = ordered[start + step : start + step + len(one)]
                near = _alike(one, other, tables, threshold)
                found.append(np.column_stack((one[near], other[near])))
    return np.sort(np.concatenate(found), axis=1)


def _alike(
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    tables: Sequence[Table],
    threshold: float,
) -> NDArray[np.bool_]:
    """[N] whether rows are near to the rows beside them; ``one`` may be a single row for all."""
    near = np.ones(len(other), dtype=bool)
    for table in tables:
        near &= (table[other] == table[one]).mean(axis=1) >= threshold
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
    band: int,
) -> None:
    """Compare a bucket's rows with those that stay; a bucket of one text ends after one round."""
    rest = np.array([row for row in bucket.tolist() if row not in repeats])
    for _ in range(len(rest) if len(rest) <= _LARGE_BUCKET else _HEADS):
        if len(rest) < 2:
            return
        head, rest = rest[:1], rest[1:]
        near = _alike(head, rest, tables, threshold)
        repeats.update(dict.fromkeys(rest[near].tolist(), int(head[0])))
        rest = rest[~near]
    if len(rest) < 2:
        return
    pairs = _beside(rest, tables, threshold, band)
    # By the later row, so that of each it is decided by then whether the earlier one stays.
    for earlier, row in pairs[np.lexsort(pairs.T)].tolist():
        if row not in repeats and earlier not in repeats:
            repeats[row] = earlier
