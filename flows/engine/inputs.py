"""What a stage reads besides the settings: the forms people fill in.

Everything upstream is named by reference. A blank means: what this run made, else what the
registry's aliases say.
"""

from typing import Annotated, Literal

from pydantic import Field

from rlhf_core.schema import Record, StageName

Run = Annotated[
    str | None,
    Field(
        description="Run to go on with: its id, or its folder. Empty starts a new one. With an "
        "old run and no settings, the run's own settings are used."
    ),
]
Force = Annotated[
    bool, Field(description="Repeat the stage even if its settings and inputs have not changed.")
]
NewRun = Annotated[
    bool,
    Field(description="Let run name one that does not exist, and begin it; else it is refused."),
]
Dataset = Annotated[
    str | None,
    Field(
        description="Dataset: a published version (data-v3), or a prepared DIRECTORY or "
        "DIRECTORY@SHA256. Empty: what this run prepared, else the raw data of the settings, "
        "prepared now."
    ),
]
SftUri = Annotated[
    str | None,
    Field(
        description="SFT model, as models:/NAME/VERSION, models:/NAME@ALIAS or a directory. "
        "Empty: this run's, else the alias candidate, else champion.",
    ),
]
RewardUri = Annotated[
    str | None,
    Field(
        description="Reward model PPO optimises against (DPO reads none). Empty: as for sft.",
    ),
]
JudgeUri = Annotated[
    str | None,
    Field(
        description="Judge of the answers. Empty: evaluation.judge of the settings, else the judge "
        "of the champion's release, else as for sft."
    ),
]
ChooserUri = Annotated[
    str | None,
    Field(
        description="Judge that chooses which checkpoint is offered. Empty: evaluation.judge of the"
        " settings, else as for sft."
    ),
]
PolicyUri = Annotated[str | None, Field(description="Policy to evaluate. Empty: as for sft.")]
Role = Annotated[
    Literal["reward", "judge"],
    Field(
        description="reward: what PPO optimises. judge: decides promotion, from the other half of "
        "the preferences."
    ),
]


class PipelineInputs(Record):
    """Which run the pipeline goes on with, and from where."""

    run: Run = None
    repeat_from: StageName | None = Field(
        default=None,
        description="Do this stage and all that follow again; finished ones before it stand as they"
        " are.",
    )


class PrepareInputs(Record):
    """What preparation reads besides the raw data of the settings."""

    run: Run = None
    force: Force = False


class SftInputs(Record):
    """What SFT reads."""

    run: Run = None
    force: Force = False
    dataset: Dataset = None


class RewardInputs(Record):
    """What a reward model or judge reads."""

    run: Run = None
    new_run: NewRun = False
    force: Force = False
    dataset: Dataset = None
    sft: SftUri = None
    role: Role = "reward"


class PolicyInputs(Record):
    """What policy optimisation reads."""

    run: Run = None
    new_run: NewRun = False
    force: Force = False
    dataset: Dataset = None
    sft: SftUri = None
    reward: RewardUri = None
    judge: ChooserUri = None


class EvaluateInputs(Record):
    """What evaluation reads."""

    run: Run = None
    new_run: NewRun = False
    force: Force = False
    dataset: Dataset = None
    sft: SftUri = None
    reward: RewardUri = None
    judge: JudgeUri = None
    policy: PolicyUri = None


class PromoteInputs(Record):
    """What promotion reads: the run whose evaluation said PROMOTE."""

    run: str = Field(description="Run whose evaluated policy becomes the champion.")
    force: Force = False


class CollectInputs(Record):
    """Which models are asked for pairs of answers, or which collection is resumed."""

    collection: str | None = Field(
        default=None,
        description="Collection to go on with, by its id: asks for the votes that are missing and "
        "brings back those there are. Empty samples a new one.",
    )
    at_least: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Publish nothing before this share of the collection's pairs has its votes. "
        "Empty: whatever has them. (above 0, at most 1)",
    )
    model: str | None = Field(
        default=None,
        description="Model that answers every prompt twice, as models:/NAME/VERSION, "
        "models:/NAME@ALIAS or a directory. Empty: the policy's champion.",
    )
    evaluation: str | None = Field(
        default=None,
        description="Run whose evaluated answers are asked about, instead of new ones: votes on "
        "them correct the judge's win rate and train nothing.",
    )
    pairs: int | None = Field(
        default=None,
        ge=1,
        description="Pairs drawn at random from an evaluation. Empty: what half_width needs. "
        "(at least 1)",
    )
    half_width: float | None = Field(
        default=None,
        gt=0,
        lt=0.5,
        description="Of the corrected win rate's interval, from which the pairs needed are "
        "counted. Empty: 0.05. (above 0, below 0.5)",
    )
    against: str | None = Field(
        default=None,
        description="A second model: then each of the two answers once. Empty: there is none.",
    )
    dataset: Dataset = None


class RoundsInputs(Record):
    """How many rounds, and which are resumed."""

    run: str | None = Field(
        default=None,
        description="Rounds to go on with: the id of their first run, or its folder. Empty begins.",
    )
    rounds: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Rounds in all, those that are done included. (at least 1, at most 1000)",
    )


ModelInputs = SftInputs | RewardInputs | PolicyInputs | EvaluateInputs
StageInputs = PrepareInputs | ModelInputs | PromoteInputs


def may_begin(inputs: StageInputs) -> bool:
    """Return whether the run that a stage is given may be one that does not exist yet.

    Preparation and SFT begin runs. What follows reads what an earlier stage made, so that a name
    of no run is more likely misspelt.
    """
    if isinstance(inputs, PromoteInputs):
        return False
    return isinstance(inputs, PrepareInputs | SftInputs) or inputs.new_run
