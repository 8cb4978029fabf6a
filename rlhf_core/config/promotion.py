"""Who has the last word before a model becomes champion."""

from typing import Literal

from rlhf_core.config.base import Positive, Section


class PromotionConfig(Section):
    """What happens after the gates said PROMOTE."""

    approval: Literal["gates", "person"] = "gates"
    """``gates``: their PROMOTE is enough. ``person``: the run waits until somebody agrees."""
    wait_hours: Positive = 72.0
    """How long it waits for a person; then the verdict is HOLD."""
