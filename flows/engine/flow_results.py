"""What flows hand back to the person who started them: of a pipeline, of labelling, of rounds."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from rlhf_core.feedback.collection import Choice
from rlhf_core.feedback.results import CollectedPairs, PullResult, PushResult
from rlhf_core.schema import (
    DatasetSplits,
    Estimate,
    ModelRef,
    Record,
    StageName,
    StageResult,
    Verdict,
)
from rlhf_core.stages.promote import Promotion


class StageTiming(Record):
    """How long one stage took in this process."""

    stage: StageName
    seconds: float = Field(ge=0)
    reused: bool
    """True when the stage had finished earlier with the same inputs and was not repeated."""


class PipelineResult(Record):
    """Where a pipeline run ended and why."""

    run_id: str
    directory: Path
    verdict: Verdict
    decided_by: StageName
    """The stage whose gates decided; the stages after it did not run unless it is ``evaluate``."""
    reasons: tuple[str, ...]
    splits: DatasetSplits
    stages: dict[StageName, StageResult]
    policy: ModelRef | None = None
    promotion: Promotion | None = None
    """What promotion recorded; None when nothing was promoted."""
    timings: tuple[StageTiming, ...] = ()
    report: Path | None = None
    """One self-contained HTML page about the run."""
    report_url: str | None = None
    """Where a browser finds the page; None where nobody serves it."""

    @property
    def last_model(self) -> ModelRef:
        """The policy, or the last model before a gate ended the run."""
        return list(self.stages.values())[-1].model


class LabelsResult(Record):
    """How far one run of `rlhf-collect` brought a collection."""

    collected: CollectedPairs | None
    """What was sampled; None where the run went on with a collection."""
    pushed: PushResult
    pulled: PullResult | None
    """None where people have to vote first."""

    @property
    def next_step(self) -> str | None:
        """What somebody has to do before there is a version; None where there is one."""
        collection = self.pushed.collection_id
        again = f"run rlhf-collect again with collection {collection}"
        if self.pulled is None:
            return f"people label {self.pushed.pairs} pairs at {self.pushed.place}; then {again}"
        if self.pulled.evaluation is not None and self.pulled.kept:
            return (
                f"{collection}: the evaluation has votes on {self.pulled.kept} pairs; decide again "
                f"with rlhf evaluate CONFIG --run-id {self.pulled.evaluation}, or {again} for more"
            )
        if self.pulled.published is not None:
            return None
        if self.pulled.published_before == self.pulled.pairs:
            return None
        needed = self.pulled.votes_per_pair
        if self.pulled.ready:
            return (
                f"{collection}: {self.pulled.ready} new pairs have the votes they need ({needed}), "
                f"{self.pulled.needed} are needed; later {again}"
            )
        return f"{collection}: no new pair has the votes it needs ({needed}) yet; later {again}"


class Round(Record):
    """One round: what was trained from which data, and what was asked about its answers."""

    SHOWN: ClassVar[tuple[str, ...]] = (
        *("gold/win_rate", "gold/win_rate_over_champion", "gold/score"),
        *("policy/win_rate", "policy/win_rate_over_champion", "policy/kl", "policy/length_ratio"),
        *("reward/heldout_accuracy", "judge/heldout_accuracy"),
    )
    """Metrics of a round's run that are kept here."""

    number: int = Field(ge=1)
    run_id: str
    """Pipeline run of the round."""
    data_version: str | None
    """Dataset version it trains on; None: the raw data of the settings."""
    base: str | None = None
    """What its SFT starts from in place of ``model.base``."""
    verdict: Verdict | None = None
    """None until its pipeline run has ended."""
    reasons: tuple[str, ...] = ()
    policy: str | None = None
    """URI; None where a gate ended the run before there was one."""
    champion: str | None = None
    """The champion it made; None where it made none."""
    dataset: str | None = None
    scorers: tuple[str, ...] = ()
    """URIs of the reward model, if it trained one, and of the judge."""
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    collection: str | None = None
    """Id of the collection of its policy's answers."""
    pairs: int | None = None
    choice: Choice | None = None
    labelled: int | None = None
    """Pairs with the votes they need."""
    alpha: Estimate | None = None
    """Krippendorff's, over the votes on its pairs."""
    agreement: dict[str, Estimate] = Field(default_factory=dict)
    """Of the reward models that chose its pairs with the votes on them, by URI."""
    next_version: str | None = None
    """Dataset version of its labels, which the next round trains on."""
    awaits: str | None = None
    """What has to happen before there is one."""


class Rounds(Record):
    """Rounds of training and labelling; lies in the first run's folder as ``rounds.json``."""

    run_id: str
    """Of the first round's run, by which the rounds are resumed."""
    directory: Path
    rounds: tuple[Round, ...] = ()
    wanted: int = 0
    """How many rounds there are to be; earlier builds did not say it."""

    @property
    def is_stopped(self) -> bool:
        """Whether something is left to do: of the last round, or a round that was to follow it."""
        if not self.rounds:
            return False
        last = self.rounds[-1]
        return last.verdict is None or (last.policy is not None and len(self.rounds) < self.wanted)

    @property
    def awaits(self) -> str | None:
        """What has to happen before the next round can begin; None where nothing has."""
        return self.rounds[-1].awaits if self.rounds else None
