"""What a pipeline run hands back to the person who started it."""

from pathlib import Path

from pydantic import Field

from rlhf_core.feedback.results import CollectedPairs, PullResult, PushResult
from rlhf_core.schema import (
    DatasetSplits,
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
        return f"{collection}: no new pair has the votes it needs ({needed}) yet; later {again}"
