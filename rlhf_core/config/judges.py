"""Who decides between the answers: our own judge, other models, or several together."""

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from rlhf_core.config.base import Count, Section
from rlhf_core.config.feedback import AiLabelerConfig

OWN_JUDGE = "run"
"""``evaluation.judge`` for the judge that the run itself trained."""


class AiJudgeConfig(AiLabelerConfig):
    """A language model behind an OpenAI-compatible chat endpoint, asked as for labels.

    The key, if it wants one, is the environment's ``RLHF_JUDGE_API_KEY``.
    """


class RewardModelJudgeConfig(Section):
    """A reward model from elsewhere, with its own tokenizer and template."""

    kind: Literal["reward_model"] = "reward_model"
    """Any ``AutoModelForSequenceClassification`` with one score."""
    model: str = Field(min_length=1)
    """Folder in ``save_pretrained`` layout, or a name at the Hugging Face hub."""
    revision: str | None = None
    """Of the hub's files; None takes the newest."""
    max_length: Count | None = None
    """Longest conversation it reads, in its own tokens; None takes what its config.json says.
    Pairs with a longer one are not judged."""


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "_ours"
    if isinstance(value, (list, tuple)):
        return "_several"
    kind = value.get("kind", "") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


def _of_ours(name: str) -> str:
    if name != OWN_JUDGE and not re.fullmatch(r"models:/.+", name):
        raise ValueError("expected run, or models:/NAME/VERSION, or a section with its kind")
    return name


def _some(judges: tuple[Any, ...]) -> tuple[Any, ...]:
    if not judges:
        raise ValueError("expected at least one judge")
    return judges


def _by_kind(more: str = "") -> Discriminator:
    return Discriminator(
        _kind_of,
        custom_error_type="judge",
        custom_error_message="expected run, models:/NAME/VERSION, or a section with kind ai or "
        f"reward_model{more}",
    )


_One: TypeAlias = (
    Annotated[str, AfterValidator(_of_ours), Tag("_ours")]
    | Annotated[AiJudgeConfig, Tag("ai")]
    | Annotated[RewardModelJudgeConfig, Tag("reward_model")]
)
OneJudge: TypeAlias = Annotated[_One, _by_kind()]
JudgeConfig: TypeAlias = Annotated[
    _One | Annotated[tuple[OneJudge, ...], AfterValidator(_some), Tag("_several")],
    _by_kind(", or a list of these"),
]
OutsideJudge: TypeAlias = AiJudgeConfig | RewardModelJudgeConfig


def judges_of(
    judge: str | OutsideJudge | tuple[str | OutsideJudge, ...] | None,
) -> tuple[str | OutsideJudge, ...]:
    """Return the judges that a setting names, none where it leaves that to the champion."""
    if judge is None:
        return ()
    return judge if isinstance(judge, tuple) else (judge,)
