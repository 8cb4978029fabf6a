"""What a stage shows in the Prefect UI: progress while it trains, then tables and links."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flows.opening import is_deployed
from flows.records import PipelineResult
from rlhf_core.schema import DatasetSplits, Estimate, ModelRef, Record, StageResult

STEP = re.compile(r"\bstep=(\d+) of=(\d+)\b")
"""How the trainers' log lines say how far they are."""


class ProgressFromLogs(logging.Handler):
    """Moves a progress artifact along with the trainers' log lines."""

    def __init__(self, stage: str) -> None:
        super().__init__(logging.INFO)
        self._artifact = create_progress_artifact(
            progress=0.0, key=f"{stage}-progress", description=f"{stage}: training"
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Update the bar if the line says a step."""
        step = STEP.search(record.getMessage())
        if step:
            update_progress_artifact(
                self._artifact,  # type: ignore[arg-type]
                progress=100.0 * int(step[1]) / int(step[2]),
                description=record.getMessage(),
            )


@contextmanager
def watch_training(stage: str) -> Iterator[None]:
    """Show how far the training inside the block is, if a worker runs it."""
    if not is_deployed():
        yield
        return
    trainers = logging.getLogger("rlhf_core.trainers")
    handler = ProgressFromLogs(stage)
    trainers.addHandler(handler)
    try:
        yield
    finally:
        trainers.removeHandler(handler)


def show_handed(stage: str, handed: Record) -> None:
    """Publish what a stage hands on, if a worker runs it."""
    if not is_deployed():
        return
    if isinstance(handed, StageResult):
        create_markdown_artifact(stage_page(stage, handed), key=f"{stage}-result")
        if handed.tracking_url.startswith("http"):
            create_link_artifact(handed.tracking_url, "MLflow run", key=f"{stage}-mlflow")
    elif isinstance(handed, DatasetSplits):
        create_markdown_artifact(dataset_page(handed), key="prepare-dataset")
    elif isinstance(handed, ModelRef):
        create_markdown_artifact(f"`{handed.uri}`, sha256 `{handed.sha256}`", key=f"{stage}-model")


def show_outcome(result: PipelineResult) -> None:
    """Publish how a pipeline run ended and where its page lies, if a worker runs it."""
    if not is_deployed():
        return
    rows = [f"| {item.stage} | {item.seconds:.0f} |" for item in result.timings]
    page = "\n".join(
        (
            f"# {result.verdict} (by {result.decided_by})",
            *(f"- {reason}" for reason in result.reasons),
            f"\nreport: `{result.report}`\n\n| stage | seconds |\n|---|---|",
            *rows,
        )
    )
    create_markdown_artifact(page, key="pipeline-outcome")


def stage_page(stage: str, result: StageResult) -> str:
    """Return a page with the stage's verdict, gates and metrics."""
    decision = result.decision
    gates = [
        f"| {gate.gate} | **{gate.verdict}** | {_estimate(gate.estimate)} | {gate.rule} |"
        for gate in decision.results
    ]
    metrics = [
        f"| {name} | {_estimate(estimate)} |"
        for name, estimate in sorted(result.report.metrics.items())
    ]
    return "\n".join(
        (
            f"# {stage}: {decision.verdict}",
            f"`{result.model.uri}`, [MLflow run]({result.tracking_url})",
            *(f"- {reason}" for reason in decision.reasons),
            "\n| gate | verdict | measured | rule |\n|---|---|---|---|",
            *gates,
            "\n| metric | value |\n|---|---|",
            *metrics,
        )
    )


def dataset_page(splits: DatasetSplits) -> str:
    """Return a page with the files of a dataset version."""
    rows = [
        f"| {part.path.stem} | {part.num_rows} | `{part.sha256[:12]}` |"
        for part in (getattr(splits, name) for name in DatasetSplits.model_fields)
        if hasattr(part, "num_rows")
    ]
    head = f"# dataset `{splits.sha256[:12]}`\n\nreport: `{splits.report.absolute()}`\n"
    return "\n".join((head, "| file | rows | sha256 |\n|---|---|---|", *rows))


def _estimate(estimate: Estimate) -> str:
    low, high = f"{estimate.low:.4g}", f"{estimate.high:.4g}"
    return f"{estimate.value:.4g} [{low}, {high}], n = {estimate.num_samples}"
