"""The first half of a PPO iteration: prompts to responses to advantages."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_core.config import PpoConfig
from rlhf_core.errors import DivergedError
from rlhf_core.functional.advantages import (
    centered_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)
from rlhf_core.functional.rewards import penalize_unfinished, scale_scores, token_rewards
from rlhf_core.functional.running_moments import RunningMoments, update_moments
from rlhf_core.rollout.decode import Sampling
from rlhf_core.rollout.experience import (
    Experience,
    Rollout,
    ScoredRollout,
    build_experience,
    build_group_experience,
)
from rlhf_core.rollout.sampling import sequence_uniforms
from rlhf_core.rollout.score import sample_rollout, score_rollout
from rlhf_core.trainers.ppo_learner import Learner, PpoData
from rlhf_core.trainers.ppo_state import PpoState, draw
from rlhf_core.trainers.ppo_update import KL_ESTIMATORS

logger = logging.getLogger(__name__)

GROUP_ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "rloo": leave_one_out_advantages,
    "grpo": group_relative_advantages,
    "dr_grpo": centered_advantages,
}
"""Estimators that need no value function, by their name in the settings."""


def collect_rollout(learner: Learner, data: PpoData, *, iteration: int) -> Rollout:
    """Answer the iteration's prompts; every response of a run has a random stream of its own."""
    settings, seed = learner.settings, learner.seed
    count, group = settings.rollout_batch_size, settings.responses_per_prompt
    num_prompts, first = count // group, iteration * count
    prompts = draw(data.prompts, drawn=iteration * num_prompts, count=num_prompts, seed=seed)
    return sample_rollout(
        learner.models.policy,
        [prompt.prompt_ids for prompt in prompts for _ in range(group)],
        uniforms=sequence_uniforms(seed, range(first, first + count), settings.max_new_tokens),
        sampling=Sampling(settings.temperature, data.end_ids, learner.value_head),
        budget=settings.decode_tokens,
    )


def judge_rollout(learner: Learner, rollout: Rollout, *, iteration: int) -> ScoredRollout:
    """Ask every model about every response.

    Raises:
        DivergedError: one gave a score, value or log-probability that is not finite.
    """
    budget = learner.settings.micro_batch_tokens
    scored = score_rollout(rollout, learner.scorers(), budget=budget)
    _require_finite(scored, iteration)
    if iteration == 0 and not bool(rollout.finished.any()):
        _tell_that_nothing_ends(rollout, learner)
    return scored


def prepare_experience(
    scored: ScoredRollout, state: PpoState, settings: PpoConfig
) -> tuple[Experience, Tensor, RunningMoments]:
    """Turn scores and KL into advantages.

    Returns:
        The experience, the final scores [B], and the running moments of the scores.
    """
    scores, moments = shape_scores(
        scored.scores, scored.rollout.finished, state.score_moments, settings
    )
    kl = KL_ESTIMATORS[settings.kl_estimator](scored.old_logprobs, scored.ref_logprobs)
    rewards = token_rewards(
        scores,
        kl,
        scored.rollout.mask,
        kl_coef=state.kl_coef if settings.kl_placement == "reward" else 0.0,
    )
    if settings.needs_values:
        experience = build_experience(
            scored,
            rewards,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
            whiten_advantages=settings.whitens,
        )
    else:
        experience = build_group_experience(
            scored,
            rewards,
            GROUP_ADVANTAGES[settings.advantages],
            group_size=settings.responses_per_prompt,
            whiten_advantages=settings.whitens,
        )
    return experience, scores, moments


def shape_scores(
    scores: Tensor, finished: Tensor, moments: RunningMoments, settings: PpoConfig
) -> tuple[Tensor, RunningMoments]:
    """Scale, clip, then put the penalty for missing EOS in place, so that it stays what it is.

    Scores that the penalty replaces do not count in the running moments.

    Returns:
        [B] final scores, and the moments with this batch.
    """
    penalty = settings.missing_eos_penalty
    moments = update_moments(moments, scores if penalty is None else scores[finished])
    if settings.scale_scores:
        scores = scale_scores(scores, moments)
    if settings.clip_scores is not None:
        scores = scores.clamp(-settings.clip_scores, settings.clip_scores)
    if penalty is not None:
        scores = penalize_unfinished(scores, finished, penalty=penalty)
    return scores, moments


def _tell_that_nothing_ends(rollout: Rollout, learner: Learner) -> None:
    """Say at once that a run learns from the penalty alone; hours later it is dear to find out."""
    settings = learner.settings
    if settings.missing_eos_penalty is None:
        return
    logger.warning(
        "missing_eos: none of the first %d responses ended within policy.max_new_tokens=%d (tokens"
        " that end one: %s): all get the penalty, and the reward model's score counts for nothing."
        " Train SFT longer, raise policy.max_new_tokens, or look whether the chat template ends"
        " turns as the model was taught",
        rollout.num_rows,
        settings.max_new_tokens,
        ", ".join(map(str, learner.data.end_ids)),
    )


def _require_finite(scored: ScoredRollout, iteration: int) -> None:
    mask = scored.rollout.mask
    for name, found in (
        ("policy log-probability", scored.old_logprobs[mask]),
        ("reference log-probability", scored.ref_logprobs[mask]),
        ("value", None if scored.values is None else scored.values[mask]),
        ("reward-model score", scored.scores),
    ):
        if found is not None and not bool(torch.isfinite(found).all()):
            raise DivergedError(f"iteration {iteration}: a {name} is not finite")
