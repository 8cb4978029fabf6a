"""How well a reward model agrees with people on held-out pairs, beside its rival: length alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from rlhf_core.evaluation.intervals import (
    DIFFERENCE,
    SHARE,
    UNBOUNDED,
    Array,
    Plans,
    Resampling,
    cluster_sums,
    estimate_clustered,
    estimate_statistic,
)
from rlhf_core.schema import Estimate


@dataclass(frozen=True)
class ScoredPairs:
    """Held-out pairs as the reward model sees them; row i of every field is pair i."""

    chosen_scores: Array
    rejected_scores: Array
    chosen_lengths: Array
    """Tokens of the response, EOS included."""
    rejected_lengths: Array
    clusters: NDArray[np.int64]
    """Pairs of one dialogue share a number: they are not independent samples."""

    @property
    def margins(self) -> Array:
        """[n] score of chosen less score of rejected."""
        return self.chosen_scores - self.rejected_scores


def correctness(margins: ArrayLike) -> Array:
    """1 where chosen scores higher, 0.5 where equal, 0 otherwise: [n]."""
    return np.asarray(0.5 * (np.sign(np.asarray(margins, dtype=np.float64)) + 1.0))


@dataclass(frozen=True)
class LengthRival:
    """Predicts the winner from the two lengths: what a reward model has to beat."""

    weight: float
    """Log-odds of winning per token longer."""

    def correctness(self, chosen_lengths: ArrayLike, rejected_lengths: ArrayLike) -> Array:
        """1 where it would pick the chosen response, 0.5 at equal length or weight 0: [n]."""
        gap = np.asarray(chosen_lengths, dtype=np.float64) - np.asarray(rejected_lengths)
        return correctness(self.weight * gap)


def fit_length_rival(chosen_lengths: ArrayLike, rejected_lengths: ArrayLike) -> LengthRival:
    """Fit the rival on training pairs.

        P(a beats b) = sigmoid(weight * (l_a - l_b))

    Every pair enters both ways round, so that the order of chosen and rejected says nothing; there
    is no intercept for the same reason. Lengths are standardised, with sklearn's L2 penalty of 1.

    Args:
        chosen_lengths: [n] tokens of the responses that won.
        rejected_lengths: [n] tokens of the ones that lost.
    """
    gap = np.asarray(chosen_lengths, dtype=np.float64) - np.asarray(rejected_lengths)
    spread = float(np.sqrt(np.mean(gap**2)))
    if spread == 0.0:
        return LengthRival(weight=0.0)
    features = np.concatenate([gap, -gap])[:, None] / spread
    labels = np.concatenate([np.ones(len(gap)), np.zeros(len(gap))])
    fitted = LogisticRegression(fit_intercept=False).fit(features, labels)
    return LengthRival(weight=float(fitted.coef_[0, 0]) / spread)


def preference_metrics(
    pairs: ScoredPairs, rival: LengthRival, *, prefix: str, bins: int, plans: Plans
) -> dict[str, Estimate]:
    """Everything measured of a reward model on held-out pairs.

    ``heldout_accuracy``, ``length_only_accuracy``, ``accuracy_over_length`` (their difference,
    pair by pair), ``calibration_error``, ``heldout_nll`` (log 2 is chance) and ``margin``.

    Args:
        pairs: scores and lengths.
        rival: fitted on the training half.
        prefix: ``reward`` or ``judge``.
        bins: of the calibration error.
        plans: resampling by metric name.
    """
    right = correctness(pairs.margins)
    rival_right = rival.correctness(pairs.chosen_lengths, pairs.rejected_lengths)
    per_pair = {
        "heldout_accuracy": (right, SHARE),
        "length_only_accuracy": (rival_right, SHARE),
        "accuracy_over_length": (right - rival_right, DIFFERENCE),
        "heldout_nll": (np.logaddexp(0.0, -pairs.margins), UNBOUNDED),
        "margin": (pairs.margins, UNBOUNDED),
    }
    metrics = {
        f"{prefix}/{name}": estimate_clustered(
            values, pairs.clusters, plans(f"{prefix}/{name}"), bounds=bounds
        )
        for name, (values, bounds) in per_pair.items()
    }
    plan = plans(f"{prefix}/calibration_error")
    metrics[f"{prefix}/calibration_error"] = calibration_error(
        pairs.margins, pairs.clusters, plan, bins=bins
    )
    return metrics


def calibration_error(
    margins: ArrayLike, clusters: ArrayLike, plan: Resampling, *, bins: int
) -> Estimate:
    """Expected calibration error of the predicted winner.

        confidence_i = sigmoid(|margin_i|), in [0.5, 1];  right_i = 1 if margin_i > 0
        ECE = sum_b |sum_{i in b} (right_i - confidence_i)| / n

    with bins b of equal width. Naeini et al. (2015); Guo et al. (2017), arXiv:1706.04599, eq. 3.
    Noise in a bin counts as error, so the estimate and its interval lean upwards for small n.

    Args:
        margins: [n] score of chosen less score of rejected.
        clusters: [n] pairs that belong together.
        plan: level, resamples, seed.
        bins: number of bins over [0.5, 1].
    """
    gaps = np.asarray(margins, dtype=np.float64)
    confidence = 1.0 / (1.0 + np.exp(-np.abs(gaps)))
    residual = correctness(gaps) - confidence
    index = np.minimum(((confidence - 0.5) * 2.0 * bins).astype(np.int64), bins - 1)
    columns = [cluster_sums(residual * (index == b), clusters) for b in range(bins)]
    columns.append(cluster_sums(np.ones(len(gaps)), clusters))
    return estimate_statistic(_binned_error, columns, plan, bounds=SHARE)


def _binned_error(*columns: Array, axis: int = -1) -> Array:
    *residuals, counts = columns
    error = sum(np.abs(column.sum(axis=axis)) for column in residuals)
    return np.asarray(error / counts.sum(axis=axis))


def accuracy_by_length(pairs: ScoredPairs, *, prefix: str, plans: Plans) -> dict[str, Estimate]:
    """Accuracy where the longer response won, where the shorter did, and where they are equal.

    A reward model that only counts tokens is right in the first group and wrong in the second.
    """
    gap = pairs.chosen_lengths - pairs.rejected_lengths
    groups = {"chosen=longer": gap > 0, "chosen=shorter": gap < 0, "chosen=equal": gap == 0}
    right = correctness(pairs.margins)
    plan = plans(f"{prefix}/heldout_accuracy")
    return {
        name: estimate_clustered(right[group], pairs.clusters[group], plan, bounds=SHARE)
        for name, group in groups.items()
        if group.any()
    }
