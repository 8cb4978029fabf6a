"""A judge's mean corrected by people's votes: prediction-powered inference.

Angelopoulos et al. (2023), "Prediction-powered inference", arXiv:2301.09633; the weight of the
judge is that of Angelopoulos, Duchi & Zrnic (2023), PPI++, arXiv:2311.01453, section 6.
"""

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_core.errors import DataError
from rlhf_core.schema import Estimate
from rlhf_core.statistics.intervals import SHARE, Resampling, equal_clusters
from rlhf_core.statistics.resampling import Array

MIN_LABELS = 10
"""Fewer voted pairs tell nothing of the judge's error, and their spread is not one to trust."""


def corrected_mean(
    judged: ArrayLike,
    people: ArrayLike,
    plan: Resampling,
    *,
    bounds: tuple[float, float] = SHARE,
) -> Estimate:
    """What people would say on average, from the judge on all samples and people on some.

        value  = mean_n(people) + weight * (mean_N(judged) - mean_n(judged))
        weight = cov_n(people, judged) / var_N(judged), in [0, 1]

    with N samples, of which n drawn at random have votes. This is PPI++ with the N - n others as
    its unlabelled samples. A useless judge gets weight 0: the interval is never much wider than
    that of the votes alone. The standard error is that of the linearised estimate, summed by topic
    where the plan has topics, and the quantile is Student's, for votes are few: of uneven topics as
    for the ``equal_clusters``. Where people and judge seldom differ a plain interval is too narrow,
    so two samples are added to those with votes, half of one for each way to agree or differ:
    Agresti & Min (2005), "Simple improved confidence intervals for comparing matched proportions".
    The value is the one without them.

    Args:
        judged: [N] outcomes by the judge, all samples.
        people: [N] mean of the votes on each sample, NaN where nobody voted; samples with votes
            are a random part of all.
        plan: level and topics; nothing is resampled.
        bounds: range of one outcome.

    Returns:
        ``num_samples`` is the number of samples (topics) with votes.

    Raises:
        DataError: columns of unequal length, a value outside the bounds, fewer than
            ``MIN_LABELS`` samples (topics) with votes.
    """
    outcome, votes = _checked(judged, people, bounds)
    labelled = ~np.isnan(votes)
    clusters = np.arange(outcome.size) if plan.clusters is None else plan.clusters
    num_units = len(np.unique(clusters[labelled]))
    if num_units < MIN_LABELS:
        raise DataError(
            f"votes on {num_units} samples correct no judge: expected at least {MIN_LABELS}"
        )
    weight = _weight(outcome, votes, labelled)
    residual = votes[labelled] - weight * outcome[labelled]
    value = float(weight * outcome.mean() + residual.mean())
    middle, reach = _interval(outcome, residual, weight, clusters, labelled, plan, bounds)
    centre = weight * outcome.mean() + middle
    value = min(max(value, bounds[0]), bounds[1])
    return Estimate(
        value=value,
        low=max(min(centre - reach, value), bounds[0]),
        high=min(max(centre + reach, value), bounds[1]),
        num_samples=num_units,
        confidence=plan.level,
    )


def labels_needed(
    half_width: float, num_judged: int, *, accuracy: float, confidence: float = 0.95
) -> int | None:
    """Return how many samples need votes before the corrected interval is as narrow as asked.

        v * (1 - rho^2) / n + v * rho^2 / N <= (half_width / t)^2
        rho = (2 * accuracy - 1) * n / (n + 2)

    with v = 1/4, the most that a win or loss can vary; rho is the correlation of two such, equally
    often 0 and 1, that agree with probability ``accuracy``, two more samples at even odds among
    them; t is Student's quantile at n - 1. All as in ``corrected_mean``.

    Args:
        half_width: of the interval, above 0.
        num_judged: N, samples that the judge has seen.
        accuracy: how often the judge says what a person says.
        confidence: two-sided level.

    Returns:
        At most ``num_judged``; None where votes on all of them would not be enough.
    """
    from scipy import stats  # takes a second

    tail, agreement = (1.0 - confidence) / 2.0, max(0.0, 2.0 * accuracy - 1.0)

    def is_enough(count: int) -> bool:
        shared = (agreement * count / (count + 2)) ** 2
        variance = 0.25 * ((1.0 - shared) / count + shared / num_judged)
        return float(stats.t.isf(tail, count - 1)) * math.sqrt(variance) <= half_width

    counts = range(MIN_LABELS, num_judged + 1)
    found = bisect_left(counts, True, key=is_enough)  # more votes never widen it
    return counts[found] if found < len(counts) else None


def _checked(
    judged: ArrayLike, people: ArrayLike, bounds: tuple[float, float]
) -> tuple[Array, Array]:
    outcome, votes = np.asarray(judged, dtype=np.float64), np.asarray(people, dtype=np.float64)
    if outcome.ndim != 1 or outcome.shape != votes.shape:
        raise DataError(f"expected columns of one length, got {outcome.shape} and {votes.shape}")
    seen = votes[~np.isnan(votes)]
    for name, column in (("judge", outcome), ("people", seen)):
        if not ((column >= bounds[0]) & (column <= bounds[1])).all():
            raise DataError(f"{name}: expected outcomes in [{bounds[0]:g}, {bounds[1]:g}]")
    return outcome, votes


def _weight(outcome: Array, votes: Array, labelled: NDArray[np.bool_]) -> float:
    """How much of the judge's mean is believed: its regression slope on people, cut to [0, 1]."""
    spread = float(outcome.var())
    if spread == 0.0:
        return 0.0
    known = outcome[labelled]
    shared = float(np.mean((known - known.mean()) * (votes[labelled] - votes[labelled].mean())))
    return min(max(shared / spread, 0.0), 1.0)


def _interval(  # noqa: PLR0913 - what the estimate is made from
    outcome: Array,
    residual: Array,
    weight: float,
    clusters: NDArray[np.int64],
    labelled: NDArray[np.bool_],
    plan: Resampling,
    bounds: tuple[float, float],
) -> tuple[float, float]:
    """Return the mean residual with the two samples added, and half of the interval's width."""
    from scipy import stats  # takes a second: every stage of a run imports this module

    tail = (1.0 - plan.level) / 2.0
    num_units = len(np.unique(clusters[labelled]))
    # The weight is estimated, too: one degree of freedom more.
    alike = equal_clusters(clusters[labelled])
    freedom = max(1.0, alike - (2 if weight > 0.0 else 1))
    # Two more units, half of one in each corner of what people and judge can say.
    corners = np.array([p - weight * j for p in bounds for j in bounds])
    a_unit = residual.size / num_units
    count = residual.size + 2.0 * a_unit
    middle = float(residual.sum() + a_unit * corners.sum() / 2.0) / count
    influence = weight * (outcome - outcome.mean()) / outcome.size
    influence[labelled] += (residual - middle) / count
    _, unit = np.unique(clusters, return_inverse=True)
    variance = float(np.sum(np.bincount(unit, weights=influence) ** 2)) * alike / freedom
    variance += float(np.sum((a_unit * (corners - middle) / count) ** 2)) / 2.0
    reach = float(stats.t.isf(tail, freedom)) * math.sqrt(variance)
    if np.ptp(residual) < 1e-9:
        # Rule of three: n residuals alike still leave this share of others unseen.
        reach += (1.0 - tail ** (1.0 / num_units)) * (bounds[1] - bounds[0])
    return middle, reach
