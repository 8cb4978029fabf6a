"""Who learns in PPO: a policy and, with GAE, a value function; each with its own optimiser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from rlhf_core.config import ComputeConfig, PpoConfig
from rlhf_core.errors import ModelError
from rlhf_core.models import (
    device_of,
    finish_training,
    nll_sum,
    output_head,
    prepare_training,
    sequence_scores,
    token_logprobs,
    token_values,
)
from rlhf_core.models.compute import adapters_off, clear_precision, set_precision
from rlhf_core.models.dropout import switch_off_dropout
from rlhf_core.models.known_ids import num_embeddings
from rlhf_core.rollout.experience import Experience
from rlhf_core.rollout.score import Scorers
from rlhf_core.tokenization import TokenBatch, TokenizedExample, TokenizedPrompt, pack_examples
from rlhf_core.trainers.loop import Optimization, split_by_tokens
from rlhf_core.trainers.parallel import side_by_side
from rlhf_core.trainers.ppo_shared import fresh_value_head, update_shared, value_of_hidden
from rlhf_core.trainers.ppo_state import PpoState, draw
from rlhf_core.trainers.ppo_update import (
    Metrics,
    Update,
    plan_minibatches,
    update_policy,
    update_value,
)
from rlhf_core.trainers.state import (
    Tensors,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
)


@dataclass(frozen=True)
class PpoModels:
    """The roles. Policy and value model are trained in place."""

    policy: nn.Module
    reference: nn.Module | None
    """Frozen SFT model; None: the policy with its adapters off (LoRA)."""
    reward_model: nn.Module
    """Frozen."""
    value_model: nn.Module | None
    """Starts as a copy of the reward model; None where the policy has a value head instead, or
    where advantages need no values."""

    def prepared(self, compute: ComputeConfig, *, seed: int) -> "PpoModels":
        """Make all of them ready as ``compute`` says; ``finish`` undoes it in place.

        The frozen ones compute in the precision of the trained ones: a reference that rounds
        differently would show a KL where there is none.
        """
        for frozen in self._frozen():
            set_precision(frozen, compute)
        value_model = self.value_model
        if value_model is not None:
            value_model = prepare_training(value_model, compute, seed=seed)
        policy = prepare_training(self.policy, compute, seed=seed)
        return replace(self, policy=policy, value_model=value_model)

    def finish(self) -> None:
        """Merge adapters and switch off what ``prepared`` switched on."""
        for frozen in self._frozen():
            clear_precision(frozen)
        finish_training(self.policy)
        if self.value_model is not None:
            finish_training(self.value_model)

    def _frozen(self) -> list[nn.Module]:
        return [model for model in (self.reference, self.reward_model) if model is not None]


def require_same_ids(models: PpoModels) -> None:
    """Check that every model can read what the policy can write.

    Raises:
        ModelError: one has fewer embeddings; it would be asked for a row that it has not.
    """
    written = len(output_head(models.policy)[0])
    others = {
        "reference": models.reference,
        "reward model": models.reward_model,
        "value model": models.value_model,
    }
    for role, model in others.items():
        if model is not None and num_embeddings(model) < written:
            raise ModelError(
                f"the {role} embeds {num_embeddings(model)} token ids, but the policy writes "
                f"{written}; train it from the same SFT model, or one with the same tokenizer"
            )


@dataclass(frozen=True)
class PpoData:
    """What PPO learns from."""

    prompts: Sequence[TokenizedPrompt]
    end_ids: Sequence[int]
    """Any of these ends a response."""
    demonstrations: Sequence[TokenizedExample] = ()
    """For PPO-ptx; read where ``ptx_coef`` is above 0."""


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

    def scorers(self) -> Scorers:
        """Who is asked about a rollout."""
        temperature, models = self.settings.temperature, self.models
        own = partial(token_logprobs, models.policy, temperature=temperature)
        return Scorers(
            scores=partial(sequence_scores, models.reward_model),
            ref_logprobs=self._without_adapter
            if models.reference is None
            else partial(token_logprobs, models.reference, temperature=temperature),
            values=None
            if models.value_model is None
            else partial(token_values, models.value_model),
            old_logprobs=own if self.settings.recompute_old_logprobs else None,
        )

    def update(self, experience: Experience, state: PpoState) -> Metrics:
        """Learn from one iteration; in the critic's warm-up the policy stays as it is."""
        settings = self.settings
        rate = settings.optimizer.learning_rate * state.learning_rate_scale
        self.policy.settings = settings.optimizer.model_copy(update={"learning_rate": rate})
        minibatches = plan_minibatches(
            experience.rollout.num_rows,
            settings=settings,
            iteration=state.iteration,
            seed=self.seed,
        )
        update = Update(experience, minibatches, settings, state.kl_coef, self._mix_demonstrations)
        if self.value is None:
            return update_policy(self.policy, update)
        frozen = state.iteration < settings.warmup_iterations
        if self.value_head is not None:
            return update_shared(self.policy, self.value, update, policy_frozen=frozen)
        if frozen:
            return update_value(self.value, update)
        metrics = side_by_side(
            partial(update_policy, self.policy, update),
            partial(update_value, self.value, update),
            # A GPU gains nothing, and the compiler does not take work from two threads at once.
            allowed=self.on_cpu and not settings.compute.compile_layers,
        )
        return {name: value for part in metrics for name, value in part.items()}

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

    def load(self, tensors: Tensors, *, steps: dict[str, int]) -> None:
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
            examples, lambda example: example.num_tokens, budget=settings.micro_batch_tokens
        )
        device = device_of(self.models.policy)
        batches = [pack_examples(run).to(device) for run in runs]
        num_tokens = sum(batch.num_loss_tokens for batch in batches)
        total = 0.0
        for batch in batches:
            loss = nll_sum(self.models.policy, batch) / num_tokens
            (settings.ptx_coef * loss).backward()
            total += loss.item()
        return {"ptx_loss": total}
