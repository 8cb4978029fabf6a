"""What a pipeline run hands back to the person who started it."""

from pathlib import Path

from pydantic import Field

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
