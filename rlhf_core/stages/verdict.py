"""From a report to a recorded verdict: what every evaluation does in the same way."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_core.adapters.champion import record_decision, recorded_verdict
from rlhf_core.adapters.tracking import StageRun, open_run, stage_inputs
from rlhf_core.config import GatedStage, PipelineConfig
from rlhf_core.evaluation.gates import decide
from rlhf_core.evaluation.intervals import Plans, Resampling
from rlhf_core.schema import DatasetSplits, EvaluationReport, ModelRef, RunContext, StageResult
from rlhf_core.stages.determinism import derived_seed


@contextmanager
def evaluation_run(
    config: PipelineConfig,
    splits: DatasetSplits,
    context: RunContext,
    run: StageRun | None,
    **models: ModelRef,
) -> Iterator[StageRun]:
    """The training stage's run, or one of the evaluation's own with its inputs on record."""
    if run is not None:
        yield run
        return
    with open_run(config, context, "evaluate", inputs=stage_inputs(splits, **models)) as own:
        own.log_dataset(splits)
        yield own


def metric_plans(config: PipelineConfig, stage: GatedStage) -> Plans:
    """How each metric's interval is made: a gated one at the confidence of its gate."""
    settings = config.evaluation
    return Plans(
        default=Resampling(
            confidence=settings.confidence,
            num_resamples=settings.num_resamples,
            seed=derived_seed(config.seed, "bootstrap"),
        ),
        confidences={gate.metric: gate.confidence for gate in config.gates.of_stage(stage)},
    )


def conclude(
    config: PipelineConfig,
    stage: GatedStage,
    report: EvaluationReport,
    run: StageRun,
    started: float,
    judge: ModelRef | None = None,
) -> StageResult:
    """Apply the stage's gates and write the verdict down before anyone hears it."""
    doubts = _doubts_about(judge) if judge else ()
    decision = decide(config.gates.of_stage(stage), report, doubts=doubts)
    record_decision(decision, report, run=run, upstream={"judge": judge} if judge else {})
    return StageResult(
        stage=stage,
        model=report.model,
        report=report,
        decision=decision,
        seconds=time.monotonic() - started,
        tracking_url=run.url,
    )


def _doubts_about(judge: ModelRef) -> tuple[str, ...]:
    """Why a judge's word does not count: it has not passed the gates that are asked of it."""
    registered = judge.uri.startswith("models:/")
    verdict = recorded_verdict(judge.uri)[0] if registered else None
    if verdict == "PROMOTE":
        return ()
    found = f"has verdict {verdict}" if verdict else "has passed no gate"
    return (f"the judge {judge.uri} {found}; a policy cannot be promoted on its word.",)
