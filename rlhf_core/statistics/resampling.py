"""Drawing for the bootstrap and leaving out for the jackknife, in time linear in the rows."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[..., Array]
"""Takes columns of shape [..., n] and ``axis=-1``; returns [...]."""

_FLOATS_AT_ONCE = 4_000_000
_MAX_LEFT_OUT = 1_000
"""Jackknife: of more rows than this, groups are left out and not single ones."""
_ROWS_A_VALUE = 8
"""Where so many rows share each value, it is drawn how often each value comes, and not each row."""


def resampled_sums(data: list[Array], count: int, seed: int) -> list[Array]:
    """Sums of resampled rows: [count] of each column."""
    size = data[0].size
    values, counts = np.unique(np.stack(data, axis=-1), axis=0, return_counts=True)
    if len(counts) * _ROWS_A_VALUE <= size:
        return list(resampled_counts(values, counts, count, seed).T)
    rng, batch = np.random.default_rng(seed), max(1, _FLOATS_AT_ONCE // size)
    sums: list[list[Array]] = [[] for _ in data]
    for start in range(0, count, batch):
        rows = rng.integers(0, size, (min(batch, count - start), size), dtype=np.int32)
        for kept, column in zip(sums, data, strict=True):
            kept.append(column[rows].sum(axis=-1))
    return [np.concatenate(kept) for kept in sums]


def resampled_counts(values: Array, counts: Ints, count: int, seed: int) -> Array:
    """Sums of resampled rows of which many are equal: how often each distinct one comes is drawn.

    Args:
        values: [distinct, k] the distinct rows.
        counts: [distinct] how many rows each stands for.
        count: resamples.
        seed: of the drawing.

    Returns:
        [count, k] sums.
    """
    rng, size = np.random.default_rng(seed), counts.sum()
    batch = max(1, _FLOATS_AT_ONCE // len(values))
    return np.concatenate(
        [
            rng.multinomial(size, counts / size, size=min(batch, count - start)) @ values
            for start in range(0, count, batch)
        ]
    )


def resampled_rows(statistic: Statistic, data: list[Array], count: int, seed: int) -> Array:
    """A statistic of resampled rows: [count]."""
    rng, size = np.random.default_rng(seed), data[0].size
    batch = max(1, _FLOATS_AT_ONCE // size)
    found = []
    for start in range(0, count, batch):
        rows = rng.integers(0, size, (min(batch, count - start), size))
        found.append(statistic(*(column[rows] for column in data), axis=-1))
    return np.concatenate(found)


def resampled_clusters(
    statistic: Statistic, data: list[Array], clusters: Ints, count: int, seed: int
) -> tuple[Array, Array]:
    """The statistic of resampled clusters, which differ in size, and without each of them."""

    def of(rows: Ints) -> float:
        return float(statistic(*(column[rows] for column in data), axis=-1))

    found = [of(rows) for rows in drawn_clusters(clusters, count, seed)]
    order = np.argsort(clusters, kind="stable")
    names = np.unique(clusters)
    left = [of(order[clusters[order] != name]) for name in names] if len(names) > 1 else [0.0]
    return np.array(found), np.array(left)


def drawn_clusters(clusters: Ints, count: int, seed: int) -> Iterator[Ints]:
    """Yield the rows of each resample, in which whole clusters are drawn.

    Args:
        clusters: [n] rows with equal numbers belong together.
        count: resamples.
        seed: of the drawing.
    """
    rng, order = np.random.default_rng(seed), np.argsort(clusters, kind="stable")
    _, starts, sizes = np.unique(clusters[order], return_index=True, return_counts=True)
    for _ in range(count):
        drawn = rng.integers(0, len(sizes), len(sizes))
        ends = np.cumsum(sizes[drawn])
        within = np.arange(ends[-1]) - np.repeat(ends - sizes[drawn], sizes[drawn])
        yield order[np.repeat(starts[drawn], sizes[drawn]) + within]


def left_out_rows(statistic: Statistic, data: list[Array]) -> Array:
    """The statistic without each row; of many rows, without each of as many groups of them.

    A group's sum has the skewness of its rows, so the acceleration stays what it is, and the cost
    grows with the number of rows, not with its square.
    """
    size = data[0].size
    if size == 1:
        return np.zeros(1)
    order = np.random.default_rng(0).permutation(size) if size > _MAX_LEFT_OUT else np.arange(size)
    groups = np.array_split(order, min(size, _MAX_LEFT_OUT))
    return np.array(
        [
            float(statistic(*(np.delete(column, group) for column in data), axis=-1))
            for group in groups
        ]
    )
