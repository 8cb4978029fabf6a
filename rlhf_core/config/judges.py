"""Who decides between the answers: our own judge, other models, or several together."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

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
        return "ours"
    if isinstance(value, (list, tuple)):
        return "several"
    kind = value.get("kind", "") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


JudgeName: TypeAlias = Annotated[str, Field(pattern=r"^run$|^models:/.+$")]
OneJudge: TypeAlias = Annotated[
    Annotated[JudgeName, Tag("ours")]
    | Annotated[AiJudgeConfig, Tag("ai")]
    | Annotated[RewardModelJudgeConfig, Tag("reward_model")],
    Discriminator(
        _kind_of,
        custom_error_type="judge",
        custom_error_message="expected run, models:/NAME/VERSION, or a section with kind ai or "
        "reward_model",
    ),
]
JudgeConfig: TypeAlias = Annotated[
    Annotated[JudgeName, Tag("ours")]
    | Annotated[AiJudgeConfig, Tag("ai")]
    | Annotated[RewardModelJudgeConfig, Tag("reward_model")]
    | Annotated[tuple[OneJudge, ...], Field(min_length=1), Tag("several")],
    Discriminator(
        _kind_of,
        custom_error_type="judge",
        custom_error_message="expected run, models:/NAME/VERSION, a section with kind ai or "
        "reward_model, or a list of these",
    ),
]
OutsideJudge: TypeAlias = AiJudgeConfig | RewardModelJudgeConfig


def judges_of(
    judge: str | OutsideJudge | tuple[str | OutsideJudge, ...] | None,
) -> tuple[str | OutsideJudge, ...]:
    """Return the judges that a setting names, none where it leaves that to the champion."""
    if judge is None:
        return ()
    return judge if isinstance(judge, tuple) else (judge,)
