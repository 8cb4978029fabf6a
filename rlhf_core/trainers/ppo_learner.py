"""Who learns in PPO: a policy and, with GAE, a value function; and how both are kept.

Each has an optimiser of its own.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_core import processes
from rlhf_core.config import PpoConfig
from rlhf_core.errors import KlLimitError
from rlhf_core.functional.ppo import PolicyTerms, weights_of_tokens
from rlhf_core.models import (
    device_of,
    fresh_value_head,
    hidden_states,
    nll_sum,
    sequence_scores,
    token_logprobs,
    token_values,
    value_of_hidden,
)
from rlhf_core.models.compute import adapters_off, clear_precision
from rlhf_core.models.dropout import switch_off_dropout
from rlhf_core.models.sharding import in_step
from rlhf_core.rollout.experience import Experience
from rlhf_core.rollout.score import Scorers
from rlhf_core.tokenization import TokenBatch, TokenizedPrompt, pack_examples
from rlhf_core.trainers.loop import Optimization, TrainingRun, draw, shuffled, split_by_tokens
from rlhf_core.trainers.ppo_models import PpoData, PpoModels
from rlhf_core.trainers.ppo_watch import Metrics, PpoState
from rlhf_core.trainers.state import (
    Saved,
    Tensors,
    load_model_tensors,
    load_optimizer_tensors,
    load_random,
    model_tensors,
    optimizer_tensors,
    random_tensors,
    random_values,
)
from rlhf_core.trainers.teams import Networks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Update:
    """What one iteration's update works on."""

    experience: Experience
    minibatches: Sequence[Sequence[int]]
    """Rows of each optimiser step."""
    settings: PpoConfig
    kl_coef: float
    """Weight of the KL, read where it is a loss."""
    mix: Callable[[], Metrics]
    """Adds the gradients of other losses before each policy step and returns their metrics."""

    def micro_batches(self, model: nn.Module, rows: Sequence[int]) -> Sequence[Sequence[int]]:
        """Cut this process's share of a minibatch, which ``model`` reads, by the token budget."""
        own, budget = processes.share(rows), self.settings.micro_batch_tokens
        return in_step(model, self.experience.rollout.micro_batches(own, budget=budget))

    def seen_by_all(self, parts: Sequence[PolicyTerms]) -> PolicyTerms:
        """Join the micro-batches of all processes into their minibatch."""
        own = PolicyTerms.joined(parts)
        columns = (processes.all_gather(getattr(own, field.name)) for field in fields(PolicyTerms))
        return PolicyTerms(*columns)

    def num_tokens(self, rows: Sequence[int]) -> int:
        """Response tokens of a minibatch: what its losses are divided by."""
        return int(self.experience.rollout.mask[torch.as_tensor(rows)].sum())

    def token_weights(self, micro: Sequence[int], rows: Sequence[int]) -> Tensor | None:
        """Weights [M] of the response tokens of ``micro`` in the policy's mean over ``rows``.

        None where they all are 1.
        """
        average, longest = self.settings.loss_average, self.settings.max_new_tokens
        if average == "tokens":
            return None
        lengths = self.experience.rollout.mask[torch.as_tensor(rows)].sum(dim=1)
        weights = weights_of_tokens(lengths, average, longest=longest)
        places = {row: place for place, row in enumerate(rows)}
        own = torch.as_tensor([places[row] for row in micro], dtype=torch.int64)
        return weights[own].repeat_interleave(lengths[own])

    def health(self, seen: PolicyTerms) -> Metrics:
        """What the policy's pass over a minibatch says about the step."""
        clip_eps, clip_eps_high = self.settings.clip_eps, self.settings.clip_eps_high
        return seen.metrics(clip_eps=clip_eps, clip_eps_high=clip_eps_high)


def plan_minibatches(
    num_rows: int, *, settings: PpoConfig, iteration: int, seed: int
) -> list[list[int]]:
    """Rows of every minibatch of an iteration; each epoch visits all rows in an order of its own.

    The responses to one prompt stay together, so that their prompt is computed once.

    Args:
        num_rows: responses in the batch.
        settings: epochs, minibatches, responses per prompt.
        iteration: and ``seed``: what the orders depend on, besides the epoch.
        seed: of the run.
    """
    group, size = settings.responses_per_prompt, num_rows // settings.num_minibatches
    minibatches: list[list[int]] = []
    for epoch in range(settings.num_epochs):
        number = iteration * settings.num_epochs + epoch
        order = [
            prompt * group + response
            for prompt in shuffled(num_rows // group, seed=seed, epoch=number)
            for response in range(group)
        ]
        minibatches += [order[start : start + size] for start in range(0, num_rows, size)]
    return minibatches


class Learner:
    """Policy and value function with an optimiser each; both learn from the same experience.

    With RLOO and GRPO there is no value function: the policy learns alone.
    """

    def __init__(self, models: PpoModels, data: PpoData, settings: PpoConfig, *, seed: int) -> None:
        self.models, self.data, self.settings, self.seed = models, data, settings, seed
        steps = settings.num_epochs * settings.num_minibatches
        self.on_cpu = device_of(models.policy).type == "cpu"
        switch_off_dropout(models.policy)
        self.policy = Optimization(
            models.policy,
            settings.optimizer,
            total_steps=steps * (settings.num_iterations - settings.warmup_iterations),
        )
        self.networks = Networks(self.policy)
        self.value: Optimization | None = None
        self.value_head: Callable[[Tensor], Tensor] | None = None
        if not settings.needs_values:
            return
        value_model = models.value_model or fresh_value_head(models.policy)
        switch_off_dropout(value_model)
        value_rate = settings.value_learning_rate or settings.optimizer.learning_rate
        self.value = Optimization(
            value_model,
            settings.optimizer.model_copy(update={"learning_rate": value_rate}),
            total_steps=steps * settings.num_iterations,
        )
        if models.value_model is None:
            self.value_head = value_of_hidden(value_model)
        else:
            self.networks = Networks(self.policy, self.value)

    def scorers(self) -> Scorers:
        """Who is asked about a rollout."""
        temperature, models = self.settings.temperature, self.models
        own = partial(token_logprobs, models.policy, temperature=temperature)
        return Scorers(
            scores=self._scores,
            ref_logprobs=self._without_adapter
            if models.reference is None
            else partial(token_logprobs, models.reference, temperature=temperature),
            values=self._values(),
            old_logprobs=own if self.settings.recomputes_old_logprobs else None,
            policy=models.policy,
        )

    @property
    def sampled_values(self) -> Callable[[Tensor], Tensor] | None:
        """The value head that the sampler reads on its way; an engine elsewhere knows none."""
        return None if self.settings.rollouts.elsewhere else self.value_head

    def _scores(self, batch: TokenBatch) -> Tensor:
        """Score responses that end as in the reward model's training, whichever end was sampled."""
        if (end := self.data.scored_end) is not None:
            batch = batch.ended_by(end, self.data.end_ids)
        return sequence_scores(self.models.reward_model, batch)

    def _values(self) -> Callable[[TokenBatch], Tensor] | None:
        if self.models.value_model is not None:
            return partial(token_values, self.models.value_model)
        head, policy = self.value_head, self.models.policy
        if head is None or self.sampled_values is not None:
            return None
        return lambda batch: head(hidden_states(policy, batch, batch.predictor_positions))

    def finish(self) -> None:
        """End the training of what was trained; what was only asked stays divided, if it is."""
        for model in self.models.frozen():
            clear_precision(model)
        self.policy.finish()
        if self.value is not None and self.models.value_model is not None:
            self.value.finish()

    def prompts_of(self, iteration: int) -> list[TokenizedPrompt]:
        """Return the prompts of an iteration: the same every time it is sampled."""
        count = self.settings.rollout_batch_size // self.settings.responses_per_prompt
        drawn = iteration * count
        return list(draw(self.data.prompts, drawn=drawn, count=count, seed=self.seed))

    def plan(self, experience: Experience, state: PpoState) -> Update:
        """Lay out the minibatches of an iteration."""
        minibatches = plan_minibatches(
            experience.rollout.num_rows,
            settings=self.settings,
            iteration=state.iteration,
            seed=self.seed,
        )
        return Update(
            experience, minibatches, self.settings, state.kl_coef, self._mix_demonstrations
        )

    def tensors(self) -> Tensors:
        """Weights and moments of all that learns, for a checkpoint."""
        return {
            name: tensor
            for prefix, optimization in self._learning().items()
            for name, tensor in (
                *model_tensors(optimization.model, f"{prefix}-model").items(),
                *optimizer_tensors(optimization.optimizer, f"{prefix}-optimizer").items(),
            )
        }

    def steps(self) -> dict[str, int]:
        """Steps taken by each optimiser."""
        return {prefix: optimization.step for prefix, optimization in self._learning().items()}

    def load(self, tensors: Saved, *, steps: dict[str, int]) -> None:
        """Put back what ``tensors`` gave, and stand at ``steps`` of the schedules."""
        for prefix, optimization in self._learning().items():
            load_model_tensors(optimization.model, tensors, f"{prefix}-model")
            load_optimizer_tensors(optimization.optimizer, tensors, f"{prefix}-optimizer")
            optimization.step = steps[prefix]

    def _learning(self) -> dict[str, Optimization]:
        return {"policy": self.policy} | ({} if self.value is None else {"value": self.value})

    def _without_adapter(self, batch: TokenBatch) -> Tensor:
        with adapters_off(self.models.policy):
            return token_logprobs(self.models.policy, batch, temperature=self.settings.temperature)

    def _mix_demonstrations(self) -> Metrics:
        """Add the gradient of PPO-ptx for the next demonstrations, as many as a minibatch's rows.

            loss = ptx_coef * mean NLL per response token

        Ouyang et al. (2022), arXiv:2203.02155, eq. 2.
        """
        settings = self.settings
        if settings.ptx_coef == 0:
            return {}
        size = settings.rollout_batch_size // settings.num_minibatches
        drawn = self.policy.step * size
        examples = draw(self.data.demonstrations, drawn=drawn, count=size, seed=self.seed)
        runs = split_by_tokens(
            processes.share(examples),
            lambda example: example.num_tokens,
            budget=settings.micro_batch_tokens,
        )
        device = device_of(self.models.policy)
        batches = [pack_examples(run).to(device) for run in in_step(self.models.policy, runs)]
        (num_tokens,) = processes.total(sum(batch.num_loss_tokens for batch in batches))
        own = 0.0
        for batch in batches:
            loss = nll_sum(self.models.policy, batch) / num_tokens
            (settings.ptx_coef * loss).backward()
            own += loss.item()
        (total,) = processes.total(own)
        return {"ptx_loss": total}


class Checkpointer:
    """Saves the run, takes it up again, and returns the models to where they were in bounds."""

    def __init__(self, learner: Learner, run: TrainingRun, fingerprint: str) -> None:
        self.learner, self.run, self.fingerprint = learner, run, fingerprint
        self.saved_iteration: int | None = None

    def save(self, state: PpoState) -> None:
        """Keep everything the run depends on; saving again what was just resumed is skipped."""
        if self.saved_iteration == state.iteration:
            return
        planned = self.learner.settings.checkpoints
        self.run.keep_weights(state.iteration, self.learner.policy, planned, self.fingerprint)
        self.run.checkpoints.save(
            state.iteration,
            {**self.learner.tensors(), **random_tensors()},
            {"state": state.values(), "steps": self.learner.steps(), **random_values()},
            fingerprint=self.fingerprint,
        )
        self.saved_iteration = state.iteration

    def resume(self) -> PpoState | None:
        """Load the newest checkpoint into the models; None where there is none."""
        if (checkpoint := self.run.checkpoints.latest(fingerprint=self.fingerprint)) is None:
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
