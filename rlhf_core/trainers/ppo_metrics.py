"""What a PPO iteration reports; ``fit_ppo`` puts ``policy/`` before every name."""

import time

from torch import Tensor

from rlhf_core.functional.advantages import GROUP_EPS
from rlhf_core.functional.kl import kl_k1
from rlhf_core.functional.ppo import explained_variance
from rlhf_core.functional.whitening import masked_mean
from rlhf_core.rollout.experience import Experience, ScoredRollout

Metrics = dict[str, float]


class Stopwatch:
    """Wall time by phase."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.seconds: Metrics = {}

    def lap(self, phase: str) -> None:
        """Book the time since the last call under ``seconds_<phase>``."""
        now = time.perf_counter()
        self.seconds[f"seconds_{phase}"] = now - self.last
        self.last = now

    def metrics(self, num_tokens: int) -> Metrics:
        """Seconds by phase, and sampled tokens per second over all of them."""
        total = sum(self.seconds.values())
        return {**self.seconds, "response_tokens_per_second": num_tokens / total}


def rollout_metrics(scored: ScoredRollout) -> Metrics:
    """What the models say about a rollout, before anything is learned from it.

    ``kl`` is in nats per response and ``kl_per_token`` in nats per token, both by the unbiased
    estimator k1 whatever the reward uses; ``reward_model_score`` leaves the penalty for missing
    EOS out; lengths are in tokens.
    """
    rollout, mask = scored.rollout, scored.rollout.mask
    kl = kl_k1(scored.old_logprobs, scored.ref_logprobs)
    num_tokens = int(mask.sum())
    return {
        "kl": float(kl[mask].sum()) / rollout.num_rows,
        "kl_per_token": float(kl[mask].sum()) / num_tokens,
        "reward_model_score": float(scored.scores.mean()),
        "response_length": num_tokens / rollout.num_rows,
        "eos_fraction": float(rollout.finished.float().mean()),
        "sampled_entropy": -float(masked_mean(scored.old_logprobs, mask)),
    }


def experience_metrics(experience: Experience, scores: Tensor, group_size: int) -> Metrics:
    """What the policy is about to learn from.

    ``score_mean`` and ``score_std`` are of the final scores, penalty and scaling included.
    """
    of_scores = {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std(correction=0)),
    }
    if experience.values is None:
        return of_scores | group_metrics(experience, group_size)
    mask = experience.rollout.mask
    values, returns = experience.values[mask], experience.returns[mask]
    return {
        **of_scores,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(correction=0)),
        "value_mean": float(values.mean()),
        "explained_variance": float(explained_variance(values, returns)),
    }


def group_metrics(experience: Experience, group_size: int) -> Metrics:
    """What there is to tell the responses to one prompt apart by.

    ``return_mean`` and ``return_std`` are over the responses of the batch; ``group_return_std`` is
    the standard deviation within a group, averaged over groups: what the policy learns from.
    ``zero_advantage_fraction`` is the share of groups it learns nothing from: their returns are
    equal, but for rounding (``GROUP_EPS``).
    """
    returns = experience.returns[:, 0]  # a response has at least one token
    groups = returns.view(-1, group_size)
    settled = groups.amax(dim=1) - groups.amin(dim=1) <= GROUP_EPS
    return {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(correction=0)),
        "group_return_std": float(groups.std(dim=1, correction=0).mean()),
        "zero_advantage_fraction": float(settled.float().mean()),
    }
