"""What a PPO run carries from one iteration to the next, and the alarms that stop or turn it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from rlhf_core.config import KlWatchConfig, PpoConfig
from rlhf_core.errors import DivergedError, KlLimitError
from rlhf_core.functional.kl import adapt_kl_coef
from rlhf_core.functional.ppo import PolicyTerms, logprob_mismatch
from rlhf_core.functional.running_moments import RunningMoments
from rlhf_core.ports import Observer
from rlhf_core.rollout.experience import Rollout, ScoredRollout

logger = logging.getLogger(__name__)

Metrics = dict[str, float]

SUMMARIZED = ("score_mean", "kl", "kl_per_token", "response_length", "eos_fraction", "entropy")
"""Metrics whose first and last values the summary holds."""
LOSSES = ("policy_loss", "value_loss")
SHOWN = ("score_mean", "kl", "response_length", "eos_fraction", "explained_variance", *LOSSES)
"""Metrics on the progress bar, which the observer sees too."""


@dataclass(frozen=True)
class PpoState:
    """A value: an iteration makes the next one, a checkpoint holds it as JSON."""

    kl_coef: float
    iteration: int = 0
    """Iterations that are done; prompts, random streams and orders follow from it."""
    score_moments: RunningMoments = field(default_factory=RunningMoments)
    term_moments: dict[str, RunningMoments] = field(default_factory=dict)
    """Of the scores of each term of ``policy.rewards``, by its name."""
    learning_rate_scale: float = 1.0
    """What the KL watch left of the policy's learning rate."""
    num_interventions: int = 0
    """How often the KL watch stepped in."""
    first_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the first iteration."""
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the latest one."""

    def values(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "PpoState":
        """Undo ``values``."""
        terms = values.get("term_moments", {})
        moments = {
            "score_moments": RunningMoments(**values["score_moments"]),
            "term_moments": {name: RunningMoments(**term) for name, term in terms.items()},
        }
        return cls(**{**values, **moments})


def next_state(state: PpoState, metrics: Metrics, settings: PpoConfig) -> PpoState:
    """Count the iteration whose metrics these are, and steer the KL coefficient by them."""
    kl_coef = state.kl_coef
    # While the critic warms up the policy stands still: its KL of 0 says nothing.
    if settings.kl_controller == "adaptive" and state.iteration >= settings.warmup_iterations:
        kl_coef = adapt_kl_coef(
            kl_coef,
            observed_kl=metrics["kl"],
            target_kl=settings.target_kl,
            num_samples=settings.rollout_batch_size,
            horizon=settings.kl_horizon,
        )
    kept = {name: metrics[name] for name in SUMMARIZED if name in metrics}
    return replace(
        state,
        kl_coef=kl_coef,
        iteration=state.iteration + 1,
        first_metrics=state.first_metrics or kept,
        last_metrics=kept,
    )


@dataclass(frozen=True)
class KlSpike:
    """A batch whose KL from the reference is past a limit of the KL watch."""

    limit: str
    """Setting whose limit was passed."""
    kl_per_token: float
    """Nats."""
    kl_per_response: float
    """Nats."""
    message: str
    """What was found and what was allowed."""


def find_kl_spike(watch: KlWatchConfig, metrics: Mapping[str, float]) -> KlSpike | None:
    """Say which limit of the KL watch ``kl_per_token`` or ``kl`` has passed, or None."""
    per_token, per_response = metrics["kl_per_token"], metrics["kl"]
    for name, found, limit in (
        ("max_kl_per_token", per_token, watch.max_kl_per_token),
        ("max_kl_per_response", per_response, watch.max_kl_per_response),
    ):
        if limit is not None and found > limit:
            message = f"KL {found:.3g} nats is past policy.kl_watch.{name} {limit:.3g}"
            return KlSpike(name, per_token, per_response, message)
    return None


def intervene(
    state: PpoState, watch: KlWatchConfig, spike: KlSpike, observer: Observer | None = None
) -> PpoState:
    """Apply the watch's action to the state; returning to a checkpoint is the caller's part.

    Every call logs one line that begins with ``kl_spike action=... kl_per_token=...`` and tells
    the observer, also before the training stops.

    Raises:
        KlLimitError: the action is to stop, or there were too many interventions already.
    """
    exhausted = watch.action != "stop" and state.num_interventions == watch.max_interventions
    action = "stop" if exhausted else watch.action
    message = (
        f"kl_spike action={action} kl_per_token={spike.kl_per_token:.6g} "
        f"kl_per_response={spike.kl_per_response:.6g} limit={spike.limit} "
        f"iteration={state.iteration} interventions={state.num_interventions + 1}"
    )
    logger.warning("%s", message)
    if observer is not None:
        observer.kl_spike(action, message)
    if watch.action == "stop":
        raise KlLimitError(
            f"iteration {state.iteration}: {spike.message}; "
            "lower the learning rate or raise kl_coef"
        )
    if exhausted:
        raise KlLimitError(
            f"iteration {state.iteration}: {spike.message}, after {watch.max_interventions} "
            f"interventions ({watch.action})"
        )
    state = replace(state, num_interventions=state.num_interventions + 1)
    if watch.action == "raise_kl_coef":
        return replace(state, kl_coef=state.kl_coef * watch.factor)
    return replace(state, learning_rate_scale=state.learning_rate_scale / watch.factor)


def warn_if_nothing_ends(rollout: Rollout, settings: PpoConfig, end_ids: Sequence[int]) -> None:
    """Say at once that a run learns from the penalty alone; hours later it is dear to find out."""
    if settings.missing_eos_penalty is None or bool(rollout.finished.any()):
        return
    logger.warning(
        "missing_eos: none of the first %d responses ended within policy.max_new_tokens=%d (tokens"
        " that end one: %s): all get the penalty, and the reward model's score counts for nothing."
        " Train SFT longer, raise policy.max_new_tokens, or look whether the chat template ends"
        " turns as the model was taught",
        rollout.num_rows,
        settings.max_new_tokens,
        ", ".join(map(str, end_ids)),
    )


def require_finite(scored: ScoredRollout, iteration: int) -> None:
    """Check what every model said about the responses.

    Raises:
        DivergedError: a score, value or log-probability is not finite.
    """
    mask = scored.rollout.mask
    for name, found in (
        ("policy log-probability", scored.old_logprobs[mask]),
        ("reference log-probability", scored.ref_logprobs[mask]),
        ("value", None if scored.values is None else scored.values[mask]),
        ("reward-model score", scored.scores),
    ):
        if found is not None and not bool(torch.isfinite(found).all()):
            raise DivergedError(f"iteration {iteration}: a {name} is not finite")


def require_first_ratio_one(seen: PolicyTerms, settings: PpoConfig) -> Metrics:
    """Check that trainer and sampler see the same policy before it has moved.

    Raises:
        DivergedError: they do not; every importance ratio of the run would be wrong.
    """
    error = float(torch.expm1(seen.logprobs - seen.old_logprobs).abs().max())
    mismatch = float(logprob_mismatch(seen.logprobs, seen.sampled_logprobs))
    limits = [("max_ratio_error", error, settings.max_ratio_error)]
    if not settings.rollouts.elsewhere:  # an engine has a limit of its own, met before
        limits += [("max_logprob_mismatch", mismatch, settings.max_logprob_mismatch)]
    for name, found, limit in limits:
        if not found <= limit:
            raise DivergedError(
                f"sampler and trainer disagree about the same policy: {found:.3g} is past "
                f"policy.{name} {limit:.3g}; with low precision set recompute_old_logprobs"
            )
    return {"first_ratio_error": error, "logprob_mismatch": mismatch}
