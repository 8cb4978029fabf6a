"""Who has the last word before a model becomes champion."""

from typing import Literal

from pydantic import Field

from rlhf_core.config.base import Section


class PromotionConfig(Section):
    """What happens after the gates said PROMOTE."""

    approval: Literal["gates", "person"] = "gates"
    """``gates``: their PROMOTE is enough. ``person``: the run waits until somebody agrees."""
    wait_hours: float = Field(default=72.0, gt=0, le=8_760)
    """How long it waits for a person; then the verdict is HOLD."""
