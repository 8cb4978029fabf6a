"""What a candidate must still do beside pleasing a judge: lists of prompts with known answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf_core.config.base import Count, Section

DIFFERENCE, SCORE = "difference", "score"


class RegressionSuiteConfig(Section):
    """A frozen list of prompts and what an answer to each must, and must not, match."""

    kind: Literal["regression"] = "regression"
    """A list of one's own."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Names the suite's metrics: ``suite/NAME/score``, ``suite/NAME/difference``."""
    path: Path
    """JSON lines, or YAML with a list; docs/gates.md shows the form."""
    max_new_tokens: Count | None = None
    """Longest answer, in tokens; None takes that of the evaluation."""
    max_loss: float | None = Field(default=0.1, gt=0, lt=1)
    """How much worse than the champion, or SFT where there is none, the candidate may be: the lower
    bound of the difference must reach this, negated. None: the suite is shown and asks nothing."""
    gated_tags: tuple[str, ...] = ("harmful", "harmless")
    """Tags whose items alone have to pass, too, where the list has any."""
    items_are: Literal["sample", "all"] = "sample"
    """``sample`` of what people may ask: the difference has an interval, and a short list is HOLD.
    ``all`` that is asked: the difference on the list counts as it is."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Two-sided level of the intervals of metrics without a gate of their own."""


SuiteConfig = RegressionSuiteConfig


def suite_of(metric: str, suites: Sequence[SuiteConfig]) -> SuiteConfig | None:
    """Return the suite that measures ``suite/NAME/[TAG/]score`` or ``.../difference``."""
    stage, _, name = metric.partition("/")
    name, _, rest = name.partition("/")
    if stage != "suite" or rest.rpartition("/")[2] not in (DIFFERENCE, SCORE):
        return None
    return next((suite for suite in suites if suite.name == name), None)
