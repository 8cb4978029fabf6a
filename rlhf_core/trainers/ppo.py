"""Proximal policy optimisation against a reward model, with a KL leash to the reference."""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

from rlhf_core.config import PpoConfig
from rlhf_core.errors import ConfigError, DataError, KlLimitError
from rlhf_core.functional.kl import adapt_kl_coef
from rlhf_core.trainers.loop import FitSummary, TrainingRun, at_start
from rlhf_core.trainers.ppo_experience import collect_rollout, judge_rollout, prepare_experience
from rlhf_core.trainers.ppo_learner import Learner, PpoData, PpoModels, require_same_ids
from rlhf_core.trainers.ppo_metrics import (
    Metrics,
    Stopwatch,
    experience_metrics,
    rollout_metrics,
)
from rlhf_core.trainers.ppo_state import PpoState, find_kl_spike, intervene
from rlhf_core.trainers.progress import Progress
from rlhf_core.trainers.state import load_random, random_tensors, random_values, run_fingerprint

__all__ = ["PpoData", "PpoModels", "fit_ppo"]

logger = logging.getLogger(__name__)

SUMMARIZED = ("score_mean", "kl", "kl_per_token", "response_length", "eos_fraction", "entropy")
"""Metrics whose first and last values the summary holds."""
SHOWN = ("score_mean", "kl", "response_length", "eos_fraction", "explained_variance")
"""Metrics on the progress bar."""


def fit_ppo(
    models: PpoModels,
    data: PpoData,
    *,
    settings: PpoConfig,
    run: TrainingRun,
    on_checkpoint: Callable[[int], None] = lambda iteration: None,
) -> FitSummary:
    """Train ``models.policy`` in place, and ``models.value_model`` where there is one.

    An iteration samples a response to each prompt; has reward model, reference and value model
    judge it; turns scores and KL into advantages; and takes epochs of clipped steps. Every detail
    with its default and source: ``docs/ppo.md``. Logs ``policy/<quantity>`` every iteration.

    A checkpoint is taken within an iteration, once the KL watch has found the policy in bounds,
    and holds the state from before it: whoever goes back to it samples that iteration again. After
    the last update the watch looks once more, at a batch that nothing is learned from.

    Args:
        models: the roles.
        data: prompts, EOS, demonstrations.
        settings: of PPO.
        run: seed, tracker, checkpoints.
        on_checkpoint: called with the number of iterations done after each checkpoint and at the
            end, to sample held-out prompts. It must leave the models alone. A run that is taken up
            again may call it once more with the same number.

    Returns:
        Policy steps taken; metrics of the last iteration, and of the first as ``..._at_start``.

    Raises:
        ConfigError: the settings ask for data that is not there.
        DataError: there are no prompts.
        DivergedError: not finite, the KL left its bounds, or sampler and trainer disagree.
        CheckpointError: the checkpoints belong to another run.
    """
    _require_ready(models, data, settings)
    models = models.prepared(settings.compute, seed=run.seed)
    learner = Learner(models, data, settings, seed=run.seed)
    keeper = _Keeper(learner, run, _fingerprint(models, data, settings, run.seed))
    state = keeper.resume() or PpoState(kl_coef=settings.kl_coef)
    progress = Progress("ppo", total=settings.num_iterations, done=state.iteration)
    while state.iteration < settings.num_iterations:
        watch = Stopwatch()
        rollout = collect_rollout(learner, data, iteration=state.iteration)
        watch.lap("generate")
        scored = judge_rollout(learner, rollout, iteration=state.iteration)
        watch.lap("score")
        metrics = rollout_metrics(scored)
        spike = find_kl_spike(settings.kl_watch, metrics)
        if spike is not None:
            state = intervene(state, settings.kl_watch, spike)
        elif state.iteration % settings.checkpoint_every == 0:
            keeper.save(state)
            on_checkpoint(state.iteration)
        watch.lap("checkpoint")
        if spike is not None and settings.kl_watch.action == "roll_back":
            keeper.roll_back()
        else:
            experience, scores, moments = prepare_experience(scored, state, settings)
            metrics |= experience_metrics(experience, scores, settings.responses_per_prompt)
            metrics |= learner.update(experience, state)
            state = replace(state, score_moments=moments)
        watch.lap("update")
        metrics |= {"kl_coef": state.kl_coef, "kl_interventions": float(state.num_interventions)}
        metrics |= watch.metrics(num_tokens=int(rollout.mask.sum()))
        state = _next_state(state, metrics, settings)
        run.tracker.log_metrics(_named(metrics), step=state.iteration)
        progress.advance({name: metrics[name] for name in SHOWN if name in metrics})
    progress.close()
    if keeper.saved_iteration != state.iteration:
        state = _watch_the_end(learner, keeper, state)
        keeper.save(state)
    on_checkpoint(state.iteration)
    models.finish()
    return FitSummary(
        learner.policy.step, _named(state.last_metrics) | at_start(_named(state.first_metrics))
    )


class _Keeper:
    """Saves the run, takes it up again, and returns the models to where they were in bounds."""

    def __init__(self, learner: Learner, run: TrainingRun, fingerprint: str) -> None:
        self.learner, self.run, self.fingerprint = learner, run, fingerprint
        self.saved_iteration: int | None = None

    def save(self, state: PpoState) -> None:
        """Keep everything the run depends on; saving again what was just resumed is skipped."""
        if self.saved_iteration == state.iteration:
            return
        self.run.checkpoints.save(
            state.iteration,
            {**self.learner.tensors(), **random_tensors()},
            {"state": state.values(), "steps": self.learner.steps(), **random_values()},
            fingerprint=self.fingerprint,
        )
        self.saved_iteration = state.iteration

    def resume(self) -> PpoState | None:
        """Load the newest checkpoint into the models; None where there is none."""
        checkpoint = self.run.checkpoints.latest(fingerprint=self.fingerprint)
        if checkpoint is None:
            return None
        self.learner.load(checkpoint.tensors, steps=checkpoint.values["steps"])
        load_random(checkpoint.tensors, checkpoint.values)
        self.saved_iteration = checkpoint.step
        logger.info("resume=ppo iteration=%d", checkpoint.step)
        return PpoState.from_values(checkpoint.values["state"])

    def roll_back(self) -> None:
        """Give the models their last weights in bounds; schedules and prompts go on.

        Raises:
            KlLimitError: the policy was never in bounds.
        """
        checkpoint = self.run.checkpoints.latest(fingerprint=self.fingerprint)
        if checkpoint is None:
            raise KlLimitError("the policy was out of bounds from the start: nothing to return to")
        self.learner.load(checkpoint.tensors, steps=self.learner.steps())


def _watch_the_end(learner: Learner, keeper: _Keeper, state: PpoState) -> PpoState:
    """Look at the policy after the last update, on fresh prompts, before it is kept.

    ``stop`` stops and ``roll_back`` returns to the last weights in bounds. The other two actions
    have nothing left to act on: the spike is logged and counted, the weights stay.

    Raises:
        DivergedError: as ``intervene``, or something is not finite.
    """
    watch = learner.settings.kl_watch
    rollout = collect_rollout(learner, learner.data, iteration=state.iteration)
    metrics = rollout_metrics(judge_rollout(learner, rollout, iteration=state.iteration))
    spike = find_kl_spike(watch, metrics)
    if spike is None:
        return state
    state = intervene(state, watch, spike)
    if watch.action == "roll_back":
        keeper.roll_back()
    return state


def _next_state(state: PpoState, metrics: Metrics, settings: PpoConfig) -> PpoState:
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


def _named(metrics: Metrics) -> Metrics:
    return {f"policy/{name}": value for name, value in metrics.items()}


def _fingerprint(models: PpoModels, data: PpoData, settings: PpoConfig, seed: int) -> str:
    roles = (models.policy, models.reference, models.reward_model, models.value_model)
    present = [role for role in roles if role is not None]
    rows = chain(
        (prompt.prompt_ids.tobytes() for prompt in data.prompts),
        (
            ids.tobytes()
            for example in data.demonstrations
            for ids in (example.prompt_ids, example.response_ids)
        ),
        [",".join(map(str, data.end_ids)).encode()],
    )
    return run_fingerprint(settings, present, rows, seed=seed)


def _require_ready(models: PpoModels, data: PpoData, settings: PpoConfig) -> None:
    if settings.needs_value_model != (models.value_model is not None):
        raise ConfigError(
            f"policy.advantages is {settings.advantages} and policy.share_trunk is "
            f"{settings.share_trunk}: a value model is needed exactly with gae and no shared trunk"
        )
    if models.reference is None and settings.compute.lora is None:
        raise ConfigError("without policy.compute.lora PPO needs a reference model of its own")
    require_same_ids(models)
    if not data.prompts:
        raise DataError("ppo: no prompts to sample from")
    if settings.ptx_coef > 0 and not data.demonstrations:
        raise ConfigError("policy.ptx_coef is above 0, but there are no demonstrations to mix in")
