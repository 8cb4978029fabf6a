"""Measured values with their uncertainty: the bootstrap, and what it cannot see."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rlhf_core.errors import DataError
from rlhf_core.schema import Estimate

Array = NDArray[np.float64]
Statistic = Callable[..., Array]
"""Takes columns of shape [..., n] and ``axis=-1``; returns [...]."""

_FLOATS_AT_ONCE = 4_000_000
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


def estimate_mean(
    values: ArrayLike, plan: Resampling, *, bounds: tuple[float, float] = UNBOUNDED
) -> Estimate:
    """Mean of independent samples with a BCa bootstrap interval.

    Args:
        values: [n] one value per independent sample; differences for a paired comparison.
        plan: level, resamples, seed.
        bounds: range a single value can have, used when all values are equal.

    Raises:
        DataError: there are no values, or one is not finite.
    """
    return estimate_statistic(_mean, [values], plan, bounds=bounds)


def estimate_ratio(numerators: ArrayLike, denominators: ArrayLike, plan: Resampling) -> Estimate:
    """Ratio of two means over the same samples, resampled together.

    NLL per token (numerator: nats of a text, denominator: its tokens) and the length ratio of two
    models are of this kind.
    """
    return estimate_statistic(_ratio, [numerators, denominators], plan)


def estimate_clustered(
    values: ArrayLike,
    clusters: ArrayLike,
    plan: Resampling,
    *,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Mean of values of which some belong together: whole clusters are resampled.

    Three pairs of one dialogue are not three independent samples; ``num_samples`` of the result is
    the number of clusters.

    Args:
        values: [n].
        clusters: [n] integers from 0; equal ones belong together.
        plan: level, resamples, seed.
        bounds: range a single value can have.
    """
    sums, counts = cluster_sums(values, clusters), cluster_sums(np.ones(np.size(values)), clusters)
    return estimate_statistic(_ratio, [sums, counts], plan, bounds=bounds)


def cluster_sums(values: ArrayLike, clusters: ArrayLike) -> Array:
    """Sum of the values of each cluster: [number of clusters]."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(index, weights=np.asarray(values, dtype=np.float64)).astype(np.float64)


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
    num_samples = data[0].shape[0]
    value = float(statistic(*data, axis=-1))
    low, high = (value, value) if num_samples == 1 else _bootstrap(statistic, data, plan)
    if math.isclose(low, high, rel_tol=1e-12):
        low, high = _constant_interval(value, num_samples, plan.confidence, bounds)
    return Estimate(
        value=value,
        low=max(min(low, value), bounds[0]),
        high=min(max(high, value), bounds[1]),
        num_samples=num_samples,
        confidence=plan.confidence,
    )


def estimate_jackknife(
    value: float, left_out: ArrayLike, plan: Resampling, *, bounds: tuple[float, float]
) -> Estimate:
    """A statistic of a whole set of texts, with a jackknife interval.

        SE^2 = (n - 1) / n * sum_i (statistic without text i - their mean)^2

    Efron & Stein (1981). For statistics that count what texts have in common: a bootstrap draws
    texts twice, and so sees repetition that is not there.

    Args:
        value: the statistic.
        left_out: [n] the statistic without each of the n texts.
        plan: level.
        bounds: range of the statistic.
    """
    left = np.asarray(left_out, dtype=np.float64)
    error = float(np.sqrt((left.size - 1) / left.size * np.sum((left - left.mean()) ** 2)))
    reach = error * float(stats.norm.ppf(0.5 + plan.confidence / 2.0))
    low, high = value - reach, value + reach
    if error == 0.0:
        low, high = _constant_interval(value, left.size, plan.confidence, bounds)
    return Estimate(
        value=value,
        low=max(low, bounds[0]),
        high=min(high, bounds[1]),
        num_samples=left.size,
        confidence=plan.confidence,
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


def _bootstrap(statistic: Statistic, data: list[Array], plan: Resampling) -> tuple[float, float]:
    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # BCa says when it is not defined; the percentile interval comes next.
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            interval = stats.bootstrap(
                data,
                statistic,
                paired=True,
                vectorized=True,
                axis=-1,
                n_resamples=plan.num_resamples,
                batch=max(1, _FLOATS_AT_ONCE // data[0].size),
                confidence_level=plan.confidence,
                method=method,
                rng=np.random.default_rng(plan.seed),
            ).confidence_interval
        low, high = float(interval.low), float(interval.high)
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    raise DataError("the bootstrap gave no interval: the statistic is not finite on resamples")


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
    share = 1.0 - ((1.0 - confidence) / 2.0) ** (1.0 / num_samples)
    low = value - share * (value - bounds[0]) if value > bounds[0] else value
    high = value + share * (bounds[1] - value) if value < bounds[1] else value
    return low, high


def _mean(values: Array, axis: int = -1) -> Array:
    return np.asarray(values.mean(axis=axis))


def _ratio(numerators: Array, denominators: Array, axis: int = -1) -> Array:
    return np.asarray(numerators.sum(axis=axis) / denominators.sum(axis=axis))
