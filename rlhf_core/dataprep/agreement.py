"""How far annotators agree beyond chance: Krippendorff's alpha with its interval."""

import numpy as np
from numpy.typing import NDArray

from rlhf_core.schema import Estimate

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
    counts: Ints, *, num_resamples: int, seed: int, confidence: float = 0.95
) -> Estimate | None:
    """Return alpha with a percentile bootstrap over comparisons; None where it is not defined.

    Comparisons with the same counts are alike, so a resample is one multinomial draw over the
    few distinct patterns, whatever the size of the data.

    Args:
        counts: [N, 3] votes for a, b and tie.
        num_resamples: bootstrap resamples.
        seed: of the resampling.
        confidence: two-sided level of the interval.
    """
    value = krippendorff_alpha(counts)
    if value is None:
        return None
    pairable = counts[counts.sum(axis=1) > 1]
    patterns, weights = np.unique(pairable, axis=0, return_counts=True)
    num_comparisons = int(weights.sum())
    draws = np.random.default_rng(seed).multinomial(
        num_comparisons, weights / num_comparisons, size=num_resamples
    )
    alphas = _alphas(patterns, draws)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(alphas, [tail, 1 - tail])
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        num_samples=num_comparisons,
        confidence=confidence,
    )


def _alphas(patterns: Ints, weights: Ints) -> Floats:
    """Alpha of each row of ``weights`` over the patterns.

        D_o = sum_u sum_c n_uc (n_u - n_uc) / (n_u - 1) / n
        D_e = sum_c n_c (n - n_c) / (n (n - 1))

    Args:
        patterns: [P, 3] distinct rows of counts, each with two votes or more.
        weights: [R, P] how often each pattern occurs.

    Returns:
        [R] alpha; NaN where all votes are the same answer.
    """
    sizes = patterns.sum(axis=1, keepdims=True)
    within = (patterns * (sizes - patterns)).sum(axis=1) / (sizes[:, 0] - 1)
    answers = weights @ patterns
    total = answers.sum(axis=1)
    observed = weights @ within / total
    expected = (answers * (total[:, None] - answers)).sum(axis=1) / (total * (total - 1.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        alphas: Floats = 1 - observed / expected
    return np.where(expected > 0, alphas, np.nan)
