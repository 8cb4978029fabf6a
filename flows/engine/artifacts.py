"""What a stage shows in the Prefect UI when it is done: tables of what was measured, and links."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from rlhf_core.adapters.tracking import tracking
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import RlhfError
from rlhf_core.schema import (
    DatasetSplits,
    Estimate,
    GateResult,
    ModelRef,
    Record,
    RunContext,
    StageResult,
)
from rlhf_core.schema.shown import shown_code, shown_link, shown_markdown
from rlhf_core.stages.versions import dataset_page
from rlhf_flows.engine.flow_results import LabelsResult, PipelineResult, Round, Rounds
from rlhf_flows.engine.lost_server import best_effort
from rlhf_flows.engine.runs.in_prefect import is_deployed

logger = logging.getLogger(__name__)

NUM_CHANGED = 3
"""Changed answers shown above the form of an approval."""
MOST_SHOWN = 400
"""Characters shown of an answer there."""

Page = tuple[str, Sequence[tuple[str, str]]]
"""Markdown, and links as address and words."""


def show_result(stage: str, result: Record, config: PipelineConfig, context: RunContext) -> None:
    """Publish the result of a stage, if a worker runs it."""
    if isinstance(result, StageResult) and result.decision is not None:
        _publish(f"{stage}-result", lambda: _stage(stage, result))
    elif isinstance(result, StageResult):
        _publish(f"{stage}-model", lambda: _model(stage, result.model))
    elif isinstance(result, DatasetSplits):
        _publish("prepare-dataset", lambda: _dataset(result, config, context))


def show_outcome(result: PipelineResult) -> None:
    """Publish how a pipeline run ended and where its page lies, if a worker runs it."""
    _publish("pipeline-outcome", lambda: _outcome(result))


def show_labels(result: LabelsResult) -> None:
    """Publish how far a collection has come, if a worker runs this."""
    _publish("collect-outcome", lambda: _labels(result))


def show_rounds(result: Rounds) -> None:
    """Publish the rounds so far, one line each."""
    _publish("rounds", lambda: _rounds(result))


def file_report(directory: Path, decided: StageResult) -> tuple[Path, str | None]:
    """Write the run's page; return its path and, if a worker runs this, its address in MLflow.

    The page is kept with the MLflow run of the stage that decided. Without it there is the path.
    """
    from rlhf_core.stages.evaluation.report import write_report

    path = write_report(directory)
    if not is_deployed():
        return path, None
    run_id = decided.tracking_url.rsplit("/", 1)[-1]
    try:
        return path, tracking.keep_file(run_id, path)
    except RlhfError as error:
        logger.warning("report_not_kept path=%s error=%s", path, error)
        return path, None


def _publish(name: str, page: Callable[[], Page]) -> None:
    """Publish a page and its links. One that cannot be shown costs a warning and no work."""
    if not is_deployed():
        return
    with best_effort(f"not_shown={name}"):
        text, links = page()
        create_markdown_artifact(text, key=name)
        for address, words in links:
            if address.startswith("http"):
                key = f"{name.split('-')[0]}-{words.lower().replace(' ', '-')}"
                create_link_artifact(address, link_text=words, key=key)


def _outcome(result: PipelineResult) -> Page:
    rows = [f"| {item.stage} | {item.seconds:.0f} |" for item in result.timings]
    text = "\n".join(
        (
            f"# {result.verdict} (by {shown_markdown(result.decided_by)})",
            *(f"- {shown_markdown(reason)}" for reason in result.reasons),
            f"\n{report_line(result.report, result.report_url)}\n",
            "| stage | seconds |\n|---|---|",
            *rows,
        )
    )
    return text, [(result.report_url, "report")] if result.report_url else []


def report_line(path: Path | None, url: str | None) -> str:
    """Return where the run's page is: a link where a browser can follow one, else the file."""
    file = shown_code(path)
    return f"{shown_link('report', url)}, also {file}" if url else f"report: {file}"


def _stage(stage: str, result: StageResult) -> Page:
    return stage_page(stage, result), [(result.tracking_url, "mlflow")]


def stage_page(stage: str, result: StageResult) -> str:
    """Return a page with the stage's verdict, gates and metrics."""
    decision = result.judgement
    gates = [
        f"| {shown_markdown(gate.gate)} | **{gate.shown_verdict}** | {_of_gate(gate)} "
        f"| {shown_markdown(gate.rule)} |"
        for gate in decision.results
    ]
    metrics = [
        f"| {shown_markdown(name)} | {_estimate(estimate)} |"
        for name, estimate in sorted(result.report.metrics.items())
    ]
    return "\n".join(
        (
            f"# {stage}: {decision.verdict}",
            f"{shown_code(result.model.uri)}, {shown_link('MLflow run', result.tracking_url)}",
            *(f"- {shown_markdown(reason)}" for reason in decision.reasons),
            "\n| gate | verdict | measured | rule |\n|---|---|---|---|",
            *gates,
            "\n| metric | value |\n|---|---|",
            *metrics,
        )
    )


def changed_answers(evaluated: StageResult) -> list[str]:
    """Return Markdown about the answers that changed most, from the champion or else from SFT."""
    from rlhf_core.stages.evaluation.report import CHANGED, compared_answers, pick_samples

    rows = compared_answers(evaluated)
    samples = pick_samples(rows)
    for who in ("the champion", "SFT"):
        if chosen := samples.get(CHANGED.format(who)):
            break
    else:
        return ["No answer differs from SFT's, nor from a champion's."] if rows else []
    lines = [
        f"**{CHANGED.format(who)}** ({min(NUM_CHANGED, len(chosen))} answers; the report has more)"
    ]
    for sample in chosen[:NUM_CHANGED]:
        policy, sft = sample.scores["judge"]
        champion = who == "the champion"
        before = (sample.champion or "") if champion else sample.sft
        score = (sample.champion_score or 0.0) if champion else sft
        name = "champion" if champion else "SFT"
        lines.append(
            f"> {_cut(sample.prompt[-1].content)}\n>\n"
            f"> **candidate** (judge {policy:.3g}): {_cut(sample.policy)}\n>\n"
            f"> **{name}** (judge {score:.3g}): {_cut(before)}"
        )
    return lines


def _cut(text: str) -> str:
    short = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ..."
    return shown_markdown(short)


def _model(stage: str, model: ModelRef) -> Page:
    """Page of a stage that is judged by a later one: what its training measured last."""
    address, metrics = tracking.look_up_run(model.run_id)
    text = "\n".join(
        (
            f"# {stage}: {shown_code(model.uri)}",
            f"weights sha256 `{model.sha256}`, {shown_link('MLflow run', address)}",
            "\nIts gates are those of the evaluation. What training measured last:",
            "\n| metric | value |\n|---|---|",
            *(
                f"| {shown_markdown(name)} | {value:.4g} |"
                for name, value in sorted(metrics.items())
            ),
        )
    )
    return text, [(address, "mlflow")]


def _dataset(splits: DatasetSplits, config: PipelineConfig, context: RunContext) -> Page:
    docs = dataset_page.show_dataset(config, splits, context)
    rows = [
        f"| {shown_markdown(part.path.stem)} | {part.num_rows} | `{part.sha256[:12]}` |"
        for part in (getattr(splits, name) for name in DatasetSplits.model_fields)
        if hasattr(part, "num_rows")
    ]
    text = "\n".join(
        (
            f"# dataset `{splits.sha256[:12]}`",
            f"\nreport: {shown_code(splits.report.absolute())}",
            f"\n{shown_link('data docs', docs)}\n" if docs else "",
            "| file | rows | sha256 |\n|---|---|---|",
            *rows,
        )
    )
    return text, [(docs, "data docs")] if docs else []


def _labels(result: LabelsResult) -> Page:
    pushed, pulled = result.pushed, result.pulled
    labeler = shown_markdown(pushed.labeler)
    lines = [f"# collection {shown_code(pushed.collection_id)}", f"{pushed.pairs} pairs, {labeler}"]
    if pulled is not None:
        by_votes = (f"| {votes} | {pairs} |" for votes, pairs in pulled.pairs_by_votes.items())
        lines += ["\n| votes | pairs |\n|---|---|", *by_votes, ""]
        if pulled.alpha is not None:
            lines.append(f"Krippendorff's alpha: {_estimate(pulled.alpha)}\n")
        for judge, alpha in pulled.judges.items():
            lines.append(f"{shown_code(judge)} against people: {_estimate(alpha)}\n")
        if pulled.published is not None:
            lines.append(f"**{pulled.published.version.version}**: {pulled.ready} new pairs")
    if result.next_step is not None:
        lines.append(f"Next: {shown_markdown(result.next_step)}")
    return "\n".join(lines), [(pushed.place, "label studio")] if pushed.place else []


def _rounds(result: Rounds) -> Page:
    names = [name for name in Round.SHOWN if any(name in one.metrics for one in result.rounds)]
    lines = [
        f"# rounds of {shown_code(result.run_id)}",
        "\n| round | data | verdict | labelled | " + " | ".join(names) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for one in result.rounds:
        data = one.data_version or "raw data"
        cells = [str(one.number), shown_markdown(data), str(one.verdict), str(one.labelled or "")]
        cells += [_estimate(one.metrics[n]) if n in one.metrics else "" for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    if result.awaits is not None:
        lines.append(f"\nNext: {shown_markdown(result.awaits)}")
    return "\n".join(lines), []


def _of_gate(gate: GateResult) -> str:
    return gate.without_estimate if gate.estimate is None else _estimate(gate.estimate)


def _estimate(estimate: Estimate) -> str:
    low, high = f"{estimate.low:.4g}", f"{estimate.high:.4g}"
    return f"{estimate.value:.4g} [{low}, {high}], n = {estimate.num_samples}"
