"""What people see in the terminal: tables of metrics, gates, decisions and times."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.pretty import Pretty
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rlhf_core.adapters.datasets.data_docs import INDEX, find_docs
from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.schema import (
    DatasetRef,
    DatasetSplits,
    Estimate,
    GateResult,
    PromotionDecision,
    StageResult,
    Verdict,
)
from rlhf_core.schema.shown import shown
from rlhf_flows.commands.findings import Finding
from rlhf_flows.engine.flow_results import PipelineResult, StageTiming

if TYPE_CHECKING:
    from rlhf_core.adapters.registry.lineage import Lineage
    from rlhf_flows.engine.dry_run import PlannedStage

COLOUR: dict[Verdict, str] = {"PROMOTE": "green", "HOLD": "yellow", "REJECT": "red"}

WIDE = 200
"""Columns of what goes to a file or a pipe, which has no width of its own."""
_MAX_NAMED = 5
"""Careless-looking annotators on the terminal; the table has all."""


class ShowingConsole(Console):
    """A terminal that shows the control characters of texts: only its own styles are obeyed."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text with its control characters written out, before its width is taken."""
        return super().render_str(shown(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of what is printed, every control character written out."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))


console = ShowingConsole(highlight=False, emoji=False, width=None if sys.stdout.isatty() else WIDE)


def show_table(table: Table) -> None:
    """Print a table whose words are never cut short: folded where the terminal is narrow."""
    for column in table.columns:
        column.overflow = "fold"
    console.print(table)


def show_line(text: str) -> None:
    """Print one line as it is: no markup, no wrapping, so that it can be copied."""
    console.print(text, markup=False, soft_wrap=True)


def show_splits(splits: DatasetSplits) -> None:
    """Print what preparation made."""
    table = Table("file", "rows", "sha256", title=f"prepare: dataset {splits.sha256[:12]}")
    for name in DatasetSplits.model_fields:
        part = getattr(splits, name)
        if isinstance(part, DatasetRef):
            table.add_row(name, str(part.num_rows), part.sha256[:12])
    show_table(table)
    show_line(f"report: {splits.report}")
    docs = find_docs(splits.directory)
    if docs is not None:
        show_line(f"data docs: {docs / INDEX}")


def _label_lines(labels: dict[str, Any] | None) -> list[str]:
    if labels is None:
        return []
    sides = ", ".join(
        f"{side} {counts['good']:,} good and {counts['bad']:,} bad"
        for side, counts in labels["sides"].items()
    )
    return [f"labelled responses: {sides}"]


def show_preparation(report: Path) -> None:
    """Print what a dataset's report says first: rows, agreement, and who looks careless."""
    found = json.loads(report.read_text(encoding="utf-8"))
    for name, rows in found["inputs"].items():
        counts = sorted(rows["set_aside"].items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{reason} {num:,}" for reason, num in counts)
        aside = f"; filtered out: {reasons}" if reasons else ""
        show_line(f"{name}: {rows['rows']:,} rows, {rows['kept']:,} kept{aside}")
    _show_near_dialogues(found.get("near_dialogues", {}))  # older versions do not tell
    for line in (*_label_lines(found.get("labels")), *_conversation_lines(found)):
        show_line(line)
    agreement = found["agreement"]
    alpha = agreement["krippendorff_alpha"]
    shown = "not defined: no comparison has two votes, or all votes are the same"
    if alpha is not None:
        shown = f"{alpha['value']:.3f} [{alpha['low']:.3f}, {alpha['high']:.3f}]"
    show_line(f"Krippendorff's alpha of the votes trained on: {shown}")
    if by_heads := agreement.get("num_decided_by_heads"):  # older versions do not tell
        show_line(
            f"{agreement['method']}: {by_heads:,} comparisons by heads, for everybody who voted on"
            " them has too few votes for a record (data.votes.min_votes)"
        )
    careless = agreement["careless"][:_MAX_NAMED]
    if careless:
        names = ", ".join(f"{one['annotator']} ({', '.join(one['careless'])})" for one in careless)
        show_line(f"look careless: {names}; everybody: {report.with_name('annotators.csv')}")


def _show_near_dialogues(near: dict[str, Any]) -> None:
    """Print what the split keeps together, beyond dialogues that open alike."""
    if near.get("num_groups"):
        show_line(
            f"nearly equal first turns: {near['num_dialogues']:,} dialogues in"
            f" {near['num_groups']:,} groups, each on one side; {near['num_kept_together']:,} would"
            " have been on two"
        )
    if near.get("num_beside_heldout_file"):
        show_line(
            f"nearly equal to held-out prompts: {near['num_beside_heldout_file']:,} dialogues, held"
            " out with them"
        )
    if near.get("num_too_large"):
        show_line(
            f"too many nearly equal first turns for one side: {near['num_dialogues_too_large']:,}"
            f" dialogues in {near['num_too_large']:,} groups, each split by itself"
        )


def _conversation_lines(report: dict[str, Any]) -> Iterator[str]:
    """Say with which template conversations become tokens, where turns end, and what was lost."""
    said = report.get("conversations", {})
    if "turn_ends_with" in said:
        place = " in place of the model's own" if said["replaces_own_template"] else ""
        day = f", read on {said['date']}" if "date" in said else ""
        yield (
            f"chat template: {said['template']}{place}{day}; a turn ends with"
            f" {said['turn_ends_with']}, sampling stops at {', '.join(said['sampling_stops_at'])}"
        )
    yield from report.get("tokens", {}).get("uneven", ())


def show_stage(name: str, result: StageResult) -> None:
    """Print one stage: every metric with its interval, every gate with its verdict."""
    model = result.model
    for file, rows in result.report.rows.items():
        if rows.left_out:
            counts = ", ".join(f"{reason} {count:,}" for reason, count in rows.left_out.items())
            uneven = f"; {rows.uneven}" if rows.uneven else ""
            show_line(f"{file}: {rows.rows:,} rows, {rows.kept:,} kept; left out: {counts}{uneven}")
    if result.report.choice:
        show_line(result.report.choice.summary)
    if result.decision is None:
        show_line(f"{name}: {model.uri}, weights sha256 {model.sha256[:16]}, files {model.path}")
        return
    table = Table("metric", "value", "interval", "n", title=f"{name}: {model.uri}")
    for metric, estimate in sorted(result.report.metrics.items()):
        table.add_row(metric, *_estimate_cells(estimate))
    show_table(table)
    show_gates(result.decision)
    show_line(f"{name}: weights sha256 {model.sha256[:16]}, run {result.tracking_url}")


def show_gates(decision: PromotionDecision) -> None:
    """Print a row for every gate."""
    table = Table("gate", "verdict", "measured", "rule")
    for gate in decision.results:
        name, rule = escape(gate.gate), escape(gate.rule)
        said = _coloured(gate.verdict) if gate.shown_verdict == gate.verdict else gate.shown_verdict
        table.add_row(name, said, _measured(gate), rule)
    show_table(table)


def show_record(record: BaseModel) -> None:
    """Print a record field by field; what says nothing is left out."""
    found = record.model_dump(mode="json", exclude_none=True)
    for name, value in found.items():
        if isinstance(value, dict):
            show_line(f"{name}:")
            console.print(Pretty(value, expand_all=True))
            continue
        for one in value if isinstance(value, list) else [value]:
            show_line(f"{name.replace('_', ' ')}: {one}")


def show_lineage(lineage: "Lineage") -> None:
    """Print a model, the data and gates behind it, and below it the models it was made from."""
    console.print(_lineage_tree(lineage, "", seen=set()))
    if lineage.release_problem:
        console.print("[red]BAD [/]", end="")
        show_line(f"release: {lineage.release_problem}")


def _lineage_tree(lineage: "Lineage", role: str, *, seen: set[str]) -> Tree:
    aliases = f" [{', '.join(lineage.aliases)}]" if lineage.aliases else ""
    tree = Tree(escape(f"{role}{lineage.model}{aliases}"))
    if lineage.model in seen:
        return tree
    seen.add(lineage.model)
    dirty = " with uncommitted changes" if lineage.git_dirty else ""
    tree.add(f"verdict {_coloured(lineage.verdict) if lineage.verdict else 'none yet'}")  # type: ignore[arg-type]
    for line in (
        *lineage.reasons,
        *([lineage.checkpoint] if lineage.checkpoint else []),
        f"weights sha256 {lineage.sha256}",
        f"data {lineage.dataset_path} sha256 {lineage.dataset_sha256}"
        f" dvc md5 {lineage.dataset_dvc_md5}",
        f"run {lineage.pipeline_run} {lineage.run_status} {lineage.tracking_url}",
        f"code git {lineage.git_commit or 'not in a repository'}{dirty}",
        f"config sha256 {lineage.config_sha256}",
    ):
        tree.add(escape(line))
    for name, upstream in lineage.upstream.items():
        tree.add(_lineage_tree(upstream, f"made with {name}: ", seen=seen))
    for name, why in lineage.lost.items():
        tree.add(escape(f"made with {name}, which is lost: {why}"))
    return tree


def show_findings(findings: Iterable[Finding]) -> None:
    """Print what `rlhf doctor` found, and under every failing line how to fix it."""
    for finding in findings:
        sign = "[green]ok  [/]" if finding.healthy else "[red]BAD [/]"
        console.print(sign, end="")
        show_line(f"{finding.what}: {finding.found}")
        if not finding.healthy:
            show_line(f"     fix: {finding.fix}")


def show_decision(verdict: Verdict, reasons: Iterable[str], decided_by: str) -> None:
    """Print the verdict and why."""
    console.print(f"\ndecision: {_coloured(verdict)} (by the gates of {decided_by})")
    for reason in reasons:
        show_line(f"  - {reason}")


def show_planned(stages: Iterable["PlannedStage"]) -> None:
    """Print which stages would run, which would not and why, what they read, what was set."""
    table = Table("stage", "would", "why", "reads", "settings that are no defaults")
    for planned in stages:
        reads = (f"{name}: {what}" for name, what in planned.reads.items())
        settings = (f"{key}={value}" for key, value in planned.settings.items())
        cells = (planned.stage, planned.would, planned.why, "\n".join(reads), "\n".join(settings))
        table.add_row(*map(escape, cells), end_section=True)
    show_table(table)


def show_times(timings: Iterable[StageTiming]) -> None:
    """Print how long each stage took."""
    timings = tuple(timings)
    table = Table("stage", "seconds", "", title="time")
    for timing in timings:
        note = "kept from before" if timing.reused else ""
        table.add_row(timing.stage, f"{timing.seconds:.1f}", note)
    table.add_row("total", f"{sum(timing.seconds for timing in timings):.1f}", "", style="bold")
    show_table(table)


def show_run(result: PipelineResult) -> None:
    """Print the whole run: a table per stage, the times, the decision."""
    show_splits(result.splits)
    for name, stage in result.stages.items():
        show_stage(name, stage)
    show_times(result.timings)
    show_decision(result.verdict, result.reasons, result.decided_by)
    if result.promotion is not None:
        before = result.promotion.previous_champion or "none"
        show_line(f"  champion: {result.promotion.champion} (before: {before})")


def show_where(result: PipelineResult) -> None:
    """Print where a person looks after a run: pages, files, commands."""
    settings = load_settings()
    mlflow = without_credentials(settings.mlflow_tracking_uri)
    places = {
        "report": str(result.report),
        "MLflow": f"mlflow ui --backend-store-uri {mlflow}" if settings.embedded else mlflow,
        "lineage": f"rlhf lineage {result.last_model.uri}",
        "files": str(result.directory),
    }
    if settings.prefect_api_url:
        places["Prefect"] = without_credentials(settings.prefect_api_url).removesuffix("/api")
    show_line("\nwhere to look")
    for what, where in places.items():
        show_line(f"  {what:<10} {where}")


def _measured(gate: GateResult) -> str:
    if gate.estimate is None:
        return gate.without_estimate
    value, interval, count = _estimate_cells(gate.estimate)
    return f"{value} {interval}, n = {count}"


def _estimate_cells(estimate: Estimate) -> tuple[str, str, str]:
    return (
        f"{estimate.value:.4g}",
        f"[{estimate.low:.4g}, {estimate.high:.4g}]",
        str(estimate.num_samples),
    )


def _coloured(verdict: Verdict) -> str:
    return f"[{COLOUR[verdict]}]{verdict}[/]"
