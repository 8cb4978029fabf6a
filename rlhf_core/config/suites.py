"""What a candidate must still do beside pleasing a judge: lists of prompts with known answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from rlhf_core.config.base import Count, Section

DIFFERENCE, SCORE = "difference", "score"
REGRESSION, LM_EVAL = "regression", "lm_eval"
_NAME = r"^[a-z0-9][a-z0-9_-]*$"


class RegressionSuiteConfig(Section):
    """A frozen list of prompts and what an answer to each must, and must not, match."""

    kind: Literal["regression"] = "regression"
    """A list of one's own."""
    name: str = Field(pattern=_NAME)
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

    def gates_part(self, tag: str) -> bool:
        """Say whether the items of a tag alone have to pass."""
        return tag in self.gated_tags


class LmEvalSuiteConfig(Section):
    """Tasks of lm-evaluation-harness, scored item by item; they need the extra ``suites``."""

    kind: Literal["lm_eval"] = "lm_eval"
    """Tasks of lm-evaluation-harness."""
    name: str = Field(pattern=_NAME)
    """Names the suite's metrics: ``suite/NAME/score``, ``suite/NAME/difference``; with several
    tasks ``suite/NAME/TASK/score`` and ``.../difference`` of each."""
    tasks: tuple[str, ...]
    """Task files of one's own (``.yaml``; data beside it needs no network), or names of the
    harness's tasks and groups."""
    metric: str | None = None
    """What scores an item from 0 to 1, as the harness writes it: ``acc``, ``exact_match``, or with
    its filter ``exact_match,flexible-extract``. None takes each task's first."""
    limit: Count | None = None
    """Items of each task, its first ones; None takes all."""
    num_fewshot: Annotated[int, Field(ge=0, le=1_000)] | None = None
    """Solved examples before each item; None takes what the task says."""
    chat_template: bool | None = None
    """Ask through the model's chat template; None does where the model has one."""
    max_new_tokens: Count | None = None
    """Longest answer where the model writes one, in tokens; None takes what the task says, or the
    evaluation's."""
    batch_size: Count = 8
    """Requests computed together; bounds memory, and changes scores of items near a tie alone."""
    max_loss: float | None = Field(default=0.05, gt=0, lt=1)
    """How much worse than the champion, or SFT where there is none, the candidate may be, over all
    items and in each task: the lower bound of the difference must reach this, negated. None: the
    suite is shown and asks nothing."""
    items_are: Literal["sample", "all"] = "sample"
    """``sample`` of what may be asked: the difference has an interval, and few items are HOLD.
    ``all`` that is asked: the difference on them counts as it is."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Two-sided level of the intervals of metrics without a gate of their own."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _as_several(cls, tasks: object) -> object:
        # A file of settings is read strictly: from here on a list is no array of JSON.
        return (tasks,) if isinstance(tasks, str) else _as_tuple(tasks)

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if not tasks:
            raise ValueError("expected at least one task: its name or its file (.yaml)")
        for task in tasks:
            if not task.strip():
                raise ValueError("an empty name; expected a task's name or its file (.yaml)")
            if tasks.count(task) > 1:
                raise ValueError(f"{task!r} is duplicated")
        return tasks

    def gates_part(self, tag: str) -> bool:
        """Say whether the items of a task alone have to pass: those of each."""
        return True


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _kind_of(value: Any) -> str:
    kind = value.get("kind", REGRESSION) if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


SuiteConfig = Annotated[
    Annotated[RegressionSuiteConfig, Tag(REGRESSION)] | Annotated[LmEvalSuiteConfig, Tag(LM_EVAL)],
    Discriminator(
        _kind_of,
        custom_error_type="suite",
        custom_error_message="kind: expected regression (a list of one's own) or lm_eval (tasks of "
        "lm-evaluation-harness)",
    ),
]


def suite_of(metric: str, suites: Sequence[SuiteConfig]) -> SuiteConfig | None:
    """Return the suite that measures ``suite/NAME/[TAG/]score`` or ``.../difference``."""
    stage, _, name = metric.partition("/")
    name, _, rest = name.partition("/")
    if stage != "suite" or rest.rpartition("/")[2] not in (DIFFERENCE, SCORE):
        return None
    return next((suite for suite in suites if suite.name == name), None)
