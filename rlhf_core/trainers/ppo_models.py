"""What PPO is given: models in their roles, and rows; whether they suffice, and which they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import nn

from rlhf_core.config import ComputeConfig, PpoConfig
from rlhf_core.errors import ConfigError, DataError
from rlhf_core.models import output_head, prepare_training
from rlhf_core.models.compute import set_precision
from rlhf_core.models.known_ids import require_same_ids
from rlhf_core.models.sharding import Shard, shard_layers
from rlhf_core.rollout.rewards import RewardTerms
from rlhf_core.rollout.sampler import TRANSFORMERS_SAMPLER, Sampler
from rlhf_core.tokenization import TokenizedExample, TokenizedPrompt
from rlhf_core.trainers.state import run_fingerprint


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
        """Make all of them ready as ``compute`` says; ``Learner.finish`` undoes it in place.

        The frozen ones compute in the precision of the trained ones: a reference that rounds
        differently would show a KL where there is none.
        """
        for frozen in self.frozen():
            set_precision(frozen, compute)
        value_model = self.value_model
        if value_model is not None:
            value_model = prepare_training(value_model, compute, seed=seed)
        policy = prepare_training(self.policy, compute, seed=seed)
        return replace(self, policy=policy, value_model=value_model)

    def divided(self, shard: Shard) -> "PpoModels":
        """Divide the layers of all of them among the processes, in place."""
        for model in (self.policy, self.value_model, *self.frozen()):
            if model is not None:
                shard_layers(model, shard)
        return self

    def frozen(self) -> list[nn.Module]:
        """Return those that are only asked."""
        return [model for model in (self.reference, self.reward_model) if model is not None]


@dataclass(frozen=True)
class PpoData:
    """What PPO learns from."""

    prompts: Sequence[TokenizedPrompt]
    end_ids: Sequence[int]
    """Any of these ends a response."""
    demonstrations: Sequence[TokenizedExample] = ()
    """For PPO-ptx; read where ``ptx_coef`` is above 0."""
    rewards: RewardTerms | None = None
    """The terms of ``policy.rewards``; None: the reward model's score is the reward."""
    sampler: Sampler = TRANSFORMERS_SAMPLER
    """Who answers the prompts, as ``policy.rollouts`` says."""
    turn_end_id: int | None = None
    """The one of ``end_ids`` that ended every response the reward model was trained on: it reads
    this one wherever another was sampled. None: it reads what was sampled."""

    @property
    def scored_end(self) -> int | None:
        """``turn_end_id`` where another token may end a response; None where nothing else does."""
        return None if set(self.end_ids) == {self.turn_end_id} else self.turn_end_id


def fingerprint(models: PpoModels, data: PpoData, settings: PpoConfig, seed: int) -> str:
    """Return what tells this run from another one, so that none takes up a stranger's files."""
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
        [] if data.scored_end is None else [f"scored at {data.scored_end}".encode()],
        [] if data.rewards is None else data.rewards.identity(),
    )
    return run_fingerprint(settings, present, rows, seed=seed)


def require_ready(models: PpoModels, data: PpoData, settings: PpoConfig) -> None:
    """Check that the settings have all models and rows they ask for, before anything is sampled.

    Raises:
        ConfigError: a role, or the demonstrations of PPO-ptx, is missing.
        DataError: there are no prompts.
        ModelError: as ``require_same_ids``.
    """
    if settings.needs_value_model != (models.value_model is not None):
        raise ConfigError(
            f"policy.advantages is {settings.advantages} and policy.share_trunk is "
            f"{settings.share_trunk}: a value model is needed exactly with gae and no shared trunk"
        )
    if models.reference is None and settings.compute.lora is None:
        raise ConfigError("without policy.compute.lora PPO needs a reference model of its own")
    read_by = {
        "reference": models.reference,
        "reward model": models.reward_model,
        "value model": models.value_model,
    }
    require_same_ids(len(output_head(models.policy)[0]), read_by)
    if not data.prompts:
        raise DataError("ppo: no prompts to sample from")
    if settings.ptx_coef > 0 and not data.demonstrations:
        raise ConfigError("policy.ptx_coef is above 0, but there are no demonstrations to mix in")
