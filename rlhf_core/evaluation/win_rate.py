"""How often the policy's answer beats SFT's, plainly and with length held equal."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rlhf_core.errors import DataError
from rlhf_core.schema import Estimate
from rlhf_core.statistics.intervals import SHARE, Resampling, bca_interval, estimate_mean
from rlhf_core.statistics.resampling import Array

_NEWTON_STEPS = 25
_CONVERGED = 1e-10
_WEIGHTS_AT_ONCE = 1_000_000
_MAX_LOG_ODDS = 15.0
_RIDGE = 1e-2
"""Pseudo-samples on the length weight, so that it stays finite where length decides everything."""
_MIN_EACH_WAY = 20
_MIN_SHARE_EACH_WAY = 0.05
"""Answers of either model that must be at least as long as the other's: so many, or this share."""


def outcomes(
    policy_scores: ArrayLike,
    sft_scores: ArrayLike,
    *,
    policy_texts: Sequence[str],
    sft_texts: Sequence[str],
) -> Array:
    """Outcome per prompt: 1 the policy's answer scores higher, 0 lower, 0.5 a tie. [n].

    Two answers of equal text are a tie whatever rounding made of their scores.
    """
    gain = np.asarray(policy_scores, dtype=np.float64) - np.asarray(sft_scores, dtype=np.float64)
    if not np.isfinite(gain).all():
        raise DataError("a judge score is not finite")
    same = np.array([a == b for a, b in zip(policy_texts, sft_texts, strict=True)], dtype=bool)
    return np.where(same | (gain == 0.0), 0.5, (gain > 0.0).astype(np.float64))


def win_rate(won: Array, plan: Resampling) -> Estimate:
    """Mean outcome over prompts; 0.5 means no better than SFT."""
    return estimate_mean(won, plan, bounds=SHARE)


def length_controlled_win_rate(
    won: Array, policy_lengths: ArrayLike, sft_lengths: ArrayLike, plan: Resampling
) -> Estimate:
    """Win rate that the same answers would have at equal length.

        P(policy wins) = sigmoid(theta + phi * tanh((l_policy - l_sft) / std(l_policy - l_sft)))
        length-controlled win rate = sigmoid(theta)

    fitted by maximum likelihood, ties as half a win. Dubois et al. (2024), arXiv:2404.04475,
    section 3, eq. 2; their instruction-difficulty term needs many models on the same prompts and
    is left out, and their length weight has a light L2 penalty, as here. Every bootstrap resample
    fits anew; the standard deviation is that of the whole sample.

    Where nearly all answers of one model are the longer ones, nothing was seen of equal length: the
    fit would be a guess, and the interval is all of [0, 1].

    Args:
        won: [n] outcomes in {0, 0.5, 1}.
        policy_lengths: [n] tokens of the policy's answers.
        sft_lengths: [n] tokens of SFT's answers to the same prompts.
        plan: level, resamples, seed.
    """
    gap = np.asarray(policy_lengths, dtype=np.float64) - np.asarray(sft_lengths, dtype=np.float64)
    spread = float(gap.std())
    longer = np.tanh(gap / spread) if spread > 0.0 else np.zeros_like(gap)
    estimate = win_rate(won, plan) if np.ptp(won) == 0.0 else _resampled(won, longer, plan)
    if _lengths_overlap(gap):
        return estimate
    return estimate.model_copy(update={"low": SHARE[0], "high": SHARE[1]})


def _lengths_overlap(gap: Array) -> bool:
    """Whether some answers of each model are as long as the other's, or longer."""
    needed = min(_MIN_EACH_WAY, max(2.0, _MIN_SHARE_EACH_WAY * gap.size))
    return bool((gap <= 0.0).sum() >= needed and (gap >= 0.0).sum() >= needed)


def _resampled(won: Array, longer: Array, plan: Resampling) -> Estimate:
    """Fit with its interval; prompts of equal outcome and lengths are one row with a weight.

    Lengths are whole tokens, so the rows are few however many prompts there are. What leaving one
    out would change is its influence on theta (infinitesimal jackknife, Jaeckel 1972).
    """
    rows, index = np.unique(np.stack([won, longer], axis=-1), axis=0, return_inverse=True)
    counts: Array = np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(plan.seed)
    fit = _fit(rows, counts[None])
    influence = _influence(rows, counts, float(fit[0][0]), float(fit[1][0]))
    drawn: Array
    if plan.clusters is None:
        chances = counts / won.size
        drawn = rng.multinomial(won.size, chances, size=plan.num_resamples).astype(np.float64)
        left_out = -influence[index]
    else:
        _, topic = np.unique(plan.clusters, return_inverse=True)
        table = np.zeros((topic.max() + 1, counts.size))
        np.add.at(table, (topic, index), 1.0)
        same = np.full(len(table), 1.0 / len(table))
        drawn = rng.multinomial(len(table), same, size=plan.num_resamples).astype(np.float64)
        drawn, left_out = drawn @ table, -(table @ influence)
    size = max(1, _WEIGHTS_AT_ONCE // len(rows))
    resamples = [_fit(rows, drawn[at : at + size])[0] for at in range(0, len(drawn), size)]
    value = float(_sigmoid(fit[0])[0])
    return bca_interval(value, _sigmoid(np.concatenate(resamples)), left_out, plan, SHARE)


def _influence(rows: Array, counts: Array, theta: float, phi: float) -> Array:
    """How much theta moves with the weight of each row: [rows]."""
    won, longer = rows[:, 0], rows[:, 1]
    chance = _sigmoid(theta + phi * longer)
    weight = counts * chance * (1.0 - chance)
    curve, cross = weight.sum() + 1e-9, weight @ longer
    curve_phi = weight @ longer**2 + _RIDGE
    gradient = (won - chance) * (curve_phi - cross * longer)
    return np.asarray(gradient / (curve * curve_phi - cross**2))


def _fit(rows: Array, weights: Array) -> tuple[Array, Array]:
    """Fit theta and phi for each row of weights [B, rows] by Newton's method, all at once."""
    won, longer = rows[:, 0], rows[:, 1]
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_NEWTON_STEPS):
        chance = _sigmoid(theta[:, None] + phi[:, None] * longer)
        residual = weights * (won - chance)
        weight = weights * (chance * (1.0 - chance))
        gradient_theta = residual.sum(-1)
        gradient_phi = residual @ longer - _RIDGE * phi
        curve = weight.sum(-1) + 1e-9
        cross, curve_phi = weight @ longer, weight @ longer**2 + _RIDGE
        determinant = curve * curve_phi - cross**2
        step_theta = (curve_phi * gradient_theta - cross * gradient_phi) / determinant
        step_phi = (curve * gradient_phi - cross * gradient_theta) / determinant
        # Half of a resample's pairs may be separable; a bounded step keeps Newton from leaping.
        theta = np.clip(theta + np.clip(step_theta, -2.0, 2.0), -_MAX_LOG_ODDS, _MAX_LOG_ODDS)
        phi = np.clip(phi + np.clip(step_phi, -2.0, 2.0), -_MAX_LOG_ODDS, _MAX_LOG_ODDS)
        if max(np.abs(step_theta).max(), np.abs(step_phi).max()) < _CONVERGED:
            break
    return theta, phi


def _sigmoid(odds: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-odds)))
