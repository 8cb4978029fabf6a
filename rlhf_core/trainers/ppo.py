"""Proximal policy optimisation against a reward model, with a KL penalty towards the reference.

The file follows an iteration in its order: sample, score, advantages, clipped steps. Equations
are in ``functional/``, sampling in ``rollout/``, the rest in ``ppo_models``, ``ppo_learner`` and
``ppo_watch``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.config import PpoConfig, VllmRolloutsConfig
from rlhf_core.functional.advantages import GROUP_ADVANTAGES
from rlhf_core.functional.kl import KL_ESTIMATORS
from rlhf_core.functional.ppo import PolicyTerms, clipped_policy_loss, clipped_value_loss
from rlhf_core.functional.rewards import shape_scores, token_rewards
from rlhf_core.models import hidden_states, losses_from_hidden, token_values, value_of_hidden
from rlhf_core.rollout.decode import Sampling
from rlhf_core.rollout.experience import (
    Experience,
    Rollout,
    ScoredRollout,
    build_experience,
    build_group_experience,
    experience_metrics,
    require_values,
    rollout_metrics,
    weighed_against_engine,
)
from rlhf_core.rollout.rewards import sum_terms
from rlhf_core.rollout.sampler import Draws
from rlhf_core.rollout.score import sample_rollout, score_rollout
from rlhf_core.tokenization import TokenBatch
from rlhf_core.trainers.loop import FitSummary, Optimization, TrainingRun, at_start, mean_metrics
from rlhf_core.trainers.ppo_learner import Checkpointer, Learner, Update
from rlhf_core.trainers.ppo_models import PpoData, PpoModels, fingerprint, require_ready
from rlhf_core.trainers.ppo_watch import (
    SHOWN,
    Metrics,
    PpoState,
    find_kl_spike,
    intervene,
    next_state,
    require_finite,
    require_first_ratio_one,
    warn_if_nothing_ends,
)
from rlhf_core.trainers.progress import Progress, Stopwatch

__all__ = ["PpoData", "PpoModels", "fit_ppo"]


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
    require_ready(models, data, settings)
    models = models.prepared(settings.compute, seed=run.seed)
    identity = fingerprint(models, data, settings, run.seed)
    learner = Learner(models.divided(run.shard), data, settings, seed=run.seed)
    checkpointer = Checkpointer(learner, run, identity)
    state = checkpointer.resume() or PpoState(kl_coef=settings.kl_coef)
    progress = Progress("ppo", run.observer, total=settings.num_iterations, done=state.iteration)
    while state.iteration < settings.num_iterations:
        watch = Stopwatch()
        rollout = collect_rollout(learner, data, iteration=state.iteration)
        watch.lap("generate")
        scored = judge_rollout(learner, rollout, iteration=state.iteration)
        watch.lap("score")
        metrics = rollout_metrics(scored)
        spike = find_kl_spike(settings.kl_watch, metrics)
        if spike is not None:
            state = intervene(state, settings.kl_watch, spike, run.observer)
        elif state.iteration % settings.checkpoint_every == 0:
            checkpointer.save(state)
            on_checkpoint(state.iteration)
        watch.lap("checkpoint")
        if spike is not None and settings.kl_watch.action == "roll_back":
            checkpointer.roll_back()
        else:
            experience, scores, state = prepare_experience(scored, state, settings)
            metrics |= experience_metrics(experience, scores, settings.responses_per_prompt)
            metrics |= learn(learner, experience, state)
        watch.lap("update")
        metrics |= {"kl_coef": state.kl_coef, "kl_interventions": float(state.num_interventions)}
        metrics |= watch.metrics(num_tokens=int(rollout.mask.sum()))
        state = next_state(state, metrics, settings)
        run.tracker.log_metrics(_named(metrics), step=state.iteration)
        progress.advance({name: metrics[name] for name in SHOWN if name in metrics})
    progress.close()
    if checkpointer.saved_iteration != state.iteration:
        state = _watch_the_end(learner, checkpointer, state)
        checkpointer.save(state)
    on_checkpoint(state.iteration)
    learner.finish()
    return FitSummary(
        learner.policy.step, _named(state.last_metrics) | at_start(_named(state.first_metrics))
    )


def collect_rollout(learner: Learner, data: PpoData, *, iteration: int) -> Rollout:
    """Answer the iteration's prompts; every response of a run has a random stream of its own."""
    settings = learner.settings
    count, group = settings.rollout_batch_size, settings.responses_per_prompt
    rows = range(iteration * count, (iteration + 1) * count)
    return sample_rollout(
        learner.models.policy,
        [prompt.prompt_ids for prompt in learner.prompts_of(iteration) for _ in range(group)],
        sampler=data.sampler,
        draws=Draws(learner.seed, rows, settings.max_new_tokens),
        sampling=Sampling(settings.temperature, data.end_ids, learner.sampled_values),
        budget=settings.decode_tokens,
    )


def judge_rollout(learner: Learner, rollout: Rollout, *, iteration: int) -> ScoredRollout:
    """Ask every model about every response.

    Raises:
        DivergedError: one gave a number that is not finite, or an engine disagrees.
    """
    scored = score_rollout(rollout, learner.scorers(), budget=learner.settings.micro_batch_tokens)
    if (terms := learner.data.rewards) is not None:
        scored = terms.of(learner.prompts_of(iteration), scored)
    require_finite(scored, iteration)
    if isinstance(rollouts := learner.settings.rollouts, VllmRolloutsConfig):
        scored = weighed_against_engine(scored, rollouts)
    if iteration == 0:
        warn_if_nothing_ends(rollout, learner.settings, learner.data.end_ids)
    return scored


def prepare_experience(
    scored: ScoredRollout, state: PpoState, settings: PpoConfig
) -> tuple[Experience, Tensor, PpoState]:
    """Turn scores and KL into advantages.

    Returns:
        The experience, the final scores [B], and the state with the running moments of the scores.
    """
    scored, term_moments = sum_terms(scored, settings.rewards, state.term_moments)
    scores, moments = shape_scores(
        scored.scores,
        scored.rollout.finished,
        state.score_moments,
        scale=settings.scale_scores,
        clip=settings.clip_scores,
        missing_eos_penalty=settings.missing_eos_penalty,
    )
    kl = KL_ESTIMATORS[settings.kl_estimator](scored.old_logprobs, scored.ref_logprobs)
    kl_coef = state.kl_coef if settings.kl_placement == "reward" else 0.0
    rewards = token_rewards(scores, kl, scored.rollout.mask, kl_coef=kl_coef)
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
    state = replace(state, score_moments=moments, term_moments=term_moments)
    return experience, scores, state


def learn(learner: Learner, experience: Experience, state: PpoState) -> Metrics:
    """Learn from one iteration; in the critic's warm-up the policy stays as it is."""
    settings = learner.settings
    rate = settings.optimizer.learning_rate * state.learning_rate_scale
    learner.policy.settings = settings.optimizer.model_copy(update={"learning_rate": rate})
    update = learner.plan(experience, state)
    if learner.value is None:
        return update_policy(learner.policy, update)
    frozen = state.iteration < settings.warmup_iterations
    if learner.value_head is not None:
        return update_shared(learner.policy, learner.value, update, policy_frozen=frozen)
    if frozen:
        return update_value(learner.value, update)
    metrics = learner.networks.update(
        partial(update_policy, learner.policy, update),
        partial(update_value, learner.value, update),
        # A GPU gains nothing, and the compiler does not take work from two threads at once.
        threads=learner.on_cpu and not settings.compute.compile_layers,
    )
    return {name: value for part in metrics for name, value in part.items()}


def update_policy(optimization: Optimization, update: Update) -> Metrics:
    """Take one policy step per minibatch.

    Returns:
        Means over all steps, and what the first minibatch said about ratio and mismatch.

    Raises:
        DivergedError: not finite, or the first ratio is not 1, or sampler and trainer disagree.
    """
    first: Metrics = {}
    steps: list[Metrics] = []
    for rows in update.minibatches:
        seen = accumulate_policy_gradient(optimization, update, rows)
        first = first or require_first_ratio_one(seen, update.settings)
        metrics = update.health(seen) | update.mix()
        steps.append(metrics | optimization.apply(metrics["policy_loss"]))
    return {**mean_metrics(steps), **first}


def accumulate_policy_gradient(
    optimization: Optimization, update: Update, rows: Sequence[int]
) -> PolicyTerms:
    """Add the gradient of the minibatch's policy loss.

        loss = sum over its response tokens of w (clipped surrogate [+ kl_coef * KL]) / their number

    with w = 1 where ``loss_average`` is ``tokens``. The denominator is the whole minibatch's, so
    micro-batches do not change the gradient.
    """
    num_tokens, parts = update.num_tokens(rows), []
    for micro in update.micro_batches(optimization.model, rows):
        batch = update.experience.rollout.pack(micro)
        hidden = hidden_states(optimization.model, batch, batch.predictor_positions)
        total, terms = policy_terms(optimization.model, hidden, batch, update, micro, of=rows)
        (total / num_tokens).backward()
        parts.append(terms)
    return update.seen_by_all(parts)


def policy_terms(
    model: nn.Module,
    hidden: Tensor,
    batch: TokenBatch,
    update: Update,
    rows: Sequence[int],
    of: Sequence[int],
) -> tuple[Tensor, PolicyTerms]:
    """Losses of the response tokens of ``rows``, packed in ``batch``; hidden states are [M, H].

    They are a part of the minibatch ``of``.

    Returns:
        [] their sum, the one that has a gradient, and what the pass showed.
    """
    experience, settings = update.experience, update.settings
    weights = update.token_weights(rows, of)
    old, ref, advantages, sampled = experience.at(
        rows,
        experience.old_logprobs,
        experience.ref_logprobs,
        experience.advantages,
        experience.rollout.logprobs,
    )

    def loss_of(logprobs: Tensor, part: slice) -> Tensor:
        loss = clipped_policy_loss(
            logprobs,
            old[part],
            advantages[part],
            clip_eps=settings.clip_eps,
            clip_eps_high=settings.clip_eps_high,
        )
        if settings.kl_placement == "loss":
            loss = loss + update.kl_coef * KL_ESTIMATORS[settings.kl_estimator](logprobs, ref[part])
        return loss if weights is None else loss * weights[part]

    seen = losses_from_hidden(model, hidden, batch, loss_of, settings.temperature)
    return seen.total, PolicyTerms(seen.losses, seen.logprobs, old, sampled, seen.entropy)


def update_value(optimization: Optimization, update: Update) -> Metrics:
    """Take one step of the value model per minibatch."""
    steps: list[Metrics] = []
    for rows in update.minibatches:
        num_tokens, parts = update.num_tokens(rows), []
        for micro in update.micro_batches(optimization.model, rows):
            values = token_values(optimization.model, update.experience.rollout.pack(micro))
            loss, moved = value_terms(values, update, micro)
            (update.settings.value_coef * loss.sum() / num_tokens).backward()
            parts.append((loss.detach(), moved))
        steps.append(value_step(optimization, parts))
    return mean_metrics(steps)


def value_terms(values: Tensor, update: Update, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Loss per response token of ``rows`` from values [M], and whether each left the clip range."""
    experience, clip_eps = update.experience, update.settings.value_clip_eps
    old, returns = experience.at(rows, require_values(experience.values), experience.returns)
    loss = clipped_value_loss(values, old, returns, clip_eps=clip_eps)
    return loss, (values.detach() - old).abs() > clip_eps


def value_step(optimization: Optimization, parts: Sequence[tuple[Tensor, Tensor]]) -> Metrics:
    """Step on the gradients gathered from micro-batches with these ``value_terms``."""
    loss = float(processes.all_gather(torch.cat([loss for loss, _ in parts])).mean())
    moved = processes.all_gather(torch.cat([moved for _, moved in parts]).float())
    taken = optimization.apply(loss)
    return {
        "value_loss": loss,
        "value_clip_fraction": float(moved.mean()),
        "value_grad_norm": taken["grad_norm"],
        "value_learning_rate": taken["learning_rate"],
    }


def update_shared(
    policy: Optimization, head: Optimization, update: Update, *, policy_frozen: bool
) -> Metrics:
    """Take one step of trunk and value head per minibatch.

        loss = policy loss + value_coef * value loss, each a mean over the minibatch's tokens

    Both gradients meet in the trunk, which is the policy's; trunk and head are clipped and stepped
    apart. In the critic's warm-up (``policy_frozen``) the head learns and the trunk stays.
    """
    first: Metrics = {}
    steps: list[Metrics] = []
    for rows in update.minibatches:
        num_tokens, policy_parts, value_parts = update.num_tokens(rows), [], []
        for micro in update.micro_batches(policy.model, rows):
            batch = update.experience.rollout.pack(micro)
            with torch.set_grad_enabled(not policy_frozen):
                hidden = hidden_states(policy.model, batch, batch.predictor_positions)
            value_loss, moved = value_terms(value_of_hidden(head.model)(hidden), update, micro)
            total = update.settings.value_coef * value_loss.sum()
            if not policy_frozen:
                loss, terms = policy_terms(policy.model, hidden, batch, update, micro, of=rows)
                total = total + loss
                policy_parts.append(terms)
            (total / num_tokens).backward()
            value_parts.append((value_loss.detach(), moved))
        metrics = value_step(head, value_parts)
        if policy_parts:
            seen = update.seen_by_all(policy_parts)
            first = first or require_first_ratio_one(seen, update.settings)
            metrics |= update.health(seen) | update.mix()
            metrics |= policy.apply(metrics["policy_loss"])
        steps.append(metrics)
    return {**mean_metrics(steps), **first}


def _watch_the_end(learner: Learner, checkpointer: Checkpointer, state: PpoState) -> PpoState:
    """Look at the policy after the last update, on fresh prompts, before it is kept.

    ``stop`` stops and ``roll_back`` returns to the last weights in bounds. The other two actions
    have nothing left to act on: the spike is logged and counted, the weights stay.
    """
    watch = learner.settings.kl_watch
    rollout = collect_rollout(learner, learner.data, iteration=state.iteration)
    metrics = rollout_metrics(judge_rollout(learner, rollout, iteration=state.iteration))
    if spike := find_kl_spike(watch, metrics):
        state = intervene(state, watch, spike, checkpointer.run.observer)
        if watch.action == "roll_back":
            checkpointer.roll_back()
    return state


def _named(metrics: Metrics) -> Metrics:
    return {f"policy/{name}": value for name, value in metrics.items()}
