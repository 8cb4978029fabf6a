"""Settings of PPO, and of RLOO and GRPO beside it, each with its source."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlhf_core.config.base import (
    Count,
    Fraction,
    LearningRate,
    NonNegative,
    Positive,
    Section,
    Temperature,
)
from rlhf_core.config.reward_terms import RewardTerm
from rlhf_core.config.rollouts import OwnRolloutsConfig, RolloutsConfig
from rlhf_core.config.training import (
    ComputeConfig,
    DistributedConfig,
    KlWatchConfig,
    OptimizerConfig,
    SelectionConfig,
    filled_with,
)

PPO_OPTIMIZER = OptimizerConfig(
    learning_rate=1e-6, adam_beta2=0.999, adam_eps=1e-5, schedule="linear", warmup_fraction=0.0
)
"""Epsilon 1e-5, linear decay: Huang 2024; gradients clipped to norm 1: Schulman 2017 (code)."""
OF_A_VALUE_FUNCTION = (
    "share_trunk",
    "value_learning_rate",
    "critic_warmup_iterations",
    "value_clip_eps",
    "value_coef",
    "gamma",
    "gae_lambda",
)
"""Settings that nothing reads where advantages need no value function."""


class PpoConfig(Section):
    """Policy optimisation with PPO (Schulman et al. 2017; Ziegler et al. 2019).

    Sources: Schulman et al. 2016, arXiv:1506.02438 (GAE) and 2017, arXiv:1707.06347 (PPO);
    Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, arXiv:2203.02155; Zheng et al. 2023,
    "Secrets of RLHF", arXiv:2307.04964; Huang et al. 2024, "N+ implementation details",
    arXiv:2403.17031; Schulman 2020, "Approximating KL divergence". Details without a setting (cut
    after EOS, dropout off, value model from the reward model) are in ``docs/ppo.md``.
    """

    algorithm: Literal["ppo"] = "ppo"
    """Which of the two: these are the settings of PPO."""
    needs_reward_model: ClassVar[bool] = True
    knows_unpaired: ClassVar[bool] = False
    needs_unpaired: ClassVar[bool] = False
    learns_from_pairs: ClassVar[bool] = False
    advantages: Literal["gae", "rloo", "grpo", "dr_grpo"] = "gae"
    """What a response is measured against: ``gae`` asks a value model; ``rloo`` takes the mean of
    the other responses to its prompt (Ahmadian et al. 2024, arXiv:2402.14740), ``grpo`` the mean
    of all of them, in standard deviations (Shao et al. 2024, arXiv:2402.03300), ``dr_grpo`` the
    same without the division (Liu et al. 2025, arXiv:2503.20783). These three need no value model
    and ``responses_per_prompt`` of at least 2."""
    optimizer: Annotated[OptimizerConfig, filled_with(PPO_OPTIMIZER)] = PPO_OPTIMIZER
    value_learning_rate: LearningRate | None = None
    """Learning rate of the value model, same schedule; None takes the policy's."""
    num_iterations: Count = 100
    """Rounds of sample, score, update."""
    share_trunk: bool = False
    """Give the policy a value head instead of a value model of its own: half the work of an
    update, and the critic no longer starts from the reward model. Needs ``value_learning_rate``."""
    critic_warmup_iterations: int = Field(default=2, ge=0)
    """First iterations, out of ``num_iterations``, that train the value model alone (Zheng 2023,
    section 5.3.3)."""
    rollout_batch_size: Count = 64
    """Responses sampled per iteration."""
    responses_per_prompt: Count = 1
    """Responses to each prompt of an iteration; their prompt is computed once, so more are
    cheaper, and the batch sees fewer prompts. Without a value model the group that a response is
    measured against."""
    num_epochs: Count = 4
    """Passes over each rollout batch (Ziegler 2019; Schulman 2017)."""
    num_minibatches: Count = 4
    """Optimiser steps per pass."""
    micro_batch_tokens: Count = 4_096
    """Tokens per forward pass; bounds memory and does not change the result."""
    compute: ComputeConfig = ComputeConfig()
    """Of policy and value model; with LoRA the reference is the policy, adapters off."""
    distributed: DistributedConfig | None = None
    """Processes of this stage; None takes the ``distributed`` of the whole file."""
    rollouts: RolloutsConfig = OwnRolloutsConfig()
    """Who samples responses, here and where the policy is evaluated."""
    decode_tokens: Count = 65_536
    """Tokens that keys and values are kept for while sampling: rows times the longest prompt plus
    ``max_new_tokens``. More rows take turns; bounds memory and changes nothing but rounding."""
    max_new_tokens: Count = 64
    """Longest response, in tokens."""
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0
    """Divides the logits while sampling and in every log-probability (Huang 2024)."""
    clip_eps: Positive = 0.2
    """The importance ratio is clipped to 1 plus or minus this (Schulman 2017, equation 7)."""
    clip_eps_high: Positive | None = None
    """Clip at 1 plus this above, so that rare tokens can gain more; None is ``clip_eps`` (Yu et al.
    2025, "DAPO", arXiv:2503.14476, section 3.1, which takes 0.28 over 0.2)."""
    loss_average: Literal["tokens", "responses", "max_new_tokens"] = "tokens"
    """What the policy's loss is a mean over: all response tokens of a minibatch (Yu et al. 2025,
    equation 8); its responses, of the mean over each one's tokens (Shao et al. 2024, equation 3);
    or its responses, of each one's sum divided by ``max_new_tokens``, so that a token counts
    alike in every minibatch (Liu et al. 2025, "Dr. GRPO")."""
    value_clip_eps: Positive = 0.2
    """A new value counts up to this far from the old one (Huang 2024)."""
    value_coef: Positive = 0.1
    """Weight of the value loss (Ziegler 2019; Huang 2024)."""
    gamma: Fraction = 1.0
    """Discount per token (Ziegler 2019)."""
    gae_lambda: Fraction = 0.95
    """Bias against variance of the advantages (Schulman 2016, equation 16; Ziegler 2019)."""
    whiten_advantages: bool | None = None
    """To mean 0 and deviation 1 over the response tokens of the whole batch; None does so with
    ``gae`` (Huang 2024), and not with the others, whose papers do not."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract the KL from each token's reward (Ziegler 2019, equation 2), or add it to the
    policy's loss (Shao et al. 2024, arXiv:2402.03300)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of the KL per token: k1 is unbiased, k2 has as a loss the right gradient of each token's own
    KL, k3 is unbiased and never negative (Schulman 2020)."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL from the reference (Huang 2024)."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Keep ``kl_coef``, or steer it towards ``target_kl`` (Ziegler 2019, section 2.2)."""
    target_kl: Positive = 6.0
    """Adaptive controller: KL to steer towards, nats per response."""
    kl_horizon: Count = 10_000
    """Adaptive controller: responses over which a full 20% error is corrected."""
    kl_watch: KlWatchConfig = KlWatchConfig()
    rewards: tuple[RewardTerm, ...] = ()
    """Terms of the reward, summed; empty: the run's reward model alone. The judge is none of them.
    What follows (``missing_eos_penalty``, ``scale_scores``, ``clip_scores``) is of their sum."""
    missing_eos_penalty: NonNegative | None = 1.0
    """Score of a response that never ends is minus this, whatever the reward model says; None
    lets the reward model's score stand (Ziegler 2019; the EOS trick of Huang 2024)."""
    scale_scores: bool = False
    """Divide scores by their running standard deviation (Zheng 2023, section 5.3.1)."""
    clip_scores: Positive | None = None
    """Clip scores, after scaling, to plus or minus this; None does not clip (Zheng 2023, section
    5.3.1)."""
    ptx_coef: NonNegative = 0.0
    """PPO-ptx: weight of the SFT loss on demonstrations mixed into every policy step (Ouyang 2022,
    equation 2)."""
    recompute_old_logprobs: bool = False
    """Take the old log-probabilities from a forward pass of the trainer instead of the sampler;
    needed where the two differ by more than ``max_ratio_error`` (bf16)."""
    max_ratio_error: Positive = 1e-4
    """Largest allowed |ratio - 1| on the first minibatch of an iteration, before any update, where
    it is 1 by definition (Schulman 2017, equation 6)."""
    max_logprob_mismatch: float = Field(default=1.05, gt=1)
    """Largest allowed mean exp|log-probability of the trainer - of the sampler| (Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training")."""
    checkpoint_every: Count = 10
    """Iterations between checkpoints."""
    selection: SelectionConfig = SelectionConfig()

    @model_validator(mode="after")
    def _critic_free_is_so_throughout(self) -> "PpoConfig":
        if self.needs_values:
            return self
        if self.responses_per_prompt < 2:
            raise ValueError(
                f"advantages {self.advantages} compares the responses to one prompt: it needs "
                f"responses_per_prompt of at least 2 (4, say), found {self.responses_per_prompt}"
            )
        # Against the default and not as set or unset: settings that were written out and read
        # again have every key, and a file that extends another can only put a key back.
        changed = [
            f"{name} {value} (its default is {default})"
            for name in OF_A_VALUE_FUNCTION
            if (value := getattr(self, name)) != (default := type(self).model_fields[name].default)
        ]
        if changed:
            raise ValueError(
                f"advantages {self.advantages} has no value function that would read "
                f"{', '.join(changed)}: leave that out"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "PpoConfig":
        if self.rollout_batch_size % (self.num_minibatches * self.responses_per_prompt):
            raise ValueError(
                f"rollout_batch_size {self.rollout_batch_size} is not a multiple of num_minibatches"
                f" {self.num_minibatches} times responses_per_prompt {self.responses_per_prompt}"
            )
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_placement loss needs kl_estimator k2 or k3: the gradient of k1 is noise"
            )
        if self.kl_controller == "adaptive" and self.kl_horizon < self.rollout_batch_size:
            raise ValueError(
                f"kl_horizon {self.kl_horizon} is less than rollout_batch_size "
                f"{self.rollout_batch_size}: the controller would correct more than the error at "
                "once, and may turn the KL's weight negative; take several batches"
            )
        if self.kl_watch.action == "raise_kl_coef" and self.kl_coef == 0:
            raise ValueError("kl_watch cannot raise a kl_coef of 0")
        return self

    @model_validator(mode="after")
    def _critic_is_whole(self) -> "PpoConfig":
        if self.share_trunk and self.value_learning_rate is None:
            raise ValueError(
                "share_trunk needs a value_learning_rate (1e-3, say): its value head starts at 0, "
                "and the policy's learning rate would leave it there"
            )
        if self.warmup_iterations >= self.num_iterations:
            raise ValueError("critic_warmup_iterations leaves no iteration for the policy")
        return self

    @property
    def smallest_batch(self) -> int:
        """Responses of a minibatch: the fewest that processes have to share."""
        return self.rollout_batch_size // self.num_minibatches

    @property
    def sampled_tokens(self) -> int | None:
        """Longest response sampled in training."""
        return self.max_new_tokens

    def step_tokens(self, longest: int) -> int:
        """Return the most tokens of one forward pass, of sequences of ``longest`` tokens."""
        return min(max(self.micro_batch_tokens, longest), self.smallest_batch * longest)

    def cached_tokens(self, longest: int) -> int:
        """Return the tokens that keys and values are kept for, sequences as ``step_tokens``'."""
        return min(max(self.decode_tokens, longest), self.rollout_batch_size * longest)

    @property
    def needs_values(self) -> bool:
        """Whether there is a value function at all."""
        return self.advantages == "gae"

    @property
    def needs_value_model(self) -> bool:
        """Whether the value function is a model of its own."""
        return self.needs_values and not self.share_trunk

    @property
    def needs_reference_model(self) -> bool:
        """Whether the reference is a second copy: with LoRA it is the policy without adapters."""
        return self.compute.lora is None

    @property
    def checkpoints(self) -> list[int]:
        """Iterations after which there is a checkpoint with a trained policy, the last included."""
        planned = range(0, self.num_iterations, self.checkpoint_every)
        return [*(one for one in planned if one > self.warmup_iterations), self.num_iterations]

    @property
    def warmup_iterations(self) -> int:
        """First iterations in which the policy stands still."""
        return self.critic_warmup_iterations if self.needs_values else 0

    @property
    def recomputes_old_logprobs(self) -> bool:
        """Whether the trainer itself says what importance ratios refer to."""
        return self.recompute_old_logprobs or self.rollouts.elsewhere

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened over the batch."""
        return self.needs_values if self.whiten_advantages is None else self.whiten_advantages
