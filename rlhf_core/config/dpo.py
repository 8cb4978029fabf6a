"""Settings of DPO and of the other losses on pairs, each with its source."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlhf_core.config.base import NonNegative, Positive
from rlhf_core.config.reward_terms import RewardTerm
from rlhf_core.config.rollouts import OwnRolloutsConfig, RolloutsConfig
from rlhf_core.config.training import (
    OptimizerConfig,
    SelectionConfig,
    SupervisedConfig,
    filled_with,
)

DPO_OPTIMIZER = OptimizerConfig(learning_rate=5e-7, schedule="linear")

MOST_DESIRABLE = 4 / 3
"""KTO's desirable responses, by number and weight, should be 1 to 4/3 times the others
(Ethayarajh 2024, arXiv:2402.01306, section 4)."""


def balancing_weights(num_desirable: int, num_undesirable: int) -> tuple[float, float]:
    """Return the least and the largest ``desirable_weight`` for so many labels, >= 1 of each."""
    low = num_undesirable / num_desirable
    return low, low * MOST_DESIRABLE


class DpoConfig(SupervisedConfig):
    """Policy optimisation straight from pairs: DPO (Rafailov et al. 2023) and its family."""

    algorithm: Literal["dpo"] = "dpo"
    """These are the settings of DPO and of the other losses on pairs (``loss``)."""
    sequences_of_an_item: ClassVar[int] = 2
    needs_reward_model: ClassVar[bool] = False
    needs_value_model: ClassVar[bool] = False
    needs_reference_model: ClassVar[bool] = False
    """Its log-probabilities are measured before the first step; no copy stays in memory."""
    rewards: ClassVar[tuple[RewardTerm, ...]] = ()
    sampled_tokens: ClassVar[int | None] = None
    """It samples nothing in training."""
    rollouts: RolloutsConfig = OwnRolloutsConfig()
    """Who samples responses where the policy is evaluated; training samples none."""
    loss: Literal["dpo", "robust", "ipo", "kto", "simpo", "orpo"] = "dpo"
    """``dpo`` (Rafailov 2023, arXiv:2305.18290; conservative with ``label_smoothing``), ``robust``
    (Chowdhury 2024, arXiv:2403.00409), ``ipo`` (Azar 2023, arXiv:2310.12036), ``kto`` (Ethayarajh
    2024, arXiv:2402.01306; each pair is a desirable and an undesirable response); without a
    reference ``simpo`` (Meng 2024, arXiv:2405.14734) and ``orpo`` (Hong 2024, arXiv:2403.07691)."""
    optimizer: Annotated[OptimizerConfig, filled_with(DPO_OPTIMIZER)] = DPO_OPTIMIZER
    beta: Positive = 0.1
    """How closely the policy is held to the reference: weight of the KL (Rafailov 2023). ``ipo``:
    its margin is 1 / (2 beta). ``simpo``: scale of its rewards, 2 to 10 in the paper. ``orpo``:
    weight of the odds ratio beside the NLL."""
    length_normalized: bool | None = None
    """Log-probabilities per token instead of per response. None: as published, which is per token
    for ``ipo`` (so its authors), ``simpo`` and ``orpo``, and per response for the others."""
    target_margin: NonNegative = 0.5
    """``simpo``: how far apart the two rewards should be (Meng 2024, their gamma)."""
    desirable_weight: Positive = 1.0
    """``kto``: weight of the desirable responses, the chosen ones of pairs (Ethayarajh 2024, their
    lambda_D). With it the two labels weigh alike where they are not equally many."""
    undesirable_weight: Positive = 1.0
    """``kto``: weight of the undesirable responses, the rejected ones of pairs (their lambda_U)."""
    train_on: Literal["pairs", "unpaired", "both"] | None = None
    """``kto``: which rows of the dataset it learns from; each pair is two of them. None: both where
    the dataset has unpaired ones, else the pairs."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong: conservative with ``dpo``, ``ipo`` and ``simpo``,
    unbiased with ``robust``."""
    use_soft_labels: bool = False
    """Train towards ``PreferencePair.probability``; smoothing applies on top of it."""
    selection: SelectionConfig = SelectionConfig()

    def cached_tokens(self, longest: int) -> int:
        """Return 0: it keeps no keys and values."""
        return 0

    @property
    def knows_unpaired(self) -> bool:
        """Whether it can learn from responses with labels of their own."""
        return self.loss == "kto"

    def learns_from_unpaired(self, *, has_unpaired: bool) -> bool:
        """Return whether it does, by what it has been told or by what the dataset has."""
        if self.train_on is None:
            return self.knows_unpaired and has_unpaired
        return self.needs_unpaired

    @property
    def needs_unpaired(self) -> bool:
        """Whether it has been told to."""
        return self.train_on in ("unpaired", "both")

    @property
    def learns_from_pairs(self) -> bool:
        """Whether pairs are among what it learns from."""
        return self.train_on != "unpaired"

    @property
    def needs_baseline(self) -> bool:
        """Whether the loss measures responses against the KL of other responses."""
        return self.loss == "kto"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the policy with its start."""
        return self.loss not in ("simpo", "orpo")

    @property
    def is_per_token(self) -> bool:
        """Whether log-probabilities are means over the tokens of a response."""
        if self.length_normalized is None:
            return self.loss in ("ipo", "simpo", "orpo")
        return self.length_normalized

    @model_validator(mode="after")
    def _loss_reads_its_settings(self) -> "DpoConfig":
        if not self.needs_reference and self.length_normalized is False:
            raise ValueError(f"loss {self.loss} is per token: leave length_normalized out")
        if self.loss != "simpo" and self.target_margin != 0.5:
            raise ValueError(f"loss {self.loss} has no target_margin (simpo has): leave it out")
        if self.loss == "kto" and self.length_normalized:
            raise ValueError("loss kto is per response: leave length_normalized out")
        if self.loss != "kto" and self.train_on is not None:
            raise ValueError(f"loss {self.loss} learns from pairs alone: leave train_on out")
        weights = (self.desirable_weight, self.undesirable_weight)
        if self.loss != "kto" and weights != (1.0, 1.0):
            raise ValueError(
                f"loss {self.loss} has no desirable_weight and undesirable_weight (kto has): leave "
                "them out"
            )
        return self

    @model_validator(mode="after")
    def _loss_reads_labels_as_set(self) -> "DpoConfig":
        if self.loss == "robust" and self.label_smoothing == 0.0:
            raise ValueError(
                "loss robust corrects for the share of labels that are wrong: it needs "
                "label_smoothing above 0 (0.1, say)"
            )
        if self.loss in ("robust", "orpo", "kto") and self.use_soft_labels:
            raise ValueError(f"loss {self.loss} knows no soft labels: leave use_soft_labels out")
        if self.loss in ("orpo", "kto") and self.label_smoothing > 0.0:
            raise ValueError(f"loss {self.loss} knows no label_smoothing: leave it out")
        return self
