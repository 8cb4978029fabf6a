"""How far annotators agree beyond chance: Krippendorff's alpha with its interval."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_core.schema import Estimate
from rlhf_core.statistics.clusters import numbered
from rlhf_core.statistics.resampling import Ints, resampled_counts

Floats = NDArray[np.float64]

_NO_CHANCE = 1e-12
"""Expected disagreement below this is none, but for rounding."""


def krippendorff_alpha(counts: Ints) -> float | None:
    """Return Krippendorff's alpha, nominal: a, b and tie are three unordered answers.

        alpha = 1 - observed disagreement / disagreement expected by chance

    Krippendorff (2004), Content Analysis, chapter 11. Comparisons with a single vote say nothing
    about agreement and do not enter.

    Args:
        counts: [N, 3] votes for a, b and tie on each comparison.

    Returns:
        A number in [-1, 1], 1 for perfect agreement and 0 for chance; None where no comparison
        has two votes or all votes are the same answer, for then it is not defined.
    """
    import krippendorff

    pairable = counts[counts.sum(axis=1) > 1]
    if not len(pairable) or np.count_nonzero(pairable.sum(axis=0)) < 2:
        return None
    return float(krippendorff.alpha(value_counts=pairable, level_of_measurement="nominal"))


def alpha_estimate(
    counts: Ints,
    groups: Sequence[str] | None = None,
    *,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Estimate | None:
    """Return alpha with a percentile bootstrap over comparisons; None where it is not defined.

    The comparisons of one ranked list come from the same people's few decisions and are no
    independent observations, so a group is drawn as a whole. Groups with the same sums are alike:
    a resample is one multinomial draw over the distinct ones, whatever the size of the data.

    Args:
        counts: [N, 3] votes for a, b and tie.
        groups: [N] group of each comparison; an empty name, or no groups, stands alone.
        num_resamples: bootstrap resamples.
        seed: of the resampling.
        confidence: two-sided level of the interval.

    Returns:
        The estimate; its ``num_samples`` counts comparisons, grouped or not.
    """
    value = krippendorff_alpha(counts)
    if value is None:
        return None
    sums = _sums_by_group(counts, groups)
    low, high = alpha_interval(sums, num_resamples=num_resamples, seed=seed, confidence=confidence)
    return Estimate(
        value=value,
        low=low,
        high=high,
        num_samples=int(np.count_nonzero(counts.sum(axis=1) > 1)),
        confidence=confidence,
    )


def alpha_interval(
    sums: Floats, *, num_resamples: int, seed: int, confidence: float
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of alpha, in which each row is drawn as a whole.

    Args:
        sums: [G, 4] as ``alphas`` takes them; rows may repeat each other, and mostly do.
        num_resamples: bootstrap resamples.
        seed: of the resampling.
        confidence: two-sided level.

    Returns:
        The bounds; NaN where no resample has two answers.
    """
    patterns, weights = _distinct(sums)
    resamples = alphas(resampled_counts(patterns, weights, num_resamples, seed))
    if np.isnan(resamples).all():
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(resamples, [tail, 1 - tail])
    return float(low), float(high)


def _distinct(rows: Floats) -> tuple[Floats, Ints]:
    """[U, k] distinct rows in order, and [U] how often each stands there.

    ``np.unique`` compares whole rows, which takes several times as long.
    """
    rows = rows[np.lexsort(rows.T[::-1])]
    is_new = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))[: len(rows)]
    starts = np.flatnonzero(is_new)
    return rows[starts], np.diff(np.append(starts, len(rows)))


def _sums_by_group(counts: Ints, groups: Sequence[str] | None) -> Floats:
    """Sum over each group what alpha is made of.

        within_u = sum_c n_uc (n_u - n_uc) / (n_u - 1)

    Args:
        counts: [N, 3] votes; comparisons with a single vote do not enter.
        groups: [N] names, as for ``alpha_estimate``.

    Returns:
        [G, 4] votes for a, b and tie, and within, of the groups that have two votes on something.
    """
    pairable = np.flatnonzero(counts.sum(axis=1) > 1)
    group = units([groups[row] for row in pairable.tolist()] if groups else [""] * len(pairable))
    votes = counts[pairable]
    # In an order of the content's own, so that sums do not depend on the order of the rows.
    order = np.lexsort((*votes.T, group))
    votes, group = votes[order], group[order]
    sizes = votes.sum(axis=1, keepdims=True)
    within = (votes * (sizes - votes)).sum(axis=1) / (sizes[:, 0] - 1)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sums: Floats = np.add.reduceat(np.column_stack((votes, within)), starts, axis=0)
    return sums


def units(groups: Sequence[str]) -> Ints:
    """[N] number of the group that each name stands for; an empty name stands alone."""
    if not any(groups):
        return np.arange(len(groups))
    return numbered(name or row for row, name in enumerate(groups))


def alphas(totals: Floats) -> Floats:
    """Alpha of sums over units.

        D_o = sum_u within_u / n
        D_e = sum_c n_c (n - n_c) / (n (n - 1))

    Args:
        totals: [R, 4] votes for a, b and tie, and within as in ``_sums_by_group``.

    Returns:
        [R] alpha; NaN where all votes are the same answer.
    """
    answers, within = totals[:, :3], totals[:, 3]
    total = answers.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = within / total
        expected = (answers * (total[:, None] - answers)).sum(axis=1) / (total * (total - 1.0))
        found: Floats = 1 - observed / expected
    return np.where(expected > _NO_CHANCE, found, np.nan)
