"""Settings of policy optimisation: one section an algorithm, and what is asked of each of them."""

from typing import Annotated, Protocol

from pydantic import Field

from rlhf_core.config.dpo import DpoConfig
from rlhf_core.config.ppo import PpoConfig
from rlhf_core.config.reward_terms import RewardTerm
from rlhf_core.config.rollouts import RolloutsConfig
from rlhf_core.config.training import ComputeConfig, DistributedConfig, SelectionConfig

PolicyConfig = Annotated[PpoConfig | DpoConfig, Field(discriminator="algorithm")]


class PolicySettings(Protocol):
    """What the pipeline asks of an algorithm's settings; it compares no algorithm's name or class.

    The trainer is registered with ``optimize`` in ``stages/policy.py``.
    """

    @property
    def algorithm(self) -> str:
        """Its name in a file."""

    @property
    def compute(self) -> ComputeConfig:
        """Device memory and precision of the training."""

    @property
    def distributed(self) -> DistributedConfig | None:
        """Processes of this stage; None takes the ``distributed`` of the whole file."""

    @property
    def rollouts(self) -> RolloutsConfig:
        """Who samples responses, in training and where the policy is evaluated."""

    @property
    def selection(self) -> SelectionConfig:
        """Which checkpoint is offered."""

    @property
    def rewards(self) -> tuple[RewardTerm, ...]:
        """Terms of the reward beside or instead of the run's reward model."""

    @property
    def needs_reward_model(self) -> bool:
        """Whether the run trains a reward model for it."""

    @property
    def needs_value_model(self) -> bool:
        """Whether a value model is trained beside the policy."""

    @property
    def needs_reference_model(self) -> bool:
        """Whether a second copy of the start stays in memory."""

    @property
    def knows_unpaired(self) -> bool:
        """Whether it can learn from responses with labels of their own."""

    @property
    def needs_unpaired(self) -> bool:
        """Whether the dataset must have such responses."""

    @property
    def learns_from_pairs(self) -> bool:
        """Whether it reads the dataset's pairs."""

    @property
    def sampled_tokens(self) -> int | None:
        """Longest response sampled in training; None where none is."""

    @property
    def smallest_batch(self) -> int:
        """Sequences, pairs or responses of a step: the fewest that processes have to share."""

    def step_tokens(self, longest: int) -> int:
        """Return the most tokens of one forward pass, of sequences of ``longest`` tokens."""

    def cached_tokens(self, longest: int) -> int:
        """Return the tokens that keys and values are kept for; 0 where nothing is sampled."""
