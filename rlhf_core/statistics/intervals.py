"""Measured values with their uncertainty: the bootstrap, and what it cannot see."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rlhf_core.errors import DataError
from rlhf_core.schema import Estimate
from rlhf_core.statistics.resampling import (
    Array,
    Statistic,
    left_out_rows,
    resampled_clusters,
    resampled_rows,
    resampled_sums,
)

UNBOUNDED = (-math.inf, math.inf)
SHARE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)


@dataclass(frozen=True)
class Resampling:
    """How intervals are made; the same seed gives the same interval."""

    confidence: float = 0.95
    """Two-sided."""
    num_resamples: int = 2_000
    seed: int = 0
    share: float = 1.0
    """Part of the error 1 - ``confidence`` that may be made at this look at the held-out set."""
    clusters: NDArray[np.int64] | None = field(default=None, compare=False)
    """[n] number of each sample's topic: whole topics are resampled; None: samples are."""

    def by(self, clusters: ArrayLike) -> "Resampling":
        """Return the plan for samples of which those of equal number belong together: [n]."""
        return replace(self, clusters=np.asarray(clusters, dtype=np.int64))

    @property
    def level(self) -> float:
        """Two-sided level of the interval, ``share`` considered."""
        return self.confidence if self.share == 1.0 else 1.0 - (1.0 - self.confidence) * self.share

    @property
    def widening(self) -> float:
        """How many times as wide the interval is as that of a first look.

        The ratio of normal quantiles: tails so thin cannot be read off a few thousand resamples.
        """
        if self.share == 1.0:
            return 1.0
        ends = -special.ndtri([(1.0 - self.level) / 2.0, (1.0 - self.confidence) / 2.0])
        return float(ends[0] / ends[1])


@dataclass(frozen=True)
class Plans:
    """A plan for every metric: one that a gate tests is measured at that gate's confidence."""

    default: Resampling
    confidences: Mapping[str, float]
    """Metric name to level, from the gates."""

    def __call__(self, metric: str) -> Resampling:
        """Return the plan of ``metric``."""
        level = self.confidences.get(metric, self.default.confidence)
        return replace(self.default, confidence=level)

    def of_rows(self, rows: NDArray[np.int64]) -> "Plans":
        """Return the plans for some of the samples."""
        if self.default.clusters is None:
            return self
        return replace(self, default=replace(self.default, clusters=self.default.clusters[rows]))


def estimate_mean(
    values: ArrayLike, plan: Resampling, *, bounds: tuple[float, float] = UNBOUNDED
) -> Estimate:
    """Mean of samples with a BCa bootstrap interval.

    Three pairs of one dialogue are not three independent samples: with clusters in the plan whole
    ones are resampled, and ``num_samples`` of the result is their number.

    Args:
        values: [n] one value per sample; differences for a paired comparison.
        plan: level, resamples, seed, clusters.
        bounds: range a single value can have, used when all values are equal.

    Raises:
        DataError: there are no values, or one is not finite.
    """
    return estimate_sums(_ratio, [values, np.ones(np.size(values))], plan, bounds=bounds)


def estimate_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    plan: Resampling,
    *,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Ratio of two means over the same samples, resampled together.

    NLL per token (numerator: nats of a text, denominator: its tokens) and the length ratio of two
    models are of this kind.

    Where all samples agree, as those do whose answers were all cut at the same length, resampling
    sees no variation. Then, with bounds of both terms,

        low  = ((1 - p) * mean(numerators) + p * bounds[0])
             / ((1 - p) * mean(denominators) + p * bounds[1]);  high with the bounds swapped

    and p as in ``_constant_interval``, the largest share of samples unlike these that may have been
    missed. Without bounds the interval is the whole line.

    Args:
        numerators: [n].
        denominators: [n], positive.
        plan: level, resamples, seed.
        bounds: range, above 0, that both terms of any one sample have.
    """
    rows = [np.asarray(column, dtype=np.float64) for column in (numerators, denominators)]
    estimate = estimate_sums(_ratio, rows, plan)
    if bounds is None or math.isfinite(estimate.low) or math.isfinite(estimate.high):
        return estimate
    share = _missed_share(estimate.num_samples, plan.level)
    above, below = ((1.0 - share) * float(each.mean()) for each in rows)
    least, most = (share * bound for bound in bounds)
    ends = {"low": (above + least) / (below + most), "high": (above + most) / (below + least)}
    return estimate.model_copy(update=ends)


def estimate_sums(
    statistic: Statistic,
    columns: Sequence[ArrayLike],
    plan: Resampling,
    *,
    bounds: tuple[float, float] = UNBOUNDED,
    on_resamples: Statistic | None = None,
) -> Estimate:
    """A statistic of the sums of columns, with the interval of ``estimate_statistic``.

    Sums take one row out in no time, so the cost grows with the number of rows and no faster.

    Args:
        statistic: takes each column's sum, [...] each, and returns [...].
        columns: each [n], row i of all of them belonging to sample i; or each [k] of what was
            made of the k clusters of the plan.
        plan: level, resamples, seed, clusters.
        bounds: range of the statistic.
        on_resamples: what estimates the same on resamples, where repeated rows make a difference.

    Raises:
        DataError: as ``estimate_statistic``, or columns are neither of samples nor of clusters.
    """
    data = _columns(columns)
    if plan.clusters is not None and plan.clusters.size == data[0].size:
        data = [cluster_sums(column, plan.clusters) for column in data]
    elif plan.clusters is not None and len(np.unique(plan.clusters)) != data[0].size:
        raise DataError(f"{plan.clusters.size} clustered samples, but {data[0].size} values")
    totals = [column.sum() for column in data]
    value = float(statistic(*totals))
    with np.errstate(all="ignore"):
        resamples = np.asarray(
            (on_resamples or statistic)(*resampled_sums(data, plan.num_resamples, plan.seed))
        )
        left_out = statistic(*(total - column for total, column in zip(totals, data, strict=True)))
    return bca_interval(value, resamples, left_out, plan, bounds)


def cluster_sums(values: ArrayLike, clusters: ArrayLike) -> Array:
    """Sum of the values of each cluster: [number of clusters]."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=np.asarray(values, dtype=np.float64)).astype(np.float64)


def equal_clusters(clusters: ArrayLike) -> float:
    """How many clusters of equal size vary as much: of uneven ones those with many rows decide.

        (sum of sizes)^2 / (sum of squared sizes)

    Kish (1965), "Survey Sampling".
    """
    sizes = np.unique(clusters, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def estimate_statistic(
    statistic: Statistic,
    columns: Sequence[ArrayLike],
    plan: Resampling,
    *,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Any statistic of paired columns, with a bias-corrected and accelerated bootstrap interval.

    Rows are resampled, so whatever belongs to one prompt stays together. Efron (1987), "Better
    bootstrap confidence intervals", as in ``scipy.stats.bootstrap``. Where BCa is not defined
    (the statistic does not vary when one row is left out) the percentile interval is taken.

    When all samples agree, resampling sees no variation at all, although one more sample might
    differ. The interval is then that of ``_constant_interval``.

    Args:
        statistic: vectorised over leading dimensions.
        columns: each [n], row i of all of them belonging to sample i.
        plan: level, resamples, seed.
        bounds: range of the statistic.

    Raises:
        DataError: no rows, columns of unequal length, or a value that is not finite.
    """
    data = _columns(columns)
    value = float(statistic(*data, axis=-1))
    with np.errstate(all="ignore"):
        if plan.clusters is None:
            resamples = resampled_rows(statistic, data, plan.num_resamples, plan.seed)
            left_out = left_out_rows(statistic, data)
            return _interval(value, resamples, left_out, plan, bounds, data[0].size)
        resamples, left_out = resampled_clusters(
            statistic, data, plan.clusters, plan.num_resamples, plan.seed
        )
    return bca_interval(value, resamples, left_out, plan, bounds)


def estimate_jackknife(
    value: float, left_out: ArrayLike, plan: Resampling, *, bounds: tuple[float, float]
) -> Estimate:
    """A statistic of a whole set of texts, with a jackknife interval.

        SE^2 = (n - 1) / n * sum_i (statistic without text i - their mean)^2

    Efron & Stein (1981), with Student's t for n - 1 degrees of freedom; where n are uneven topics,
    both as for the ``equal_clusters``. For statistics that count what texts have in common: a
    bootstrap draws texts twice, and so sees repetition that is not there.

    Args:
        value: the statistic.
        left_out: [n] the statistic without each of the n texts, or topics.
        plan: level, topics.
        bounds: range of the statistic.
    """
    left = np.asarray(left_out, dtype=np.float64)
    share_left = (left.size - 1) / left.size
    alike = max(2.0, left.size if plan.clusters is None else equal_clusters(plan.clusters))
    few = share_left * alike / (alike - 1.0)
    error = float(np.sqrt(few * share_left * np.sum((left - left.mean()) ** 2)))
    reach = error * float(special.stdtrit(alike - 1.0, 0.5 + plan.level / 2.0))
    low, high = value - reach, value + reach
    if error == 0.0:
        low, high = _constant_interval(value, left.size, plan.level, bounds)
    return Estimate(
        value=value,
        low=max(low, bounds[0]),
        high=min(high, bounds[1]),
        num_samples=left.size,
        confidence=plan.level,
    )


def widened(estimate: Estimate, factor: float, bounds: tuple[float, float]) -> Estimate:
    """Return the estimate with both ends of its interval ``factor`` times as far from it."""
    low = estimate.value - factor * (estimate.value - estimate.low)
    high = estimate.value + factor * (estimate.high - estimate.value)
    return estimate.model_copy(update={"low": max(low, bounds[0]), "high": min(high, bounds[1])})


def _columns(columns: Sequence[ArrayLike]) -> list[Array]:
    data = [np.asarray(column, dtype=np.float64) for column in columns]
    shapes = {column.shape for column in data}
    if len(shapes) != 1 or data[0].ndim != 1:
        raise DataError(f"expected columns of one length, got shapes {sorted(shapes)}")
    if not data[0].size:
        raise DataError("nothing to measure: no samples")
    if not all(np.isfinite(column).all() for column in data):
        raise DataError("a measured value is not finite")
    return data


def bca_interval(
    value: float, resamples: Array, left_out: Array, plan: Resampling, bounds: tuple[float, float]
) -> Estimate:
    """BCa interval of any statistic from what it was on resamples, of rows or of whole clusters.

    Args:
        value: on all rows.
        resamples: [num_resamples] on each resample.
        left_out: [units] without each row, or without each cluster.
        plan: level; clusters, if those were resampled.
        bounds: range of the statistic.
    """
    estimate = _interval(value, resamples, left_out, plan, bounds, left_out.size)
    if plan.clusters is None:
        return estimate
    return _as_wide_as_of_few(estimate, plan.clusters, plan.level, bounds)


def _as_wide_as_of_few(
    estimate: Estimate, clusters: ArrayLike, level: float, bounds: tuple[float, float]
) -> Estimate:
    """Return an interval of clusters as much wider as Student's t is than the normal.

    Few clusters show less than the whole spread: Hesterberg (2015), section 3.3 (expanded
    percentile interval).
    """
    if not 1 < estimate.num_samples < np.size(clusters):
        return estimate
    count = max(2.0, equal_clusters(clusters))
    from scipy import stats  # takes a second: every stage of a run imports this module

    tail = (1.0 - level) / 2.0
    ends = float(stats.t.isf(tail, count - 1)) / -float(special.ndtri(tail))
    return widened(estimate, ends * math.sqrt(count / (count - 1)), bounds)


def _interval(
    value: float,
    resamples: Array,
    left_out: Array,
    plan: Resampling,
    bounds: tuple[float, float],
    num_samples: int,
) -> Estimate:
    """BCa interval from the resampled statistic and from it with each sample left out."""
    low, high = (value, value) if num_samples == 1 else _ends(value, resamples, left_out, plan)
    factor = plan.widening
    if math.isclose(low, high, rel_tol=1e-12):
        low, high = _constant_interval(value, num_samples, plan.level, bounds)
        factor = 1.0
    estimate = Estimate(
        value=value,
        low=max(min(low, value), bounds[0]),
        high=min(max(high, value), bounds[1]),
        num_samples=num_samples,
        confidence=plan.level,
    )
    return estimate if factor == 1.0 else widened(estimate, factor, bounds)


def _ends(value: float, resamples: Array, left_out: Array, plan: Resampling) -> tuple[float, float]:
    """Efron (1987), equations 2.3 (ends), 3.9 (acceleration) and 4.1 (bias)."""
    if not np.isfinite(resamples).all():
        raise DataError("the bootstrap gave no interval: the statistic is not finite on resamples")
    tails = np.array([(1.0 - plan.confidence) / 2.0, (1.0 + plan.confidence) / 2.0])
    below = np.mean(resamples < value) / 2.0 + np.mean(resamples <= value) / 2.0
    gaps = left_out.mean() - left_out
    spread = float(np.sum(gaps**2))
    with np.errstate(all="ignore"):
        bias = float(special.ndtri(below))
        acceleration = float(np.sum(gaps**3)) / (6.0 * spread**1.5) if spread > 0.0 else math.nan
        shifted = bias + special.ndtri(tails)
        corrected = special.ndtr(bias + shifted / (1.0 - acceleration * shifted))
    if not np.isfinite(corrected).all():
        corrected = tails
    low, high = np.quantile(resamples, corrected)
    return float(low), float(high)


def _constant_interval(
    value: float, num_samples: int, confidence: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Interval for the mean when all n samples have the same value.

        p   = 1 - ((1 - confidence) / 2) ** (1 / n)
        low = value - p * (value - bounds[0]);  high = value + p * (bounds[1] - value)

    p is the largest share of other values that would still show none in n samples with probability
    (1 - confidence) / 2: for a share of 0 or 1 this is Clopper & Pearson (1934), the "rule of
    three". Without bounds the interval is the whole line: n equal samples do not limit a mean.
    """
    share = _missed_share(num_samples, confidence)
    low = value - share * (value - bounds[0]) if value > bounds[0] else value
    high = value + share * (bounds[1] - value) if value < bounds[1] else value
    return low, high


def _missed_share(num_samples: int, confidence: float) -> float:
    return float(1.0 - ((1.0 - confidence) / 2.0) ** (1.0 / num_samples))


def _ratio(numerators: Array, denominators: Array) -> Array:
    return np.asarray(numerators / denominators)
