"""Intervals of numbers made of pairs of which some belong together: those of one dialogue.

The pairs of a ranked list come from a few decisions: 36 pairs of nine responses are no 36
observations. Whole dialogues are what varies from one dataset to the next.
"""

import math
from collections.abc import Callable, Hashable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rlhf_core.schema import Estimate
from rlhf_core.statistics.intervals import equal_clusters
from rlhf_core.statistics.resampling import Array, Ints, drawn_clusters

CONFIDENCE = 0.95
_NUM_RESAMPLES = 300
MAX_ROWS = 5_000
"""What callers give ``bootstrap`` at most, so that it takes seconds whatever the data."""


def numbered(keys: Iterable[Hashable]) -> Ints:
    """Return a number for each key, equal ones for equal keys."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def proportion(successes: Array, clusters: Ints) -> Estimate:
    """Return a share with its Wilson interval (Wilson 1927) over the effective number of rows.

        centre = (p + z^2 / 2n) / (1 + z^2 / n)
        half   = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)

    n is the number of rows where each is a cluster of its own; see ``_effective_rows`` for others.

    Args:
        successes: [N] 1 for a success, 0 for none, one half for neither.
        clusters: [N] rows with equal numbers belong together.
    """
    num_rows = len(successes)
    share, n = float(successes.mean()), _effective_rows(successes, clusters)
    low, high = 0.0, 1.0
    if n > 0:
        z = _quantile()
        scale = 1 + z * z / n
        centre = (share + z * z / (2 * n)) / scale
        half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
        low, high = max(0.0, centre - half), min(1.0, centre + half)
    return _estimate(share, low, high, num_rows)


def bootstrap(measure: Callable[[Ints], float], clusters: Ints, seed: int) -> Estimate:
    """Return a number between 0 and 1 with its percentile bootstrap interval over clusters.

    The tails are those of Student's t, as a few clusters show less than the whole spread:
    Hesterberg (2015), What Teachers Should Know About the Bootstrap, section 3.3 (expanded
    percentile interval); of uneven ones as for the ``equal_clusters``. One cluster shows none, so
    that the interval is the whole range.

    Args:
        measure: takes the numbers of rows, some of them several times.
        clusters: [N] rows with equal numbers belong together.
        seed: of the resampling.
    """
    value = measure(np.arange(len(clusters)))
    if len(np.unique(clusters)) == 1:
        return _estimate(value, 0.0, 1.0, len(clusters))
    count = max(2.0, equal_clusters(clusters))
    resamples = [measure(rows) for rows in drawn_clusters(clusters, _NUM_RESAMPLES, seed)]
    tail = float(special.ndtr(-math.sqrt(count / (count - 1)) * _quantile(count - 1)))
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return _estimate(value, min(float(low), value), max(float(high), value), len(clusters))


def ranked(scores: Array) -> Ints:
    """[N] place of each score among the different ones, from the lowest on."""
    places: Ints = np.unique(scores, return_inverse=True)[1]
    return places


def auc(ranks: Ints, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, equal scores counting one half.

    One half as well where there are none of either.

    Args:
        ranks: [N] scores as ``ranked`` has them, or some of these: resamples need no new order.
        positive: [N]
    """
    size = ranks.max(initial=0) + 1
    positives = np.bincount(ranks[positive], minlength=size)
    negatives = np.bincount(ranks[~positive], minlength=size)
    num_pairs = positives.sum() * negatives.sum()
    if not num_pairs:
        return 0.5
    return float((positives * (np.cumsum(negatives) - negatives / 2)).sum() / num_pairs)


def _effective_rows(successes: Array, clusters: Ints) -> float:
    """How many independent rows would vary as much as these clusters do.

        n = p (1 - p) / V * (z / t)^2,  V = C / (C - 1) sum_c (sum of c - p n_c)^2 / N^2

    with C clusters, of uneven ones the ``equal_clusters``, and t of C - 1 degrees of freedom; at
    most N. Korn & Graubard (1998), Survey Methodology 24(2). Where all rows agree there is no
    variation, and each cluster counts once.
    """
    num_rows, num_clusters = len(successes), len(np.unique(clusters))
    if num_clusters == num_rows:
        return num_rows
    if num_clusters == 1:
        return 0.0
    share = float(successes.mean())
    sums = np.bincount(clusters, weights=successes - share)
    alike = max(2.0, equal_clusters(clusters))
    variance = float((sums**2).sum()) / num_rows**2 * alike / (alike - 1)
    if share in (0.0, 1.0):
        rows = float(num_clusters)
    else:
        rows = min(num_rows, share * (1 - share) / variance) if variance > 0 else num_rows
    return rows * (_quantile() / _quantile(alike - 1)) ** 2


def _quantile(degrees: float | None = None) -> float:
    """Two-sided quantile of the normal distribution, or of Student's t."""
    level = (1 + CONFIDENCE) / 2
    if degrees is None:
        return float(special.ndtri(level))
    from scipy import stats

    return float(stats.t.ppf(level, degrees))


def _estimate(value: float, low: float, high: float, num_rows: int) -> Estimate:
    return Estimate(value=value, low=low, high=high, num_samples=num_rows, confidence=CONFIDENCE)
