"""What the runs of a folder came to, listed and compared: only looked at, never changed."""

import os
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rlhf_core.config.stages import JUDGING, STAGES
from rlhf_core.errors import ConfigError, RlhfError
from rlhf_core.schema import DatasetSplits, Estimate, Record, RunContext, StageName, StageResult
from rlhf_core.stages.promote import Promotion
from rlhf_flows.engine.runs.folder import CONFIG, RESULT, locate_run, settings_of_run
from rlhf_flows.engine.runs.locks import is_worked_on
from rlhf_flows.engine.runs.settings import flat_settings
from rlhf_flows.engine.runs.stage_folder import saved_result

Outcome = Literal["PROMOTE", "HOLD", "REJECT", "damaged", "unfinished"]


class RunSummary(Record):
    """One run, as a line of a list."""

    run_id: str
    started: datetime
    """When its settings were written, UTC."""
    stages: tuple[StageName, ...]
    """Those that have a result, in the order of the pipeline."""
    verdict: Outcome
    is_worked_on: bool = False
    """Whether a process of this machine is at what is unfinished of it now."""
    reason: str = ""
    """What is damaged; empty where nothing is."""
    disk_bytes: int
    """Blocks on the disk; a file that the registry links to as well counts here too."""
    aliases: tuple[str, ...] | None = ()
    """``<name>@<alias>`` of the registry that stand at a model of the run; None where MLflow does
    not answer."""


class RunList(Record):
    """The runs of one folder, oldest first."""

    directory: Path
    runs: tuple[RunSummary, ...]


class RunComparison(Record):
    """Two runs, side by side."""

    runs: tuple[str, str]
    settings: dict[str, tuple[str, str]]
    """Setting to its two values, only where they differ."""
    datasets: tuple[str | None, str | None]
    """sha256 of the prepared data; None where preparation has not finished."""
    metrics: dict[str, tuple[Estimate | None, Estimate | None]]
    """Metric to its estimates; None where a run did not measure it."""


def list_runs(runs: Path, aliases: Mapping[str, Collection[str]] | None) -> RunList:
    """Look at every run of a folder; what is no run is left out.

    Args:
        runs: folder of all runs; none there is an empty list.
        aliases: run id to the aliases that stand at its models; None where nobody knows.
    """
    found = sorted(path.parent for path in runs.glob(f"*/{CONFIG}"))
    summaries = [
        _summary(RunContext(run_id=path.name, directory=path.absolute()), aliases) for path in found
    ]
    return RunList(
        directory=runs.absolute(),
        runs=tuple(sorted(summaries, key=lambda run: (run.started, run.run_id))),
    )


def compare_runs(first: str, second: str, runs: Path) -> RunComparison:
    """Put two runs side by side: settings that differ, data, and all that was measured.

    Raises:
        ConfigError: there is no such run, or its settings are damaged.
        CheckpointError: a stage's result is damaged.
    """
    one, other = (_existing(run, runs) for run in (first, second))
    ours, theirs = (
        flat_settings(settings_of_run(run).model_dump(mode="json")) for run in (one, other)
    )
    measured = [_metrics(run) for run in (one, other)]
    splits = [saved_result(run, "prepare", DatasetSplits) for run in (one, other)]
    return RunComparison(
        runs=(one.run_id, other.run_id),
        settings={
            key: (ours.get(key, "not set"), theirs.get(key, "not set"))
            for key in sorted({*ours, *theirs})
            if ours.get(key) != theirs.get(key)
        },
        datasets=(splits[0] and splits[0].sha256, splits[1] and splits[1].sha256),
        metrics={
            name: (measured[0].get(name), measured[1].get(name))
            for name in dict.fromkeys([*measured[0], *measured[1]])
        },
    )


def disk_of(directory: Path) -> int:
    """Return the bytes of a folder's blocks, a file with several names counted once."""
    blocks = {}
    for folder, _, files in os.walk(directory):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            try:
                found = os.lstat(path)
            except FileNotFoundError:  # a stage at work replaces its files
                continue
            blocks[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(blocks.values())


def _existing(run: str, runs: Path) -> RunContext:
    context = locate_run(run, runs)
    if not (context.directory / CONFIG).exists():
        raise ConfigError(f"{context.directory}: no such run; rlhf runs --runs {runs} lists them")
    return context


def _summary(run: RunContext, aliases: Mapping[str, Collection[str]] | None) -> RunSummary:
    stages = tuple(stage for stage in STAGES if (run.stage_directory(stage) / RESULT).exists())
    verdict, reason = _verdict(run)
    return RunSummary(
        run_id=run.run_id,
        started=datetime.fromtimestamp((run.directory / CONFIG).stat().st_mtime, UTC),
        stages=stages,
        verdict=verdict,
        is_worked_on=verdict == "unfinished" and _is_at_work(run),
        reason=reason,
        disk_bytes=disk_of(run.directory),
        aliases=None if aliases is None else tuple(sorted(aliases.get(run.run_id, ()))),
    )


def _is_at_work(run: RunContext) -> bool:
    """Of somebody else's run, whose locks are not ours to take, nobody says."""
    try:
        return is_worked_on(run)
    except OSError:
        return False


def _verdict(run: RunContext) -> tuple[Outcome, str]:
    """Return what decided the run: promotion, else its evaluation, else a gate that ended it."""
    try:
        if promotion := saved_result(run, "promote", Promotion):
            return promotion.verdict, ""
        for stage in reversed(JUDGING):
            result = saved_result(run, stage, StageResult)
            of_run = STAGES[stage].judges != stage
            if result and (of_run or result.verdict != "PROMOTE"):
                return result.judgement.verdict, ""
    except RlhfError as error:
        return "damaged", str(error)
    return "unfinished", ""


def _metrics(run: RunContext) -> dict[str, Estimate]:
    """Return what all stages measured; their names begin with the stage."""
    results = (saved_result(run, stage, StageResult) for stage in JUDGING)
    return {
        name: estimate
        for result in results
        if result is not None
        for name, estimate in result.report.metrics.items()
    }
