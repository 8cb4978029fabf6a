"""Who has the last word before a model becomes champion, and what it has to beat."""

import math
from typing import Literal

from pydantic import Field, model_validator

from rlhf_core.config.base import Count, Section
from rlhf_core.config.evaluation import GateConfig
from rlhf_core.config.metric_names import OVER_CHAMPION

_MORE_THAN_HALF = math.nextafter(0.5, 1.0)
"""A lower bound of exactly one half proves nothing."""


class PromotionConfig(Section):
    """What happens after the gates said PROMOTE, and how a candidate is held to the champion."""

    approval: Literal["gates", "person"] = "gates"
    """``gates``: their PROMOTE is enough. ``person``: the run waits until somebody agrees."""
    wait_hours: float = Field(default=72.0, gt=0, le=8_760)
    """How long it waits for a person; then the verdict is HOLD."""
    rule: Literal["superior", "not_inferior"] = "superior"
    """``superior``: by the lower bound, the candidate's answers win over the champion's more often
    than not. ``not_inferior``: they lose by ``margin`` at most, and ``because`` is fulfilled."""
    margin: float | None = Field(default=None, gt=0, lt=0.5)
    """With ``not_inferior``: the lower bound of the win rate must reach one half less this."""
    because: GateConfig | None = None
    """With ``not_inferior``: what makes the candidate worth having, as a gate on a policy metric
    (for example ``{metric: policy/length_ratio_over_champion, at_most: 0.9}``)."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Two-sided level of the interval of the win rate over the champion."""
    min_samples: Count = 100
    """Fewer prompts than this is HOLD."""
    slice_margin: float | None = Field(default=0.2, gt=0, lt=0.5)
    """In no slice (each value of a tag, each third of prompts by length) may the candidate be
    worse: the lower bound must reach one half less this, and the upper one half. None: slices are
    shown and hold nobody back."""
    min_slice_samples: Count = 40
    """Slices of fewer prompts are shown and hold nobody back."""

    @model_validator(mode="after")
    def _rule_is_whole(self) -> "PromotionConfig":
        given = (self.margin is not None, self.because is not None)
        if self.rule == "not_inferior" and not all(given):
            raise ValueError("rule not_inferior needs margin and because: what it is promoted for")
        if self.rule == "superior" and any(given):
            raise ValueError("margin and because belong to rule not_inferior")
        if self.because is not None and not self.because.metric.startswith("policy/"):
            raise ValueError(f"because: {self.because.metric!r} is no metric of the policy")
        return self

    def gates(self) -> tuple[GateConfig, ...]:
        """Return the conditions that hold where there is a champion."""
        over_champion = GateConfig(
            metric=f"policy/{OVER_CHAMPION}",
            at_least=_MORE_THAN_HALF if self.rule == "superior" else 0.5 - (self.margin or 0.0),
            confidence=self.confidence,
            min_samples=self.min_samples,
        )
        return (over_champion, *((self.because,) if self.because else ()))


class RetentionConfig(Section):
    """Which earlier runs a pipeline deletes when it ends: of its project, begun with this setting.

    What anything still needs stays, as `rlhf runs clean` says of every run.
    """

    older_than_days: float = Field(default=30.0, gt=0, le=36_500)
    """Since a run was started; stopped ones, which somebody might go on with, are among them."""
    keep_last: int = Field(default=14, ge=0)
    """The newest runs of the folder that stay, however old they are."""
