"""Runs that nothing needs are deleted, by command or after each run; ``needed`` says which."""

import logging
from collections.abc import Container, Iterable, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

from rlhf_core.adapters.registry.needed_runs import registry_needs
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import CheckpointError, RlhfError
from rlhf_core.schema import Record, RunContext
from rlhf_flows.engine.runs.folder import CONFIG, settings_of_run
from rlhf_flows.engine.runs.locks import hold_run
from rlhf_flows.engine.runs.needed import Rule, why_kept
from rlhf_flows.engine.runs.overview import RunSummary, list_runs
from rlhf_flows.engine.runs.own_files import delete_run, foreign_files, freed_bytes, own_files

logger = logging.getLogger(__name__)

_AT_ONCE = 50
"""Runs that are held together: each takes a file for every stage."""


class OldRun(Record):
    """A run, whether it may go, and what went."""

    run_id: str
    started: datetime
    verdict: str
    disk_bytes: int
    freed_bytes: int
    """Of its blocks, those that no other file shares: what the registry links to stays."""
    kept_because: tuple[str, ...] = ()
    """Empty where it may go."""
    deleted: bool = False
    left: tuple[Path, ...] = ()
    """Files in its folder that the pipeline did not write; they stay."""


class Cleaning(Record):
    """All runs of a folder, oldest first."""

    directory: Path
    runs: tuple[OldRun, ...]

    @property
    def safe(self) -> tuple[OldRun, ...]:
        """Those that may go."""
        return tuple(run for run in self.runs if not run.kept_because)


def look_for_old_runs(
    runs: Path,
    rule: Rule,
    *,
    spared: Mapping[str, str] | None = None,
    held: Container[str] = (),
) -> Cleaning:
    """Say of every run in a folder whether anything needs it; nothing is changed.

    Args:
        runs: folder of all runs.
        rule: which runs may go.
        spared: runs that may not, each with the reason.
        held: runs that the caller keeps everybody out of.

    Raises:
        RegistryError: MLflow does not answer, so that nobody knows what it needs.
        OrchestrationError: the same of Prefect, where PREFECT_API_URL names a server.
    """
    needs = registry_needs()
    found = list_runs(runs, needs.aliases)
    why = why_kept(found, needs, rule, spared=spared or {}, held=held)
    return Cleaning(
        directory=found.directory,
        runs=tuple(
            _old_run(run, _context(found.directory, run.run_id), why[run.run_id])
            for run in found.runs
        ),
    )


def delete_old_runs(
    seen: Cleaning, rule: Rule, *, spared: Mapping[str, str] | None = None
) -> Cleaning:
    """Delete the runs that may go, by what was seen and still now; say what was freed.

    Whether they may go is looked up again while everybody is kept out of them: one that somebody
    has taken up, or that an alias has been moved to, stays, and keeps what it was made from. The
    newest goes first.

    Raises:
        RegistryError: MLflow does not answer.
        OrchestrationError: Prefect does not.
        StorageError: a folder takes no changes.
    """
    found = {run.run_id: run for run in seen.runs}
    spared = dict(spared or {})
    left = [run.run_id for run in seen.safe]
    while left:
        left, group = left[:-_AT_ONCE], left[-_AT_ONCE:]
        with ExitStack() as locks:
            held = set()
            for run_id in group:
                try:
                    locks.enter_context(hold_run(_context(seen.directory, run_id)))
                    held.add(run_id)
                except CheckpointError as error:
                    spared[run_id] = str(error)
                    kept = {"kept_because": (str(error),)}
                    found[run_id] = found[run_id].model_copy(update=kept)
            now = look_for_old_runs(seen.directory, rule, spared=spared, held=held)
            found |= {run.run_id: run for run in now.runs}
            for run in reversed(now.safe):
                if run.run_id in held:
                    found[run.run_id] = _delete(run, seen.directory)
    return seen.model_copy(update={"runs": tuple(sorted(found.values(), key=_order))})


def _order(run: OldRun) -> tuple[datetime, str]:
    return run.started, run.run_id


def _delete(run: OldRun, runs: Path) -> OldRun:
    foreign = delete_run(_context(runs, run.run_id))
    logger.info("run_deleted run=%s freed_bytes=%d", run.run_id, run.freed_bytes)
    return run.model_copy(update={"deleted": True, "left": foreign})


def _context(runs: Path, run_id: str) -> RunContext:
    return RunContext(run_id=run_id, directory=runs.absolute() / run_id)


def _old_run(run: RunSummary, context: RunContext, reasons: Iterable[str]) -> OldRun:
    foreign = foreign_files(context.directory)
    return OldRun(
        run_id=run.run_id,
        started=run.started,
        verdict=run.verdict,
        disk_bytes=run.disk_bytes,
        freed_bytes=freed_bytes(own_files(context.directory)),
        kept_because=tuple(dict.fromkeys(reasons)),
        left=foreign,
    )


def retain(config: PipelineConfig, context: RunContext) -> None:
    """Delete the earlier runs that ``retention`` of the settings says; a fault costs a warning.

    Only runs of the same project that were begun with the setting are subject to it.

    Args:
        config: settings of the run that has ended.
        context: that run.
    """
    setting = config.retention
    if setting is None:
        return
    rule = Rule(
        older_than=timedelta(days=setting.older_than_days),
        keep_last=setting.keep_last,
        unfinished=True,
    )
    try:
        spared = {context.run_id: "it has just ended"}
        for path in config.runs.glob(f"*/{CONFIG}"):
            other = RunContext(run_id=path.parent.name, directory=path.parent.absolute())
            if not _was_begun_with_retention(other, config.project):
                spared[other.run_id] = "begun without this project's retention"
        seen = look_for_old_runs(config.runs, rule, spared=spared)
        done = delete_old_runs(seen, rule, spared=spared) if seen.safe else seen
    except (RlhfError, OSError) as error:
        logger.warning("old_runs_kept run=%s: %s", context.run_id, error)
        return
    gone = [run for run in done.runs if run.deleted]
    logger.info(
        "old_runs_deleted runs=%d freed_bytes=%d kept=%d",
        len(gone),
        sum(run.freed_bytes for run in gone),
        len(done.runs) - len(gone),
    )


def _was_begun_with_retention(context: RunContext, project: str) -> bool:
    """Of a run whose settings cannot be read nobody knows: it is not."""
    try:
        settings = settings_of_run(context)
    except RlhfError:
        return False
    return settings.retention is not None and settings.project == project
