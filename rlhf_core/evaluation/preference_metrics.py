"""How well a reward model agrees with people on held-out pairs, beside its rival: length alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_core.schema import Estimate, PreferencePair
from rlhf_core.statistics.intervals import (
    DIFFERENCE,
    SHARE,
    UNBOUNDED,
    Plans,
    Resampling,
    cluster_sums,
    estimate_mean,
    estimate_sums,
)
from rlhf_core.statistics.resampling import Array, Ints

Chosen = NDArray[np.bool_]
"""[n] True where a row belongs."""
_NO_SPREAD = 1e-9


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
    from sklearn.linear_model import LogisticRegression  # a second, in every process of a training

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
        f"{prefix}/{name}": estimate_mean(
            values, plans(f"{prefix}/{name}").by(pairs.clusters), bounds=bounds
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
    """How far the predicted chance of the winner is off: a root mean square, without its noise.

        confidence_i = sigmoid(|margin_i|), in [0.5, 1];  r_i = right_i - confidence_i
        error^2 = sum_b (n_b / n) * sum_{i != j in b, of other clusters} r_i r_j / n_b^2

    with bins b of equal width. Products of different samples have the squared gap of the bin as
    their mean, so that error^2 of a perfect model is 0 on average whatever n; the squared sum
    itself adds the noise of each bin. Brocker (2012), "Estimating reliability and resolution of
    probability forecasts through decomposition of the empirical score"; Kumar et al. (2019),
    arXiv:1909.10155, section 5. A square below 0 by chance has the root 0, and so the root, which
    is what is returned, is above 0 on average: 0.020 for a perfect model on 300 pairs in ten bins.

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
    here = [index == b for b in range(bins) if (index == b).any()]
    sums = [cluster_sums(residual * chosen, clusters) for chosen in here]
    columns = [*sums, *(column**2 for column in sums)]
    columns += [cluster_sums(chosen, clusters) for chosen in here]
    squared = estimate_sums(
        partial(_squared_error, own=1.0),
        columns,
        plan.by(clusters),
        # A row that was drawn twice meets itself: its square is in the products once more.
        on_resamples=partial(_squared_error, own=2.0),
    )
    roots = {name: _root(getattr(squared, name)) for name in ("value", "low", "high")}
    return squared.model_copy(update=roots)


def _squared_error(*columns: Array, own: float) -> Array:
    """Sum over bins of (sum^2 - own * sum of squares) / (n_b * n)."""
    sums, squares, counts = np.split(np.stack(np.broadcast_arrays(*columns)), 3)
    products = (sums**2 - own * squares) / np.maximum(counts, 1.0)
    return np.asarray(products.sum(axis=0) / counts.sum(axis=0))


def _root(squared: float) -> float:
    return math.sqrt(max(0.0, squared))


AGREEMENTS = (
    ("1", 1.0),
    ("0.75 to 1", 0.75),
    ("0.5 to 0.75", 0.5),
    ("below 0.5", 0.0),
)
"""Slices by the share of the votes for the chosen answer, each from its limit upwards."""
MAX_TAG_VALUES = 30
"""A tag or source with more values than this labels single rows; no table is broken down by it."""


def accuracy_slices(
    pairs: ScoredPairs, records: Sequence[PreferencePair], plan: Resampling
) -> dict[str, Estimate]:
    """Accuracy over the pairs of every slice; one that is empty is left out.

    By which side is longer (a model that only counts tokens is right in the first group and wrong
    in the second), by how different the lengths are (thirds), by the annotators' agreement, by
    source and by tag.

    Args:
        pairs: scores and lengths.
        records: [n] the same pairs as prepared.
        plan: level, resamples, seed.
    """
    right, gaps = correctness(pairs.margins), pairs.chosen_lengths - pairs.rejected_lengths
    slices = {
        "chosen=longer": gaps > 0,
        "chosen=shorter": gaps < 0,
        "chosen=equal": gaps == 0,
        **thirds("length_difference", np.abs(gaps), ("small", "middle", "large")),
        **record_slices(records),
    }
    return {
        name: estimate_mean(right[rows], plan.by(pairs.clusters[rows]), bounds=SHARE)
        for name, rows in slices.items()
        if rows.any()
    }


def record_slices(records: Sequence[PreferencePair]) -> dict[str, Chosen]:
    """Return the rows of every slice that the pairs as prepared tell: agreement, source, tags."""
    return _by_agreement(records) | _by_label(records)


def thirds(name: str, values: Array, words: tuple[str, str, str]) -> dict[str, Chosen]:
    """``<name>=<word>`` to the rows of each third; equal values share one."""
    first, second = np.quantile(values, [1 / 3, 2 / 3])
    rows = (values <= first, (values > first) & (values <= second), values > second)
    return {f"{name}={word}": here for word, here in zip(words, rows, strict=True)}


def _by_agreement(records: Sequence[PreferencePair]) -> dict[str, Chosen]:
    """Pairs with one vote are a slice of their own: nobody could disagree."""
    single = np.array([pair.num_votes == 1 for pair in records])
    agreement = np.array([pair.agreement for pair in records])
    slices, above = {"agreement=one vote": single}, np.inf
    for word, limit in AGREEMENTS:
        slices[f"agreement={word}"] = ~single & (agreement >= limit) & (agreement < above)
        above = limit
    return slices


def _by_label(records: Sequence[PreferencePair]) -> dict[str, Chosen]:
    labels = [pair.tags | ({"source": pair.source} if pair.source else {}) for pair in records]
    slices: dict[str, Chosen] = {}
    for key in sorted({key for row in labels for key in row}):
        values = np.array([row.get(key, "") for row in labels])
        if len(distinct := sorted(set(values.tolist()) - {""})) <= MAX_TAG_VALUES:
            slices |= {f"{key}={value}": values == value for value in distinct}
    return slices


def error_correlation(first: Array, second: Array, clusters: Ints, plan: Resampling) -> Estimate:
    """Correlation of two judges' errors on the same pairs: phi, where no outcome is a tie.

        phi = cov(e_1, e_2) / sqrt(var(e_1) var(e_2)),   e = 1 - right

    1: they err on the same pairs, so one cannot see what fools the other. Pearson's correlation of
    the outcomes; a tie is half an error. Where one of them never errs, or always does, nothing is
    known and the interval is the whole range.

    Args:
        first: [n] 1, 0.5 or 0 as ``correctness`` has it.
        second: [n] the same of the other.
        clusters: [n] pairs of one dialogue share a number.
        plan: level, resamples, seed.
    """
    products = (first, second, first**2, second**2, first * second, np.ones(first.size))
    if min(first.std(), second.std()) < _NO_SPREAD:
        count = len(np.unique(clusters))
        return Estimate(value=0.0, low=-1.0, high=1.0, num_samples=count, confidence=plan.level)
    return estimate_sums(_correlation, products, plan.by(clusters), bounds=DIFFERENCE)


def _correlation(*sums: Array) -> Array:
    """Pearson's correlation from sums of x, y, x^2, y^2, xy and 1; 0 where one does not vary."""
    x, y, xx, yy, xy, n = sums
    covariance = xy / n - x * y / n**2
    spread = np.sqrt(
        np.maximum(xx / n - (x / n) ** 2, 0.0) * np.maximum(yy / n - (y / n) ** 2, 0.0)
    )
    known = spread > _NO_SPREAD**2
    return np.asarray(np.where(known, covariance / np.where(known, spread, 1.0), 0.0))


def correlation_by_noise(first: float, second: float, ceiling: float) -> float:
    """Error correlation that wrong labels alone make of two judges which err independently.

        phi_0 = f (1 - f) (2 p_1 - 1) (2 p_2 - 1) / sqrt(a_1 (1 - a_1) a_2 (1 - a_2))
        2 p - 1 = (2 a - 1) / (1 - 2 f)

    with a the measured accuracies, f = 1 - ceiling the share of wrong labels, and p the accuracies
    on right ones: where a label is wrong, both are counted wrong for being right.

    Args:
        first: measured accuracy of one, below 1.
        second: of the other.
        ceiling: the noise ceiling, above 0.5.
    """
    wrong = 1.0 - ceiling
    variance = first * (1.0 - first) * second * (1.0 - second)
    if variance <= 0.0 or ceiling <= 0.5:
        return 0.0
    leads = (2.0 * first - 1.0) * (2.0 * second - 1.0) / (1.0 - 2.0 * wrong) ** 2
    return float(wrong * (1.0 - wrong) * leads / math.sqrt(variance))
