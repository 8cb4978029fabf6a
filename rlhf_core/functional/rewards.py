"""From one score per response to one reward per token."""

import torch
from torch import Tensor

from rlhf_core.functional.running_moments import RunningMoments, update_moments
from rlhf_core.functional.shapes import require_same_shape

SCALE_EPS = 1e-8
"""Added to the running standard deviation, so that equal scores do not divide by zero."""


def scale_scores(scores: Tensor, moments: RunningMoments) -> Tensor:
    """Scores in units of their running standard deviation; their sign and zero stay.

        scaled = scores / (std + 1e-8)

    Zheng et al. (2023), arXiv:2307.04964, section 5.3.1, without the shift by the mean: a shift
    would change which responses are better than the missing-EOS penalty.

    Args:
        scores: [B] reward-model scores.
        moments: of all scores so far, this batch included.

    Returns:
        [B] scaled scores, dimensionless; unchanged while all scores seen were equal.
    """
    return scores / (moments.std + SCALE_EPS) if moments.std > SCALE_EPS else scores


def penalize_unfinished(scores: Tensor, finished: Tensor, *, penalty: float) -> Tensor:
    """Scores in which every response without EOS gets one fixed low score.

        score_b = scores_b if finished_b else -penalty

    The reward model never saw a text cut off at the length limit, so its opinion of one is not
    used. Ziegler et al. (2019), arXiv:1909.08593, section 3.1.2; the "EOS trick" of Huang et al.
    (2024), arXiv:2403.17031.

    Args:
        scores: [B] reward-model scores; not read where ``finished`` is False, NaN included.
        finished: [B] bool, True where the response ended with EOS.
        penalty: >= 0, in the unit of ``scores``.

    Returns:
        [B] scores.

    Raises:
        ShapeError: the shapes differ.
    """
    require_same_shape(scores=scores, finished=finished)
    return torch.where(finished, scores, -penalty)


def combine_ensemble(scores: Tensor, how: str, *, uncertainty_coef: float) -> Tensor:
    """One score per response from those of several reward models.

        mean:        mean_i s_i
        worst:       min_i s_i
        uncertainty: mean_i s_i - uncertainty_coef * mean_i (s_i - mean)^2

    Coste et al. (2023), arXiv:2310.02743, section 3: a policy that fools one model is held back by
    the others, most of all where they disagree.

    Args:
        scores: [R, B] scores of R models, in one unit.
        how: ``mean``, ``worst`` or ``uncertainty``.
        uncertainty_coef: weight of the variance, in 1 / score; read by ``uncertainty``.

    Returns:
        [B] scores.
    """
    if how == "worst":
        return scores.amin(dim=0)
    if how == "uncertainty":
        return scores.mean(dim=0) - uncertainty_coef * scores.var(dim=0, correction=0)
    return scores.mean(dim=0)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Reward of each response token: the KL penalty everywhere, the score at the last token.

        r_t = -kl_coef * kl_t + score * [t is the last response token]

    Ziegler et al. (2019), arXiv:1909.08593, eq. 2; Ouyang et al. (2022), arXiv:2203.02155,
    eq. 2; the place of the score: Huang et al. (2024), arXiv:2403.17031.

    Args:
        scores: [B] score of each response.
        kl: [B, T] KL estimate of each token, nats.
        mask: [B, T] bool, True on response tokens; each row is True up to its length, which is
            at least 1.
        kl_coef: score per nat; 0 leaves the KL out (then it is a loss, or nothing).

    Returns:
        [B, T] rewards, 0.0 where ``mask`` is False.

    Raises:
        ShapeError: ``kl`` and ``mask`` differ, or ``scores`` is not [B].
    """
    require_same_shape(kl=kl, mask=mask)
    require_same_shape(scores=scores, rows=mask[:, 0])
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def shape_scores(
    scores: Tensor,
    finished: Tensor,
    moments: RunningMoments,
    *,
    scale: bool,
    clip: float | None,
    missing_eos_penalty: float | None,
) -> tuple[Tensor, RunningMoments]:
    """Scale, clip, then put the penalty for missing EOS in place, so that it stays what it is.

    Scores that the penalty replaces do not count in the running moments.

    Args:
        scores: [B] as the reward model gave them.
        finished: [B] bool, True where the response ended with EOS.
        moments: of all scores before.
        scale: divide by the running standard deviation.
        clip: > 0, largest absolute score after scaling; None clips nothing.
        missing_eos_penalty: >= 0, minus this is the score of an unfinished response; None lets
            the reward model's stand.

    Returns:
        [B] final scores, and the moments with this batch.
    """
    moments = update_moments(moments, scores if missing_eos_penalty is None else scores[finished])
    if scale:
        scores = scale_scores(scores, moments)
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    if missing_eos_penalty is not None:
        scores = penalize_unfinished(scores, finished, penalty=missing_eos_penalty)
    return scores, moments
