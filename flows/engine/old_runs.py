"""Which runs nothing needs any more, and how their folders go: only what the pipeline wrote."""

import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field

from rlhf_core.adapters.registry.needed_runs import RegistryNeeds, registry_needs, tracked_runs
from rlhf_core.adapters.settings import load_settings, without_credentials
from rlhf_core.adapters.tracking.earlier_run import RUN_NOTE
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import CheckpointError, RlhfError
from rlhf_core.schema import Record, RunContext, StageResult
from rlhf_core.storage.records import read_record
from rlhf_flows.engine.named_runs import keep_inputs, keep_what_is_named
from rlhf_flows.engine.past_runs import RunSummary, list_runs
from rlhf_flows.engine.prefect_server import ask
from rlhf_flows.engine.records import Rounds
from rlhf_flows.engine.run_files import (
    delete_run,
    foreign_files,
    freed_bytes,
    hold_run,
    own_files,
)
from rlhf_flows.engine.run_folder import named_after
from rlhf_flows.engine.runs import (
    CONFIG,
    MARK,
    ROUNDS,
    is_worked_on,
    saved_result,
    settings_of_run,
)

logger = logging.getLogger(__name__)

_AT_ONCE = 50
"""Runs that are held together: each takes a file for every stage."""


class Rule(Record):
    """Which runs may go, of those that nothing needs."""

    older_than: timedelta = timedelta(0)
    """Since a run was started."""
    keep_last: int = Field(default=0, ge=0)
    """The newest runs that stay, whatever became of them."""
    unfinished: bool = False
    """Those that were stopped, too: nobody can go on with them then."""


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
    needs, spared = registry_needs(), spared or {}
    found = list_runs(runs, needs.aliases).runs
    contexts = {run.run_id: _context(runs, run.run_id) for run in found}
    at_work = runs_in_prefect()
    why: dict[str, list[str]] = {}
    for place, run in enumerate(found):
        context = contexts[run.run_id]
        why[run.run_id] = [
            *([spared[run.run_id]] if run.run_id in spared else ()),
            *needs.reasons.get(run.run_id, ()),
            *_own_reasons(run, context, needs, rule),
            *(["a process is working on it"] if _is_taken(context, held) else ()),
            *(["Prefect has a flow run of it that has not ended"] if run.run_id in at_work else ()),
            *_of_rule(run, len(found) - place, rule),
        ]
    keep_what_is_named(why, contexts, needs)
    keep_inputs(why, contexts, needs)
    for run_id, reasons in why.items():
        reasons += [] if reasons else _untracked(run_id, contexts[run_id])
    return Cleaning(
        directory=runs.absolute(),
        runs=tuple(_old_run(run, contexts[run.run_id], why[run.run_id]) for run in found),
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


def runs_in_prefect() -> set[str]:
    """Return the ids of runs that a flow run of Prefect's server has begun and not ended.

    Raises:
        OrchestrationError: the server does not answer.
    """
    url = load_settings().prefect_api_url
    if url is None:
        return set()
    states = ["RUNNING", "PENDING", "PAUSED", "CANCELLING", "SCHEDULED"]
    found: set[str] = set()
    offset = 0
    while True:
        page = ask(
            url,
            "flow_runs/filter",
            {"flow_runs": {"state": {"type": {"any_": states}}}, "limit": 200, "offset": offset},
        )
        for each in page:
            created = datetime.fromisoformat(each["created"])
            found.add(named_after(created, each["id"]))
            inputs = (each.get("parameters") or {}).get("inputs")
            if isinstance(inputs, dict) and inputs.get("run"):
                found.add(Path(str(inputs["run"])).name)
        offset += len(page)
        if len(page) < 200:
            return found


def _is_taken(context: RunContext, held: Container[str]) -> bool:
    """Whether another process works on a run."""
    return context.run_id not in held and is_worked_on(context)


def _context(runs: Path, run_id: str) -> RunContext:
    return RunContext(run_id=run_id, directory=runs.absolute() / run_id)


def _own_reasons(
    run: RunSummary, context: RunContext, needs: RegistryNeeds, rule: Rule
) -> Iterator[str]:
    """Yield what the run's own folder says."""
    if context.directory.is_symlink():
        yield "its folder is a link"
    if (context.directory / MARK).exists():
        return
    if run.verdict == "damaged":
        yield f"damaged, so that nobody knows what it needs: {run.reason}"
        return
    yield from _of_rounds(context, rule)
    if run.verdict == "unfinished" and not rule.unfinished:
        yield "unfinished: go on with it by --run-id, or give --unfinished"
    evaluated = saved_result(context, "evaluate", StageResult)
    waits = evaluated is not None and evaluated.decision.verdict == "PROMOTE"
    if evaluated and waits and "promote" not in run.stages:
        uri = evaluated.model.uri
        if uri not in needs.refused:
            yield f"{uri} passed its gates and waits for its promotion: rlhf promote {uri}"


def _of_rounds(context: RunContext, rule: Rule) -> Iterator[str]:
    """Yield why the first run of `rlhf rounds` is needed: all that is known of them lies there."""
    path = context.directory / ROUNDS
    if not path.exists():
        return
    try:
        rounds = read_record(path, Rounds)
    except RlhfError:
        yield f"{ROUNDS} is damaged, so that nobody knows whether its rounds have ended"
        return
    if rounds.awaits is not None:
        yield f"its rounds wait for labels: rlhf rounds CONFIG --run-id {context.run_id} goes on"
    elif rounds.rounds and rounds.rounds[-1].verdict is None and not rule.unfinished:
        yield "its rounds were stopped: go on with them by --run-id, or give --unfinished"


def _of_rule(run: RunSummary, place: int, rule: Rule) -> Iterator[str]:
    if place <= rule.keep_last:
        yield f"one of the last {rule.keep_last}"
    age = datetime.now(UTC) - run.started
    if age < rule.older_than:
        yield f"started {_days(age)} ago, less than {_days(rule.older_than)}"


def _days(age: timedelta) -> str:
    days, hours = age.days, age.seconds // 3600
    return f"{days} day{'s' * (days != 1)}" if days else f"{hours} hour{'s' * (hours != 1)}"


def _untracked(run_id: str, context: RunContext) -> list[str]:
    """Keep a run whose records this MLflow has never heard of: it may be the wrong one."""
    tracked, elsewhere = tracked_runs(run_id)
    if elsewhere:
        return [f"MLflow says that it is worked on: {', '.join(elsewhere)}"]
    # By the ids that MLflow gave: another project may have a run of the same name.
    notes = [path.read_text(encoding="utf-8") for path in context.directory.glob(f"*/{RUN_NOTE}")]
    if not notes or any(note in tracked for note in notes):
        return []
    where = without_credentials(load_settings().mlflow_tracking_uri)
    return [f"MLflow at {where} does not know it; look at MLFLOW_TRACKING_URI"]


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
